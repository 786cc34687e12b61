"""What an outcome row says for each kind of control, and that it is what the contract's models take."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.domain.world import World
from vpp_dispatch.dispatch.shards import outcome_rows
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets
from vpp_dispatch.operators.answer import OutcomesV1
from vpp_dispatch.operators.messages import encode_outcomes


def told(w: World, event: str) -> dict[str, dict[str, Any]]:
    """The wire's rows by kind, each held against the model."""
    membership = w.book.memberships[f"grid/{event}", 1]
    found = {}
    for telling in membership.tellings():
        message = encode_outcomes(outcome_rows(w.book, membership, telling), shard=5, sequence=1, at=w.now)
        OutcomesV1.model_validate_json(message.value or b"")
        found.update({row["kind"]: row for row in json.loads(message.value or b"")["outcomes"]})
    return found


def test_each_kind_has_its_own_number() -> None:
    w = World()
    w.fleet(1)
    controls = (
        Control(kind=Kind.DISCHARGE, form=Form.EACH_W, each_w=4000),
        Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=700),
        Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_W, each_w=3333),
        Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=0.93, excitation="under"),
    )
    w.event("a", controls=controls, end=100)
    w.run(4)
    rows = told(w, "a")
    numbers = {
        kind: {k: v for k, v in row.items() if k in ("setpoint_w", "setpoint_percent", "cos_phi")}
        for kind, row in rows.items()
    }
    assert numbers == {
        "discharge": {"setpoint_w": 4000},
        "export_limit": {"setpoint_w": 700},
        "generation_limit": {"setpoint_percent": 33.3},
        "power_factor": {"cos_phi": 0.93},
    }
    actuators = {int(row["correlation_id"][9], 16) for row in rows.values()}
    assert actuators == {1, 2, 3, 4} and {row["state"] for row in rows.values()} == {"applied"}


def test_standby_has_no_number_and_says_so() -> None:
    w = World()
    w.fleet(1)
    w.event("a", Kind.STANDBY, None, end=100)
    w.run(4)
    assert told(w, "a")["standby"]["setpoint_w"] is None


def test_a_release_has_one_row_that_names_the_worst_of_its_actuators() -> None:
    w = World()
    (sn,) = w.fleet(1)
    charge = Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=1000)
    percent = Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=50.0)
    w.event("a", controls=(charge, percent), end=1000)
    w.run(4)
    w.fate = lambda s: ResultCode.FAILED if s.actuator is Actuator.ACTIVE and not s.query else ResultCode.SUCCESS
    w.release("r", Targets(devices=(sn, "9010KETU000W7777")))
    w.run(4)
    membership = w.book.memberships["grid/r", 1]
    rows = [row for telling in membership.tellings() for row in outcome_rows(w.book, membership, telling)]
    by_sn = {row.sn: row for row in rows}
    assert {row.kind for row in rows} == {"release"} and len(rows) == 2
    mine = by_sn[sn]
    assert (mine.state.name, mine.reason.word, mine.setpoint_w) == ("REJECTED", "failed", None)
    assert mine.correlation_id is not None and mine.correlation_id[9] == "3"
    assert by_sn["9010KETU000W7777"].reason.word == "unknown_target"
