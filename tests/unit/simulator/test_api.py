"""The seven interfaces and /sim/ over HTTP, without Kafka."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.unit.simulator.world import HYBRID, OLD, OTHER, PV_PERCENT, World, device
from vpp_dispatch.simulator.api import RealTimeApi
from vpp_dispatch.simulator.control import Control
from vpp_dispatch.simulator.profile import INTERFACES
from vpp_dispatch.simulator.topics import Topics


class Client:
    """A supplier with an account, and a hand on /sim/."""

    def __init__(self, world: World, http: TestClient[Any, Any]) -> None:
        self.world = world
        self.cloud = world.cloud
        self.http = http
        self.token = ""

    async def log_in(self, password: str = "right") -> int:
        answer = await self.http.post("/v1/token", json={"account": "supplier", "password": password})
        if answer.status == 200:
            data = (await answer.json())["data"]
            assert data["expiresIn"] == 3600
            self.token = data["token"]
        return answer.status

    async def call(self, name: str, **body: Any) -> tuple[int, dict[str, Any], Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = await self.http.post(f"/v1/realtime/{name}", json=body, headers=headers)
        return answer.status, await answer.json(), answer.headers

    async def rows(self, name: str, *sns: str) -> dict[str, dict[str, Any]]:
        status, body, _ = await self.call(name, sns=list(sns), page=1, pageSize=100)
        assert (status, body["code"]) == (200, "0")
        assert body["data"]["total"] == len(body["data"]["list"])
        return {row["sn"]: row for row in body["data"]["list"]}

    async def sim(self, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = await self.http.post(f"/sim/{name}", json=body)
        return answer.status, await answer.json()


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    world = World(*getattr(request, "param", ()), now=time.time())  # the API has the wall clock
    world.cloud.inverters.load_fixed_w[:] = 1000
    api = RealTimeApi(cloud=world.cloud, seed=1, account="supplier", password="right")
    topics = Topics(cloud=world.cloud, bootstrap_servers="127.0.0.1:1", group="none")
    application = web.Application()
    application.add_routes([*api.routes(), *Control(cloud=world.cloud, api=api, topics=topics).routes()])
    async with TestClient(TestServer(application)) as http:
        made = Client(world, http)
        assert await made.log_in() == 200
        yield made


async def test_token(client: Client) -> None:
    assert await client.log_in("wrong") == 401
    for name in INTERFACES:
        assert (await client.call(name, sns=[HYBRID]))[0] == 200
    assert (await client.sim("faults", expire_tokens=True))[0] == 200
    status, body, _ = await client.call("bms", sns=[HYBRID])
    assert (status, body["code"]) == (401, "100002")
    await client.sim("faults", realtime={"token_error": "code"})
    status, body, _ = await client.call("bms", sns=[HYBRID])
    assert (status, body["code"]) == (200, "100002")


async def test_operation_shows_settings_and_power_in_goodwes_signs(client: Client) -> None:
    client.cloud.inverters.stored_wh[:] = client.cloud.inverters.capacity_wh / 2
    client.cloud.owner_sets(HYBRID, "EMS Power Mode", 12, now=client.world.now)
    client.cloud.owner_sets(HYBRID, "EMS Power Set", 3000, now=client.world.now)
    client.cloud.inverters.pv_factor[:] = 0
    row = (await client.rows("operation", HYBRID))[HYBRID]
    assert (row["emsMode"], row["emsPower"], row["online"]) == (12, 3000, True)
    assert (row["pvPower"], row["loadPower"], row["acPower"]) == (0, 1000, 3000)
    assert row["batteryPower"] == 3000  # discharge
    assert row["gridPower"] == 2000  # export
    assert (await client.rows("bms", HYBRID))[HYBRID]["power"] == 3000


async def test_bms_without_a_battery_has_the_sentinel(client: Client) -> None:
    rows = await client.rows("bms", HYBRID, PV_PERCENT)
    assert rows[PV_PERCENT]["soc"] == 536
    assert 0 < rows[HYBRID]["soc"] <= 100


async def test_what_sim_device_sets_is_shown(client: Client) -> None:
    status, _ = await client.sim("device", sn=HYBRID, soc=10, grid_mode=2, error_bits=1 << 13)
    assert status == 200
    assert (await client.rows("bms", HYBRID))[HYBRID]["soc"] == pytest.approx(10, abs=0.2)
    assert (await client.rows("grid-status", HYBRID))[HYBRID]["workMode"] == 3
    alarms = (await client.rows("alarms", HYBRID))[HYBRID]
    assert alarms["errorBits"] == 8192
    assert (await client.rows("station", HYBRID))[HYBRID]["capacity"] == 10_000
    assert (await client.rows("production", HYBRID))[HYBRID]["total"] > 0


async def test_offline_rows(client: Client) -> None:
    await client.sim("online", sn=HYBRID, online=False)
    row = (await client.rows("operation", HYBRID))[HYBRID]
    assert (row["online"], row["pvPower"]) == (False, 0)
    await client.sim("faults", realtime={"offline_rows": "sn"})
    assert (await client.rows("operation", HYBRID))[HYBRID] == {"sn": HYBRID}


async def test_consent_and_whitelist_decide_what_is_shown(client: Client) -> None:
    await client.sim("consent", sns=[HYBRID], authorized=False)
    await client.sim("whitelist", sns=[OTHER], listed=False)
    _, body, _ = await client.call("authorized-sns", page=1, pageSize=100)
    assert [row["sn"] for row in body["data"]["list"]] == [PV_PERCENT, OLD]
    assert body["data"]["list"][0]["expiresAt"] > body["data"]["list"][0]["authorizedAt"]
    assert set(await client.rows("operation", HYBRID, OTHER, PV_PERCENT)) == {PV_PERCENT}


@pytest.mark.parametrize(
    "client", [[device(f"9010KETU001W{number:04d}") for number in range(250)]], indirect=True, ids=["250 devices"]
)
async def test_pages_and_a_list_that_changes_meanwhile(client: Client) -> None:
    async def read() -> tuple[set[str], int]:
        sns: set[str] = set()
        for page in (1, 2, 3):
            _, body, _ = await client.call("authorized-sns", page=page, pageSize=100)
            sns |= {row["sn"] for row in body["data"]["list"]}
        return sns, body["data"]["total"]

    sns, total = await read()
    assert len(sns) == total == 250
    await client.sim("faults", realtime={"list_changes_next": 2})
    sns, total = await read()
    assert len(sns) < total
    sns, total = await read()
    assert len(sns) == total


@pytest.mark.parametrize(
    "body", [{"sns": "x"}, {"sns": ["x"] * 101}, {"page": 0}, {"pageSize": 101}, {"page": "1"}, {"sns": [1]}]
)
async def test_calls_that_cannot_be(client: Client, body: dict[str, Any]) -> None:
    status, answer, _ = await client.call("bms", **body)
    assert (status, answer["code"]) == (200, "100400")


async def test_rate_limit_with_and_without_retry_after(client: Client) -> None:
    await client.sim("faults", realtime={"rate_limit_next": 2, "retry_after_s": 7})
    status, body, headers = await client.call("bms", sns=[HYBRID])
    assert (status, body["code"], headers["Retry-After"]) == (429, "GY0429", "7")
    await client.sim("faults", realtime={"rate_limit_style": "code", "retry_after_s": None})
    status, body, headers = await client.call("bms", sns=[HYBRID])
    assert (status, body["code"], "Retry-After" in headers) == (200, "GY0429", False)
    assert (await client.call("bms", sns=[HYBRID]))[1]["code"] == "0"
    await client.sim("faults", realtime={"rate_limit_per_s": 2, "rate_limit_style": "http"})
    assert 429 in [(await client.call("bms", sns=[HYBRID]))[0] for _ in range(10)]


async def test_faults_of_the_server(client: Client) -> None:
    await client.sim("faults", realtime={"error_next": 1, "error_status": 502})
    assert [(await client.call("bms", sns=[HYBRID]))[0] for _ in range(2)] == [502, 200]


async def test_the_owner_and_what_is_wrong_with_a_control_call(client: Client) -> None:
    assert (await client.sim("owner", sn=HYBRID, parameter="EMS Power Mode", value=8))[0] == 200
    assert client.world.setting(HYBRID, "EMS Power Mode") == 8
    for name, body in (
        ("owner", {"sn": HYBRID, "parameter": "EMS Power Mode", "value": 99}),
        ("owner", {"sn": HYBRID}),
        ("consent", {"sn": "unknown", "authorized": True}),
        ("consent", {"sn": HYBRID, "authorized": "yes"}),
        ("faults", {"unknown": 1}),
        ("device", {"sn": HYBRID, "colour": 1}),
        ("device", {"sn": HYBRID, "soc": None}),
        ("registry", {"remove": [HYBRID]}),
    ):
        status, answer = await client.sim(name, **body)
        assert status == 400
        assert answer["error"]


async def test_dump_narrowed_to_a_device(client: Client) -> None:
    answer = await client.http.get("/sim/dump", params={"sn": HYBRID})
    dump = await answer.json()
    assert list(dump["devices"]) == [HYBRID]
    assert dump["devices"][HYBRID]["settings"] == dump["devices"][HYBRID]["default_settings"]
    assert len(dump["devices"][HYBRID]["authorized"]) == 1
