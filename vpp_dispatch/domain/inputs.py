"""What can arrive in a shard's inbox, and what a shard tells the coordinator (idea 2: `book = fold(inbox)`).

Plain values; `dispatch.inbox` gives them their bytes. Times are epoch seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpp_dispatch.domain.account import Counts
from vpp_dispatch.domain.command import F64, I32, U8, Flags, Results
from vpp_dispatch.domain.device import Battery, Operation, Record
from vpp_dispatch.domain.signal import Control, Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A revision of a dispatch event for one shard: the shard finds its members itself.

    `start_at` and `end_at` are settled (never None); `accepted_at` is when the coordinator accepted the revision;
    `targets.devices` names only devices of the addressed shard. `test` is judged once, on receipt (R6). Starts and
    releases are staggered over the ramps (R14). `release`: no dispatch but a release signal (R15); it has no controls.
    """

    event: str
    source: str
    event_id: str
    revision: int
    priority: int
    created_at: float
    accepted_at: float
    start_at: float
    end_at: float
    targets: Targets
    controls: tuple[Control, ...]
    test: bool = False
    ramp_up_s: int = 0
    ramp_down_s: int = 0
    release: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The event's holds are given up at `at` (R15). `revision` is the dispatch's, not the cancellation's.

    `ramp_down_s`: the releases are staggered over it; None = the event's own. `aborted`: by us, not by the operator
    (R36): who held is then rejected, `released`.
    """

    event: str
    revision: int
    at: float
    ramp_down_s: int | None = None
    aborted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """The switches as they stand since the record `number` of the event inbox (R36); the highest number wins.

    `releases_only`: nothing but releases and their read-backs is published. `drain`: no new event is accepted.
    """

    number: int = -1
    releases_only: bool = False
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The coordinator closes the event: the current states become outcomes (R24)."""

    event: str
    revision: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """All devices of the shard whose owners consent, as one complete reading at `at` (R16).

    `authorized`: pairs (SN, end of the consent or None).
    """

    at: float
    authorized: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryChange:
    """Registry records of one partition of the registry topic, in order.

    `changes`: (offset, SN, record or None for removed). An offset below the newest seen for the device and
    partition changes nothing.
    """

    partition: int
    changes: tuple[tuple[int, str, Record | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Facts read about devices of the shard. Kept in memory only; never in the inbox."""

    operations: tuple[Operation, ...] = ()
    batteries: tuple[Battery, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotResults:
    """Results of one shard that name no id, only a device and a pair of topics (R26: a profile without echoed ids).

    Columns of length n, in the order of their topics. `actuator`: of a query the one whose parameters were read, with
    QUERY_BIT; of a setpoint 0, since only the book knows what was asked last. `single`: from the single-parameter
    topic. The others as in `domain.command.Results`.
    """

    sn: list[str]
    actuator: U8
    single: Flags
    code: U8
    accepted: Flags
    first: I32
    second: I32
    at: F64

    def __len__(self) -> int:
        return len(self.sn)


ShardInput = Selector | Cancel | Close | Switches | Consent | RegistryChange | Results | SlotResults | Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A shard's cumulative account of one event revision. The newest (epoch, sequence) of a shard wins."""

    shard: int
    epoch: int
    sequence: int
    event: str
    revision: int
    counts: Counts
