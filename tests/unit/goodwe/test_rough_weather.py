"""The service's client and synchroniser against the simulator's API over real HTTP and TLS, in rough weather."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import CapturingLogger

from tests.unit.fleet.test_freshness import LIMITS
from tests.unit.fleet.test_synchroniser import running
from tests.waiting import eventually
from vpp_dispatch.domain.device import SHARDS, shard_of
from vpp_dispatch.domain.inputs import Consent, Telemetry
from vpp_dispatch.errors import ExternalFault, NotReachable, RateLimited
from vpp_dispatch.fleet import synchroniser
from vpp_dispatch.fleet.freshness import Limits
from vpp_dispatch.fleet.synchroniser import Synchroniser
from vpp_dispatch.goodwe import realtime
from vpp_dispatch.goodwe.circuit import Circuit, State
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.goodwe.realtime import RealTimeApi
from vpp_dispatch.simulator.api import RealTimeApi as Simulated
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.consent import Consent as Owners
from vpp_dispatch.simulator.faults import Faults
from vpp_dispatch.simulator.fleet import generate_fleet
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import load_profile as load_simulated

PASSWORD = "not-a-real-one"
DEVICES = 250


class Sky:
    """A simulated GoodWe on a port, and clients of it. `left`: when each call arrived, monotonic."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        now, profile = time.time(), load_simulated("goodwe")
        fleet = generate_fleet(profile=profile, inverters=DEVICES, seed=1)
        inverters = Inverters(profile=profile, devices=fleet, seed=1, now=now)
        owners = Owners()
        for sn in inverters.sns:
            owners.add(sn, authorized_at=now)
        self.cloud = Cloud(profile=profile, inverters=inverters, consent=owners, faults=Faults(seed=1), started_at=now)
        self.sns = list(inverters.sns)
        self.left: list[float] = []
        self._stack = stack
        self._folder = folder
        (folder / "password").write_text(PASSWORD)
        self.url = ""

    @property
    def faults(self) -> Any:
        return self.cloud.faults.realtime

    async def serve(self, context: ssl.SSLContext | None = None) -> None:
        @web.middleware
        async def seen(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
            self.left.append(time.monotonic())
            answer: web.StreamResponse = await handler(request)
            return answer

        app = web.Application(middlewares=[seen])
        app.add_routes(Simulated(cloud=self.cloud, seed=1, account="supplier", password=PASSWORD).routes())
        server = TestServer(app, scheme="https" if context else "http")
        await server.start_server(ssl=context)
        self._stack.push_async_callback(server.close)
        self.url = str(server.make_url(""))

    def client(self, **more: Any) -> RealTimeApi:
        made = RealTimeApi(
            **{
                "profile": load_profile("goodwe"),
                "base_url": self.url,
                "account": "supplier",
                "password_file": self._folder / "password",
                "max_calls_per_s": 0,
                **more,
            }
        )
        self._stack.push_async_callback(made.aclose)
        return made


@pytest.fixture
async def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sky]:
    monkeypatch.setattr(realtime, "BACKOFF_S", 0.005)
    monkeypatch.setattr(synchroniser, "TICK_S", 0.005)
    monkeypatch.setattr(synchroniser, "AFTER_FAULT_S", 0.05)
    monkeypatch.setattr(synchroniser, "CONSENT_AFTER_FAULT_S", 0.05)
    async with AsyncExitStack() as stack:
        made = Sky(stack, tmp_path)
        await made.serve()
        yield made


class Part:
    """One worker's synchroniser, and what it handed on."""

    def __init__(self, api: RealTimeApi, sns: list[str], shards: range, *, leads: bool, limits: Limits) -> None:
        self.listed: list[set[str]] = []
        self.facts: dict[str, tuple[bool | None, bool | None]] = {}
        self.ops = 0
        devices = [(sn, True) for sn in sns if shard_of(sn) in shards]
        self.sync = Synchroniser(
            api=api,
            limits=limits,
            leads=lambda: leads,
            devices=lambda: devices,
            share=lambda: len(shards) / SHARDS,
            consent=self._consent,
            observe=self._observe,
            telemetry_age=lambda age: None,
            possible=lambda can: None,
            log=CapturingLogger(),
        )

    async def _consent(self, readings: Mapping[int, Consent]) -> None:
        self.listed.append({sn for reading in readings.values() for sn, _ in reading.authorized})

    async def _observe(self, telemetry: Mapping[int, Telemetry]) -> None:
        for part in telemetry.values():
            for row in part.operations:
                self.ops += 1
                self.facts[row.sn] = (row.off_grid, row.faulted)


def _limits(**more: Any) -> Limits:
    quick = {"page_size": 100, "consent_refresh_s": 0.05, "telemetry_refresh_s": 0.0}
    return Limits(**({name: getattr(LIMITS, name) for name in LIMITS.__slots__} | quick | more))


async def test_r18_a_device_off_grid_or_faulted_is_a_fact_and_ends_again(sky: Sky) -> None:
    inverters = sky.cloud.inverters
    part = Part(sky.client(), sky.sns, range(SHARDS), leads=True, limits=_limits())
    inverters.grid_mode[:2] = [0, 2]
    inverters.error_bits[2] = 1 << 12
    async with running(part.sync.telemetry_loop()):
        await eventually(lambda: len(part.facts) == DEVICES, 10, "facts of all")
        states = [part.facts[sn] for sn in sky.sns[:4]]
        assert states == [(True, False), (True, False), (False, True), (False, False)]
        inverters.grid_mode[:2], inverters.error_bits[2] = 1, 0
        await eventually(lambda: set(part.facts.values()) == {(False, False)}, 10, "all well again")


