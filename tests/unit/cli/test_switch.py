"""The switches and the abort: the record that is written, what is waited for, and what is said (R36)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.unit.cli.answers import EVENT, SOURCE, Reader, Script, report, response
from vpp_dispatch import topics
from vpp_dispatch.cli import main, watching
from vpp_dispatch.dispatch import inbox
from vpp_dispatch.dispatch.inbox import SwitchTurned
from vpp_dispatch.domain.inputs import Switches
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Draft, Entry

NUMBER = 41


def row(
    number: int, *, epoch: int = 7, releases_only: bool = False, drain: bool = False, key: str | None = None
) -> Entry:
    """A row of the events' changelog."""
    value = msgspec.msgpack.encode(Switches(number=number, releases_only=releases_only, drain=drain))
    name = key or f"0|switches|state|{epoch}"
    return Entry(topic="t", partition=0, offset=0, at=0.0, key=name.encode(), value=value)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Draft]]:
    """What was published."""
    found: list[tuple[str, Draft]] = []

    async def publish(settings: Settings, topic: str, drafts: Sequence[Draft]) -> list[tuple[int, int]]:
        found.extend((topic, draft) for draft in drafts)
        return [(0, NUMBER)] * len(drafts)

    monkeypatch.setattr(topics, "publish", publish)
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, recorded: list[tuple[str, Draft]]) -> Callable[..., Result]:
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)

    def invoke(*arguments: str, script: Script) -> Result:
        monkeypatch.setattr(Reader, "script", script, raising=False)
        monkeypatch.setattr(Reader, "asked", [], raising=False)
        monkeypatch.setattr(topics, "Reader", Reader)
        monkeypatch.setattr(watching, "Reader", Reader)
        return CliRunner().invoke(main, list(arguments))

    return invoke


def turned(recorded: list[tuple[str, Draft]]) -> SwitchTurned:
    [(topic, draft)] = recorded
    assert (topic, draft.partition) == ("vpp-dispatch.event-inbox.v1", 0)
    message = inbox.decode(draft.value or b"")
    assert isinstance(message, SwitchTurned)
    return message


@pytest.mark.parametrize(("name", "switch"), [("releases-only", "releases_only"), ("drain", "drain")])
@pytest.mark.parametrize("state", ["on", "off"])
def test_r36_a_switch_is_a_record_and_is_taken_when_the_row_has_its_number(
    run: Callable[..., Result], recorded: list[tuple[str, Draft]], name: str, switch: str, state: str
) -> None:
    script: Script = [[row(3)], [], [row(NUMBER, **{switch: state == "on"})]]  # type: ignore[arg-type]
    result = run("switch", name, state, "--reason", "a test", "--by", "me", script=script)
    assert result.exit_code == 0, result.output
    message = turned(recorded)
    assert (message.switch, message.on, message.by, message.reason) == (switch, state == "on", "me", "a test")
    assert message.event is None
    recorded_line, taken = result.stdout.splitlines()
    assert f"(number {NUMBER}): {name} {state}, 'a test'." in recorded_line and taken.startswith("Taken: ")


def test_without_by_it_is_this_user_at_this_host(run: Callable[..., Result], recorded: list[tuple[str, Draft]]) -> None:
    run("switch", "drain", "on", "--reason", "x", script=[[row(NUMBER, drain=True)]])
    user, at, host = turned(recorded).by.partition("@")
    assert user and at and host


def test_not_taken_in_time_is_8_and_says_what_that_means(run: Callable[..., Result]) -> None:
    result = run("switch", "drain", "on", "--reason", "x", "--timeout", "0.01s", script=[[row(NUMBER - 1)]])
    assert result.exit_code == 8
    assert "No worker has taken it within 0.01 s" in result.stderr and "The record is kept" in result.stderr
    as_json = run("switch", "drain", "on", "--reason", "x", "--timeout", "0.01s", "--json", script=[[row(3)]])
    assert as_json.exit_code == 8
    assert json.loads(as_json.stdout) == {
        "number": NUMBER, "taken": False, "releases_only": False, "drain": False, "exit_code": 8,
    }  # fmt: skip


def test_turned_back_by_somebody_since_is_said(run: Callable[..., Result]) -> None:
    result = run("switch", "drain", "on", "--reason", "x", script=[[row(NUMBER + 1, drain=False)]])
    assert result.exit_code == 0 and "turned back by somebody since" in result.stdout


def test_ctrl_c_is_130_and_the_record_stays(run: Callable[..., Result]) -> None:
    result = run("switch", "drain", "on", "--reason", "x", script=[[], KeyboardInterrupt()])
    assert result.exit_code == 130 and "is recorded and will be taken" in result.stderr


