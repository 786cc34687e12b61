"""The live picture: what stands on a screen of a given size, and when there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.unit.demo.run import BEGAN, course, report
from vpp_dispatch.demo.course import Course
from vpp_dispatch.demo.live import SMALLEST, Screen, chart, columns, fits, render, watts
from vpp_dispatch.demo.teller import Teller, Told

LINES = [Told(float(n), "service", f"line {n}") for n in range(60)]


def screen(run: Course, width: int = 120, height: int = 40) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    reports = {"chg-1": report(targeted=1000, applied=750, skipped=240, published=4, pending=5, rejected=1)}
    console.print(render(run, reports, LINES, now=BEGAN + 25, width=width, height=height), end="")
    return console.export_text().splitlines()


def row_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.strip("│ ").startswith(start))


def test_it_fills_the_screen_and_no_more() -> None:
    for width, height in (SMALLEST, (120, 40), (200, 60)):
        lines = screen(course(), width, height)
        assert len(lines) == height
        assert max(map(len, lines)) <= width


def test_power_stands_beside_what_was_asked() -> None:
    lines = screen(course())
    told = "\n".join(lines)
    assert "asked 2.00 MW" in told
    assert "at most 1.50 MW" in told, "a limit is a bound"
    assert "█" in told and "─" in told


def test_states_releases_and_latencies_are_those_of_the_report() -> None:
    lines = screen(course())
    counted = [row for row in lines if "chg-1" in row and "active" in row]
    assert len(counted) == 1
    assert counted[0].strip("│ ").split() == [
        *("chg-1", "active", "750", "9", "240", "1", "4/7", "0.2", "/", "1.3", "-"),
    ]
    assert "sent" in row_of(
        [row for row in lines if "at most" not in row and "MW" not in row and "kW" not in row], "exp-1"
    )


def test_held_devices_debts_and_workers_stand_at_the_top() -> None:
    top = screen(course())[0]
    assert "25.0 s" in top and "1,000 inverters" in top
    assert "700 held" in top and "0 releases owed" in top
    assert "worker-1 64 shards" in top
    assert "worker-2" not in top, "it does not answer any more"


@pytest.mark.parametrize("height", [SMALLEST[1], 40, 60])
def test_the_newest_lines_are_seen(height: int) -> None:
    told = "\n".join(screen(course(), 100, height))
    assert "line 59" in told
    assert "line 0\n" not in told


def test_before_the_first_signal_there_is_a_picture_too() -> None:
    assert "nothing has been asked for yet" in "\n".join(screen(Course(inverters=10, seconds=60)))


def test_columns_hold_the_last_of_their_time_and_bridge_gaps() -> None:
    samples = [(0.0, 1.0), (0.9, 2.0), (3.5, 4.0), (99.0, 9.0)]
    assert columns(samples, 0.0, 6.0, 6) == [2.0, 2.0, 2.0, 4.0, None, None]


def test_a_chart_has_eighths_of_a_line_and_the_line_of_what_was_asked() -> None:
    drawn = chart([None, 0.0, 50.0, 100.0], [None, 50.0, None, None], 100.0, 2, "blue").plain.split("\n")
    assert drawn == [" ─ █", "  ██"]


@pytest.mark.parametrize(("value", "expected"), [(2_680_000, "2.68 MW"), (354_400, "354 kW"), (1500, "1500 W")])
def test_watts_are_short(value: float, expected: str) -> None:
    assert watts(value) == expected


def terminal(width: int = 120, height: int = 40) -> Console:
    return Console(force_terminal=True, width=width, height=height, file=io.StringIO(), legacy_windows=False)


def test_there_is_a_picture_only_where_one_can_be_and_is_wanted() -> None:
    term = {"TERM": "xterm-256color"}
    assert fits(terminal(), term)
    assert not fits(Console(force_terminal=False, width=120, height=40, file=io.StringIO()), term), "a pipe"
    for name in ("NO_COLOR", "CI"):
        assert not fits(terminal(), term | {name: "1"})
    assert not fits(terminal(), {"TERM": "dumb"})
    assert not fits(terminal(width=79), term)
    assert not fits(terminal(height=SMALLEST[1] - 1), term)


def test_lines_are_held_back_while_it_is_shown_and_written_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    teller = Teller(out)

    def interrupted() -> None:
        with Screen(course(), teller, lambda _: None, terminal()).shown() as live:
            assert live is not None
            teller.say("fault", "worker-2 is killed")
            assert out.getvalue() == ""
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue().endswith("s  fault     worker-2 is killed\n")
    assert [told.what for told in teller.told] == ["worker-2 is killed"]


def test_without_a_terminal_lines_are_written_at_once() -> None:
    out = io.StringIO()
    teller = Teller(out)
    pipe = Console(force_terminal=False, file=io.StringIO())
    with Screen(course(), teller, lambda _: None, pipe).shown() as live:
        assert live is None
        teller.say("demo", "starts")
        assert "demo      starts" in out.getvalue()
        assert "\033[" not in out.getvalue()
