"""The client and the codec against the simulator, which shares only the profile's file with them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from vpp_dispatch.errors import ExternalFault, RateLimited
from vpp_dispatch.goodwe import realtime
from vpp_dispatch.goodwe.profile import PROFILES, load_profile
from vpp_dispatch.goodwe.realtime import INTERFACES, RealTimeApi
from vpp_dispatch.simulator.api import RealTimeApi as Simulated
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import Faults
from vpp_dispatch.simulator.fleet import generate_fleet
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import load_profile as load_simulated

PASSWORD = "not-a-real-one"
DEVICES = 230
OFFLINE = 7


@pytest.fixture(params=sorted(file.stem for file in PROFILES.glob("*.toml")))
def name_of_profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cloud(name_of_profile: str) -> Cloud:
    now = time.time()
    profile = load_simulated(name_of_profile)
    devices = generate_fleet(profile=profile, inverters=DEVICES, seed=1)
    afternoon = 15 * 3600 - now % 86400  # whatever the hour is here
    inverters = Inverters(profile=profile, devices=devices, seed=1, now=now, solar_shift_s=afternoon)
    consent = Consent()
    for sn in inverters.sns:
        consent.add(sn, authorized_at=now)
    made = Cloud(profile=profile, inverters=inverters, consent=consent, faults=Faults(seed=1), started_at=now)
    made.set_online(list(inverters.sns[:OFFLINE]), False, now=now)
    return made


@pytest.fixture
async def api(
    cloud: Cloud, name_of_profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RealTimeApi]:
    monkeypatch.setattr(realtime, "BACKOFF_S", 0.005)
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    app = web.Application()
    app.add_routes(Simulated(cloud=cloud, seed=1, account="supplier", password=PASSWORD).routes())
    async with TestServer(app) as server:
        made = RealTimeApi(
            profile=load_profile(name_of_profile),
            base_url=str(server.make_url("")),
            account="supplier",
            password_file=file,
            max_calls_per_s=0,
        )
        yield made
        await made.aclose()


async def test_who_is_authorized(cloud: Cloud, api: RealTimeApi) -> None:
    listed = await api.authorized()
    assert sorted(row.sn for row in listed) == sorted(cloud.inverters.sns)
    assert all(abs(row.authorized_at - time.time()) < 60 for row in listed)


async def test_telemetry(cloud: Cloud, api: RealTimeApi) -> None:
    sns = list(cloud.inverters.sns)
    rows = {row.sn: row for row in await api.operation(sns)}
    assert set(rows) == set(sns)
    assert [sn for sn in sns if not rows[sn].online] == sns[:OFFLINE]
    assert all(abs(row.at - time.time()) < 900 for row in rows.values())
    batteries = {row.sn: row for row in await api.battery(sns)}
    assert batteries and all(0 <= (row.soc_percent or 0) <= 100 for row in batteries.values())
    inverters = cloud.inverters
    for sn in sns[OFFLINE:]:  # in our units and signs, whatever theirs are
        row, place = rows[sn], inverters.row_of[sn]
        assert row.pv_power_w is not None and row.grid_power_w is not None
        assert row.load_power_w is not None and row.battery_power_w is not None
        assert row.load_power_w > 30  # less no household draws at any hour
        assert row.grid_power_w == pytest.approx(row.load_power_w + row.battery_power_w - row.pv_power_w, abs=3)
        told = batteries[sn].soc_percent
        assert (told is not None) is bool(inverters.battery[place])
        if told is not None:
            assert told == pytest.approx(inverters.soc[place], abs=0.2)


async def test_modes_of_the_grid_mean_what_they_are(cloud: Cloud, api: RealTimeApi) -> None:
    sns = list(cloud.inverters.sns[OFFLINE : OFFLINE + 3])
    off_grid, faulted = (cloud.inverters.row_of[sn] for sn in sns[:2])
    cloud.inverters.grid_mode[off_grid] = 0
    cloud.inverters.error_bits[faulted] = 4
    modes = await api.modes(await api.operation(sns))
    assert [(row.off_grid, row.faulted) for row in modes] == [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize("name", INTERFACES)
async def test_every_interface_is_understood(cloud: Cloud, api: RealTimeApi, name: str) -> None:
    rows = await api.rows(name, list(cloud.inverters.sns[OFFLINE : OFFLINE + 20]))
    assert len(rows) in (20, DEVICES)
    assert api.refused_rows == 0
    told = {field for row in rows for field, value in row.model_dump().items() if value is not None}
    assert told == set(INTERFACES[name].row.model_fields) - _absent(name)


def _absent(name: str) -> set[str]:
    """`time` is no field of these two in the contract."""
    return {"time"} if name in ("authorized", "station") else set()


@pytest.mark.parametrize("style", ["http", "code"])
async def test_its_faults_are_understood(cloud: Cloud, api: RealTimeApi, style: str) -> None:
    faults = cloud.faults.realtime
    faults.error_next = 2
    assert len(await api.authorized()) == DEVICES
    faults.rate_limit_style, faults.rate_limit_next, faults.retry_after_s = style, 1, 77.0
    with pytest.raises(RateLimited) as limited:
        await api.authorized()
    assert limited.value.retry_after_s == 77.0


async def test_a_wrong_password_is_refused(cloud: Cloud, api: RealTimeApi) -> None:
    api._account = "somebody"
    with pytest.raises(ExternalFault) as fault:
        await api.authorized()
    assert fault.value.reason == "unauthorized"
