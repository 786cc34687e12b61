"""The one tree of faults. Expected outcomes are values, never exceptions.

VppDispatchError
|-- ConfigurationError      settings or a profile say something impossible; never retried
|-- BadInput                bytes from outside that cannot be used; becomes a dead letter
|-- ExternalFault           somebody else's system failed us
|   |-- RateLimited         it asks us to wait; `retry_after_s` says how long, where known
|   `-- NotReachable        no answer, or none in time
`-- InvariantBroken         our own fault: the code has to change
"""

from __future__ import annotations


class VppDispatchError(Exception):
    """Base of all faults.

    `reason` is stable and goes into logs, metrics and dead letters; the message is for people.
    """

    reason: str = "fault"
    retriable: bool = False

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class ConfigurationError(VppDispatchError):
    """Settings, a profile or a topic layout that cannot work."""

    reason = "configuration"


class BadInput(VppDispatchError):
    """Bytes from outside that cannot be used (R8)."""

    reason = "bad_input"


class ExternalFault(VppDispatchError):
    """A system outside answered with a fault."""

    reason = "external_fault"
    retriable = True


class RateLimited(ExternalFault):
    """The other side asks us to come back later."""

    reason = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReachable(ExternalFault):
    """No answer, or none in time."""

    reason = "not_reachable"


class InvariantBroken(VppDispatchError):
    """Something that our own code must never let happen."""

    reason = "invariant"
