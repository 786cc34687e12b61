"""GoodWe's Real-Time Data API: seven interfaces over HTTPS, at the pace that it allows.

What can go wrong, as the tree of `errors`:

    ExternalFault       `external_fault`: HTTP 5xx to the end, an answer of another form, a code that is no success
    |-- ExternalFault   `unauthorized`: the account or its token is refused, also right after a new log-in
    |-- ExternalFault   `incomplete`: the list of authorized SNs did not add up, however often it was read
    |-- RateLimited     `rate_limited`: HTTP 429 or its code; until `retry_after_s` is over no call leaves
    `-- NotReachable    `not_reachable`: no connection, or no answer in time, to the end
        `-- NotReachable `circuit_open`: it failed too often in a row; no call leaves for a while (goodwe.circuit)

Signs, sentinels and units end here: what comes out is ours. Secrets are in no message, repr or log.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from vpp_dispatch.domain.device import SN_PATTERN, Authorization, Battery, Operation
from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable, RateLimited
from vpp_dispatch.goodwe.circuit import Circuit
from vpp_dispatch.goodwe.profile import ModeCodes, Profile, RealTimeInterface

ATTEMPTS: Final = 3
"""Of one call that fails for a reason that may pass."""

READINGS: Final = 3
"""Of the list of authorized SNs until it adds up."""

BACKOFF_S: Final = 0.5
"""First wait between attempts; doubles, with full jitter."""

WAIT_IN_PLACE_S: Final = 10.0
"""A rate limit that is over so soon is waited for; a longer one is told."""

LONGEST_WAIT_S: Final = 3600.0
"""No Retry-After is believed beyond it."""

EXPIRES_EARLY_S: Final = 30.0
"""A token that has less to live is renewed before it is used."""


class Row(BaseModel):
    """One row of an interface. Everything but the SN may be missing: an offline device tells nothing else."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sn: str
    time: float | None = None
    """epoch seconds"""


class AuthorizationRow(Row):
    authorized_at: float | None = None
    expires_at: float | None = None


class BatteryRow(Row):
    soc: float | None = None
    soh: float | None = None
    power: float | None = None
    """W, charging positive"""
    voltage: float | None = None
    current: float | None = None
    temperature: float | None = None
    status: int | None = None
    charge_limit_a: float | None = None
    discharge_limit_a: float | None = None


class GridStatusRow(Row):
    grid_mode: int | None = None
    work_mode: int | None = None
    voltage: tuple[float | None, ...] | float | None = None
    frequency: float | None = None


class AlarmsRow(Row):
    error_bits: int | None = None
    diagnostic_bits: int | None = None


class OperationRow(Row):
    """Powers in W; import, consumption and charging positive."""

    online: bool | None = None
    pv_power: float | None = None
    grid_power: float | None = None
    load_power: float | None = None
    battery_power: float | None = None
    ac_power: float | None = None
    ems_mode: int | None = None
    ems_power: float | None = None
    export_limit_enabled: int | None = None
    export_limit: float | None = None
    active_power_limit: float | None = None
    power_factor: float | None = None


class ProductionRow(Row):
    """kWh"""

    today: float | None = None
    total: float | None = None


