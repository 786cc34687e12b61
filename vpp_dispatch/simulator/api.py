"""The Real-Time Data API over HTTP: a token and seven interfaces, from the same state as the topics.

Only devices on the whitelist with a current authorization are shown. Power in W, energy in kWh, times in epoch
milliseconds; signs as the profile's `realtime.factors` say.
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
from vpp_dispatch.simulator.profile import ACTIVE_LIMIT, EXPORT_ENABLED, EXPORT_LIMIT, MODE, POWER, POWER_FACTOR

INTERFACES: Final = ("authorized-sns", "bms", "grid-status", "alarms", "operation", "production", "station")
_BAD_REQUEST: Final = "100400"
_NO_LOGIN: Final = "100005"


def reply(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(body=msgspec.json.encode(data), status=status, headers=headers, content_type="application/json")


def _error(code: str, message: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return reply({"code": code, "msg": message, "data": None}, status=status, headers=headers)


class RealTimeApi:
    """The seven interfaces.

    Args of the constructor:
        account, password: what is accepted; None accepts anything.
    """

    def __init__(self, *, cloud: Cloud, seed: int, account: str | None = None, password: str | None = None) -> None:
        self._cloud = cloud
        self._account = account
        self._password = password
        self._random = np.random.default_rng([seed, 2])
        self._tokens: dict[str, float] = {}
        self._calls: list[float] = []

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application."""
        profile = self._cloud.profile
        return [
            web.post(profile.token_path, self._token),
            *(web.post(profile.realtime_path.format(name=name), self._interface(name)) for name in INTERFACES),
        ]

    def expire_tokens(self) -> None:
        """All tokens end now."""
        self._tokens.clear()

    # -- what every call goes through

    async def _token(self, request: web.Request) -> web.Response:
        self._cloud.ledger.totals["http.token"] += 1
        if (fault := await self._fault()) is not None:
            return fault
        body = await _body(request)
        if body is None:
            return _error(_BAD_REQUEST, "the body is no JSON object", status=400)
        for name, wanted in (("account", self._account), ("password", self._password)):
            given = body.get(name)
            if not isinstance(given, str) or (
                wanted is not None and not secrets.compare_digest(given.encode(), wanted.encode())
            ):
                return _error(_NO_LOGIN, "account or password is wrong", status=401)
        token = secrets.token_urlsafe(24)
        ttl_s = self._cloud.faults.realtime.token_ttl_s
        self._tokens[token] = time.time() + ttl_s
        profile = self._cloud.profile
        return reply(
            {"code": "0", "msg": "ok", "data": {profile.token_field: token, profile.expires_field: int(ttl_s)}}
        )

    async def _fault(self) -> web.Response | None:
        faults = self._cloud.faults.realtime
        if self._happens(faults.slow_rate, "slow_next"):
            await asyncio.sleep(faults.slow_s)
        if self._happens(faults.error_rate, "error_next"):
            self._cloud.ledger.totals["http.errors"] += 1
            return _error("500", "injected fault", status=faults.error_status)
        limited = faults.rate_limit_next > 0
        if limited:
            faults.rate_limit_next -= 1
        elif faults.rate_limit_per_s > 0:
            now = time.monotonic()
            self._calls = [at for at in self._calls if at > now - 1]
            limited = len(self._calls) >= max(1.0, faults.rate_limit_per_s)
            if not limited:
                self._calls.append(now)
        if not limited:
            return None
        self._cloud.ledger.totals["http.rate_limited"] += 1
        headers = {} if faults.retry_after_s is None else {"Retry-After": f"{faults.retry_after_s:g}"}
        status = 429 if faults.rate_limit_style == "http" else 200
        return _error(self._cloud.profile.rate_limit_code, "too many calls", status=status, headers=headers)

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
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme != "Bearer" or self._tokens.get(token, 0) <= time.time():
                status = 401 if self._cloud.faults.realtime.token_error == "http" else 200
                return _error(
                    self._cloud.profile.token_expired_code, "the token is unknown or has expired", status=status
                )
            body = await _body(request)
            if body is None:
                return _error(_BAD_REQUEST, "the body is no JSON object", status=400)
            return self._page(name, body)

        return handle

    def _page(self, name: str, body: Mapping[str, Any]) -> web.Response:
        most = self._cloud.profile.page_size
        page, size, sns = body.get("page", 1), body.get("pageSize", most), body.get("sns", [])
        if type(page) is not int or type(size) is not int or page < 1 or not 1 <= size <= most:
            return _error(_BAD_REQUEST, f"page is at least 1 and pageSize from 1 to {most}")
        if not isinstance(sns, list) or len(sns) > most or not all(isinstance(sn, str) for sn in sns):
            return _error(_BAD_REQUEST, f"sns is a list of at most {most} serial numbers")
        now = time.time()
        start = (page - 1) * size
        if name == "authorized-sns":
            found = self._cloud.consent.authorized_sns(now=now)
            total, faults = len(found), self._cloud.faults.realtime
            if page > 1 and faults.list_changes_next > 0:
                # One SN went away before this page and one came that is not on any page yet: the pages miss one.
                faults.list_changes_next -= 1
                found = found[1:]
            rows = [
                {"sn": sn, "authorizedAt": int(since * 1000), "expiresAt": int(until * 1000)}
                for sn, since, until in found[start : start + size]
            ]
            return reply({"code": "0", "msg": "ok", "data": {"total": total, "list": rows}})
        known = [sn for sn in dict.fromkeys(sns) if self._shown(sn, now)]
        rows = self._rows(name, known[start : start + size], now)
        return reply({"code": "0", "msg": "ok", "data": {"total": len(known), "list": rows}})

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
                answer.append({"sn": sn})
                continue
            seen_at = (now if online else float(inverters.seen_at[row])) - self._cloud.faults.realtime.telemetry_age_s
            row_data = build(row, position, flows, online)
            answer.append({"sn": sn} | ({} if name == "station" else {"time": int(seen_at * 1000)}) | row_data)
        return answer

    def _signed(self, field: str, ours: float) -> int:
        """Our sign (import, consumption, charging +) to theirs: the factors of a profile bring theirs to ours."""
        return round(ours / self._cloud.profile.factors.get(field, 1))

    def _operation(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        settings = self._cloud.inverters.settings[:, row].tolist()
        live = 1 if online else 0
        return {
            "online": online,
            "pvPower": self._signed("pvPower", live * flows.pv_w[position]),
            "gridPower": self._signed("gridPower", live * -flows.grid_w[position]),
            "loadPower": self._signed("loadPower", live * flows.load_w[position]),
            "batteryPower": self._signed("batteryPower", live * -flows.battery_w[position]),
            "acPower": self._signed("acPower", live * flows.ac_w[position]),
            "emsMode": settings[MODE],
            "emsPower": settings[POWER],
            "exportLimitEnabled": settings[EXPORT_ENABLED],
            "exportLimit": settings[EXPORT_LIMIT],
            "activePowerLimit": settings[ACTIVE_LIMIT],
            "powerFactor": settings[POWER_FACTOR],
        }

    def _bms(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters, sentinels = self._cloud.inverters, self._cloud.profile.sentinels
        if not inverters.battery[row]:
            nothing = dict.fromkeys(
                ("soh", "power", "voltage", "current", "temperature", "status", "chargeLimitA", "dischargeLimitA")
            )
            return {"soc": sentinels.get("soc")} | nothing
        soc = float(inverters.soc[row])
        voltage = 350 + 0.6 * soc
        power_w = float(flows.battery_w[position]) if online else 0.0
        limit_a = round(float(inverters.battery_limit_w[row]) / voltage, 1)
        full, empty = soc >= float(inverters.max_soc[row]), soc <= float(inverters.min_soc[row])
        return {
            "soc": round(soc, 1),
            "soh": 98,
            "power": self._signed("power", -power_w),
            "voltage": round(voltage, 1),
            "current": round(power_w / voltage, 1),
            "temperature": 24.5,
            "status": 2 * full + 4 * empty,
            "chargeLimitA": 0.0 if full else limit_a,
            "dischargeLimitA": 0.0 if empty else limit_a,
        }

    def _grid_status(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        mode = self._cloud.profile.modes.get(int(inverters.settings[MODE, row]), 1)
        grid_mode = 0 if mode == 7 else int(inverters.grid_mode[row])
        work_mode = 3 if inverters.error_bits[row] else 0 if mode == 255 else 1 if grid_mode == 1 else 2
        volts = 230.0 if grid_mode == 1 else 0.0
        return {
            "gridMode": grid_mode,
            "workMode": work_mode,
            "voltage": [volts] * 3,
            "frequency": 50.0 if volts else 0.0,
        }

    def _alarms(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        low = bool(inverters.battery[row]) and inverters.soc[row] <= inverters.min_soc[row]
        diagnostic = int(inverters.diagnostic_bits[row]) | (2 if low else 0)  # bit 1: state of charge low
        return {"errorBits": int(inverters.error_bits[row]), "diagnosticBits": diagnostic}

    def _production(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        return {"today": round(float(inverters.today_kwh[row]), 3), "total": round(float(inverters.total_kwh[row]), 1)}

    def _station(self, row: int, position: int, flows: Flows, online: bool) -> dict[str, Any]:
        inverters = self._cloud.inverters
        device = inverters.devices[row]
        return {
            "stationName": device.site,
            "area": device.area,
            "capacity": device.rated_w,
            "batteryCapacity": round(float(inverters.capacity_wh[row])),
            "firmware": "SIM-1",
        }


async def _body(request: web.Request) -> dict[str, Any] | None:
    try:
        body = msgspec.json.decode(await request.read() or b"{}")
    except msgspec.DecodeError:
        return None
    return body if isinstance(body, dict) else None
