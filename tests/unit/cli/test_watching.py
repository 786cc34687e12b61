"""An event as it is followed: what is news, when it is over, and how that is said."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.unit.cli.answers import EVENT, REPORT, SOURCE, entry, report, response
from vpp_dispatch.cli.watching import (
    EXIT_CODE_OF,
    RESPONSE_WAIT_S,
    Following,
    picture,
    report_line,
    response_line,
    verdict,
)
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.topics import Entry


def heard(*entries: Entry, revision: int | None = None) -> Following:
    following = Following(EVENT, SOURCE, revision)
    for at, one in enumerate(entries):
        following.hear(one, float(at))
    return following


def test_only_what_is_new_and_of_this_event_is_news() -> None:
    following = heard()
    assert following.hear(response(1), 0) and following.hear(response(1), 0) is None
    assert following.hear(report(5, applied=1), 0) and following.hear(report(4, applied=0), 0) is None
    assert following.report is not None and following.report["sequence"] == 5
    other = entry({"event_id": f"{EVENT}-2", "source": SOURCE, "code": 1}, key=f"{EVENT}-2")
    assert following.hear(other, 0) is None
    assert following.hear(response(2, source="gridco-east"), 0) is None
    nonsense = Entry(topic="t", partition=0, offset=0, at=0.0, key=EVENT.encode(), value=b"\xff")
    assert following.hear(nonsense, 0) is None


def test_two_sources_with_one_name_are_told_apart_by_hand() -> None:
    following = Following(EVENT)
    following.hear(response(1), 0)
    with pytest.raises(ConfigurationError, match="--source"):
        following.hear(response(1, source="gridco-east"), 0)


@pytest.mark.parametrize("code", [3, 8, 10, 7])
def test_it_is_over_at_the_final_report_and_its_response(code: int) -> None:
    following = heard(response(1), response(2), report(1, applied=2))
    assert following.ended_with(1e9) is None
    following.hear(report(2, final=True, applied=2), 100.0)
    assert following.ended_with(100.0) is None, "the response comes after the report"
    following.hear(response(code), 101.0)
    assert following.ended_with(101.0) == code
    assert EXIT_CODE_OF[code] == {3: 0, 8: 3, 10: 4, 7: 6}[code]


@pytest.mark.parametrize(
    ("devices", "code"), [({"applied": 1, "verified": 1}, 3), ({"applied": 1, "rejected": 1}, 8), ({"skipped": 2}, 10)]
)
def test_without_a_response_the_final_report_decides_in_the_end(devices: dict[str, int], code: int) -> None:
    following = heard(report(1, final=True, **devices))
    assert following.ended_with(RESPONSE_WAIT_S - 0.1) is None
    assert following.ended_with(RESPONSE_WAIT_S) == code


def test_a_cancellation_is_over_with_the_report_of_its_revision() -> None:
    following = heard(response(1), response(1, revision=2), response(6, revision=2), revision=2)
    assert following.ended_with(1e9) is None
    following.hear(report(3, final=True, revision=1, applied=1), 0)
    assert following.ended_with(1e9) is None
    following.hear(report(4, final=True, revision=2, applied=1), 0)
    assert following.ended_with(0.0) == 6


def test_a_refusal_ends_the_watch_only_of_what_it_refuses() -> None:
    assert heard(response(254)).ended_with(0) == 254
    assert heard(response(1), response(253, revision=2, reasons=("invalid",))).ended_with(0) is None
    assert heard(response(1), response(253, revision=2, reasons=("invalid",)), revision=2).ended_with(0) == 253
    twice = heard(response(1), response(253, reasons=("duplicate_identifier",)), revision=1)
    assert twice.ended_with(0) == 253
    assert heard(response(1), response(253, reasons=("duplicate_identifier",))).ended_with(0) is None


def test_lines_say_what_stands_in_the_messages() -> None:
    line = report_line(REPORT)
    for words in ("active, 1,000 targeted", "30 skipped (22 offline, 6 consent missing", "395 applied", "2,000,000 W"):
        assert words in line
    assert "measured" not in line
    power = REPORT["power_w"] | {"measured": 1_950_000}
    assert "2,000,000 W acknowledged, 1,950,000 W measured" in report_line(REPORT | {"power_w": power})
    refused = heard(response(253, reasons=("unknown_field",))).responses[0]
    assert response_line(refused) == (
        "16:00:00  response to r1: 253 invalid (unknown_field): correct the signal by the reasons, and send it with a "
        "higher revision"
    )


def test_the_verdict_names_what_is_left_set() -> None:
    following = heard(report(1, final=True, applied=2))
    assert following.report is not None
    following.report["release"] = {"due": 2, "confirmed": 1, "pending": 1, "refused": 0}
    assert "1 are not confirmed as released" in verdict(following, 8)
    following.report["release"] = {"due": 2, "confirmed": 2, "pending": 0, "refused": 0}
    assert verdict(following, 3).endswith("completed, 2 of 2 inverters did it, 2 of 2 releases confirmed.")


def test_the_picture_has_the_report_and_the_responses() -> None:
    following = heard(response(1), entry(REPORT))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(picture(following))
    text = console.export_text()
    for words in ("response to r1: 1 received", f"{EVENT} r1 of {SOURCE}: active", "applied", "395", "22 offline"):
        assert words in text


def test_releases_that_are_due_confirmed_pending_and_refused_are_shown_with_what_was_asked() -> None:
    following = heard(response(1), report(3, final=True, applied=9))
    following.about = "charge 2,000 W each, export limit 1,500 W each, all inverters"
    assert following.report is not None
    following.report["release"] = {"due": 18, "confirmed": 15, "pending": 2, "refused": 1}
    following.report["shards"] = {"expected": 64, "reported": 62, "missing": [3, 9]}
    line = report_line(following.report)
    assert "released 15 of 18 (2 pending, 1 refused)" in line and "of 2 shards nothing is known yet" in line
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(picture(following))
    text = console.export_text()
    assert "charge 2,000 W each, export limit 1,500 W each" in text and "15 confirmed, 2 pending, 1 refused" in text


def test_an_abort_is_told_as_such() -> None:
    following = heard(response(1), report(3, final=True, rejected=2), response(8, reasons=("aborted",)))
    assert following.aborted and following.is_over
    assert "is over: aborted, 0 of 2 inverters did it" in verdict(following, 8)
    assert not heard(response(1), report(3, final=True, applied=2), response(1, revision=2)).is_over
