"""What the service says while something that it needs is missing."""

from __future__ import annotations

import urllib.error
import urllib.request

from vpp_dispatch.demo.stack import Child, Stack


def readiness(stack: Stack, worker: Child) -> str:
    """The body of a worker's /readyz, whatever its status; empty while nothing listens."""
    port = stack.port(worker)
    if port is None:
        return ""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        return str(refusal.read().decode())
    except urllib.error.URLError:
        return ""


async def test_missing_topics_are_named_and_waited_for(stack: Stack) -> None:
    stack.url = "http://127.0.0.1:1"
    worker = stack.start_worker()
    signals = f"topic {stack.signals_topic} does not exist"
    await stack.until(lambda: signals in readiness(stack, worker), 40, "the reason")
    await stack.create_topics()
    missing = f"{stack.prefix}goodwe.control.single.request"
    await stack.until(lambda: missing in readiness(stack, worker), 60, "GoodWe's topic to be named")
    assert worker.running
    await stack.start_simulator(inverters=5)
    await stack.until_ready(worker)
