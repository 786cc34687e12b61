"""A circuit breaker: a side that fails again and again is left alone for a while, and then asked by one call only.

    closed   --faults in a row-->  open  --the pause is over, a call comes-->  probing
    probing  --an answer-->  closed        probing  --a fault-->  open        probing  --cut off-->  open, may probe

Our own, because the libraries for asyncio that were looked at (purgatory, aiobreaker) let every waiting call through
while they probe, or count a cancelled call as a fault; this is smaller than what would have to be built around them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from vpp_dispatch.errors import NotReachable

FAULTS_IN_A_ROW: Final = 5
"""So many open the circuit."""

PAUSE_S: Final = 30.0
"""From opening to the probe."""

State = Literal["closed", "open", "probing"]


class Circuit:
    """One circuit. Not for threads; every `admit` is followed by exactly one of `answered`, `failed`, `cut_off`.

    Attributes:
        state: where it stands.
        changed: told each new state and why, in words. May be replaced at any time.
    """

    def __init__(
        self,
        *,
        faults: int = FAULTS_IN_A_ROW,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[State, str], None] = lambda state, why: None,
    ) -> None:
        """`clock`: seconds that never go back."""
        self.state: State = "closed"
        self.changed = changed
        self._most = faults
        self._pause_s = pause_s
        self._clock = clock
        self._in_a_row = 0
        self._probe_at = 0.0
        self._last = ""

    def admit(self) -> None:
        """One call wants to leave.

        Raises:
            NotReachable: it may not (`circuit_open`); it is not worth repeating now.
        """
        if self.state == "open" and self._clock() >= self._probe_at:
            self._turn("probing", "the pause is over")
        elif self.state != "closed":
            left = max(self._probe_at - self._clock(), 0.0)
            when = f"for {left:.0f} s more" if self.state == "open" else "while one call probes"
            fault = NotReachable(
                f"{self._in_a_row} faults in a row: no call leaves {when}. The last: {self._last}",
                reason="circuit_open",
            )
            fault.retriable = False
            raise fault

    def answered(self) -> None:
        """The call was answered, be it by a refusal or a rate limit: the other side is there.

        A late answer to a call from before the opening proves that too.
        """
        self._in_a_row = 0
        if self.state != "closed":
            self._turn("closed", "it answers again")

    def failed(self, why: str) -> None:
        """The call met a fault; `why` in words, without secrets."""
        self._in_a_row += 1
        self._last = why
        if self.state == "probing" or (self.state == "closed" and self._in_a_row >= self._most):
            self._probe_at = self._clock() + self._pause_s
            self._turn("open", why)

    def cut_off(self) -> None:
        """The call ended without proof, by cancellation: where it was the probe, the next call is one."""
        if self.state == "probing":
            self._probe_at = self._clock()
            self._turn("open", "the probe was cut off")

    def _turn(self, state: State, why: str) -> None:
        self.state = state
        self.changed(state, why)
