"""The probes over real HTTP on a free port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.observability.health import Health, HealthServer
from vpp_dispatch.observability.metrics import Metrics

Get = Callable[[str], Awaitable[tuple[int, str, str]]]


class Clock:
    """Monotonic seconds that move when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def served(health: Health, body: Callable[[Get], Awaitable[None]], metrics: Metrics | None = None) -> None:
    async def scenario() -> None:
        server = HealthServer("127.0.0.1", 0, metrics or Metrics(), health)
        await server.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def get(path: str) -> tuple[int, str, str]:
                    async with session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
                        return answer.status, answer.headers["Content-Type"], await answer.text()

                await body(get)
        finally:
            await server.stop()
            await server.stop()

    asyncio.run(scenario())


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.suspect.add(4)

    async def body(get: Get) -> None:
        status, content_type, text = await get("/metrics")
        assert status == 200
        assert content_type == Metrics.CONTENT_TYPE
        assert "vpp_dispatch_suspect_total 4.0\n" in text

    served(Health(), body, metrics)


def test_live_as_long_as_the_loop_moves_ready_or_not() -> None:
    clock = Clock()
    health = Health(live_limit_s=60, monotonic=clock)

    async def body(get: Get) -> None:
        assert (await get("/readyz"))[0] == 503
        clock.now += 60
        assert (await get("/livez"))[0] == 200
        clock.now += 1
        status, _, text = await get("/livez")
        assert status == 503
        assert json.loads(text) == {
            "live": False,
            "reasons": ["The loop has made no progress for 61 s; the limit is 60 s."],
        }
        health.beat()
        assert (await get("/livez"))[0] == 200

    served(health, body)


def test_ready_says_why_not() -> None:
    health = Health()

    async def body(get: Get) -> None:
        status, _, text = await get("/readyz")
        assert (status, json.loads(text)) == (503, {"ready": False, "reasons": ["The service is starting."]})
        health.ready = lambda: (False, ["Topic dispatch.signals.v1 does not exist: create it."])
        assert json.loads((await get("/readyz"))[2])["reasons"] == [
            "Topic dispatch.signals.v1 does not exist: create it."
        ]
        health.ready = lambda: (True, [])
        status, content_type, text = await get("/readyz")
        assert (status, json.loads(text)) == (200, {"ready": True, "reasons": []})
        assert content_type.startswith("application/json")

    served(health, body)


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = HealthServer("127.0.0.1", taken.getsockname()[1], Metrics(), Health())
        with pytest.raises(ConfigurationError, match="VPP_DISPATCH_HTTP__PORT"):
            asyncio.run(server.start())
