"""The lease under which a worker may publish and write state (R39).

A monotonic tick, renewed by a successful commit under the current group generation and counted from before the
request, so that an answer which arrives after a freeze renews nothing. The commit can block for 20 s; whoever asks
`fresh` never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Lease:
    """Fresh for a third of the session timeout after the last renewal."""

    def __init__(self, *, session_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lasts_s = session_timeout_s / 3
        self.clock = clock
        self._renewed_at: float | None = None

    def fresh(self) -> bool:
        """Whether this worker may publish and write now."""
        return self._renewed_at is not None and self.clock() - self._renewed_at < self.lasts_s

    def lapsed(self) -> bool:
        """Whether it was renewed once and is no longer fresh."""
        return self._renewed_at is not None and not self.fresh()

    def renew(self, asked_at: float) -> None:
        """A commit that was asked for at `asked_at` (this clock) was accepted."""
        self._renewed_at = max(asked_at, self._renewed_at or asked_at)

    def drop(self) -> None:
        """The partitions were given up."""
        self._renewed_at = None
