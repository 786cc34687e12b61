"""`signal watch` and `signal cancel` as they are called: exit codes, what is printed, what is looked up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.cli.answers import EVENT, SOURCE, Reader, Script, report, response
from vpp_dispatch import topics
from vpp_dispatch.cli import main, watching
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Draft


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a `signal` command; the topics hold what is given."""
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)

    def invoke(*arguments: str, script: Script, terminal: bool = False, **variables: str) -> Result:
        monkeypatch.setattr(Reader, "script", script, raising=False)
        monkeypatch.setattr(Reader, "asked", [], raising=False)
        monkeypatch.setattr(watching, "Reader", Reader)
        monkeypatch.setattr(watching, "on_terminal", lambda: terminal)
        env = {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}
        return CliRunner().invoke(main, ["signal", *arguments], env=env)

    return invoke


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        (3, 0, "completed, 2 of 2 inverters did it"),
        (8, 3, "completed partially"),
        (10, 4, "no participation"),
        (6, 5, "cancelled"),
        (7, 6, "superseded"),
    ],
)
def test_the_exit_code_says_how_it_ended(run: Callable[..., Result], code: int, exit_code: int, words: str) -> None:
    script: Script = [
        [response(1)],
        [report(1, applied=1, pending=1)],
        [report(2, final=True, applied=2), response(code)],
    ]
    result = run("watch", EVENT, script=script)
    assert result.exit_code == exit_code, result.output
    lines = result.stdout.splitlines()
    assert "response to r1: 1 received" in lines[0] and "1 applied" in lines[1] and words in lines[-1]


def test_of_the_past_only_responses_and_the_newest_report_are_told(run: Callable[..., Result]) -> None:
    past = [response(1), *(report(n, applied=n) for n in range(1, 30)), report(30, final=True, applied=30), response(3)]
    result = run("watch", EVENT, "--json", script=[past])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [next(iter(line)) for line in lines].count("ended") == 1
    assert lines[-1] == {"ended": {"code": 3, "status": "completed", "exit_code": 0}}


def test_a_refusal_is_7_and_says_what_to_do(run: Callable[..., Result]) -> None:
    result = run("watch", EVENT, script=[[response(253, reasons=("unknown_field",))]])
    assert result.exit_code == 7
    assert "253 invalid (unknown_field): correct the signal" in result.stdout


def test_timeout_and_interrupt_leave_the_event_alone(run: Callable[..., Result]) -> None:
    late = run("watch", EVENT, "--timeout", "0.01s", script=[[]])
    assert late.exit_code == 8 and "is not over after 0.01 s" in late.stderr
    assert "Nothing was answered" in late.stderr
    stopped = run("watch", EVENT, script=[[response(1)], KeyboardInterrupt()])
    assert stopped.exit_code == 130 and "No longer watching" in stopped.stderr


def test_on_a_terminal_the_newest_report_is_a_table(run: Callable[..., Result]) -> None:
    script: Script = [[response(1)], [report(2, final=True, applied=2), response(3)]]
    result = run("watch", EVENT, script=script, terminal=True)
    assert result.exit_code == 0, result.output
    assert "inverters" in result.stdout and "applied" in result.stdout


def test_without_a_source_all_topics_are_read_and_with_one_its_own(run: Callable[..., Result]) -> None:
    own = {
        "RESPONSES__TOPICS": json.dumps({SOURCE: "west.responses"}),
        "REPORTS__TOPICS": json.dumps({SOURCE: "west.r"}),
    }
    run("watch", EVENT, "--timeout", "0.01s", script=[[]], **own)
    assert Reader.asked == [("dispatch.responses.v1", "dispatch.reports.v1", "west.responses", "west.r")]
    run("watch", EVENT, "--source", SOURCE, "--timeout", "0.01s", script=[[]], **own)
    assert Reader.asked == [("west.responses", "west.r")]


def test_two_sources_with_one_name_are_2_and_a_sentence(run: Callable[..., Result]) -> None:
    result = run("watch", EVENT, script=[[response(1), response(1, source="gridco-east")]])
    assert result.exit_code == 2 and "name one by --source" in result.stderr


# ---------------------------------------------------------------------------------------------- cancel


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def publish(settings: Settings, topic: str, drafts: Sequence[Draft]) -> list[tuple[int, int]]:
        found.extend(json.loads(draft.value or b"") for draft in drafts)
        return [(0, 0)] * len(drafts)

    monkeypatch.setattr(topics, "publish", publish)
    return found


def test_a_cancellation_looks_up_source_and_revision(run: Callable[..., Result], sent: list[dict[str, Any]]) -> None:
    past = [response(1), response(253, revision=4), report(7, revision=3, applied=1)]
    result = run("cancel", EVENT, "--reason", "fault cleared", "--ramp-down", "2m", script=[past])
    assert result.exit_code == 0, result.output
    [signal] = sent
    wanted = ("event_id", "source", "revision", "action", "reason", "ramp_down_s")
    assert [signal[name] for name in wanted] == [EVENT, SOURCE, 5, "cancel", "fault cleared", 120]


def test_an_unknown_event_is_cancelled_only_by_its_revision(
    run: Callable[..., Result], sent: list[dict[str, Any]]
) -> None:
    result = run("cancel", "never", script=[[response(1)]])
    assert result.exit_code == 2 and sent == []
    assert "Nothing was ever answered about an event 'never'" in result.stderr and "--revision" in result.stderr
    assert run("cancel", "never", "--revision", "2", script=[]).exit_code == 0
    assert [(signal["event_id"], signal["source"]) for signal in sent] == [("never", "operator")]


def test_a_watched_cancellation_that_is_taken_is_0_and_one_that_comes_too_late_7(
    run: Callable[..., Result], sent: list[dict[str, Any]]
) -> None:
    answers = [response(1, revision=2), response(6, revision=2), report(9, final=True, revision=2, applied=1)]
    assert run("cancel", EVENT, "--watch", script=[[response(1)], answers]).exit_code == 0
    finished = response(252, revision=2, reasons=("finished",))
    late = run("cancel", EVENT, "--watch", script=[[response(1)], [finished]])
    assert late.exit_code == 7 and "(finished)" in late.stdout


def test_in_a_pipe_it_is_plain_lines_one_for_each_change(run: Callable[..., Result]) -> None:
    script: Script = [
        [response(1)],
        [report(1, pending=2)],
        [report(2, applied=1, pending=1)],
        [report(3, final=True, applied=2), response(3)],
    ]
    result = run("watch", EVENT, script=script)
    assert result.exit_code == 0 and "\x1b" not in result.stdout and "\r" not in result.stdout
    assert not set(result.stdout) & set("│┃━─█"), "no table, no bars"
    assert len(result.stdout.splitlines()) == 6
