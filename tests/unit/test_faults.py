"""Planted deaths, in a process that may die."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.faults import fault_hook, no_fault

PASSES = """
from vpp_dispatch.faults import fault_hook
hook = fault_hook("published:3:SIGKILL")
for n in range(1, 5):
    hook("committed")
    print(n, flush=True)
    hook("published")
"""


def test_the_third_pass_is_the_last() -> None:
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["1", "2", "3"]


def test_no_point_no_fault() -> None:
    assert fault_hook("") is no_fault


@pytest.mark.parametrize(
    "point", ["published", "published:0:SIGKILL", "published:x:SIGKILL", ":1:SIGKILL", "published:1:X"]
)
def test_a_point_that_is_none(point: str) -> None:
    with pytest.raises(ConfigurationError, match="fault point"):
        fault_hook(point)
