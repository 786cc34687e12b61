"""Times and durations as people write them."""

from __future__ import annotations

import logging
import time

import click
import pytest

from vpp_dispatch.cli.base import DURATION, MOMENT, Failed, execute, seconds_of
from vpp_dispatch.errors import NotReachable


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800), ("0.5h", 1800), ("1.5", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5x", "-5s", "m", "1 h", "1h-5m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90s, 30m"):
        DURATION.convert(text, None, None)


def test_moments() -> None:
    before = time.time()
    assert before <= MOMENT.convert("now", None, None) <= time.time()
    assert before + 600 <= MOMENT.convert("+10m", None, None) <= time.time() + 600
    assert MOMENT.convert("2026-11-22T12:00:00+01:00", None, None) == MOMENT.convert("2026-11-22T11:00:00Z", None, None)


@pytest.mark.parametrize("text", ["11:00", "2026-11-22T11:00:00", "tomorrow", "+soon", "2026-02-30T00:00:00Z"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"or so long from now, such as \+30m"):
        MOMENT.convert(text, None, None)


async def _done() -> str:
    return "done"


async def _away() -> str:
    raise NotReachable("Kafka is away: start it.")


def test_work_ends_with_a_value_or_a_sentence_and_leaves_the_log_as_it_was() -> None:
    kafka = logging.getLogger("aiokafka")
    before = (kafka.propagate, list(kafka.handlers))
    assert execute(_done()) == "done"
    with pytest.raises(Failed, match="Kafka is away: start it"):
        execute(_away())
    assert (kafka.propagate, list(kafka.handlers)) == before
