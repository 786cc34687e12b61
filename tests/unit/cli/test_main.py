"""The command line: sentences, exit codes, and no heavy imports for --help."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vpp_dispatch import goodwe
from vpp_dispatch.cli import main, reference
from vpp_dispatch.errors import ConfigurationError, NotReachable
from vpp_dispatch.settings import Settings


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in an environment that is complete, but for what is given."""
    password = tmp_path / "password"
    password.write_text("x")

    def run(*arguments: str, **variables: str) -> Result:
        complete = {
            "VPP_DISPATCH_GOODWE__REALTIME__BASE_URL": "http://127.0.0.1:1",
            "VPP_DISPATCH_GOODWE__REALTIME__ACCOUNT": "supplier",
            "VPP_DISPATCH_GOODWE__REALTIME__PASSWORD_FILE": str(password),
        }
        for name in list(os.environ):
            if name.startswith("VPP_DISPATCH_"):
                monkeypatch.delenv(name)
        return CliRunner().invoke(main, list(arguments), env={**complete, **variables})

    return run


def plant(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom vpp_dispatch.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "heavy = {'faust', 'aiokafka', 'pydantic', 'numpy', 'aiohttp', 'structlog', 'rich'}\n"
        "print('|', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.rstrip().endswith("| []")
    for word in ("run", "simulate", "config", "Exit codes", "--version"):
        assert word in done.stdout


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vpp_dispatch", "run", "--help"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("Usage: vpp-dispatch run")


def test_check_accepts(invoke: Callable[..., Result]) -> None:
    result = invoke("config", "check")
    assert result.exit_code == 0
    assert result.output == "The settings fit, and so does the GoodWe profile goodwe (goodwe).\n"


@pytest.mark.parametrize("command", [("config", "check"), ("config", "show"), ("run",)])
def test_a_configuration_that_does_not_fit_is_2_and_a_sentence(
    invoke: Callable[..., Result], command: tuple[str, ...]
) -> None:
    result = invoke(*command, VPP_DISPATCH_HTTP__PORT="high")
    assert result.exit_code == 2
    assert "VPP_DISPATCH_HTTP__PORT" in result.stderr
    assert not result.stdout


def test_check_says_what_is_missing(invoke: Callable[..., Result]) -> None:
    result = invoke("config", "check", VPP_DISPATCH_GOODWE__REALTIME__ACCOUNT="")
    assert result.exit_code == 2
    assert "VPP_DISPATCH_GOODWE__REALTIME__ACCOUNT is not set" in result.stderr


def test_show_reads_the_file(invoke: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "vpp.toml"
    file.write_text("[http]\nport = 9\n")
    result = invoke("config", "show", "--config", str(file))
    assert result.exit_code == 0
    assert f"VPP_DISPATCH_HTTP__PORT=9  # {file}\n" in result.stdout


def test_run_gives_the_settings_and_passes_the_code_on(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Settings] = []

    def run(settings: Settings) -> int:
        given.append(settings)
        return 7

    plant(monkeypatch, "vpp_dispatch.service", run=run)
    assert invoke("run", VPP_DISPATCH_HTTP__PORT="9").exit_code == 7
    assert [s.http.port for s in given] == [9]


@pytest.mark.parametrize(
    ("fault", "code"), [(ConfigurationError("No topic x: create it."), 2), (NotReachable("Broker away."), 1)]
)
def test_run_ends_with_a_sentence(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int
) -> None:
    def run(settings: Settings) -> int:
        raise fault

    plant(monkeypatch, "vpp_dispatch.service", run=run)
    result = invoke("run")
    assert result.exit_code == code
    assert str(fault) in result.stderr


def test_simulate_hands_everything_on(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.option("--inverters", type=int)
    @click.argument("rest", nargs=-1)
    def command(inverters: int, rest: tuple[str, ...]) -> None:
        """Be GoodWe."""
        click.echo(f"{inverters} {rest}")

    plant(monkeypatch, "vpp_dispatch.simulator.__main__", command=command)
    assert invoke("simulate", "--inverters", "3", "a").output == "3 ('a',)\n"
    helped = invoke("simulate", "--help")
    assert helped.exit_code == 0
    assert helped.output.startswith("Usage: vpp-dispatch simulate")
    assert invoke("simulate", "--inverters", "many").exit_code == 2


def test_check_says_what_is_wrong_with_the_profile(invoke: Callable[..., Result], tmp_path: Path) -> None:
    built_in = Path(goodwe.__file__).parent / "profiles" / "goodwe.toml"
    own = tmp_path / "own.toml"
    own.write_text(built_in.read_text().replace('code_type = "string"', 'code_type = "text"\ncolour = "red"'))
    result = invoke("config", "check", VPP_DISPATCH_GOODWE__PROFILE=str(own))
    assert result.exit_code == 2
    assert "results.colour: this key is not known" in result.stderr and "results.code_type" in result.stderr
    nowhere = invoke("config", "check", VPP_DISPATCH_GOODWE__PROFILE="gudwe")
    assert nowhere.exit_code == 2 and "'gudwe'" in nowhere.stderr and "goodwe" in nowhere.stderr
    both = invoke("config", "check", VPP_DISPATCH_GOODWE__PROFILE="gudwe", VPP_DISPATCH_GOODWE__REALTIME__ACCOUNT="")
    assert "'gudwe'" in both.stderr and "ACCOUNT" in both.stderr, "all that is wrong at once"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_of_this_command(invoke: Callable[..., Result], shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_VPP_DISPATCH_COMPLETE={shell}_complete" in result.stdout


def test_completion_of_an_unknown_shell_names_those_there_are(invoke: Callable[..., Result]) -> None:
    result = invoke("completion", "tcsh")
    assert result.exit_code == 2 and "'bash', 'zsh', 'fish'" in result.stderr


def test_every_command_has_help_that_says_what_it_does(invoke: Callable[..., Result]) -> None:
    for path in reference.paths(main):
        result = invoke(*path, "--help")
        assert result.exit_code == 0, path
        assert result.stdout.startswith(f"Usage: main {' '.join(path)}" if path != ("simulate",) else "Usage: "), path
        assert len(result.stdout.splitlines()) > 5, path


def test_a_misspelt_command_is_2_and_says_what_was_meant(invoke: Callable[..., Result]) -> None:
    close = invoke("fleet", "imprt")
    assert close.exit_code == 2 and "No such command 'imprt'. Did you mean import?" in close.stderr
    far = invoke("frobnicate")
    assert far.exit_code == 2 and "There are completion, config, fleet," in far.stderr