async def test_r16_the_calls_of_all_workers_stay_within_the_rate(sky: Sky) -> None:
    rate = 60.0
    limits = _limits(max_calls_per_s=rate, page_size=20, consent_refresh_s=0.3)
    shards = (range(24), range(24, 48), range(48, 64))
    workers = [
        Part(sky.client(max_calls_per_s=rate), sky.sns, owned, leads=n == 0, limits=limits)
        for n, owned in enumerate(shards)
    ]
    loops = [loop for part in workers for loop in (part.sync.consent_loop(), part.sync.telemetry_loop())]
    async with running(*loops):
        await eventually(
            lambda: len(workers[0].listed) >= 3 and all(part.ops > 100 for part in workers), 20, "lists and telemetry"
        )
    assert [len(part.listed) for part in workers[1:]] == [0, 0]
    seconds = sky.left[-1] - sky.left[0]
    # Each of the three may begin each of its two lanes with one call, and log in; arrivals jitter.
    assert len(sky.left) <= rate * seconds + 12


async def test_r16_lists_that_move_while_paging_and_tokens_that_expire_count_only_when_whole(sky: Sky) -> None:
    sky.faults.list_changes_next, sky.faults.token_expires_next = 2, 1
    assert {row.sn for row in await sky.client().authorized()} == set(sky.sns)
    assert sky.faults.list_changes_next == sky.faults.token_expires_next == 0
    sky.faults.list_changes_next = 1_000
    with pytest.raises(ExternalFault) as fault:
        await sky.client().authorized()
    assert fault.value.reason == "incomplete"


async def test_a_refused_account_is_told_and_tried_again_later(sky: Sky) -> None:
    sky.faults.login_refused_next = 1
    part = Part(sky.client(), sky.sns, range(SHARDS), leads=True, limits=_limits())
    async with running(part.sync.consent_loop()):
        await eventually(lambda: part.listed, 10, "a list after the refusal")
    told = [call.kwargs["reason"] for call in part.sync.log.calls if call.args == ("consent.not_read",)]
    assert told == ["unauthorized"]


@pytest.mark.parametrize(("retry_after_s", "wait_s"), [(120.0, 120), (None, 300)])
@pytest.mark.parametrize("style", ["http", "code"])
async def test_a_rate_limit_with_and_without_a_time_is_no_fault_of_the_circuit(
    sky: Sky, style: str, retry_after_s: float | None, wait_s: float
) -> None:
    api = sky.client(circuit=Circuit(faults=1))
    sky.faults.rate_limit_style, sky.faults.rate_limit_next, sky.faults.retry_after_s = style, 9, retry_after_s
    for _ in range(3):
        with pytest.raises(RateLimited) as limited:
            await api.operation(sky.sns[:1])
        assert limited.value.retry_after_s == pytest.approx(wait_s, abs=5)
    assert (api.circuit.state, len(sky.left)) == ("closed", 1)


async def test_pages_slower_than_the_client_waits_open_the_circuit_and_it_closes_again(sky: Sky) -> None:
    now, turns = [0.0], list[State]()
    api = sky.client(
        read_timeout_s=0.05, circuit=Circuit(clock=lambda: now[0], changed=lambda state, why: turns.append(state))
    )
    await api.operation(sky.sns[:1])
    sky.faults.slow_next, sky.faults.slow_s = 5, 0.3
    reasons = []
    for _ in range(4):
        with pytest.raises(NotReachable) as fault:
            await api.operation(sky.sns[:1])
        reasons.append(fault.value.reason)
    assert reasons == ["not_reachable", "circuit_open", "circuit_open", "circuit_open"]
    now[0] += 30
    assert len(await api.operation(sky.sns[:1])) == 1
    assert turns == ["open", "probing", "closed"]


async def test_a_storm_delays_facts_and_loses_none(sky: Sky) -> None:
    sky.cloud.faults.set_weather("storm", codes=sky.cloud.profile.codes)
    sky.cloud.faults.change({"realtime": {"slow_s": 0.02, "rate_limit_per_s": 0, "retry_after_s": 0}})
    outcomes: Counter[tuple[str, str]] = Counter()
    api = sky.client(circuit=Circuit(pause_s=0.05), called=lambda name, outcome: outcomes.update([(name, outcome)]))
    part = Part(api, sky.sns, range(SHARDS), leads=True, limits=_limits())
    async with running(part.sync.consent_loop(), part.sync.telemetry_loop()):
        await eventually(lambda: len(part.listed) >= 2 and len(part.facts) == DEVICES, 60, "all facts")
    assert all(listed == set(sky.sns) for listed in part.listed)
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "external_fault") > 5
    assert sum(outcomes.values()) == api.calls


async def test_over_tls_only_a_known_authority_is_believed(sky: Sky, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    maker = await asyncio.create_subprocess_exec(
        *made, "-keyout", str(key), "-out", str(cert), stderr=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(maker.wait(), 30) == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    await sky.serve(context)
    sky.faults.error_next = 2
    assert len(await sky.client(ca_file=cert).authorized()) == DEVICES
    with pytest.raises(NotReachable, match="no connection"):
        await sky.client().authorized()
