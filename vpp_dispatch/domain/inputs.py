"""What can arrive in a shard's inbox, and what a shard tells the coordinator (idea 2: `book = fold(inbox)`).

Plain values; `dispatch.inbox` gives them their bytes. Times are epoch seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpp_dispatch.domain.account import Counts
from vpp_dispatch.domain.command import Results
from vpp_dispatch.domain.device import Battery, Operation, Record
from vpp_dispatch.domain.signal import Control, Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A revision of a dispatch event for one shard: the shard finds its members itself.

    `start_at` and `end_at` are settled (never None); `accepted_at` is when the coordinator accepted the revision;
    `targets.devices` names only devices of the addressed shard. `test` is judged once, on receipt (R6).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The event's holds are given up at `at` (R15). `revision` is the dispatch's, not the cancellation's."""

    event: str
    revision: int
    at: float


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


ShardInput = Selector | Cancel | Close | Consent | RegistryChange | Results | Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A shard's cumulative account of one event revision. The newest (epoch, sequence) of a shard wins."""

    shard: int
    epoch: int
    sequence: int
    event: str
    revision: int
    counts: Counts
