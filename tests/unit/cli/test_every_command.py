"""Every command with wrong input: a sentence that a stranger can act on, the right exit code, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vpp_dispatch.cli import main, reference
from vpp_dispatch.dispatch.held import Held, HeldFiles

PATHS = [path for path in reference.paths(main) if path != reference.OF_ITS_OWN]
NOWHERE = "127.0.0.1:1"


def command_of(path: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def required(path: tuple[str, ...]) -> Iterator[click.Parameter]:
    return (p for p in command_of(path).params if p.required)


WITH_CONFIG = [path for path in PATHS if any(p.name == "config" for p in command_of(path).params)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What commands want to read."""
    held = HeldFiles(tmp_path / "worker")
    held.rewrite(17, 1, [Held(sn="9010KETU000W0001", row=0, actuator=1, generation=1, first=1, second=0)])
    held.close_all()
    sheet = tmp_path / "fleet.csv"
    sheet.write_text("sn\n9010KETU000W0001\n")
    return {"worker": str(tmp_path / "worker"), "sheet": str(sheet), "rest": str(tmp_path / "rest.jsonl")}


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **variables: str) -> Result:
        env = {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}
        result = CliRunner().invoke(main, list(arguments), env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return run


def valid(path: tuple[str, ...], files: dict[str, str]) -> list[str]:
    """Arguments with which the command would do its work."""
    return {
        "completion": ["bash"],
        "fleet import": [files["sheet"]],
        "release": ["--from", files["worker"], "--yes", "--timeout", "1s", "--rest", files["rest"]],
        "signal abort": ["gridco", "e", "--reason", "x"],
        "signal cancel": ["e"],
        "signal release": ["--all"],
        "signal send": ["--control", "standby", "--all", "--for", "1m"],
        "signal watch": ["e"],
        "switch drain": ["on", "--reason", "x"],
        "switch releases-only": ["on", "--reason", "x"],
    }.get(" ".join(path), [])


def names(paths: list[tuple[str, ...]]) -> list[str]:
    return [" ".join(path) for path in paths]


@pytest.mark.parametrize("path", PATHS, ids=names(PATHS))
def test_an_unknown_option_is_2_and_points_to_the_help(
    invoke: Callable[..., Result], path: tuple[str, ...], files: dict[str, str]
) -> None:
    result = invoke(*path, *valid(path, files), "--colour")
    assert result.exit_code == 2, result.output
    assert "No such option" in result.stderr and "--colour" in result.stderr
    assert f"{' '.join(path)} -h' for help" in result.stderr


MISSING = [path for path in PATHS if any(True for _ in required(path))]


@pytest.mark.parametrize("path", MISSING, ids=names(MISSING))
def test_a_missing_argument_is_2_and_named(invoke: Callable[..., Result], path: tuple[str, ...]) -> None:
    result = invoke(*path)
    assert result.exit_code == 2, result.output
    assert "Missing argument" in result.stderr or "Missing option" in result.stderr
    assert any(_named(p) in result.stderr.lower() for p in required(path))


def _named(parameter: click.Parameter) -> str:
    """How a message names a parameter, in lower case."""
    if isinstance(parameter, click.Option):
        return parameter.opts[0]
    if isinstance(parameter.type, click.Choice):
        return "|".join(parameter.type.choices)
    return str(parameter.metavar or parameter.human_readable_name).lower()


@pytest.mark.parametrize("path", WITH_CONFIG, ids=names(WITH_CONFIG))
@pytest.mark.parametrize("content", [None, "[http\n", "colour = 1\n"], ids=["absent", "no TOML", "unknown setting"])
def test_a_configuration_file_that_cannot_be_used_is_2_and_named(
    invoke: Callable[..., Result], path: tuple[str, ...], files: dict[str, str], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "vpp.toml"
    if content is not None:
        file.write_text(content)
    result = invoke(*path, *valid(path, files), "--config", str(file))
    assert result.exit_code == 2, result.output
    assert str(file) in result.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("fleet", "import"), "nowhere.csv"),
        (("signal", "send"), "nowhere.json"),
        (("release", "--yes", "--from"), "nowhere"),
        (("signal", "send", "--all", "--for", "1m", "--control"), "charge=@nowhere.csv"),
    ],
)
def test_a_file_that_is_not_there_is_2_and_named(
    invoke: Callable[..., Result], arguments: tuple[str, ...], name: str
) -> None:
    result = invoke(*arguments, name)
    assert result.exit_code == 2 and name.rpartition("@")[2] in result.stderr, result.output


OF_KAFKA = [path for path in WITH_CONFIG if path[0] not in ("config", "run", "preflight")]


@pytest.mark.parametrize("path", OF_KAFKA, ids=names(OF_KAFKA))
def test_a_kafka_that_is_away_is_1_and_its_address_and_setting_are_named(
    invoke: Callable[..., Result], path: tuple[str, ...], files: dict[str, str]
) -> None:
    result = invoke(*path, *valid(path, files), KAFKA__BOOTSTRAP_SERVERS=NOWHERE)
    assert result.exit_code == 1, result.output
    side = "GOODWE__KAFKA" if path == ("release",) else "KAFKA"
    assert f"Kafka at {NOWHERE} cannot be used" in result.stderr and f"VPP_DISPATCH_{side}__" in result.stderr


def test_every_command_that_does_something_shows_how_it_is_called() -> None:
    for path in PATHS:
        _, _, text = reference.help_of(path).partition("\n")  # after the usage, which has the words too
        assert f"vpp-dispatch {' '.join(path)} " in text, f"{path} has no example in its --help"


def test_every_command_says_its_exit_codes() -> None:
    for path in PATHS:
        if path != ("completion",):
            assert "Exit codes" in reference.help_of(path), path


def test_every_command_is_completed(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    for path in PATHS:
        *above, last = path
        found = ShellComplete(main, {}, "vpp-dispatch", "_X").get_completions(list(above), last[:3])
        assert last in {item.value for item in found}, path
