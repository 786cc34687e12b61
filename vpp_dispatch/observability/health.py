"""/metrics, /livez and /readyz on a server of our own: up before Kafka is, and while it is not.

Faust's web views are off: its `/` always says OK and its `/table` shows data.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from aiohttp import web

from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.observability.metrics import Metrics

Readiness = Callable[[], tuple[bool, list[str]]]


class Health:
    """What the probes answer from.

    `ready` is set by the composition root: whether this worker is in the group and what it owns is recovered, and else
    the reasons as sentences.
    """

    def __init__(self, *, live_limit_s: float = 60.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.ready: Readiness = lambda: (False, ["The service is starting."])
        self._live_limit_s = live_limit_s
        self._monotonic = monotonic
        self._last_beat = monotonic()

    def beat(self) -> None:
        """Progress of the worker's own loop. It beats without a broker too: a restart would not bring one back."""
        self._last_beat = self._monotonic()

    def live(self) -> tuple[bool, list[str]]:
        """False once there was no beat for longer than the limit."""
        still_s = self._monotonic() - self._last_beat
        if still_s <= self._live_limit_s:
            return True, []
        return False, [f"The loop has made no progress for {still_s:.0f} s; the limit is {self._live_limit_s:.0f} s."]


class HealthServer:
    """The three pages. `port` is the real one once started, also where 0 was asked for."""

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health) -> None:
        self.host = host
        self.port = port
        self._metrics = metrics
        self._health = health
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/livez", self._show_live)
        app.router.add_get("/readyz", self._show_ready)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"{self.host}:{self.port} cannot be listened on ({error.strerror or error}): set "
                "VPP_DISPATCH_HTTP__PORT to a free port, or to 0 for any."
            ) from error
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes the port; more than once does nothing."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": Metrics.CONTENT_TYPE})

    async def _show_live(self, request: web.Request) -> web.Response:
        return _answer("live", *self._health.live())

    async def _show_ready(self, request: web.Request) -> web.Response:
        return _answer("ready", *self._health.ready())


def _answer(word: str, good: bool, reasons: list[str]) -> web.Response:
    text = json.dumps({word: good, "reasons": reasons})
    return web.Response(status=200 if good else 503, text=text + "\n", content_type="application/json")
