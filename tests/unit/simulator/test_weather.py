"""Latencies by shape, late results, named weathers; and how the command line sets them."""

# ruff: noqa: F811  (a fixture of another file is named like the argument that takes it)

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.simulator.test_api import Client, client  # noqa: F401  (a fixture)
from tests.unit.simulator.world import HYBRID, OTHER, World, charge
from vpp_dispatch.simulator import __main__ as simulate
from vpp_dispatch.simulator.faults import FaultError, Faults, draw
from vpp_dispatch.simulator.profile import load_profile
from vpp_dispatch.simulator.weather import WEATHERS

CODES = load_profile("goodwe").codes


def latencies(shape: str, least: float = 10.0, most: float = 70.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    faults = Faults(seed=1)
    faults.change({"latency_s": [least, most], "latency_shape": shape})
    return np.array([faults.latency(draw(1, f"c{number}", 0)) for number in range(20_000)])


@pytest.mark.parametrize(
    ("shape", "at_half", "at_three_quarters", "longest"),
    [("uniform", (39, 41), (54, 56), 70), ("burst", (10, 10.5), (15, 17), 70), ("trickle", (18, 20.5), (25, 28), 190)],
)
def test_shapes_of_latency(
    shape: str, at_half: tuple[float, float], at_three_quarters: tuple[float, float], longest: float
) -> None:
    took = latencies(shape)
    assert took.min() >= 10 and took.max() <= longest
    for quantile, (low, high) in ((0.5, at_half), (0.75, at_three_quarters)):
        assert low <= np.quantile(took, quantile) <= high
    assert np.mean(took > 70) == pytest.approx(0.01 if shape == "trickle" else 0, abs=0.003)


def test_trickled_answers_come_over_the_whole_time_and_in_order_per_device() -> None:
    world = World()
    world.cloud.faults.change({"latency_s": [0, 60], "latency_shape": "trickle"})
    for number in range(200):
        world.send(f"c{number}", OTHER if number % 2 else HYBRID, charge(number))
    by_minute = [[body["requestId"] for body in world.pass_s(30)] for _ in range(8)]
    assert sum(map(len, by_minute)) == 200
    assert by_minute[0] and by_minute[1]  # ordered per device: the slowest of its answers holds up the later ones
    came = [each for part in by_minute for each in part]
    even = [each for each in came if int(each[1:]) % 2 == 0]
    assert even == sorted(even, key=lambda each: int(each[1:]))


def test_late_results_come_after_the_service_has_stopped_waiting_and_hold_up_nothing() -> None:
    world = World()
    world.cloud.faults.change({"late": 0.3, "late_s": 330})
    ids = [f"c{number}" for number in range(100)]
    for number, correlation_id in enumerate(ids):
        world.send(correlation_id, HYBRID, charge(number))
    in_time = {body["requestId"] for body in world.pass_s(10)}
    assert 55 <= len(in_time) <= 85
    assert world.pass_s(300) == []
    late = {body["requestId"] for body in world.pass_s(30)}
    assert (in_time | late, in_time & late) == (set(ids), set())
    assert world.cloud.ledger.totals["results.late"] == len(late)
    assert world.setting(HYBRID, "EMS Power Set") == 99  # the device was set in time: only the answers were late


def test_lateness_moves_no_other_draw() -> None:
    def refused(late: float) -> list[str]:
        world = World()
        world.cloud.faults.change({"late": late, "late_s": 0, "refusals": {"1003": 0.3}})
        for number in range(50):
            world.send(f"c{number}", HYBRID, charge(1))
        return sorted(body["requestId"] for body in world.pass_s(10) if body["code"] == "1003")

    assert refused(0) == refused(0.5) != []


@pytest.mark.parametrize("profile", ["goodwe", "variant"])
@pytest.mark.parametrize("name", WEATHERS)
def test_each_weather_takes_the_place_of_all_faults(name: str, profile: str) -> None:
    codes = load_profile(profile).codes
    once, again = Faults(seed=1), Faults(seed=1)
    once.set_weather(name, codes=codes)
    again.change({"loss": 1, "drop": [{}], "out_of_step_s": {"multi": 9}, "realtime": {"error_next": 7}})
    again.set_weather(name, codes=codes)
    assert once.shown() == again.shown()
    assert (once.shown() == Faults(seed=1).shown()) is (name == "calm")
    assert set(once.refusals) <= set(codes.values())
    assert len(once.refusals) == len(WEATHERS[name].faults.get("refusals", {}))


def test_an_unknown_weather_changes_nothing() -> None:
    faults = Faults(seed=1)
    faults.set_weather("rough", codes=CODES)
    before = faults.shown()
    with pytest.raises(FaultError, match="calm, slow, rough, storm"):
        faults.set_weather("sunny", codes=CODES)
    assert faults.shown() == before


class TestOverHttp:
    async def test_weather_while_it_runs(self, client: Client) -> None:
        await client.sim("faults", loss=0.5, drop=[{}])
        status, shown = await client.sim("weather", weather="storm")
        assert status == 200 and shown["latency_shape"] == "trickle" and shown["drop"] == []
        assert (await client.sim("weather", weather="sunny"))[0] == 400
        calm = msgspec.json.decode(msgspec.json.encode(Faults(seed=1).shown()))
        assert (await client.sim("weather", weather="calm"))[1] == calm
        listed = await (await client.http.get("/sim/weather")).json()
        assert list(listed) == list(WEATHERS) and all(weather["says"] for weather in listed.values())

    async def test_a_token_that_expires_in_mid_reading_and_an_account_that_is_refused(
        self,
        client: Client,
    ) -> None:
        await client.sim("faults", realtime={"token_expires_next": 1, "login_refused_next": 1})
        assert (await client.call("bms", sns=[HYBRID]))[0] == 401
        assert (await client.call("bms", sns=[HYBRID]))[0] == 401  # it stays expired
        assert [await client.log_in(), await client.log_in()] == [401, 200]
        assert (await client.call("bms", sns=[HYBRID]))[0] == 200

    async def test_slow_pages(self, client: Client) -> None:
        await client.sim("faults", realtime={"slow_next": 1, "slow_s": 0.2})
        took = []
        for _ in range(2):
            started = time.monotonic()
            assert (await client.call("bms", sns=[HYBRID]))[0] == 200
            took.append(time.monotonic() - started)
        assert took[0] >= 0.2 > took[1]

    async def test_a_rate_below_one_call_per_second(self, client: Client) -> None:
        await client.sim("faults", realtime={"rate_limit_per_s": 0.1})
        assert [(await client.call("bms", sns=[HYBRID]))[0] for _ in range(3)] == [200, 429, 429]

    @pytest.mark.parametrize(
        ("state", "grid_mode", "work_mode"),
        [({"off_grid": True}, 0, 2), ({"faulted": True}, 1, 3), ({"off_grid": False, "faulted": False}, 1, 1)],
    )
    async def test_a_device_off_grid_or_faulted_in_one_word(
        self,
        client: Client,
        state: dict[str, bool],
        grid_mode: int,
        work_mode: int,
    ) -> None:
        assert (await client.sim("device", sn=HYBRID, **state))[0] == 200
        row = (await client.rows("grid-status", HYBRID))[HYBRID]
        assert (row["gridMode"], row["workMode"]) == (grid_mode, work_mode)
        assert (await client.sim("device", sn=HYBRID, off_grid="yes"))[0] == 400


class TestCommandLine:
    def _run(self, *arguments: str) -> Any:
        return CliRunner().invoke(simulate.command, ["--bootstrap-servers", "x:1", "--inverters", "1", *arguments])

    def test_help_names_every_weather(self) -> None:
        told = " ".join(CliRunner().invoke(simulate.command, ["--help"]).output.split())
        for name, weather in WEATHERS.items():
            assert f"{name}: {weather.says}." in told

    def test_options_win_over_the_weather_and_faults_over_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plans: list[simulate.Plan] = []

        async def run(plan: simulate.Plan) -> None:
            plans.append(plan)

        monkeypatch.setattr(simulate, "run", run)
        more = '{"loss": 0.3, "realtime": {"error_rate": 0.4}}'
        for arguments in (
            ["--weather", "rough"],
            ["--weather", "rough", "--latency", "0", "6", "--loss", "0.2", "--late", "0", "--swallow", "0.5"],
            ["--weather", "rough", "--loss", "0.2", "--faults", more],
            ["--refusals", "1003:0.5", "--topics-out-of-step", "query:3", "--latency-shape", "burst", "--late-s", "9"],
            [],
        ):
            result = self._run(*arguments)
            assert result.exit_code == 0, result.output
        rough, options, faults, plain, none = (plan.faults for plan in plans)
        assert (rough.latency_s, rough.loss, rough.late) == ((0.5, 60), 0.02, 0.01)
        assert (options.latency_s, options.loss, options.late, options.swallow_rate) == ((0, 6), 0.2, 0, 0.5)
        assert (options.latency_shape, options.duplicates) == ("trickle", 0.05)
        assert (faults.loss, faults.realtime.error_rate, faults.realtime.slow_rate) == (0.3, 0.4, 0.1)
        assert (plain.refusals, plain.out_of_step_s["query"], plain.latency_shape) == ({"1003": 0.5}, 3, "burst")
        assert plain.late_s == 9
        assert none.shown() == Faults(seed=1).shown()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--faults", "loss"], "--faults is a JSON object"),
            (["--faults", "[]"], "--faults is a JSON object"),
            (["--faults", '{"los": 1}'], "los"),
            (["--weather", "sunny"], "storm"),
            (["--late", "2"], "late"),
        ],
    )
    def test_what_cannot_be_is_said(self, arguments: list[str], says: str) -> None:
        result = self._run(*arguments)
        assert result.exit_code != 0 and says in result.output
