"""/sim/: scripts the simulator while it runs. Loopback only: it is no part of what GoodWe offers.

POST /sim/consent   {"sn" | "sns", "authorized": bool, "expires_at"?: epoch s}
POST /sim/whitelist {"sn" | "sns", "listed": bool}            GoodWe's own list of the supplier's devices
POST /sim/online    {"sn" | "sns", "online": bool}
POST /sim/owner     {"sn", "parameter", "value"}              the owner changes a setting by hand
POST /sim/device    {"sn" | "sns", "soc"?, "load_w"?, "pv_factor"?, "grid_mode"?, "error_bits"?, "diagnostic_bits"?,
                     "off_grid"?: bool, "faulted"?: bool}     the last two: no grid there; an error bit is set
POST /sim/faults    see `faults.Faults.change`; also "expire_tokens": true
POST /sim/weather   {"weather": one of `weather.WEATHERS`}      in place of all faults there are
POST /sim/registry  {"publish"?: [sn | record], "remove"?: [sn]}   records and tombstones on the registry topic
GET  /sim/faults, /sim/weather, /sim/fleet, /sim/health
GET  /sim/dump      ?path=FILE writes it there, ?sn=SN (repeatable) narrows it
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from vpp_dispatch.simulator.api import RealTimeApi, reply
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.faults import FaultError
from vpp_dispatch.simulator.topics import Publisher, Topics
from vpp_dispatch.simulator.weather import WEATHERS

_COLUMNS: Final[Mapping[str, str]] = {
    "load_w": "load_fixed_w",
    "pv_factor": "pv_factor",
    "grid_mode": "grid_mode",
    "error_bits": "error_bits",
    "diagnostic_bits": "diagnostic_bits",
}
# What can be said in one word: the column, its value if so, and if not. Error bit 12 is the internal fan's.
_STATES: Final[Mapping[str, tuple[str, int, int]]] = {
    "off_grid": ("grid_mode", 0, 1),
    "faulted": ("error_bits", 1 << 12, 0),
}
Handler = Callable[[Mapping[str, Any], float], Awaitable[dict[str, Any]]]


class ControlError(ValueError):
    """A control call that cannot be used; answered 400, and nothing was changed."""


class Control:
    """The handlers of /sim/."""

    def __init__(
        self,
        *,
        cloud: Cloud,
        api: RealTimeApi,
        topics: Topics,
        registry: Publisher | None = None,
        registry_topic: str = "",
    ) -> None:
        self._cloud = cloud
        self._api = api
        self._topics = topics
        self._registry = registry
        self._registry_topic = registry_topic

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application."""
        posts = {
            "consent": self._consent,
            "whitelist": self._whitelist,
            "online": self._online,
            "owner": self._owner,
            "device": self._device,
            "faults": self._faults,
            "weather": self._weather,
            "registry": self._publish_registry,
        }
        gets = {
            "faults": self._show_faults,
            "weather": self._show_weathers,
            "fleet": self._fleet,
            "health": self._health,
            "dump": self._dump,
        }
        return [
            *(web.post(f"/sim/{name}", self._post(handler)) for name, handler in posts.items()),
            *(web.get(f"/sim/{name}", self._get(handler)) for name, handler in gets.items()),
        ]

    def _post(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            _loopback_only(request)
            try:
                body = msgspec.json.decode(await request.read())
                if not isinstance(body, dict):
                    raise ControlError("the body is a JSON object")
                return reply(await handler(body, time.time()))
            except KeyError as error:
                return reply({"error": f"unknown or missing: {error.args[0]}"}, status=400)
            except (ControlError, FaultError, msgspec.DecodeError, TypeError, ValueError) as error:
                return reply({"error": str(error)}, status=400)

        return handle

    def _get(
        self, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            _loopback_only(request)
            return await handler(request)

        return handle

    def _sns(self, body: Mapping[str, Any]) -> list[str]:
        sns = body["sns"] if "sns" in body else [body["sn"]]
        if not isinstance(sns, list):
            raise ControlError("sns is a list")
        for sn in sns:
            if sn not in self._cloud.inverters.row_of:
                raise ControlError(f"unknown SN {sn}")
        return sns

    async def _consent(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        sns, authorized = self._sns(body), _switch(body, "authorized")
        for sn in sns:
            self._cloud.consent.set_authorized(sn, authorized, now=now, expires_at=body.get("expires_at"))
        return {"changed": len(sns), "at": now}

    async def _whitelist(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        sns, listed = self._sns(body), _switch(body, "listed")
        for sn in sns:
            self._cloud.consent.set_listed(sn, listed)
        return {"changed": len(sns), "at": now}

    async def _online(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        sns = self._sns(body)
        self._cloud.set_online(sns, _switch(body, "online"), now=now)
        return {"changed": len(sns), "at": now}

    async def _owner(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        outcome = self._cloud.owner_sets(body["sn"], body["parameter"], body["value"], now=now)
        if outcome != "success":
            raise ControlError(f"the inverter says: {outcome}")
        return {"changed": 1, "at": now}

    async def _device(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        rows = [self._cloud.inverters.row_of[sn] for sn in self._sns(body)]
        values = {name: value for name, value in body.items() if name not in ("sn", "sns", *_STATES)}
        for name, (column, when_true, when_false) in _STATES.items():
            if name in body:
                values[column] = when_true if _switch(body, name) else when_false
        if unknown := set(values) - set(_COLUMNS) - {"soc"}:
            raise ControlError(f"unknown {sorted(unknown)}; known are {sorted((*_COLUMNS, *_STATES, 'soc'))}")
        if any(value is None and name != "load_w" for name, value in values.items()):
            raise ControlError("only load_w can be null, which gives the house its own course back")
        numbers = {name: math.nan if value is None else float(value) for name, value in values.items()}
        inverters = self._cloud.inverters
        inverters.advance(now)
        for name, number in numbers.items():
            if name == "soc":
                inverters.stored_wh[rows] = inverters.capacity_wh[rows] * number / 100
            else:
                getattr(inverters, _COLUMNS[name])[rows] = number
        return {"changed": len(rows), "at": now}

    async def _faults(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        self._cloud.faults.change({key: value for key, value in body.items() if key != "expire_tokens"})
        if body.get("expire_tokens"):
            self._api.expire_tokens()
        return self._cloud.faults.shown()

    async def _weather(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        self._cloud.faults.set_weather(body["weather"], codes=self._cloud.profile.codes)
        return self._cloud.faults.shown()

    async def _publish_registry(self, body: Mapping[str, Any], now: float) -> dict[str, Any]:
        if self._registry is None:
            raise ControlError("started without --publish-fleet: there is no registry topic")
        records: list[tuple[str, str, bytes | None]] = []
        for entry in body.get("publish", []):
            if isinstance(entry, str):
                entry = self._cloud.inverters.devices[self._cloud.inverters.row_of[entry]].registry_record()
            records.append((self._registry_topic, entry["sn"], msgspec.json.encode(entry)))
        records.extend((self._registry_topic, sn, None) for sn in body.get("remove", []))
        await self._registry.publish(records)
        return {"published": len(records), "at": now}

    async def _show_faults(self, request: web.Request) -> web.Response:
        return reply(self._cloud.faults.shown())

    async def _show_weathers(self, request: web.Request) -> web.Response:
        return reply({name: {"says": weather.says, "faults": weather.faults} for name, weather in WEATHERS.items()})

    async def _fleet(self, request: web.Request) -> web.Response:
        return reply([device.registry_record() for device in self._cloud.inverters.devices])

    async def _health(self, request: web.Request) -> web.Response:
        failure = self._topics.failure()
        body = {
            "ok": failure is None,
            "error": None if failure is None else repr(failure),
            "inverters": len(self._cloud.inverters),
            "pending": self._cloud.pending,
            "unpublished": self._topics.unpublished,
            "totals": dict(self._cloud.ledger.totals),
        }
        return reply(body, status=200 if failure is None else 500)

    async def _dump(self, request: web.Request) -> web.Response:
        sns = request.query.getall("sn", [])
        dump = self._cloud.dump(time.time(), only=sns or None)
        if (path := request.query.get("path")) is None:
            return reply(dump)
        write_dump(dump, Path(path))
        return reply({"path": path, "totals": dump["totals"], "pending": dump["pending"]})


def write_dump(dump: Mapping[str, Any], path: Path) -> None:
    """Write a dump so that a reader never sees half of it.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.encode(dump))
    part.replace(path)


def _switch(body: Mapping[str, Any], name: str) -> bool:
    value = body[name]
    if not isinstance(value, bool):
        raise ControlError(f"{name} is true or false")
    return value


def _loopback_only(request: web.Request) -> None:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not peer or not ipaddress.ip_address(peer[0]).is_loopback:
        raise web.HTTPForbidden(text="loopback only")
