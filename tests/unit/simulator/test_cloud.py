"""Requests in, effects and results out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.unit.simulator.world import AUTO, HYBRID, NOON, OLD, OTHER, PROFILE, PV_PERCENT, World, charge


def test_a_command_takes_effect_half_way_and_is_answered_after() -> None:
    world = World()
    world.send("a", HYBRID, charge(4000))
    assert world.pass_s(0.75) == []
    assert world.setting(HYBRID, "EMS Power Mode") == 1
    assert world.pass_s(0.25) == []
    assert world.setting(HYBRID, "EMS Power Mode") == 11
    assert world.pass_s(1) == [
        {
            "requestId": "a",
            "sn": HYBRID,
            "code": "0",
            "message": "success",
            "stage": "applied",
            "parameters": [
                {"name": "EMS Power Mode", "value": 11, "code": "0"},
                {"name": "EMS Power Set", "value": 4000, "code": "0"},
            ],
        }
    ]
    assert world.out[0].topic == "goodwe.control.multi.result"
    (command,) = world.commands(HYBRID)
    assert command["kind"] == "set"
    assert command["executed"] is True
    assert (command["arrival_at"], command["effect_at"]) == (NOON - 0.01, NOON + 1)


def test_single_and_query() -> None:
    world = World()
    world.send("a", HYBRID, [("Active Power Limit", 600)], "single")
    world.send("b", HYBRID, ["Active Power Limit", "EMS Power Mode"], "query")
    world.send("c", PV_PERCENT, ["EMS Power Mode"], "query")
    world.pass_s(3)
    answers = {each.body["requestId"]: each for each in world.out}
    assert answers["a"].topic == "goodwe.control.single.result"
    assert answers["b"].topic == "goodwe.query.result"
    assert answers["b"].body["parameters"] == [
        {"name": "Active Power Limit", "value": 600, "code": "0"},
        {"name": "EMS Power Mode", "value": 1, "code": "0"},
    ]
    assert answers["c"].body["code"] == "1005"
    assert answers["c"].body["parameters"] == [{"name": "EMS Power Mode", "code": "1005"}]


def test_a_query_overtakes_a_set_when_the_topics_are_out_of_step() -> None:
    world = World()
    world.cloud.faults.change({"out_of_step_s": {"multi": 5}})
    world.send("set", HYBRID, charge(4000))
    world.send("query", HYBRID, ["EMS Power Mode"], "query")
    (read,) = world.pass_s(3)
    assert read["parameters"][0]["value"] == 1
    assert [body["requestId"] for body in world.pass_s(5)] == ["set"]


@pytest.mark.parametrize(
    ("sn", "items", "code", "per_parameter"),
    [
        ("9010KETU001W9999", charge(1), "1002", ["1002", "1002"]),
        (PV_PERCENT, charge(1), "1005", ["1005", "1005"]),
        (OLD, charge(1), "1005", ["1005", "1005"]),
        (HYBRID, charge(1_000_000), "1004", ["0", "1004"]),
        (HYBRID, [("Safety Code", 1)], "1005", ["1005"]),
        (HYBRID, [("EMS Power Mode", 1)] * 11, "1099", ["1099"] * 11),
    ],
)
def test_refusals(sn: str, items: list[Any], code: str, per_parameter: list[str]) -> None:
    world = World()
    world.send("a", sn, items)
    (body,) = world.pass_s(3)
    assert body["code"] == code
    assert [each["code"] for each in body["parameters"]] == per_parameter


def test_offline_is_answered_or_silent_and_latches_nothing() -> None:
    world = World()
    world.cloud.set_online([HYBRID], False, now=world.now)
    world.send("a", HYBRID, charge(1000))
    assert [body["code"] for body in world.pass_s(3)] == ["1001"]
    world.cloud.faults.change({"offline_silent": True})
    world.send("b", HYBRID, charge(1000))
    assert world.pass_s(3) == []
    world.cloud.set_online([HYBRID], True, now=world.now)
    assert world.setting(HYBRID, "EMS Power Mode") == 1
    world.send("b", HYBRID, charge(1000))  # the device never saw it: not a repeat of anything
    assert [body["code"] for body in world.pass_s(3)] == ["0"]


def test_withdrawn_consent_leaves_only_the_way_back() -> None:
    world = World()
    world.send("a", HYBRID, charge(1000))
    world.pass_s(3)
    world.cloud.consent.set_authorized(HYBRID, False, now=world.now)
    world.send("b", HYBRID, charge(2000))
    world.send("c", HYBRID, ["EMS Power Mode"], "query")
    world.send("d", HYBRID, AUTO)
    codes = {body["requestId"]: body["code"] for body in world.pass_s(3)}
    assert codes == {"b": "1002", "c": "0", "d": "0"}
    assert world.setting(HYBRID, "EMS Power Mode") == 1
    world.cloud.faults.change({"after_withdrawal": "refuse"})
    world.send("e", HYBRID, AUTO)
    assert [body["code"] for body in world.pass_s(3)] == ["1002"]
    assert world.cloud.dump(world.now)["devices"][HYBRID]["authorized"] == [[NOON, NOON + 3]]


def test_the_whitelist_is_the_other_key() -> None:
    world = World()
    world.cloud.consent.set_listed(HYBRID, False)
    world.send("a", HYBRID, AUTO)
    assert [body["code"] for body in world.pass_s(3)] == ["1002"]


def test_a_repeat_is_executed_once_and_answered_alike() -> None:
    world = World()
    world.send("a", HYBRID, charge(4000))
    world.pass_s(3)
    world.send("b", HYBRID, AUTO)
    world.pass_s(3)
    world.send("a", HYBRID, charge(4000))
    world.pass_s(3)
    assert world.setting(HYBRID, "EMS Power Mode") == 1
    first, _, again = (each.body for each in world.out)
    assert first == again
    assert [(command["repeat"], command["executed"]) for command in world.commands(HYBRID)] == [
        (0, True),
        (0, True),
        (1, False),
    ]


def test_one_id_with_two_contents_is_refused_and_shown() -> None:
    world = World()
    world.send("a", HYBRID, charge(4000))
    world.send("a", HYBRID, charge(5000))
    assert [body["code"] for body in world.pass_s(3)] == ["0", "1099"]
    assert world.setting(HYBRID, "EMS Power Set") == 4000
    assert [command["conflict"] for command in world.commands(HYBRID)] == [False, True]


def test_one_device_and_topic_stay_in_order_under_any_latency() -> None:
    world = World()
    world.cloud.faults.change({"latency_s": [0, 20]})
    ids = [f"c{number}" for number in range(30)]
    for number, correlation_id in enumerate(ids):
        world.send(correlation_id, HYBRID, charge(number))
    assert [body["requestId"] for body in world.pass_s(45)] == ids
    assert world.setting(HYBRID, "EMS Power Set") == 29


def test_reordered_results_leave_effects_in_order_and_reordered_effects_do_not() -> None:
    for fault, in_order in (("reorder", True), ("reorder_effects", False)):
        world = World()
        world.cloud.faults.change({"latency_s": [0, 0], fault: 0.5, "reorder_s": 10})
        ids = [f"c{number}" for number in range(30)]
        for number, correlation_id in enumerate(ids):
            world.send(correlation_id, HYBRID, charge(number))
        came = [body["requestId"] for body in world.pass_s(30)]
        assert sorted(came) == sorted(ids)
        assert came != ids
        effects = [command["effect_at"] for command in world.commands(HYBRID)]
        assert (effects == sorted(effects)) is in_order


def test_losses_duplicates_and_refusals_are_drawn_from_the_seed() -> None:
    def run(seed: int) -> tuple[list[str], dict[str, int]]:
        world = World(seed=seed)
        world.cloud.faults.change({"loss": 0.2, "duplicates": 0.2, "refusals": {"1003": 0.2}})
        for number in range(300):
            world.send(f"c{number}", OTHER, charge(number))
        came = [f"{body['requestId']}:{body['code']}" for body in world.pass_s(6)]
        return came, dict(world.cloud.ledger.totals)

    came, totals = run(1)
    assert run(1)[0] == came
    assert run(2)[0] != came
    assert 30 < totals["results.dropped"] < 90
    assert 20 < totals["results.duplicated"] < 90
    assert 30 < totals["code.1003"] < 90
    assert totals["code.0"] + totals["code.1003"] == 300


def test_the_only_result_of_a_release_is_lost() -> None:
    world = World()
    world.cloud.faults.change({"drop": [{"sn": HYBRID, "kind": "release", "count": None}]})
    world.send("a", HYBRID, charge(4000))
    world.send("b", HYBRID, AUTO)
    world.send("c", OTHER, AUTO)
    assert [body["requestId"] for body in world.pass_s(3)] == ["a", "c"]
    assert world.setting(HYBRID, "EMS Power Mode") == 1
    assert [(command["kind"], command["dropped"]) for command in world.commands(HYBRID)] == [
        ("set", False),
        ("release", True),
    ]


def test_rules_for_one_command() -> None:
    world = World()
    world.cloud.faults.change(
        {
            "refuse": {"kind": "set", "code": "7777"},
            "swallow": {"sn": OTHER},
            "delay_result": {"sn": PV_PERCENT, "seconds": 60},
            "duplicate": {"kind": "query"},
        }
    )
    world.send("a", HYBRID, charge(1))
    world.send("b", OTHER, charge(1))
    world.send("c", PV_PERCENT, [("Export Limit Enable", 1)])
    world.send("d", HYBRID, ["EMS Power Mode"], "query")
    came = [(body["requestId"], body["code"]) for body in world.pass_s(5)]
    assert sorted(came) == [("a", "7777"), ("d", "0"), ("d", "0")]
    assert [body["requestId"] for body in world.pass_s(60)] == ["c"]
    assert world.commands(OTHER)[0]["swallowed"] is True
    assert world.setting(OTHER, "EMS Power Mode") == 1


def test_partial_result_names_the_parameter_that_failed() -> None:
    world = World()
    world.cloud.faults.change({"partial": 1})
    world.send("a", HYBRID, charge(4000))
    (body,) = world.pass_s(3)
    assert body["code"] == "1099"
    assert [each["code"] for each in body["parameters"]] == ["0", "1099"]
    assert (world.setting(HYBRID, "EMS Power Mode"), world.setting(HYBRID, "EMS Power Set")) == (11, 0)


def test_other_profiles_integer_codes_no_echo_two_results_other_names() -> None:
    fields = {**PROFILE.fields, "sn": "deviceSn", "code": "result"}
    other = dataclasses.replace(PROFILE, integer_codes=True, echoed=False, results_per_command=2, fields=fields)
    world = World(profile=other)
    world.send_bytes(
        b'{"requestId":"a","deviceSn":"%s","parameters":[{"name":"EMS Power Mode","value":8}]}' % HYBRID.encode()
    )
    accepted, applied = world.pass_s(3)
    assert (accepted["stage"], applied["stage"]) == ("accepted", "applied")
    assert applied == {
        "deviceSn": HYBRID,
        "result": 0,
        "message": "success",
        "stage": "applied",
        "parameters": [{"name": "EMS Power Mode", "value": 8, "result": 0}],
    }


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b'{"requestId":1}', b'{"requestId":"a","sn":"b","parameters":[]}']
)
def test_unreadable_requests_are_kept_and_harm_nothing(value: bytes) -> None:
    world = World()
    world.send_bytes(value)
    world.send("a", HYBRID, AUTO)
    assert [body["requestId"] for body in world.pass_s(3)] == ["a"]
    assert len(world.cloud.dump(world.now)["unreadable"]) == 1


def test_the_owner_changes_a_setting_by_hand() -> None:
    world = World()
    assert world.cloud.owner_sets(HYBRID, "EMS Power Mode", 8, now=world.now) == "success"
    assert world.cloud.owner_sets(PV_PERCENT, "EMS Power Mode", 8, now=world.now) == "unsupported"
    dumped = world.cloud.dump(world.now)["devices"]
    assert dumped[HYBRID]["settings"]["EMS Power Mode"] == 8
    assert dumped[HYBRID]["default_settings"]["EMS Power Mode"] == 1
    assert dumped[HYBRID]["owner_changes"] == [{"at": NOON, "name": "EMS Power Mode", "value": 8}]
    assert dumped[PV_PERCENT]["owner_changes"] == []
