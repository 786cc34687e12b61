"""The end of the link's tasks, also of those that do not want to."""

from __future__ import annotations

import asyncio
import time

import pytest

from vpp_dispatch.goodwe import link
from vpp_dispatch.goodwe.link import _end


async def stubborn(cancellations: int) -> None:
    """Takes so many cancellations for the end of something else."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if cancellations == 0:
                raise
            cancellations -= 1


async def test_tasks_are_cancelled_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CANCEL_AGAIN_S", 0.01)

    async def failing() -> None:
        raise OSError("reset")

    tasks = [asyncio.create_task(stubborn(n)) for n in (0, 1, 3)] + [asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await _end(iter(tasks))
    assert all(task.done() for task in tasks)
    await _end([])


async def test_one_that_never_ends_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CANCEL_AGAIN_S", 0.01)
    monkeypatch.setattr(link, "STOP_S", 0.05)
    task = asyncio.create_task(stubborn(20))
    await asyncio.sleep(0)
    started = time.monotonic()
    await _end([task])
    assert not task.done() and time.monotonic() - started < 5
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
