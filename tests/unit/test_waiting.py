"""The tests' own waiting: a condition that holds is returned, one that does not fails with a sentence."""

from __future__ import annotations

import pytest

from tests.waiting import eventually, eventually_sync


async def test_it_returns_what_the_condition_returned_first_that_is_true() -> None:
    answers = iter([None, [], ["found"]])

    async def condition() -> list[str] | None:
        return next(answers)

    assert await eventually(condition, 5.0) == ["found"]
    assert await eventually(lambda: 7) == 7
    later = iter([0, 0, 3])
    assert eventually_sync(lambda: next(later), 5.0) == 3


async def test_it_fails_at_the_deadline_and_says_what_was_missing() -> None:
    with pytest.raises(AssertionError, match=r"the report: not within 0 s; the last answer was \[\]"):
        await eventually(list, timeout_s=0.0, what="the report")
    with pytest.raises(AssertionError, match=r"the report: not within 0 s; the last answer was None"):
        eventually_sync(lambda: None, 0.0, "the report")