class StationRow(Row):
    station_name: str | None = None
    area: str | None = None
    capacity: float | None = None
    battery_capacity: float | None = None
    firmware: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One of the seven: whether it is asked about SNs (else it lists all), its row, and which fields are times."""

    takes_sns: bool
    row: type[Row]
    times: tuple[str, ...] = ("time",)


INTERFACES: Final[Mapping[str, Interface]] = {
    "authorized": Interface(takes_sns=False, row=AuthorizationRow, times=("authorized_at", "expires_at")),
    "bms": Interface(takes_sns=True, row=BatteryRow),
    "grid_status": Interface(takes_sns=True, row=GridStatusRow),
    "alarms": Interface(takes_sns=True, row=AlarmsRow),
    "operation": Interface(takes_sns=True, row=OperationRow),
    "production": Interface(takes_sns=True, row=ProductionRow),
    "station": Interface(takes_sns=True, row=StationRow),
}
"""The seven interfaces by our name for them; the profile has theirs."""

AnyRow = TypeVar("AnyRow", bound=Row)

Lane = Literal["consent", "telemetry"]
"""What a call is for: each may be given a part of the rate of its own."""


class _Expired(Exception):
    """The token is refused; never leaves this module."""


class RealTimeApi:
    """A client of the API. Safe to use from many tasks at once; close it with `aclose`.

    Attributes:
        max_calls_per_s: calls per second, log-ins and retries included; 0 = no limit. May be changed at any time.
        circuit: open while the API fails again and again.
        calls, logins, refused_rows: counts.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        base_url: str,
        account: str,
        password_file: Path | str | None,
        max_calls_per_s: float = 1.0,
        ca_file: Path | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.time,
        circuit: Circuit | None = None,
        called: Callable[[str, str], None] = lambda interface, outcome: None,
        log: Any = None,
    ) -> None:
        """Args:
            password_file: read anew at each log-in, so that a changed password needs no restart.
            clock: epoch seconds.
            called: told each call that left: `token` or one of INTERFACES, and `ok` or the reason of the fault.

        Raises:
            ConfigurationError: no password file is named, or `ca_file` is no CA.
        """
        if password_file is None:
            raise ConfigurationError("The Real-Time Data API needs the account's password: name a file that holds it.")
        # Without TLS there is nothing to verify, and reading the system's CAs takes a while.
        verify: ssl.SSLContext | bool = base_url.startswith("https:")
        try:
            if ca_file:
                verify = ssl.create_default_context(cafile=str(ca_file))
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"{ca_file} is no usable CA file ({error}): give a PEM file.") from error
        self.max_calls_per_s = max_calls_per_s
        self.calls = 0
        self.logins = 0
        self.refused_rows = 0
        self._rules = profile.realtime
        self._envelope = profile.realtime.envelope
        self._account = account
        self._password_file = Path(password_file)
        self._clock = clock
        self._log = log or structlog.get_logger("vpp_dispatch.realtime")
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            timeout=httpx.Timeout(connect=connect_timeout_s, read=read_timeout_s, write=10.0, pool=read_timeout_s),
            verify=verify,
            follow_redirects=False,
        )
        self._token = ""
        self._expires_at = 0.0
        self._logging_in = asyncio.Lock()
        self.circuit = circuit or Circuit()
        self._called = called
        self._parts: dict[Lane, float] = {"consent": 1.0, "telemetry": 1.0}
        self._next_call_at = 0.0
        self._last_in_lane: dict[Lane, float] = {"consent": -math.inf, "telemetry": -math.inf}
        self._blocked_until = 0.0
        self._success = set(self._rules.success_codes)

    def __repr__(self) -> str:
        return f"RealTimeApi({self._client.base_url!s})"

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    def pace(self, *, consent: float, telemetry: float) -> None:
        """The parts of `max_calls_per_s`, 0..1, that calls for consent and for telemetry may take from now on.

        Together they never take more than the whole. Without a word here each may take it all. 0 = as good as none.
        """
        self._parts = {"consent": max(consent, 1e-6), "telemetry": max(telemetry, 1e-6)}

    # ------------------------------------------------------------------ what the service reads

    async def authorized(self) -> list[Authorization]:
        """The devices whose owners consent (R16), one complete reading.

        A list counts only if the distinct SNs of all its pages are its total: rows move between pages while consents
        change. It is read again a few times.

        Raises:
            ExternalFault: it never added up (`incomplete`), or see the module.
        """
        seen = total = 0
        for reading in range(READINGS):
            if reading:
                await asyncio.sleep(random.uniform(0.5, 1.0) * BACKOFF_S * 2**reading)
            rows, total, stable = await self._pages("authorized", AuthorizationRow, None)
            listed = {row.sn: row for row in rows}
            seen = len(listed)
            if stable and seen == total:
                return [
                    Authorization(sn=sn, authorized_at=row.authorized_at or 0.0, expires_at=row.expires_at)
                    for sn, row in listed.items()
                    if SN_PATTERN.fullmatch(sn)
                ]
            self._log.info("consent.incomplete", distinct=seen, total=total, reading=reading + 1)
        raise ExternalFault(
            f"The list of authorized SNs did not add up in {READINGS} readings: {seen} SNs of {total}.",
            reason="incomplete",
        )

    async def operation(self, sns: Sequence[str]) -> list[Operation]:
        """Operation data of devices; who is not in the answer is not in the list. A row with only an SN is offline."""
        now = self._clock()
        return [
            Operation(
                sn=row.sn,
                at=now if row.time is None else row.time,
                online=bool(row.online),
                grid_power_w=row.grid_power,
                battery_power_w=row.battery_power,
                pv_power_w=row.pv_power,
                load_power_w=row.load_power,
            )
            for row in await self._rows("operation", OperationRow, sns)
        ]

    async def modes(self, operations: Sequence[Operation]) -> list[Operation]:
        """The same operation data with `faulted` and `off_grid` from grid-status (R18), in the same order.

        Only those online are asked about: of an offline device grid-status knows nothing new. Where it tells no mode
        that the profile has codes for, the fact stays None: not known.
        """
        asked = [operation.sn for operation in operations if operation.online]
        if not asked or not self._rules.modes.told:
            return list(operations)
        told = {row.sn: row for row in await self._rows("grid_status", GridStatusRow, asked)}
        rules = self._rules.modes
        return [
            operation
            if (row := told.get(operation.sn)) is None
            else replace(operation, off_grid=_counts_as(rules.off_grid, row), faulted=_counts_as(rules.faulted, row))
            for operation in operations
        ]

    async def battery(self, sns: Sequence[str]) -> list[Battery]:
        """Battery data of devices; rows without a time prove nothing and are left out."""
        return [
            Battery(sn=row.sn, at=row.time, soc_percent=row.soc, power_w=row.power)
            for row in await self._rows("bms", BatteryRow, sns)
            if row.time is not None
        ]

    async def rows(self, name: str, sns: Sequence[str] = ()) -> list[Row]:
        """All rows of one of INTERFACES, in our names, signs and units; `sns` where the interface takes them.

        Raises:
            KeyError: no interface of that name.
            ExternalFault: see the module.
        """
        return await self._rows(name, INTERFACES[name].row, sns)

    async def _rows(self, name: str, model: type[AnyRow], sns: Sequence[str]) -> list[AnyRow]:
        if not INTERFACES[name].takes_sns:
            return (await self._pages(name, model, None))[0]
        size = self._rules.page_size
        found: list[AnyRow] = []
        for start in range(0, len(sns), size):
            found += (await self._pages(name, model, sns[start : start + size]))[0]
        return found

    async def _pages(self, name: str, model: type[AnyRow], sns: Sequence[str] | None) -> tuple[list[AnyRow], int, bool]:
        """(rows of all pages, the total told last, whether every page told the same total)."""
        e, size = self._envelope, self._rules.page_size
        theirs: RealTimeInterface = getattr(self._rules.interfaces, name)
        path = self._rules.path.replace("{name}", theirs.name)
        found: list[AnyRow] = []
        totals: list[int] = []
        page = received = 0
        while True:
            page += 1
            body: dict[str, Any] = {e.page: page, e.page_size: size}
            if sns is not None:
                body = {e.sns: list(sns)} | body
            data = await self._call(name, path, body)
            raw, total = (data.get(e.rows), data.get(e.total)) if isinstance(data, dict) else (None, None)
            if not isinstance(raw, list) or not isinstance(total, int) or total < 0:
                raise ExternalFault(f"{path} answered without `{e.rows}` and `{e.total}`.")
            totals.append(total)
            received += len(raw)
            found += [row for row in (self._row(name, theirs, model, item) for item in raw) if row is not None]
            if not raw or received >= total:
                return found, total, len(set(totals)) == 1

    def _row(self, name: str, theirs: RealTimeInterface, model: type[AnyRow], raw: Any) -> AnyRow | None:
        """One row in our names, signs and units; None, counted, if it is of no use."""
        if not isinstance(raw, dict):
            self.refused_rows += 1
            return None
        rules = self._rules
        values: dict[str, Any] = {}
        for field in model.model_fields:
            key = theirs.fields.get(field, field)
            value = raw.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if value in rules.sentinels.get(key, ()):
                    value = None
                elif key in rules.factors:
                    value = value * rules.factors[key]
                if value is not None and field in INTERFACES[name].times:
                    value = value * rules.time_unit_s
            values[field] = value
        try:
            return model.model_validate(values)
        except ValidationError:
            self.refused_rows += 1
            return None

    # ------------------------------------------------------------------ one call

    async def _call(self, name: str, path: str, body: Mapping[str, Any]) -> Any:
        """The `data` of an answer, under a token; logs in again at most once."""
        lane: Lane = "telemetry" if INTERFACES[name].takes_sns else "consent"
        for again in (False, True):
            token = await self._current_token(lane)
            headers = {self._rules.header: self._rules.header_value.replace("{token}", token)}
            try:
                return await self._attempts(name, lane, path, body, headers)
            except _Expired:
                if self._token == token:
                    self._token = ""
                if again:
                    break
        raise ExternalFault(f"{path} refuses the token of a log-in that has just succeeded.", reason="unauthorized")

    async def _current_token(self, lane: Lane) -> str:
        """A token that is valid; many callers share one log-in."""
        async with self._logging_in:
            if self._token and self._clock() < self._expires_at:
                return self._token
            e, rules = self._envelope, self._rules
            started = self._clock()
            try:
                body = {e.account: self._account, e.password: self._password()}
                data = await self._attempts("token", lane, rules.token_path, body, {})
            except _Expired:
                message = "The log-in is refused: check account and password."
                raise ExternalFault(message, reason="unauthorized") from None
            token = data.get(rules.token_field) if isinstance(data, dict) else None
            lasts_s = data.get(rules.expires_field) if isinstance(data, dict) else None
            if not isinstance(token, str) or not token:
                raise ExternalFault(f"The log-in answered without `{rules.token_field}`.", reason="unauthorized")
            usable_s = float(lasts_s) if isinstance(lasts_s, (int, float)) else 3600.0
            self._token = token
            self._expires_at = started + max(usable_s - EXPIRES_EARLY_S, usable_s / 2)
            self.logins += 1
            return token

    def _password(self) -> str:
        try:
            password = self._password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            password = ""
        if not password:
            raise ExternalFault(
                f"The password cannot be read from {self._password_file}: put it there.", reason="unauthorized"
            )
        return password

    async def _attempts(
        self, name: str, lane: Lane, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Any:
        """One call, repeated with jitter while the fault may pass."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._counted(name, lane, path, body, headers)
            except RateLimited as fault:
                wait_s = fault.retry_after_s
                if attempt == ATTEMPTS or wait_s is None or wait_s > WAIT_IN_PLACE_S:
                    raise
                await asyncio.sleep(wait_s + random.uniform(0, 0.1))
            except ExternalFault as fault:
                if attempt == ATTEMPTS or not fault.retriable:
                    raise
                await asyncio.sleep(random.uniform(0, BACKOFF_S * 2 ** (attempt - 1)))

    async def _counted(
        self, name: str, lane: Lane, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Any:
        """One call that waits for its turn, is let through by the circuit, and is told to `called`."""
        await self._turn(lane)
        self.circuit.admit()
        self.calls += 1
        proof, outcome = False, "ok"
        try:
            response = await self._once(path, body, headers)
            proof = True
            return self._understood(path, response)
        except _Expired:
            outcome = "unauthorized"
            raise
        except ExternalFault as fault:
            outcome = fault.reason
            if not proof:
                self.circuit.failed(str(fault))
            raise
        except BaseException:
            outcome = "cut_off"
            if not proof:
                self.circuit.cut_off()
            raise
        finally:
            if proof:
                self.circuit.answered()
            self._called(name, outcome)

    async def _once(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        """An answer, whatever it says, unless it is HTTP 5xx."""
        # `from None`: the request in httpx's errors holds the token or the password.
        try:
            response = await self._client.post(path, json=body, headers=headers)
        except httpx.TimeoutException as error:
            raise NotReachable(f"{path}: no answer in time ({type(error).__name__}).") from None
        except httpx.TransportError as error:
            raise NotReachable(f"{path}: no connection ({type(error).__name__}).") from None
        if response.status_code >= 500:
            raise ExternalFault(f"{path}: HTTP {response.status_code}.")
        return response

    def _understood(self, path: str, response: httpx.Response) -> Any:
        """The `data` of an answer that is a success."""
        status = response.status_code
        if status == 429:
            raise self._limited(path, response)
        if status == 401:
            raise _Expired
        try:
            answer = response.json()
        except ValueError:
            answer = None
        e, rules = self._envelope, self._rules
        code = _code(answer.get(e.code)) if isinstance(answer, dict) else None
        if code is None:
            raise _final(f"{path}: HTTP {status} with no answer of the profile's form.")
        if code in rules.token_expired_codes:
            raise _Expired
        if code in rules.rate_limit_codes:
            raise self._limited(path, response)
        if status >= 400 or not (code in self._success or code.strip("0") == ""):
            # Their text is not repeated: it may quote what was sent.
            raise _final(f"{path}: HTTP {status}, code {code[:40]!r}.")
        return answer.get(e.data)

    async def _turn(self, lane: Lane) -> None:
        """Waits for this call's place in the rate, and in its lane's part of it.

        Raises:
            RateLimited: a rate limit is still in force.
        """
        self._refuse_if_limited()
        if self.max_calls_per_s > 0:
            gap_s = 1 / self.max_calls_per_s
            now = time.monotonic()
            at = max(now, self._last_in_lane[lane] + gap_s / self._parts[lane])
            self._last_in_lane[lane] = at
            await asyncio.sleep(at - now)
            # Only now, so that a call which waits long in its lane keeps nobody else waiting.
            now = time.monotonic()
            at = max(now, self._next_call_at)
            self._next_call_at = at + gap_s
            await asyncio.sleep(at - now)
            self._refuse_if_limited()

    def _refuse_if_limited(self) -> None:
        left = self._blocked_until - time.monotonic()
        if left > 0:
            message = f"The rate limit is in force for {left:.0f} s more: no call was made."
            raise RateLimited(message, retry_after_s=left)

    def _limited(self, path: str, response: httpx.Response) -> RateLimited:
        told = _retry_after_s(response.headers.get("Retry-After"), self._clock())
        wait_s = self._rules.backoff_s if told is None else told
        self._blocked_until = max(self._blocked_until, time.monotonic() + wait_s)
        return RateLimited(f"{path}: the rate limit is reached, wait {wait_s:.0f} s.", retry_after_s=wait_s)


def _counts_as(codes: ModeCodes, row: GridStatusRow) -> bool | None:
    """Whether one of a row's modes is among the codes; None where no mode that has codes is told."""
    told = [mode in known for mode, known in ((row.work_mode, codes.work_mode), (row.grid_mode, codes.grid_mode))
            if known and mode is not None]  # fmt: skip
    return any(told) if told else None


def _final(message: str) -> ExternalFault:
    """A fault that a repetition of the same call would only meet again."""
    fault = ExternalFault(message)
    fault.retriable = False
    return fault


def _code(value: Any) -> str | None:
    """A code as text, however it is typed; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)


def _retry_after_s(text: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which is a number or an HTTP date; None if it is absent or neither."""
    if text is None:
        return None
    if re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*", text):
        return min(float(text), LONGEST_WAIT_S)
    try:
        at = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - now, 0.0), LONGEST_WAIT_S)
