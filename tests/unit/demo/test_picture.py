"""The picture: what the data say stands in it, where the axes put it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from tests.unit.demo.run import BEGAN, course
from vpp_dispatch.demo.asked import Control, Played
from vpp_dispatch.demo.course import Course, Sample
from vpp_dispatch.demo.picture import draw, plateau, ticks, unit_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn(run: Course, **more: str) -> ET.Element:
    return ET.fromstring(draw(run, title="A run", subtitle="of a test", remarks=more))


def words(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


def points(svg: ET.Element, name: str, which: int = 0) -> list[tuple[float, float]]:
    line = [line for line in svg.iter(f"{SVG}polyline") if line.get("class") == name][which]
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]


def asked_line(svg: ET.Element, which: int = 0) -> tuple[float, float, float]:
    """Left end, height and right end."""
    path = [path for path in svg.iter(f"{SVG}path") if path.get("class") == "asked"][which].attrib["d"]
    start, right = path.removeprefix("M").split("H")
    left, height = start.split(",")
    return float(left), float(height), float(right)


def test_what_was_asked_measured_and_counted_is_written() -> None:
    said = words(drawn(course(), **{"chg-1": "750 of 1,000 set"}))
    assert "A run" in said and "of a test" in said
    assert "chg-1\u2002charge 2000 W each, all (1000 inverters)" in said
    assert {"asked 2 MW", "delivered 1.5 MW", "750 of 1,000 set"} <= set(said)
    assert {"at most 1.5 MW", "measured 900 kW"} <= set(said), "a limit is a bound, and nothing is delivered by it"
    assert {"MW", "actuators", "seconds since the first signal"} <= set(said)
    assert "700 held, 0 owed" in said


def test_each_mark_has_its_number_time_and_words_and_a_line() -> None:
    svg = drawn(course())
    said = words(svg)
    assert {"20.0 s", "20.2 s", "36.0 s", "the 6 are released"} <= set(said)
    assert "5 owners <withdraw> their consent" in said, "and what has a meaning in XML is written as it is"
    assert sum(path.get("class") == "mark" for path in svg.iter(f"{SVG}path")) == 3
    assert [said.count(number) for number in ("1", "2", "3")] >= [2, 2, 2], "above its line and before its words"


def test_numbers_that_would_touch_stand_above_one_another() -> None:
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in drawn(course()).iter(f"{SVG}circle")]
    (x1, y1), (x2, y2) = circles[:2]
    assert abs(x1 - x2) < 18
    assert abs(y1 - y2) >= 18


def test_delivered_and_asked_are_on_one_scale() -> None:
    svg = drawn(course())
    line = points(svg, "delivered")
    ground, top = max(y for _, y in line), min(y for _, y in line)
    left, asked, right = asked_line(svg)
    assert (ground - top) / (ground - asked) == pytest.approx(1.5 / 2, abs=0.01)
    assert left < right
    assert len(line) == 41, "one point a second, from the first signal on"


def test_time_runs_from_the_first_signal_to_the_last_sample() -> None:
    svg = drawn(course())
    line = points(svg, "delivered")
    left, _, right = asked_line(svg)
    first, last = line[0][0], line[-1][0]
    assert (left - first) / (last - first) == pytest.approx(5 / 40, abs=0.002)
    assert (right - first) / (last - first) == pytest.approx(30 / 40, abs=0.002)


def test_a_window_that_outlasts_the_run_ends_with_it() -> None:
    run = course()
    run.events["chg-1"] = replace(run.events["chg-1"], over_at=BEGAN + 500)
    svg = drawn(run)
    assert asked_line(svg)[2] == points(svg, "delivered")[-1][0]


def test_held_and_owed_are_the_sums_of_the_workers_that_answer() -> None:
    svg = drawn(course())
    held = points(svg, "held")
    before, after = held[19][1], held[20][1]
    assert before < after, "fewer are counted when one worker is dead: the line falls"
    owed = points(svg, "owed")
    assert owed[19][1] < owed[20][1]


def test_everything_lies_within_the_picture() -> None:
    svg = drawn(course())
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width and 0 <= float(text.attrib["y"]) <= height
    for name in ("delivered", "held", "owed"):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points(svg, name))
    ground = svg.find(f"{SVG}rect")
    assert ground is not None and ground.get("fill") == "#ffffff", "it does not depend on what it is laid on"


def test_it_is_told_to_those_who_do_not_see_it() -> None:
    svg = drawn(course())
    told = svg.find(f"{SVG}desc")
    assert svg.get("role") == "img" and told is not None
    assert "charge 2000 W each, all (1000 inverters): 1.5 MW measured" in (told.text or "")


def test_the_same_run_gives_the_same_bytes() -> None:
    assert draw(course(), title="t", subtitle="s") == draw(course(), title="t", subtitle="s")


def test_nothing_measured_is_a_sentence() -> None:
    run = course()
    run.samples.clear()
    with pytest.raises(ValueError, match="Nothing was measured"):
        draw(run, title="t", subtitle="s")


def test_an_event_without_a_measurement_still_shows_what_was_asked() -> None:
    run = course()
    late = Played(
        event_id="gen-1",
        asked="generate at most 60 % of the rating each",
        controls=(Control(kind="generation_limit", each_percent=60),),
        targets=frozenset({"x"}),
        asked_w=6000.0,
        from_at=BEGAN + 38,
        over_at=BEGAN + 39,
    )
    run.events["gen-1"] = late
    assert plateau(run.samples, late) is None
    assert "at most 6 kW" in words(drawn(run))


@pytest.mark.parametrize(
    ("high", "expected"), [(4.48, [0, 2, 4]), (0.9, [0, 0.25, 0.5, 0.75]), (1, [0, 0.25, 0.5, 0.75, 1])]
)
def test_ticks_are_round_and_few(high: float, expected: list[float]) -> None:
    assert ticks(high) == pytest.approx(expected)


@pytest.mark.parametrize(("high_w", "unit"), [(2e6, "MW"), (999_999, "kW"), (999, "W")])
def test_units_follow_the_size(high_w: float, unit: str) -> None:
    assert unit_of(high_w)[0] == unit


def test_the_plateau_is_the_middle_of_what_was_measured_late_in_the_window() -> None:
    event = course().events["chg-1"]
    samples = [
        Sample(at=BEGAN + t, power_w={"chg-1": w}) for t, w in ((6, 9e9), (18, 3.0), (20, 1.0), (25, 2.0), (31, 8e9))
    ]
    assert plateau(samples, event) == 2.0
