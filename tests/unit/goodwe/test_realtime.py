"""The client of the Real-Time Data API against a real HTTP server that can misbehave."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
import tomllib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from vpp_dispatch.domain.device import Authorization, Battery, Operation
from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable, RateLimited
from vpp_dispatch.goodwe import realtime
from vpp_dispatch.goodwe.circuit import Circuit, State
from vpp_dispatch.goodwe.profile import PROFILES, load_profile, parse_profile
from vpp_dispatch.goodwe.realtime import INTERFACES, AlarmsRow, RealTimeApi

PASSWORD = "not-a-real-one"
AT_S = 1_795_370_531.0
AT_MS = int(AT_S * 1000)

Behaviour = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


def _sn(n: int) -> str:
    return f"9010KETU000W{n:04d}"


def _write(file: Path, text: str) -> None:
    file.write_text(text)


def _answer(data: Any, code: Any = "0") -> web.Response:
    return web.json_response({"code": code, "msg": "ok", "data": data})


class Server:
    """GoodWe's API with rows to serve and, in `next`, what to do with the next calls instead."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {}
        self.next: deque[Behaviour] = deque()
        self.next_logins: deque[Behaviour] = deque()
        self.calls: list[tuple[str, Any]] = []
        self.at: list[float] = []
        self.logins: list[Any] = []
        self.tokens: set[str] = set()
        self.expires_in: float = 3600
        self.server: TestServer | None = None

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/token", self._token)
        app.router.add_post("/v1/realtime/{name}", self._rows)
        self.server = TestServer(app)
        await self.server.start_server()
        return str(self.server.make_url("")).rstrip("/")

    async def _token(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.at.append(time.monotonic())
        self.logins.append(body)
        await asyncio.sleep(0)
        if self.next_logins:
            return await self.next_logins.popleft()(request, body)
        token = f"token-{len(self.logins)}"
        self.tokens.add(token)
        return _answer({"token": token, "expiresIn": self.expires_in})

    async def _rows(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = request.match_info["name"]
        self.at.append(time.monotonic())
        self.calls.append((name, body))
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return web.Response(status=401)
        if self.next:
            return await self.next.popleft()(request, body)
        rows = self.rows.get(name, [])
        if "sns" in body:
            rows = [row for row in rows if not isinstance(row, dict) or row.get("sn") in body["sns"]]
        start = (body["page"] - 1) * body["pageSize"]
        return _answer({"total": len(rows), "list": rows[start : start + body["pageSize"]]})


def _with(response: Callable[[], web.StreamResponse]) -> Behaviour:
    async def behave(request: web.Request, body: Any) -> web.StreamResponse:
        return response()

    return behave


async def _hang_up(request: web.Request, body: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    if made.server is not None:
        await made.server.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "BACKOFF_S", 0.005)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return file


@pytest.fixture
async def api(server: Server, password_file: Path) -> AsyncIterator[RealTimeApi]:
    made = RealTimeApi(
        profile=load_profile("goodwe"),
        base_url=await server.start(),
        account="supplier",
        password_file=password_file,
        max_calls_per_s=0,
        clock=lambda: AT_S,
    )
    yield made
    await made.aclose()


class TestLogIn:
    async def test_many_calls_share_one_log_in(self, server: Server, api: RealTimeApi) -> None:
        await asyncio.gather(*(api.rows("operation", [_sn(n)]) for n in range(20)))
        assert server.logins == [{"account": "supplier", "password": PASSWORD}]
        assert len(server.calls) == 20

    @pytest.mark.parametrize(
        "how", [lambda: web.Response(status=401), lambda: _answer(None, "100002"), lambda: _answer(None, 100002)]
    )
    async def test_an_expired_token_is_renewed_once(
        self, server: Server, api: RealTimeApi, how: Callable[[], web.Response]
    ) -> None:
        server.rows["operation"] = [{"sn": _sn(1)}]
        server.next.append(_with(how))
        assert [row.sn for row in await api.rows("operation", [_sn(1)])] == [_sn(1)]
        assert len(server.logins) == 2

    async def test_many_expired_calls_share_one_log_in(self, server: Server, api: RealTimeApi) -> None:
        await api.rows("operation", [_sn(1)])
        server.tokens.clear()
        await asyncio.gather(*(api.rows("operation", [_sn(n)]) for n in range(20)))
        assert len(server.logins) == 2

    async def test_a_token_that_is_refused_again_is_a_fault(self, server: Server, api: RealTimeApi) -> None:
        server.next.extend([_with(lambda: web.Response(status=401))] * 2)
        with pytest.raises(ExternalFault) as fault:
            await api.rows("operation", [_sn(1)])
        assert fault.value.reason == "unauthorized"
        assert len(server.logins) == 2

    async def test_a_refused_log_in_is_a_fault(self, server: Server, api: RealTimeApi) -> None:
        server.next_logins.append(_with(lambda: web.Response(status=401)))
        with pytest.raises(ExternalFault) as fault:
            await api.rows("operation", [_sn(1)])
        assert fault.value.reason == "unauthorized"
        assert server.calls == []

    async def test_a_token_near_its_end_is_renewed_before_it_is_used(self, server: Server, password_file: Path) -> None:
        now = [AT_S]
        made = RealTimeApi(
            profile=load_profile("goodwe"),
            base_url=await server.start(),
            account="supplier",
            password_file=password_file,
            max_calls_per_s=0,
            clock=lambda: now[0],
        )
        for later, logins in ((0, 1), (3500, 1), (80, 2)):
            now[0] += later
            await made.rows("operation", [_sn(1)])
            assert len(server.logins) == logins
        await made.aclose()

    async def test_the_password_is_read_anew(self, server: Server, api: RealTimeApi, password_file: Path) -> None:
        await api.rows("operation", [_sn(1)])
        _write(password_file, "another")
        server.tokens.clear()
        await api.rows("operation", [_sn(1)])
        assert [login["password"] for login in server.logins] == [PASSWORD, "another"]

    async def test_a_password_that_cannot_be_read_is_named(self, api: RealTimeApi, password_file: Path) -> None:
        _write(password_file, "")
        with pytest.raises(ExternalFault, match="password cannot be read"):
            await api.rows("operation", [_sn(1)])

    def test_no_password_file_is_a_configuration_error(self) -> None:
        with pytest.raises(ConfigurationError, match="password"):
            RealTimeApi(profile=load_profile("goodwe"), base_url="http://x", account="a", password_file=None)


class TestFaults:
    async def test_a_passing_fault_is_tried_again(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = [{"sn": _sn(1)}]
        server.next.extend([_with(lambda: web.Response(status=503)), _hang_up])
        assert len(await api.rows("operation", [_sn(1)])) == 1
        assert len(server.calls) == 3

    async def test_a_lasting_fault_ends(self, server: Server, api: RealTimeApi) -> None:
        server.next.extend([_with(lambda: web.Response(status=500))] * 9)
        with pytest.raises(ExternalFault, match="HTTP 500"):
            await api.rows("operation", [_sn(1)])
        assert len(server.calls) == realtime.ATTEMPTS

    async def test_no_answer_in_time(self, server: Server, password_file: Path) -> None:
        api = RealTimeApi(
            profile=load_profile("goodwe"),
            base_url=await server.start(),
            account="supplier",
            password_file=password_file,
            max_calls_per_s=0,
            read_timeout_s=0.1,
        )
        released = asyncio.Event()

        async def hang(request: web.Request, body: Any) -> web.StreamResponse:
            await released.wait()
            return web.Response()

        server.next.extend([hang] * realtime.ATTEMPTS)
        with pytest.raises(NotReachable, match="no answer in time"):
            await api.rows("operation", [_sn(1)])
        released.set()
        await api.aclose()

    async def test_no_connection(self, server: Server, api: RealTimeApi) -> None:
        assert server.server is not None
        await server.server.close()
        with pytest.raises(NotReachable, match="no connection"):
            await api.rows("operation", [_sn(1)])

    @pytest.mark.parametrize(
        "response",
        [
            lambda: web.Response(text="<html>"),
            lambda: web.Response(status=404, text="nothing here"),
            lambda: web.json_response([1]),
            lambda: web.json_response({"data": {}}),
            lambda: _answer(None, "E9"),
            lambda: _answer(None, True),
            lambda: _answer({"total": "1", "list": []}),
            lambda: _answer({"total": 1}),
            lambda: _answer("x"),
            lambda: web.json_response({"code": "0", "data": {"total": 0, "list": []}}, status=400),
        ],
    )
    async def test_an_answer_of_another_form_is_a_fault_at_once(
        self, server: Server, api: RealTimeApi, response: Callable[[], web.Response]
    ) -> None:
        server.next.extend([_with(response)] * 9)
        with pytest.raises(ExternalFault):
            await api.rows("operation", [_sn(1)])
        assert len(server.calls) == 1

    @pytest.mark.parametrize("code", [0, "0", "00000", "000"])
    async def test_success_in_every_spelling(self, server: Server, api: RealTimeApi, code: Any) -> None:
        server.next.append(_with(lambda: _answer({"total": 0, "list": []}, code)))
        assert await api.rows("operation", [_sn(1)]) == []


class TestRate:
    @pytest.mark.parametrize(
        ("response", "wait_s"),
        [
            (lambda: web.Response(status=429, headers={"Retry-After": "120"}), 120.0),
            (lambda: web.Response(status=429), 300.0),
            (lambda: web.Response(status=429, headers={"Retry-After": "90.5"}), 90.5),
            (lambda: web.Response(status=429, headers={"Retry-After": "nan"}), 300.0),
            (lambda: _answer(None, "GY0429"), 300.0),
            (lambda: web.Response(status=429, headers={"Retry-After": "soon"}), 300.0),
            (lambda: web.Response(status=429, headers={"Retry-After": "9" * 400}), 3600.0),
            (lambda: web.Response(status=429, headers={"Retry-After": email.utils.formatdate(AT_S + 60)}), 60.0),
        ],
    )
    async def test_a_rate_limit_is_told_and_kept(
        self, server: Server, api: RealTimeApi, response: Callable[[], web.Response], wait_s: float
    ) -> None:
        server.next.append(_with(response))
        with pytest.raises(RateLimited) as limited:
            await api.rows("operation", [_sn(1)])
        assert limited.value.retry_after_s == wait_s
        with pytest.raises(RateLimited) as again:
            await api.rows("bms", [_sn(1)])
        assert again.value.retry_after_s == pytest.approx(wait_s, abs=5)
        assert len(server.calls) == 1

    async def test_a_short_one_is_waited_for(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = [{"sn": _sn(1)}]
        server.next.append(_with(lambda: web.Response(status=429, headers={"Retry-After": "0"})))
        assert len(await api.rows("operation", [_sn(1)])) == 1

    async def test_calls_keep_their_distance_log_ins_included(self, server: Server, api: RealTimeApi) -> None:
        api.max_calls_per_s = 50
        started = time.monotonic()
        await asyncio.gather(*(api.rows("operation", [_sn(n)]) for n in range(5)))
        assert len(server.at) == 6
        for n, at in enumerate(sorted(server.at)):
            assert at - started >= n / 50

    @pytest.mark.parametrize(("consent", "telemetry"), [(0.5, 0.25), (0.1, 0.9)])
    async def test_each_lane_keeps_to_its_part(
        self, server: Server, api: RealTimeApi, consent: float, telemetry: float
    ) -> None:
        server.rows["authorized-sns"] = [{"sn": _sn(n), "authorizedAt": AT_MS} for n in range(450)]
        await api.rows("operation", [_sn(1)])
        server.at.clear()
        api.max_calls_per_s = 100
        api.pace(consent=consent, telemetry=telemetry)
        started = time.monotonic()
        await asyncio.gather(api.authorized(), *(api.rows("bms", [_sn(n)]) for n in range(6)))
        assert len(server.at) == 11
        least_s = max(4 / (100 * consent), 5 / (100 * telemetry))
        assert least_s <= time.monotonic() - started < least_s + 2

    async def test_what_is_queued_when_a_limit_comes_does_not_leave(self, server: Server, api: RealTimeApi) -> None:
        await api.rows("operation", [_sn(1)])
        api.max_calls_per_s = 20
        server.next.append(_with(lambda: web.Response(status=429, headers={"Retry-After": "60"})))
        told = await asyncio.gather(*(api.rows("operation", [_sn(n)]) for n in range(4)), return_exceptions=True)
        assert [type(each) for each in told] == [RateLimited] * 4
        assert len(server.calls) == 2

    async def test_calls_are_counted_as_they_leave(self, server: Server, password_file: Path) -> None:
        told: list[tuple[str, str]] = []
        made = RealTimeApi(
            profile=load_profile("goodwe"),
            base_url=await server.start(),
            account="supplier",
            password_file=password_file,
            max_calls_per_s=0,
            called=lambda interface, outcome: told.append((interface, outcome)),
        )
        server.next.extend(
            [
                _with(lambda: web.Response(status=503)),
                _with(lambda: web.Response(status=401)),
                _with(lambda: web.Response(status=429)),
            ]
        )
        with pytest.raises(RateLimited):
            await made.rows("grid_status", [_sn(1)])
        with pytest.raises(RateLimited):
            await made.rows("grid_status", [_sn(1)])  # does not leave
        await made.aclose()
        assert told == [
            ("token", "ok"),
            ("grid_status", "external_fault"),
            ("grid_status", "unauthorized"),
            ("token", "ok"),
            ("grid_status", "rate_limited"),
        ]
        assert made.calls == len(told)


class TestCircuit:
    @pytest.fixture
    async def clock(self, api: RealTimeApi) -> list[float]:
        now = [0.0]
        self.turns: list[State] = []
        api.circuit = Circuit(clock=lambda: now[0], changed=lambda state, why: self.turns.append(state))
        return now

    async def test_it_opens_probes_once_and_closes(self, server: Server, api: RealTimeApi, clock: list[float]) -> None:
        await api.rows("operation", [_sn(1)])
        server.next.extend([_with(lambda: web.Response(status=503))] * 6)
        for reason in ("external_fault", "circuit_open", "circuit_open"):
            with pytest.raises(ExternalFault) as fault:
                await api.rows("operation", [_sn(1)])
            assert fault.value.reason == reason
        assert len(server.calls) == 1 + 5
        clock[0] += 30
        told = await asyncio.gather(*(api.rows("operation", [_sn(n)]) for n in range(4)), return_exceptions=True)
        assert [getattr(each, "reason", None) for each in told] == ["circuit_open"] * 4
        assert len(server.calls) == 1 + 6  # one probe, and it failed
        clock[0] += 30
        assert await api.rows("operation", [_sn(1)]) == []
        assert self.turns == ["open", "probing", "open", "probing", "closed"]

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: web.Response(status=429, headers={"Retry-After": "0"}),
            lambda: _answer(None, "GY0429"),
            lambda: web.Response(status=401),
            lambda: _answer(None, "E9"),
            lambda: web.Response(status=404, text="<html>"),
        ],
    )
    async def test_an_answer_is_no_fault_of_the_circuit(
        self, server: Server, api: RealTimeApi, clock: list[float], answer: Callable[[], web.Response]
    ) -> None:
        server.next.extend([_with(answer)] * 24)
        for _ in range(8):
            with pytest.raises(ExternalFault):
                await api.rows("operation", [_sn(1)])
        assert self.turns == []

    async def test_a_call_that_is_cancelled_proves_nothing(
        self, server: Server, api: RealTimeApi, clock: list[float]
    ) -> None:
        reached, released = asyncio.Event(), asyncio.Event()

        async def hang(request: web.Request, body: Any) -> web.StreamResponse:
            reached.set()
            await released.wait()
            return web.Response()

        server.next.extend([_with(lambda: web.Response(status=503))] * 5)
        for _ in range(2):
            with pytest.raises(ExternalFault):
                await api.rows("operation", [_sn(1)])
        clock[0] += 30
        server.next.append(hang)
        probe = asyncio.create_task(api.rows("operation", [_sn(1)]))
        await asyncio.wait_for(reached.wait(), 5)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        released.set()
        assert await api.rows("operation", [_sn(1)]) == []
        assert self.turns == ["open", "probing", "open", "probing", "closed"]


class TestModes:
    """R18: what grid-status says of being off-grid and faulted."""

    @pytest.mark.parametrize(
        ("row", "off_grid", "faulted"),
        [
            ({"workMode": 1, "gridMode": 1}, False, False),
            ({"workMode": 2, "gridMode": 1}, True, False),
            ({"workMode": 1, "gridMode": 0}, True, False),
            ({"workMode": 0, "gridMode": 2}, True, False),
            ({"workMode": 3, "gridMode": 1}, False, True),
            ({"workMode": 3, "gridMode": 2}, True, True),
            ({"workMode": 77, "gridMode": 77}, False, False),
            ({"gridMode": 1}, False, None),
            ({"workMode": 1}, False, False),
            ({}, None, None),
        ],
    )
    async def test_r18_modes_become_facts(
        self, server: Server, api: RealTimeApi, row: dict[str, Any], off_grid: bool | None, faulted: bool | None
    ) -> None:
        server.rows["grid-status"] = [{"sn": _sn(1), "time": AT_MS} | row]
        read = Operation(sn=_sn(1), at=AT_S, online=True, pv_power_w=5.0)
        (told,) = await api.modes([read])
        assert (told.off_grid, told.faulted) == (off_grid, faulted)
        assert (told.sn, told.at, told.online, told.pv_power_w) == (read.sn, read.at, read.online, read.pv_power_w)

    async def test_only_those_online_are_asked_about(self, server: Server, api: RealTimeApi) -> None:
        server.rows["grid-status"] = [{"sn": _sn(n), "workMode": 3} for n in range(3)]
        read = [Operation(sn=_sn(n), at=AT_S, online=n == 1) for n in range(3)]
        assert [each.faulted for each in await api.modes(read)] == [None, True, None]
        assert [body["sns"] for _, body in server.calls] == [[_sn(1)]]
        assert await api.modes([read[0]]) == [read[0]]
        assert len(server.calls) == 1

    async def test_a_profile_without_codes_asks_nothing(self, server: Server, password_file: Path) -> None:
        data = tomllib.loads((PROFILES / "goodwe.toml").read_text(encoding="utf-8"))
        del data["realtime"]["modes"]
        made = RealTimeApi(
            profile=parse_profile(data, "test"),
            base_url=await server.start(),
            account="a",
            password_file=password_file,
            max_calls_per_s=0,
        )
        read = [Operation(sn=_sn(1), at=AT_S, online=True)]
        assert await made.modes(read) == read
        assert server.calls == []
        await made.aclose()


class TestRows:
    def test_there_are_seven(self) -> None:
        assert set(INTERFACES) == set(type(load_profile("goodwe").realtime.interfaces).model_fields)
        assert [name for name, interface in INTERFACES.items() if not interface.takes_sns] == ["authorized"]

    async def test_batches_of_the_page_size(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = [{"sn": _sn(n), "online": True, "time": AT_MS} for n in range(250)]
        found = await api.operation([_sn(n) for n in range(250)])
        assert [row.sn for row in found] == [_sn(n) for n in range(250)]
        assert [(name, len(body["sns"]), body["page"], body["pageSize"]) for name, body in server.calls] == [
            ("operation", 100, 1, 100),
            ("operation", 100, 1, 100),
            ("operation", 50, 1, 100),
        ]

    async def test_more_rows_than_fit_on_a_page(self, server: Server, api: RealTimeApi) -> None:
        server.rows["alarms"] = [{"sn": _sn(1), "time": AT_MS, "errorBits": n} for n in range(205)]
        rows = await api.rows("alarms", [_sn(1)])
        assert [row.error_bits for row in rows if isinstance(row, AlarmsRow)] == list(range(205))

    async def test_signs_and_times_of_operation_data_are_ours(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = [
            {"sn": _sn(1), "time": AT_MS, "online": True, "pvPower": 4000, "gridPower": 1500, "loadPower": 900,
             "batteryPower": -1600, "acPower": 2400, "emsMode": 1, "news": "later"},
        ]  # fmt: skip
        assert await api.operation([_sn(1)]) == [
            Operation(
                sn=_sn(1),
                at=AT_S,
                online=True,
                grid_power_w=-1500,  # theirs: export positive
                battery_power_w=1600,  # theirs: discharge positive
                pv_power_w=4000,
                load_power_w=900,
            )
        ]

    async def test_a_row_with_only_an_sn_is_offline(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = [{"sn": _sn(1)}]
        assert await api.operation([_sn(1)]) == [Operation(sn=_sn(1), at=AT_S, online=False)]

    @pytest.mark.parametrize(
        ("soc", "ours"), [(47.5, 47.5), (536, None), (6553.5, None), (655.35, None), (-0.1, None), (0, 0)]
    )
    async def test_sentinels_are_no_values(
        self, server: Server, api: RealTimeApi, soc: float, ours: float | None
    ) -> None:
        server.rows["bms"] = [{"sn": _sn(1), "time": AT_MS, "soc": soc, "power": 1200}]
        assert await api.battery([_sn(1)]) == [Battery(sn=_sn(1), at=AT_S, soc_percent=ours, power_w=-1200)]

    async def test_battery_rows_without_a_time_prove_nothing(self, server: Server, api: RealTimeApi) -> None:
        server.rows["bms"] = [{"sn": _sn(1), "soc": 50}]
        assert await api.battery([_sn(1)]) == []

    async def test_rows_of_no_use_are_counted(self, server: Server, api: RealTimeApi) -> None:
        server.rows["operation"] = ["x", {"sn": _sn(1), "pvPower": "much"}, {"sn": _sn(2)}]
        assert [row.sn for row in await api.operation([_sn(1), _sn(2)])] == [_sn(2)]
        assert api.refused_rows == 2

    async def test_a_profile_may_name_everything_otherwise(self, server: Server, password_file: Path) -> None:
        data = tomllib.loads((PROFILES / "goodwe.toml").read_text(encoding="utf-8"))
        data["realtime"]["interfaces"]["bms"] = {"name": "akku", "fields": {"sn": "wr", "time": "t", "soc": "SOC"}}
        data["realtime"] |= {
            "time_unit_s": 1,
            "sentinels": {"SOC": [255]},
            "header": "X-Auth",
            "header_value": "{token}",
        }
        data["realtime"]["envelope"] |= {"rows": "zeilen", "total": "anzahl"}
        seen: list[str | None] = []

        async def theirs(request: web.Request) -> web.StreamResponse:
            seen.append(request.headers.get("X-Auth"))
            return _answer({"anzahl": 1, "zeilen": [{"wr": _sn(1), "t": AT_S, "SOC": 255}]})

        app = web.Application()
        app.router.add_post("/v1/token", server._token)
        app.router.add_post("/v1/realtime/akku", theirs)
        async with TestServer(app) as other:
            made = RealTimeApi(
                profile=parse_profile(data, "test"),
                base_url=str(other.make_url("")),
                account="a",
                password_file=password_file,
                max_calls_per_s=0,
            )
            assert await made.battery([_sn(1)]) == [Battery(sn=_sn(1), at=AT_S)]
            await made.aclose()
        assert seen == ["token-1"]


class TestAuthorized:
    async def test_all_pages_and_no_sns_in_the_question(self, server: Server, api: RealTimeApi) -> None:
        server.rows["authorized-sns"] = [
            {"sn": _sn(n), "authorizedAt": AT_MS, "expiresAt": AT_MS + 1000 if n else None} for n in range(230)
        ]
        found = await api.authorized()
        assert found[:2] == [
            Authorization(sn=_sn(0), authorized_at=AT_S, expires_at=None),
            Authorization(sn=_sn(1), authorized_at=AT_S, expires_at=AT_S + 1),
        ]
        assert len(found) == 230
        assert [body for _, body in server.calls] == [{"page": n, "pageSize": 100} for n in (1, 2, 3)]

    async def test_a_list_that_moved_between_pages_is_read_again(self, server: Server, api: RealTimeApi) -> None:
        rows = server.rows["authorized-sns"] = [{"sn": _sn(n), "authorizedAt": AT_MS} for n in range(150)]
        server.next.append(_with(lambda: _answer({"total": 150, "list": rows[:100]})))
        server.next.append(_with(lambda: _answer({"total": 150, "list": rows[99:149]})))  # one twice, one not at all
        assert len(await api.authorized()) == 150
        assert len(server.calls) == 4

    async def test_a_total_that_changed_between_pages_is_read_again(self, server: Server, api: RealTimeApi) -> None:
        rows = server.rows["authorized-sns"] = [{"sn": _sn(n), "authorizedAt": AT_MS} for n in range(150)]
        server.next.append(_with(lambda: _answer({"total": 151, "list": rows[:100]})))
        assert len(await api.authorized()) == 150
        assert len(server.calls) == 4

    async def test_r16_a_list_that_never_adds_up_is_no_list(self, server: Server, api: RealTimeApi) -> None:
        server.rows["authorized-sns"] = [{"sn": _sn(1)}, {"sn": _sn(1)}]
        with pytest.raises(ExternalFault) as fault:
            await api.authorized()
        assert fault.value.reason == "incomplete"
        assert len(server.calls) == realtime.READINGS

    async def test_an_empty_list_means_nobody(self, server: Server, api: RealTimeApi) -> None:
        assert await api.authorized() == []

    async def test_a_name_that_is_no_sn_is_left_out(self, server: Server, api: RealTimeApi) -> None:
        server.rows["authorized-sns"] = [{"sn": "short"}, {"sn": _sn(1)}]
        assert [row.sn for row in await api.authorized()] == [_sn(1)]


async def test_secrets_are_nowhere(
    server: Server, api: RealTimeApi, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = _with(lambda: web.json_response({"code": f"E {PASSWORD} token-1"[:8], "msg": f"{PASSWORD} token-1"}))
    told: list[str] = [repr(api)]
    await api.rows("operation", [_sn(1)])
    for behaviours in ([echo], [_hang_up] * 9, [_with(lambda: web.Response(status=500, text="token-1"))] * 9):
        server.next = deque(behaviours)
        with pytest.raises(ExternalFault) as fault:
            await api.rows("operation", [_sn(1)])
        api.circuit.answered()  # so that the next one leaves
        error: BaseException | None = fault.value
        while error is not None:  # also what stands behind it
            told += [repr(error), repr(vars(error))]
            error = error.__cause__
    server.next_logins.append(echo)
    server.tokens.clear()
    server.next.clear()
    with pytest.raises(ExternalFault) as fault:
        await api.rows("operation", [_sn(1)])
    told += [repr(fault.value), caplog.text, *capsys.readouterr()]
    for secret in (PASSWORD, "token-1"):
        assert not [text for text in told if secret in text]
