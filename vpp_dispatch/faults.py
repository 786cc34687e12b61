"""Deaths at a named point, for the kill tests: `published:20:SIGKILL` is the 20th time that `published` is passed.

The points are named where they are passed. Settings refuse a point unless the environment says that this is a test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from vpp_dispatch.errors import ConfigurationError

FaultHook = Callable[[str], None]


def no_fault(name: str) -> None:
    """The hook of production: passes every point."""


def fault_hook(point: str) -> FaultHook:
    """The hook that counts the calls with the point's name, and at the n-th sends the signal to this process.

    Args:
        point: `name:n:SIGNAL` with n >= 1, or empty for no fault.

    Raises:
        ConfigurationError: the point is not of that form.
    """
    if not point:
        return no_fault
    parts = point.split(":")
    if len(parts) != 3 or not parts[0] or not parts[1].isdecimal() or int(parts[1]) < 1:
        raise ConfigurationError(f"The fault point {point!r} is not name:n:SIGNAL, for example published:20:SIGKILL.")
    planted, number = parts[0], int(parts[1])
    try:
        deadly = signal.Signals[parts[2]]
    except KeyError:
        raise ConfigurationError(
            f"The fault point {point!r} names no signal: use SIGKILL, SIGSTOP or SIGTERM."
        ) from None
    passed = 0

    def hook(name: str) -> None:
        nonlocal passed
        if name == planted:
            passed += 1
            if passed == number:
                os.kill(os.getpid(), deadly)

    return hook
