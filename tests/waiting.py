"""Waiting for a condition, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.05


async def eventually(
    condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, what: str = "the condition"
) -> T:
    """Ask `condition`, plain or a coroutine function, until it returns something true; return that.

    Raises:
        AssertionError: it did not within `timeout_s` seconds; the message names `what` and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_overdue(what, timeout_s, value))
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "the condition") -> T:
    """As `eventually`, for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_overdue(what, timeout_s, value))
        time.sleep(_POLL_S)


def _overdue(what: str, timeout_s: float, value: object) -> str:
    return f"{what}: not within {timeout_s:g} s; last answer {value!r}"