def test_show_takes_the_highest_epoch_and_nothing_else(run: Callable[..., Result]) -> None:
    foreign = row(99, drain=True, key="0|gridco/switches|state|99")
    script: Script = [[row(9, epoch=8, releases_only=True), foreign, row(12, epoch=7, drain=True)]]
    result = run("switch", "show", script=script)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines[:2]] == [["releases-only", "on"], ["drain", "off"]]
    assert result.stdout.endswith("Turned last by number 9.\n") and Reader.asked == [("vpp-dispatch-events-changelog",)]
    as_json = json.loads(run("switch", "show", "--json", script=script).stdout)
    assert as_json == {"number": 9, "releases_only": True, "drain": False}


def test_show_of_switches_that_were_never_turned(run: Callable[..., Result]) -> None:
    result = run("switch", "show", script=[])
    assert result.exit_code == 0 and "No switch was ever turned." in result.stdout
    assert json.loads(run("switch", "show", "--json", script=[]).stdout)["number"] is None


def test_a_row_of_another_version_is_2_and_a_sentence(run: Callable[..., Result]) -> None:
    broken = Entry(topic="t", partition=0, offset=0, at=0.0, key=b"0|switches|state|1", value=b"\xc1")
    result = run("switch", "show", script=[[broken]])
    assert result.exit_code == 2 and "use the vpp-dispatch of the service's version" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("releases-only",), "Missing argument"),
        (("releases-only", "maybe", "--reason", "x"), "'maybe' is not one of 'on', 'off'"),
        (("releases-only", "on"), "Missing option '--reason'"),
        (("drian", "on"), "Did you mean drain?"),
    ],
)
def test_wrong_input_is_2_and_records_nothing(
    run: Callable[..., Result], recorded: list[tuple[str, Draft]], arguments: tuple[str, ...], says: str
) -> None:
    result = run("switch", *arguments, script=[])
    assert result.exit_code == 2 and says in result.stderr and recorded == []


# ---------------------------------------------------------------------------------------------- abort


def abort(run: Callable[..., Result], *more: str, script: Script) -> Result:
    return run("signal", "abort", SOURCE, EVENT, "--reason", "breaker open", *more, script=script)


def test_r36_an_abort_is_recorded_and_watched_to_its_end(
    run: Callable[..., Result], recorded: list[tuple[str, Draft]]
) -> None:
    end = [report(9, final=True, rejected=2), response(8, reasons=("aborted",))]
    result = abort(run, script=[[response(1), report(3, applied=2)], end])
    assert result.exit_code == 0, result.output
    message = turned(recorded)
    assert (message.switch, message.on, message.event) == ("abort", True, f"{SOURCE}/{EVENT}")
    assert "breaker open" in result.stdout and "is over: aborted" in result.stdout.splitlines()[-1]


def test_an_abort_that_need_not_be_watched(run: Callable[..., Result], recorded: list[tuple[str, Draft]]) -> None:
    result = abort(run, "--no-watch", "--json", script=[[response(1)]])
    assert result.exit_code == 0 and len(recorded) == 1
    assert json.loads(result.stdout) == {"recorded": {"number": NUMBER, "event": EVENT, "source": SOURCE}}


@pytest.mark.parametrize(
    ("past", "says"),
    [
        ([], "Nothing was ever told about an event"),
        ([response(1), report(4, final=True, applied=1), response(3)], "is over, by its final report of"),
    ],
)
def test_nothing_to_abort_is_2_and_records_nothing(
    run: Callable[..., Result], recorded: list[tuple[str, Draft]], past: list[Entry], says: str
) -> None:
    result = abort(run, script=[past])
    assert result.exit_code == 2 and says in result.stderr and recorded == []


def test_a_revision_that_came_after_the_final_report_can_be_aborted(
    run: Callable[..., Result], recorded: list[tuple[str, Draft]]
) -> None:
    past = [response(1), report(4, final=True, applied=1), response(3), response(1, revision=2)]
    assert abort(run, "--no-watch", script=[past]).exit_code == 0 and len(recorded) == 1


def test_an_event_that_ended_otherwise_has_the_code_of_that(run: Callable[..., Result]) -> None:
    end = [report(9, final=True, applied=1, rejected=1), response(8)]
    assert abort(run, script=[[response(1), report(3, applied=2)], end]).exit_code == 3


def test_an_abort_that_nobody_takes_is_8_and_stays_recorded(run: Callable[..., Result]) -> None:
    result = abort(run, "--timeout", "0.01s", script=[[response(1), report(3, applied=2)]])
    assert result.exit_code == 8 and "will be taken by the first worker that runs" in result.stderr


def test_abort_without_a_reason_is_2(run: Callable[..., Result], recorded: list[tuple[str, Draft]]) -> None:
    result: Any = run("signal", "abort", SOURCE, EVENT, script=[])
    assert result.exit_code == 2 and "Missing option '--reason'" in result.stderr and recorded == []
