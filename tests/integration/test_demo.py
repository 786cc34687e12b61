"""`make demo` as a person starts it, with a smaller fleet and on the session's Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import Kafka
from tests.waiting import eventually

SMALL = ("--inverters", "240", "--seconds", "70")
WHOLE_S = 240.0
STOP_S = 60.0


@asynccontextmanager
async def demo(folder: Path, servers: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The demo as a process with its output on a pipe; asked to stop, in the end, if it has not by itself."""
    arguments = ["-m", "vpp_dispatch.demo.scenario", "--bootstrap-servers", servers, "--folder", str(folder), *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def read_until(process: asyncio.subprocess.Process, found: Callable[[str], bool], timeout_s: float) -> str:
    """What it writes, up to the line that makes `found` true of all of it, or to its end."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(timeout_s):
        while line := await process.stdout.readline():
            said += line.decode()
            if found(said):
                break
    return said


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(said: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"\(process (\d+)\)", said)]


@pytest.mark.timeout(WHOLE_S + STOP_S)
async def test_the_demo_adds_up(kafka: Kafka, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    async with demo(folder, kafka.bootstrap_servers, *SMALL) as process:
        said = await read_until(process, lambda said: False, WHOLE_S)
        code = await process.wait()
    assert code == 0, said
    assert "Everything adds up, and everything is released." in said
    assert said.count("yes: report = outcomes = simulator") == 4
    assert "all inverters: 240 of 240 at their default" in said
    for happened in (
        "withdraw their consent",
        "of the offline inverters come back",
        "is killed (SIGKILL)",
        "from discharging back to charging",
        "lose their connection",
        "1 received (r1), 2 started (r1), 1 received (r2), 6 cancelled (r2)",
    ):
        assert happened in said
    assert "\033[" not in said, "no colours in a pipe"
    workers = pids(said)
    assert len(workers) == 2
    assert [pid for pid in workers if alive(pid)] == []
    saved = {path.name for path in folder.iterdir()}
    assert saved >= {"worker-1.log", "worker-2.log", "simulator.log", "simulator.json", "dispatch.reports.v1.jsonl"}
    picture = (folder / "demo.svg").read_text()
    assert f"A picture of it: {folder / 'demo.svg'}" in said
    for shown in (
        "chg-1",
        "dis-1 is cancelled",
        "is killed (SIGKILL)",
        "owners withdraw",
        "delivered",
        "0 held, 0 owed",
    ):
        assert shown in picture
    last = [json.loads(line) for line in (folder / "dispatch.responses.v1.jsonl").read_text().splitlines()]
    assert {response["event_id"] for response in last} == {"exp-1", "chg-1", "dis-1", "gen-1"}


@pytest.mark.timeout(180)
async def test_ctrl_c_stops_everything(kafka: Kafka, tmp_path: Path) -> None:
    async with demo(tmp_path / "run", kafka.bootstrap_servers, *SMALL) as process:
        said = await read_until(process, lambda said: len(pids(said)) == 2, 90)
        assert len(pids(said)) == 2, said
        process.send_signal(signal.SIGINT)
        said += await read_until(process, lambda said: False, STOP_S)
        assert await process.wait() == 130, said
    assert "stopped as asked" in said
    assert "Traceback" not in said
    await eventually(lambda: not any(map(alive, pids(said))), 5, "the workers to be gone")


@pytest.mark.timeout(90)
async def test_what_cannot_be_played_is_a_sentence_and_1(tmp_path: Path) -> None:
    async with demo(tmp_path / "run", "127.0.0.1:1", *SMALL) as process:
        said = await read_until(process, lambda said: False, STOP_S)
        assert await process.wait() == 1, said
    assert "could not be played to its end" in said
    assert "127.0.0.1:1" in said
    assert "Traceback" not in said
