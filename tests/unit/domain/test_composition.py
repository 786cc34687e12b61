"""Random events without faults: what each device shows is the rule's, and no device bounces through its default.

Times are whole seconds, a step of the world a quarter of one, so that each command has been answered a second later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind

from .oracle import LIMITS, Pair, limit_of
from .world import DEFAULTS, MODES, World

EMS, EXPORT, ACTIVE, REACTIVE = Actuator
SETTLE_S = 0.75
"""How long a device may need to show what is desired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One event of a scenario: at which second it is sent, and its window in seconds from the beginning."""

    name: str
    told: int
    start: int
    end: int
    priority: int
    control: Control
    pair: Pair
    up: int
    down: int

    @property
    def primacy(self) -> tuple[int, int, str]:
        return -self.priority, self.told, self.name


def _plans(draw: random.Random, actuator: Actuator) -> Iterator[Plan]:
    """Windows that overlap, or follow each other at once or after a pause; ramps end inside the next window or not."""
    at = 0
    for i in range(draw.choice([2, 3, 4])):
        start = max(0, at + draw.choice([-6, -2, 0, 0, 0, 3]))
        end = start + draw.choice([2, 5, 9, 14])
        at = end
        watts = 1000 + 500 * draw.randrange(8)
        match actuator:
            case Actuator.EMS:
                kind = draw.choice([Kind.CHARGE, Kind.DISCHARGE])
                control, pair = Control(kind=kind, form=Form.EACH_W, each_w=watts), (MODES[kind], watts)
            case Actuator.EXPORT:
                control = Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=watts)
                pair = 1, watts
            case Actuator.ACTIVE:
                control = Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=watts / 100)
                pair = watts // 10, 0
            case _:
                raw = 80 + draw.randrange(15)
                control = Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=raw / 100, excitation="over")
                pair = raw, 0
        yield Plan(
            name=f"e{i}",
            told=draw.choice([0, start]),
            start=start,
            end=end,
            priority=draw.choice([1, 100, 100, 200]),
            control=control,
            pair=pair,
            up=draw.choice([0, 0, 4, 12]),
            down=draw.choice([0, 0, 4, 12]),
        )


@dataclass(slots=True, kw_only=True)
class Turn:
    """When an event holds one device: from, until at least (its window), and until at most (its ramp down)."""

    plan: Plan
    start: float
    end: float


def turns_of(w: World, plans: list[Plan], sn: str) -> list[Turn]:
    """When each event that has begun holds a device, by the places that were drawn."""
    found = []
    row = w.book.roster.row_of[sn]
    for plan in plans:
        membership = w.book.memberships.get((f"grid/{plan.name}", 1))
        if membership is not None:
            m = membership.parts[0].members
            draw = int(m["draw"][m["row"] == row][0])
            found.append(
                Turn(plan=plan, start=plan.start + (draw * plan.up >> 16), end=plan.end + (draw * plan.down >> 16))
            )
    return found


def shows(actuator: Actuator, holding: list[Plan], default: Pair) -> Pair:
    """What the rule of an actuator makes of those that hold it (R10, R12)."""
    if not holding:
        return default
    if actuator in LIMITS:
        return min([plan.pair for plan in holding] + [default], key=lambda pair: limit_of(actuator, pair))
    return max(holding, key=lambda plan: plan.primacy).pair


def looser(actuator: Actuator, pair: Pair, than: Pair) -> bool:
    return limit_of(actuator, pair) >= limit_of(actuator, than)


def scenario(seed: int, actuator: Actuator, *, restarts: bool = False) -> None:
    """Runs the plans of one seed; looks at each device each second, and at each release when it is sent."""
    draw = random.Random(f"{seed} {actuator}")
    policy = Policy(
        result_timeout_s=3.0, retry_backoff_s=1.0, release_retry_s=2.0, verify_share=draw.choice([0.0, 1.0])
    )
    w = World(policy=policy)
    default = DEFAULTS[actuator]
    if actuator in LIMITS and draw.random() < 0.5:
        default = (1, 2600) if actuator is EXPORT else (260, 0)
    sns = w.fleet(6, default={actuator: default})
    for device in w.devices.values():
        device[actuator] = default
    plans = list(_plans(draw, actuator))
    begun = w.now
    last = max(plan.end + plan.down for plan in plans) + 3
    looked = 0
    for second in range(last):
        for plan in plans:
            if plan.told == second:
                w.event(
                    plan.name,
                    start=plan.start - second,
                    end=plan.end - second,
                    priority=plan.priority,
                    created=begun + plan.told,
                    controls=(plan.control,),
                    ramp_up_s=plan.up,
                    ramp_down_s=plan.down,
                )
        w.run(1.0)
        for s in w.sets():
            at = s.at - begun
            if s.pair == default and at >= second:
                # After a restart the old window may have ended before the next was told, at the same moment.
                open_ = [p for p in plans if p.start <= at < p.end and (p.told < at or (p.told == at and not restarts))]
                # The default itself may be what a looser limit comes to.
                loose = [p for p in plans if actuator in LIMITS and looser(actuator, p.pair, default)]
                assert loose or not open_, f"{s.sn} bounced through its default at {at}: {open_}"
        if restarts and draw.random() < 0.2:
            w.crash()
        now = w.now - begun
        for sn in sns:
            turns = turns_of(w, plans, sn)
            # Who waits for a ramp or for a successor may still show what it had; that is looked at above.
            if any(t.plan.end <= now < t.end + 1 or t.plan.start <= now < t.start + 1 for t in turns):
                continue
            if any(abs(now - edge) < SETTLE_S for t in turns for edge in (t.start, t.end)):
                continue
            holding = [t.plan for t in turns if t.start <= now < t.plan.end]
            assert w.devices[sn][actuator] == shows(actuator, holding, default), f"{sn} at {now}: {holding}"
            looked += 1
    assert looked > 0
    w.run(15.0)
    assert all(device[actuator] == default for device in w.devices.values())
    assert not w.book.setpoints[actuator].columns["armed"].any()


@pytest.mark.parametrize("actuator", list(Actuator))
def test_r12_r13_what_devices_show_is_the_rule_s_and_nothing_bounces(actuator: Actuator) -> None:
    for seed in range(2):
        scenario(seed, actuator)


@pytest.mark.exhaustive
@pytest.mark.parametrize("actuator", list(Actuator))
@pytest.mark.parametrize("restarts", [False, True])
def test_r12_r13_many_scenarios(actuator: Actuator, restarts: bool) -> None:
    for seed in range(100, 104):
        scenario(seed, actuator, restarts=restarts)
