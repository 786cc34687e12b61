"""The operating documents are true to the program: commands, targets, settings, metrics, files, calculated numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.deploy.command_lines import among, lines, names_one, parsed
from vpp_dispatch.domain.membership import MEMBER
from vpp_dispatch.domain.roster import ROSTER
from vpp_dispatch.domain.setpoint import SETPOINT
from vpp_dispatch.fleet.freshness import Limits, calls_needed, freshness
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ("capacity.md", "disaster-recovery.md", "image.md", "upgrading.md", "install.md")
OURS = DOCS[:-1]
PROGRAMS = ("vpp-dispatch", "vpp-dispatch:dev", "IMAGE")
PLACEHOLDERS = ("fleet.csv", "now.csv", "event.json", "settings.env", "worker-1/", "worker-2/", "held-rest.jsonl")


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(name: str) -> Iterator[str]:
    """Blocks of code: between fences, and indented by four spaces or more."""
    yield from re.findall(r"(?ms)^```(?:sh|bash|shell|console|)\n(.*?)^```", text(name))
    unfenced = re.sub(r"(?ms)^```.*?^```", "", text(name))
    yield from re.findall(r"(?m)(?:^ {4,}\S.*\n)+", unfenced)


def spans(name: str) -> list[str]:
    """Code within a line."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"(?ms)^```.*?^```", "", text(name)))


def code(name: str) -> list[str]:
    return [*blocks(name), *spans(name)]


def commands(name: str) -> list[list[str]]:
    """The words of each `vpp-dispatch ...` in a document."""
    return [words for piece in code(name) for words in lines(piece, *PROGRAMS) if words]


def fault_of(words: list[str]) -> str | None:
    """Why the real command line would not take this; None = it would."""
    if names_one(words) or words in (["--help"], ["--version"]):
        return None
    try:
        parsed(words)
    except click.exceptions.Exit:  # --help within a command
        return None
    except click.UsageError as fault:
        return f"vpp-dispatch {' '.join(words)}: {fault.format_message()}"
    return None


@pytest.mark.parametrize("name", DOCS)
def test_each_command_is_one_that_the_program_takes(name: str, tmp_path: Path) -> None:
    found = commands(name)
    assert found or name == "capacity.md"
    with among(tmp_path, *PLACEHOLDERS):
        assert [fault for words in found if (fault := fault_of(words))] == []


@pytest.mark.parametrize(
    "line", ["vpp-dispatch relaese --from x", "vpp-dispatch switch drain on", "x; vpp-dispatch signal abort A"]
)
def test_a_command_that_is_none_would_be_found(line: str) -> None:
    (words,) = lines(line, *PROGRAMS)
    assert fault_of(words)


def test_commands_are_found_wherever_they_stand() -> None:
    shell = "helm install vpp-dispatch helm/vpp-dispatch\nkubectl exec pod/x -- vpp-dispatch preflight | tail -1\n"
    shell += "docker run --rm \\\n  vpp-dispatch:dev config check  # first\nA=1 && vpp-dispatch switch show > file\n"
    assert list(lines(shell, *PROGRAMS)) == [["preflight"], ["config", "check"], ["switch", "show"]]


@pytest.mark.parametrize("name", DOCS)
def test_each_target_of_make_is_there(name: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = {target for piece in code(name) for target in re.findall(r"(?m)(?:^|[\s;&])make ([a-z][a-z-]*)", piece)}
    assert named <= targets
    assert named or name in ("disaster-recovery.md", "upgrading.md", "install.md")


@pytest.mark.parametrize("name", OURS)
def test_each_setting_metric_and_file_is_there(name: str) -> None:
    known = set(re.findall(r"`VPP_DISPATCH_([A-Z_]+)`", text("configuration.md")))
    metrics = text("metrics.md")
    for span in spans(name):
        for setting in re.findall(r"(?<![A-Z_])(?:VPP_DISPATCH_)?([A-Z]+__[A-Z_]*[A-Z])(?![A-Z_*])", span):
            assert setting in known, span
        for start in re.findall(r"([A-Z]+__(?:[A-Z]+__)?)\*", span):
            assert any(setting.startswith(start) for setting in known), span
        for metric in re.findall(r"\bvpp_dispatch_[a-z_]+[a-z]\b(?![./])", span):
            assert f"`{metric}`" in metrics, span
        if re.fullmatch(r"(tests|deploy|docs|vpp_dispatch|schemas|benchmarks)/[\w./-]+", span):
            assert (ROOT / span).exists(), span


# ---------------------------------------------------------------------------------------------- capacity's numbers


def row(start: str) -> list[str]:
    """The three cells of a line of the table at the top."""
    (line,) = [line for line in text("capacity.md").splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(("column", "devices"), [(0, 10_000), (1, 100_000), (2, 1_000_000)])
def test_capacity_tells_the_calls_that_the_program_calculates(column: int, devices: int) -> None:
    settings = Settings()
    realtime = load_profile("goodwe").realtime
    limits = Limits.of(settings, page_size=realtime.page_size, tells_modes=realtime.modes.told)
    without = Limits(**{name: getattr(limits, name) for name in limits.__slots__} | {"telemetry_policy": "ignore"})
    told = float(row("API calls per second for consent and telemetry")[column])
    assert told == pytest.approx(calls_needed(devices, limits), rel=0.02)
    told = float(row("API calls per second without telemetry")[column])
    assert calls_needed(devices, without) <= told < calls_needed(devices, without) * 1.1
    at = freshness(devices, limits)
    aged = row("at the default of one call per second")[column]
    assert aged.startswith(f"{at.consent_age_s:,.0f} s, {at.telemetry_age_s:,.0f} s")
    assert ("nothing would start" in aged) is (at.consent_age_s > settings.fleet.consent_max_age_s)


def test_capacity_tells_the_bytes_of_the_saved_rows() -> None:
    said = f"per device {ROSTER.itemsize} and its record and serial number (about 100), {SETPOINT.itemsize} for each"
    assert said in text("capacity.md") and f"{MEMBER.itemsize} for each control" in text("capacity.md")
    each = ROSTER.itemsize + 100 + SETPOINT.itemsize + MEMBER.itemsize
    for cell, devices in zip(row("our Kafka, state that stays"), (10_000, 100_000, 1_000_000), strict=True):
        assert int(cell.split()[0]) == pytest.approx(each * devices / 1e6, rel=0.15)


def test_capacity_repeats_what_was_measured() -> None:
    measured = text("performance.md")
    said = text("capacity.md")
    cells = re.search(r"(?m)^\| CPU per command \|((?: [\d.]+ us \|)+)$", measured)
    assert cells is not None
    for cell in cells[1].strip("|").split("|"):
        number = int(cell.strip().removesuffix(" us"))
        assert f"{number:,} us" in said
    peaks = re.search(r"(?m)^\| peak memory \|((?: \d+ MB \|)+)$", measured)
    assert peaks is not None
    numbers = [int(cell.strip().removesuffix(" MB")) for cell in peaks[1].strip("|").split("|")]
    small, large = max(numbers[:4]), max(numbers[4:])
    assert f"{small} MB at 10,000 and {large} MB at 100,000" in said
    per_device = (large - small) / 90_000 * 1000
    assert f"{per_device:.1f} KB x devices" in said
    assert small - per_device * 10 == pytest.approx(120, abs=5)
