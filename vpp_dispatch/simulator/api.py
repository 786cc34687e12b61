"""The Real-Time Data API over HTTP: a token and seven interfaces, from the same state as the topics.

Only devices on the whitelist with a current authorization are shown. Rows are built in the names, signs and units of
the profile's left sides (W, kWh, epoch seconds; import, consumption and charging positive; settings raw as on the
topics); `profile.RealTime` makes GoodWe's of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web

from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.inverter import Flows
from vpp_dispatch.simulator.profile import (
    ACTIVE_LIMIT,
    EXPORT_ENABLED,
    EXPORT_LIMIT,
    INTERFACES,
    MODE,
    POWER,
    POWER_FACTOR,
)

_BAD_REQUEST: Final = "100400"
_NO_LOGIN: Final = "100005"


def reply(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=msgspec.json.encode(data), status=status, headers=headers, content_type="application/json")


class RealTimeApi:
    """The seven interfaces.

    Args of the constructor:
        account, password: what is accepted; None accepts anything.
    """

    def __init__(self, *, cloud: Cloud, seed: int, account: str | None = None, password: str | None = None) -> None:
        self._cloud = cloud
        self._rules = cloud.profile.realtime
        self._account = account
        self._password = password
        self._random = np.random.default_rng([seed, 2])
        self._tokens: dict[str, float] = {}
        self._calls: list[float] = []

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application."""
        return [
            web.post(self._rules.token_path, self._token),
            *(web.post(self._rules.paths[name], self._interface(name)) for name in INTERFACES),
        ]

    def expire_tokens(self) -> None:
        """All tokens end now."""
        self._tokens.clear()

    # -- what every call goes through

    def _ok(self, data: Any) -> web.Response:
        return reply(self._rules.answer(self._rules.success_code, "ok", data))

    def _error(
        self, code: str, message: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        return reply(self._rules.answer(code, message, None), status=status, headers=headers)

    async def _token(self, request: web.Request) -> web.Response:
        self._cloud.ledger.totals["http.token"] += 1
        if (fault := await self._fault()) is not None:
            return fault
        body = await _body(request)
        if body is None:
            return self._error(_BAD_REQUEST, "the body is no JSON object", status=400)
        for name, wanted in (("account", self._account), ("password", self._password)):
            given = body.get(self._rules.envelope[name])
            if not isinstance(given, str) or (
                wanted is not None and not secrets.compare_digest(given.encode(), wanted.encode())
            ):
                return self._error(_NO_LOGIN, "account or password is wrong", status=401)
        if self._happens(0.0, "login_refused_next"):
            return self._error(_NO_LOGIN, "the account is locked", status=401)
        token = secrets.token_urlsafe(24)
        ttl_s = self._cloud.faults.realtime.token_ttl_s
        self._tokens[token] = time.time() + ttl_s
        return self._ok({self._rules.token_field: token, self._rules.expires_field: int(ttl_s)})

    async def _fault(self) -> web.Response | None:
        faults = self._cloud.faults.realtime
        if self._happens(faults.slow_rate, "slow_next"):
            await asyncio.sleep(faults.slow_s)
        if self._happens(faults.error_rate, "error_next"):
            self._cloud.ledger.totals["http.errors"] += 1
            return self._error("500", "injected fault", status=faults.error_status)
        limited = faults.rate_limit_next > 0
        if limited:
            faults.rate_limit_next -= 1
        elif faults.rate_limit_per_s > 0:
            now = time.monotonic()
            self._calls = [at for at in self._calls if at > now - max(1.0, 1 / faults.rate_limit_per_s)]
            limited = len(self._calls) >= max(1.0, faults.rate_limit_per_s)
            if not limited:
                self._calls.append(now)
        if not limited:
            return None
        self._cloud.ledger.totals["http.rate_limited"] += 1
        headers = {} if faults.retry_after_s is None else {"Retry-After": f"{faults.retry_after_s:g}"}
        status = 429 if faults.rate_limit_style == "http" else 200
        return self._error(self._rules.rate_limit_code, "too many calls", status=status, headers=headers)

    def _happens(self, rate: float, counter: str) -> bool:
        faults = self._cloud.faults.realtime
        if getattr(faults, counter) > 0:
            setattr(faults, counter, getattr(faults, counter) - 1)
            return True
        return bool(rate and self._random.random() < rate)

    def _interface(self, name: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            self._cloud.ledger.totals[f"http.{name}"] += 1
            if (fault := await self._fault()) is not None:
                return fault
            token = self._rules.token_of(request.headers.get(self._rules.header, ""))
            if self._happens(0.0, "token_expires_next"):
                self._tokens.pop(token, None)
            if self._tokens.get(token, 0) <= time.time():
                status = 401 if self._cloud.faults.realtime.token_error == "http" else 200
                return self._error(self._rules.token_expired_code, "the token is unknown or has expired", status=status)
            body = await _body(request)
            if body is None:
                return self._error(_BAD_REQUEST, "the body is no JSON object", status=400)
            return self._page(name, body)

        return handle

    def _page(self, name: str, body: Mapping[str, Any]) -> web.Response:
        most, name_of = self._rules.page_size, self._rules.envelope
        page, size = body.get(name_of["page"], 1), body.get(name_of["page_size"], most)
        sns = body.get(name_of["sns"], [])
        if type(page) is not int or type(size) is not int or page < 1 or not 1 <= size <= most:
            return self._error(_BAD_REQUEST, f"page is at least 1 and pageSize from 1 to {most}")
        if not isinstance(sns, list) or len(sns) > most or not all(isinstance(sn, str) for sn in sns):
            return self._error(_BAD_REQUEST, f"sns is a list of at most {most} serial numbers")
        now = time.time()
        start = (page - 1) * size
        if name == "authorized-sns":
            found = self._cloud.consent.authorized_sns(now=now)
            total, faults = len(found), self._cloud.faults.realtime
            if page > 1 and self._happens(faults.list_changes_rate, "list_changes_next"):
                # One SN went away before this page and one came that is not on any page yet: the pages miss one.
                found = found[1:]
            rows = [
                self._rules.row(name, {"sn": sn, "authorized_at": since, "expires_at": until})
                for sn, since, until in found[start : start + size]
            ]
            return self._ok(self._rules.page(total, rows))
        known = [sn for sn in dict.fromkeys(sns) if self._shown(sn, now)]
        rows = self._rows(name, known[start : start + size], now)
        return self._ok(self._rules.page(len(known), rows))

    def _shown(self, sn: str, now: float) -> bool:
        return sn in self._cloud.inverters.row_of and self._cloud.consent.standing(sn, now=now) == "authorized"

    # -- rows

    def _rows(self, name: str, sns: list[str], now: float) -> list[dict[str, Any]]:
        inverters = self._cloud.inverters
        inverters.advance(now)
        rows = np.array([inverters.row_of[sn] for sn in sns], dtype=np.int64)
        flows = inverters.flows(rows, now)
        build = {
            "bms": self._bms,
            "grid-status": self._grid_status,
            "alarms": self._alarms,
            "operation": self._operation,
            "production": self._production,
            "station": self._station,
        }[name]
        answer = []
        for position, row in enumerate(rows.tolist()):
            sn, online = inverters.sns[row], bool(inverters.online[row])
            if not online and self._cloud.faults.realtime.offline_rows == "sn" and name != "station":
                answer.append(self._rules.row(name, {"sn": sn}))
                continue
            seen_at = (now if online else float(inverters.seen_at[row])) - self._cloud.faults.realtime.telemetry_age_s
            ours = {"sn": sn} | ({} if name == "station" else {"time": seen_at}) | build(row, position, flows, online)
            answer.append(self._rules.row(name, ours))
        return answer

    def _operation(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        settings = self._cloud.inverters.settings[:, row].tolist()
        live = 1 if online else 0
        return {
            "online": online,
            "pv_power": round(live * flows.pv_w[position]),
            "grid_power": round(live * -flows.grid_w[position]),
            "load_power": round(live * flows.load_w[position]),
            "battery_power": round(live * -flows.battery_w[position]),
            "ac_power": round(live * flows.ac_w[position]),
            "ems_mode": settings[MODE],
            "ems_power": settings[POWER],
            "export_limit_enabled": settings[EXPORT_ENABLED],
            "export_limit": settings[EXPORT_LIMIT],
            "active_power_limit": settings[ACTIVE_LIMIT],
            "power_factor": settings[POWER_FACTOR],
        }

    def _bms(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        if not inverters.battery[row]:
            return dict.fromkeys(
                (
                    *("soc", "soh", "power", "voltage", "current", "temperature", "status"),
                    *("charge_limit_a", "discharge_limit_a"),
                )
            )
        soc = float(inverters.soc[row])
        voltage = 350 + 0.6 * soc
        power_w = float(flows.battery_w[position]) if online else 0.0
        limit_a = round(float(inverters.battery_limit_w[row]) / voltage, 1)
        full, empty = soc >= float(inverters.max_soc[row]), soc <= float(inverters.min_soc[row])
        return {
            "soc": round(soc, 1),
            "soh": 98,
            "power": round(-power_w),
            "voltage": round(voltage, 1),
            "current": round(power_w / voltage, 1),
            "temperature": 24.5,
            "status": 2 * full + 4 * empty,
            "charge_limit_a": 0.0 if full else limit_a,
            "discharge_limit_a": 0.0 if empty else limit_a,
        }

    def _grid_status(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        mode = self._cloud.profile.modes.get(int(inverters.settings[MODE, row]), 1)
        grid_mode = 0 if mode == 7 else int(inverters.grid_mode[row])
        work_mode = 3 if inverters.error_bits[row] else 0 if mode == 255 else 1 if grid_mode == 1 else 2
        volts = 230.0 if grid_mode == 1 else 0.0
        return {
            "grid_mode": self._rules.mode("grid_mode", grid_mode),
            "work_mode": self._rules.mode("work_mode", work_mode),
            "voltage": [volts] * 3,
            "frequency": 50.0 if volts else 0.0,
        }

    def _alarms(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        low = bool(inverters.battery[row]) and inverters.soc[row] <= inverters.min_soc[row]
        diagnostic = int(inverters.diagnostic_bits[row]) | (2 if low else 0)  # bit 1: state of charge low
        return {"error_bits": int(inverters.error_bits[row]), "diagnostic_bits": diagnostic}

    def _production(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        return {"today": round(float(inverters.today_kwh[row]), 3), "total": round(float(inverters.total_kwh[row]), 1)}

    def _station(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        device = inverters.devices[row]
        return {
            "station_name": device.site,
            "area": device.area,
            "capacity": device.rated_w,
            "battery_capacity": round(float(inverters.capacity_wh[row])),
            "firmware": "SIM-1",
        }


async def _body(request: web.Request) -> dict[str, Any] | None:
    try:
        body = msgspec.json.decode(await request.read() or b"{}")
    except msgspec.DecodeError:
        return None
    return body if isinstance(body, dict) else None
