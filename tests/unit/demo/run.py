"""A small run as data, for what draws it."""

from __future__ import annotations

from typing import Any, Final

from vpp_dispatch.demo.asked import Control, Played
from vpp_dispatch.demo.course import Course, Gauges, Mark, Sample

BEGAN: Final = 1_000_000.0


def played(event_id: str, control: Control, *, asked_w: float, window: tuple[float, float], **more: Any) -> Played:
    """An event of 1,000 inverters; its window in seconds since the first signal."""
    return Played(
        event_id=event_id,
        asked=f"{control.asked()}, all (1000 inverters)",
        controls=(control,),
        whom="all (1000)",
        targets=frozenset(f"{n:016d}" for n in range(1000)),
        asked_w=asked_w,
        from_at=BEGAN + window[0],
        over_at=BEGAN + window[1],
        **more,
    )


def course() -> Course:
    """40 s: a charge of 2 MW that gets 1.5 MW from 10 s on, an export limit, a worker that dies at 20 s."""
    run = Course(inverters=1000, seconds=30.0, began_at=BEGAN)
    run.events["chg-1"] = played("chg-1", Control(kind="charge", each_w=2000), asked_w=2e6, window=(5, 30))
    run.events["exp-1"] = played("exp-1", Control(kind="export_limit", each_w=1500), asked_w=15e5, window=(2, 20))
    for second in range(-2, 41):
        charging = 1.5e6 if 10 <= second < 31 else 0.0
        workers = {"worker-1": Gauges(shards=64, held=700, owed=0, in_flight=3, due=0)}
        if second < 20:
            workers["worker-2"] = Gauges(shards=32, held=300, owed=12, in_flight=0, due=1)
        power = {"chg-1": charging, "exp-1": 9e5} if second >= 0 else {}
        run.samples.append(Sample(at=BEGAN + second, power_w=power, workers=workers))
    run.marks += [
        Mark(at=BEGAN + 20, what="worker-2 is killed (SIGKILL)"),
        Mark(at=BEGAN + 20.2, what="5 owners <withdraw> their consent"),
        Mark(at=BEGAN + 36, what="the 6 are released"),
    ]
    return run


def report(**devices: int) -> dict[str, Any]:
    """A report with these states."""
    states = ("targeted", "skipped", "pending", "published", "accepted", "applied", "verified", "rejected")
    return {
        "state": "active",
        "devices": dict.fromkeys((*states, "unconfirmed", "unused"), 0) | devices,
        "release": {"due": 7, "confirmed": 4, "pending": 3, "refused": 0},
        "latency_s": {"publish": {"p50": 0.24, "p95": 1.26, "max": 2.0}, "result": {"p50": None, "p95": None}},
    }
