"""`release --from` as it is called: what it shows, what it asks, what it leaves behind, and its exit code (R36)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vpp_dispatch.cli import main, paying
from vpp_dispatch.cli.debts import Debts
from vpp_dispatch.dispatch.held import Held, HeldFiles, read
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.settings import Settings

A, B, C = "9010KETU000W0001", "9010KETU000W0002", "9010KETU000W0003"
RELEASE = sys.modules["vpp_dispatch.cli.release"]
"""The module: the package's attribute of this name is the command."""


def held(sn: str, *, actuator: int = 1, known: bool = True) -> Held:
    pair: dict[str, Any] = {"first": 1, "second": 0} if known else {}
    return Held(sn=sn, row=3, actuator=actuator, generation=5, **pair)


class Goodwe:
    """What would happen at GoodWe: `ends` gives the state and reason of each SN; others are confirmed."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[Any, str]] = {}
        self.fails: BaseException | None = None
        self.paid: list[str] = []
        self.rest_while_paying: list[str] | None = None
        self.rest = Path("nowhere")
        self.ours_answers = False

    async def pay(self, settings: Settings, codec: object, debts: Debts, *, timeout_s: float, told: Any) -> None:
        self.rest_while_paying = sns(self.rest) if self.rest.exists() else None
        for debt in debts.debts:
            self.paid.append(debt.held.sn)
            debt.state, debt.reason = self.ends.get(debt.held.sn, ("confirmed", ""))
        told(debts)
        if self.fails is not None:
            raise self.fails

    async def answers(self, settings: Settings) -> bool:
        return self.ours_answers


def sns(*paths: Path) -> list[str]:
    return [entry.sn for entries in read(paths).held.values() for entry in entries]


@pytest.fixture
def goodwe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Goodwe:
    made = Goodwe()
    made.rest = tmp_path / "rest.jsonl"
    monkeypatch.setattr(paying, "pay", made.pay)
    monkeypatch.setattr(RELEASE, "_answers", made.answers)
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a worker left: two of one shard, one of another without a known default."""
    made = tmp_path / "worker"
    files = HeldFiles(made)
    files.rewrite(17, 4, [held(A), held(B), held(B, actuator=2)])
    files.rewrite(18, 6, [])
    files.close_all()
    return made


@pytest.fixture
def release(goodwe: Goodwe, folder: Path) -> Callable[..., Result]:
    def run(*arguments: str, given: str | None = None) -> Result:
        rest = () if "--rest" in arguments else ("--rest", str(goodwe.rest))
        return CliRunner().invoke(main, ["release", "--from", str(folder), *rest, *arguments], input=given)

    return run


def test_a_dry_run_says_what_is_held_and_touches_nothing(release: Callable[..., Result], goodwe: Goodwe) -> None:
    result = release("--dry-run")
    assert result.exit_code == 0, result.output
    assert "Held: 2 ems, 1 export, of 2 inverters." in result.stdout
    assert (
        "2 files of 2 of 64 shards, epochs 4 to 6" in result.stdout and "Of 62 shards there is no file" in result.stdout
    )
    assert "Nothing was published (--dry-run)." in result.stdout
    assert goodwe.paid == [] and not goodwe.rest.exists()
    as_json = json.loads(release("--dry-run", "--json").stdout)
    assert as_json["held"]["by_actuator"] == {"ems": 2, "export": 1} and as_json["held"]["epochs"] == [4, 6]


