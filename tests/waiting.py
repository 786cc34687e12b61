"""Waiting for a condition, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

_POLL_S = 0.05


async def eventually(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "the condition") -> Any:
    """Ask `condition`, plain or a coroutine function, until it returns something true; return that.

    Raises:
        AssertionError: it did not within `timeout_s` seconds; the message names `what` and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        _check(deadline, timeout_s, what, answer)
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "the condition") -> Any:
    """As `eventually`, for tests without an event loop. Raises: AssertionError, likewise."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        _check(deadline, timeout_s, what, answer)
        time.sleep(_POLL_S)
    return answer


def _check(deadline: float, timeout_s: float, what: str, answer: object) -> None:
    if time.monotonic() >= deadline:
        raise AssertionError(f"{what}: not within {timeout_s:g} s; the last answer was {answer!r}")
