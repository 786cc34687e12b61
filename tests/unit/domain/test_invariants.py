"""What holds whatever happens: one book among random faults (`chaos`), many seeds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.signal import Actuator

from .chaos import POLICY, Chaos
from .world import SHARD, Catalogue

pytestmark = pytest.mark.exhaustive


def play(seed: int, *, steps: int = 80, calm_s: float = 60.0) -> Chaos:
    """A run; `check` and the assertions on each command stand in `chaos`."""
    run = Chaos(seed, devices=5)
    for _ in range(steps):
        run.step()
    run.calm_down(calm_s)
    return run


@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_happens_every_device_is_released_and_every_account_adds_up(seed: int) -> None:
    run = play(seed)
    run.check()
    run.check_end()


@pytest.mark.parametrize("seed", [2, 10, 26, 1267, 20044])
def test_seeds_that_once_found_a_fault(seed: int) -> None:
    run = play(seed)
    run.check()
    run.check_end()


def test_chaos_happens_at_all() -> None:
    """The runs above prove something only if they set, refuse, lose and crash."""
    runs = [play(seed, calm_s=0.0) for seed in range(4)]
    assert all(run.book.epoch > 1 for run in runs)
    assert all(len(run.sent) > 20 for run in runs)
    assert {actuator for run in runs for device in run.devices.values() for actuator, _, _ in device.executed} == {
        Actuator.EMS,
        Actuator.EXPORT,
    }


@pytest.mark.parametrize("seed", range(100, 104))
def test_an_inbox_that_is_read_again_from_its_beginning_counts_nothing_twice(seed: int) -> None:
    run = play(seed, calm_s=12.0)
    run._save()
    book = Book(shard=SHARD, epoch=run.book.epoch + 1, catalogue=Catalogue(), policy=POLICY)
    pages.load(book, pages.newest(run.rows, [SHARD])[SHARD], run.rows, run.now)
    effects = book.step(list(enumerate(run.log)), run.now, reconcile=False)
    assert {key: m.counts() for key, m in book.memberships.items()} == {
        key: m.counts() for key, m in run.book.memberships.items()
    }
    assert effects.suspects == 0
    for actuator, setpoints in book.setpoints.items():
        mine, saved = setpoints.columns, run.book.setpoints[actuator].columns
        for name in ("generation", "armed", "acknowledged", "before", "first", "second"):
            assert (mine[name] == saved[name]).all(), name


def test_the_same_inputs_send_the_same_commands() -> None:
    assert play(7, calm_s=5.0).trace() == play(7, calm_s=5.0).trace()