def test_all_confirmed_is_0_and_leaves_no_file(release: Callable[..., Result], goodwe: Goodwe) -> None:
    result = release("--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "All 3 are confirmed as released."
    assert goodwe.paid == [A, B, B] and not goodwe.rest.exists()
    assert goodwe.rest_while_paying == [A, B, B], "whoever is killed in the middle finds all of them there"


def test_what_is_not_confirmed_is_3_named_and_in_the_file(release: Callable[..., Result], goodwe: Goodwe) -> None:
    goodwe.ends = {A: ("pending", "offline"), B: ("refused", "unauthorized")}
    result = release("--yes")
    assert result.exit_code == 3
    assert "0 of 3 confirmed, 1 pending, 2 refused (2 unauthorized, 1 offline)" in result.stdout
    assert f"1 the inverter is offline: try again when it is back: {A}" in result.stdout
    assert "GoodWe no longer lets this supplier control it" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(f"vpp-dispatch release --from {goodwe.rest}")
    assert sns(goodwe.rest) == [A, B, B]
    as_json = [json.loads(line) for line in release("--yes", "--json").stdout.splitlines()]
    assert [next(iter(line)) for line in as_json] == ["held", "progress", "ended"]
    assert as_json[-1]["ended"]["exit_code"] == 3 and as_json[-1]["ended"]["rest"] == str(goodwe.rest)


def test_without_a_known_default_it_is_left_and_listed_or_the_familys(
    release: Callable[..., Result], goodwe: Goodwe, folder: Path
) -> None:
    HeldFiles(folder).rewrite(18, 7, [held(C, known=False)])
    left = release("--yes")
    assert left.exit_code == 3 and C not in goodwe.paid
    assert f"Of 1 the default is not known; they are left as they are ({C})" in left.stdout
    assert "1 left as they are, without a known default" in left.stdout and sns(goodwe.rest) == [C]
    bold = release("--yes", "--family-defaults")
    assert bold.exit_code == 0 and C in goodwe.paid and "1 without a known default go back" in bold.stdout


def test_nobody_to_ask_and_no_yes_is_2(release: Callable[..., Result], goodwe: Goodwe) -> None:
    result = release()
    assert result.exit_code == 2 and "say --yes" in result.stderr and goodwe.paid == []


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 1)])
def test_on_a_terminal_it_asks(
    release: Callable[..., Result], goodwe: Goodwe, monkeypatch: pytest.MonkeyPatch, said: str, code: int
) -> None:
    class Stdin:
        @staticmethod
        def isatty() -> bool:
            return True

    class Sys:
        stdin = Stdin()
        exit = staticmethod(sys.exit)
        exc_info = staticmethod(sys.exc_info)

    monkeypatch.setattr(RELEASE, "sys", Sys)
    result = release(given=said)
    assert result.exit_code == code and "Release these 3 now? [y/N]" in result.stdout
    assert bool(goodwe.paid) == (code == 0)


def test_while_our_kafka_answers_it_needs_force(release: Callable[..., Result], goodwe: Goodwe) -> None:
    goodwe.ours_answers = True
    result = release("--yes")
    assert result.exit_code == 2 and goodwe.paid == []
    for words in ("would set again", "signal abort", "switch releases-only on", "--force"):
        assert words in result.stderr
    forced = release("--yes", "--force")
    assert forced.exit_code == 0 and "going on (--force)" in forced.stderr


def test_goodwes_cluster_away_is_1_and_nothing_is_lost(release: Callable[..., Result], goodwe: Goodwe) -> None:
    goodwe.ends, goodwe.fails = {B: ("pending", "not_sent")}, NotReachable("GoodWe's Kafka is away: set it.")
    result = release("--yes")
    assert result.exit_code == 1 and "GoodWe's Kafka is away" in result.stderr
    assert f"What is not confirmed is in {goodwe.rest}." in result.stderr and sns(goodwe.rest) == [B, B]


def test_ctrl_c_is_130_and_nothing_is_lost(release: Callable[..., Result], goodwe: Goodwe) -> None:
    goodwe.ends, goodwe.fails = {A: ("pending", "no_answer")}, KeyboardInterrupt()
    result = release("--yes")
    assert result.exit_code == 130 and sns(goodwe.rest) == [A]


def test_a_file_for_the_rest_that_cannot_be_written_stops_it_before_it_begins(
    release: Callable[..., Result], goodwe: Goodwe, folder: Path
) -> None:
    result = release("--yes", "--rest", str(folder / "held-17.jsonl" / "x"))
    assert result.exit_code == 2 and "name another file by --rest" in result.stderr and goodwe.paid == []


def test_nothing_held_is_0(release: Callable[..., Result], goodwe: Goodwe, folder: Path) -> None:
    HeldFiles(folder).rewrite(17, 5, [])
    result = release("--yes")
    assert result.exit_code == 0 and "Nothing is held." in result.stdout and goodwe.paid == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("", "is empty"), ('{"shard":1,"epoch":1,"at":1}\nx\ny\n', "line 2")],
)
def test_a_file_that_cannot_be_read_is_2_with_its_name_and_line(
    goodwe: Goodwe, tmp_path: Path, content: str | None, says: str
) -> None:
    file = tmp_path / "held-1.jsonl"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(main, ["release", "--from", str(file), "--yes"])
    assert result.exit_code == 2 and says in result.stderr and str(file) in result.stderr and goodwe.paid == []


def test_older_epochs_and_torn_lines_are_told(release: Callable[..., Result], folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    HeldFiles(other).rewrite(17, 3, [held(C)])
    with (folder / "held-17.jsonl").open("ab") as file:
        file.write(b'{"sn":"9010K')
    result = release("--dry-run", "--from", str(other))
    assert "1 files or parts are of an older epoch and do not count." in result.stdout
    assert "held-17.jsonl, line 5 was cut off and is left out" in result.stdout
