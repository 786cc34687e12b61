"""The course of a run, as data: what was asked, what was measured and what happened, over time.

The meter and the plan write it, the live view and the picture read it. Times are epoch seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from vpp_dispatch.demo.asked import Played


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What a worker's metrics page says of it now."""

    shards: int
    held: int
    owed: int
    in_flight: int
    due: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at all inverters, and at all workers.

    Attributes:
        at: when it was complete.
        power_w: per event, W >= 0, in the direction of its first control: of the inverters that stand in its mode
            now, or, if it is a limit, of all its targets.
        workers: by name; a worker that does not answer is absent.
    """

    at: float
    power_w: Mapping[str, float]
    workers: Mapping[str, Gauges] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Actuators that are held, over the workers that answered."""
        return sum(worker.held for worker in self.workers.values())

    @property
    def owed(self) -> int:
        """Releases owed and not confirmed, over the workers that answered."""
        return sum(worker.owed for worker in self.workers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened, in a few words."""

    at: float
    what: str


@dataclass(slots=True, kw_only=True)
class Course:
    """A run so far.

    Attributes:
        inverters: how many there are.
        seconds: from the first signal to the end of the longest event.
        began_at: when the first signal was sent; 0 = not yet.
        events: by event id, in the order in which they were asked for.
    """

    inverters: int
    seconds: float
    began_at: float = 0.0
    events: dict[str, Played] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def mark(self, what: str) -> None:
        """Something happens now."""
        self.marks.append(Mark(at=time.time(), what=what))
