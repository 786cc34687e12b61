"""What holds whatever happens: one book among random faults (`chaos`, judged by `oracle`), many seeds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.account import Counts
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.signal import Actuator

from .chaos import REST_S, Chaos
from .world import SHARD

ONCE = (2, 5, 6, 8, 9, 20, 28, 82, 90, 111, 1178)
"""Seeds that once found a fault."""


def play(seed: int, *, steps: int = 80, **world: bool) -> Chaos:
    """A run; `Oracle.check` and the assertions on each command are made on the way."""
    run = Chaos(seed, **world)
    for _ in range(steps):
        run.step()
    return run


def to_the_end(run: Chaos) -> None:
    run.calm_down()
    run.oracle.check_end(REST_S)
    run.close_all()
    run.oracle.check_closed()


@pytest.mark.exhaustive
@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_happens_every_device_is_released_and_every_account_adds_up(seed: int) -> None:
    to_the_end(play(seed))


@pytest.mark.parametrize("seed", [1, 3])
def test_two_seeds_of_many(seed: int) -> None:
    to_the_end(play(seed, steps=60))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", ONCE)
def test_seeds_that_once_found_a_fault(seed: int) -> None:
    to_the_end(play(seed))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(200, 203))
def test_r26_without_echoed_ids_too(seed: int) -> None:
    to_the_end(play(seed, echoes=False))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(300, 302))
def test_r27_owners_who_overrule_keep_what_they_chose(seed: int) -> None:
    to_the_end(play(seed, owners=True))


def test_chaos_happens_at_all() -> None:
    """The runs above prove something only if they set, refuse, lose and crash."""
    runs = [play(seed, steps=60) for seed in range(4)]
    assert all(run.book.epoch > 1 for run in runs)
    assert all(len(run.oracle.commands) > 20 for run in runs)
    done = {actuator for run in runs for device in run.devices.values() for actuator, _, _ in device.executed}
    assert done == set(Actuator)
    assert len({run.echoes for run in runs}) == 2 and len({run.policy.verify_share for run in runs}) > 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [102, 103, 104, 105])
def test_an_inbox_that_is_read_again_from_its_beginning_counts_nothing_twice(seed: int) -> None:
    run = play(seed, echoes=True)
    run.calm_down(12.0)
    run._save()
    book = Book(shard=SHARD, epoch=run.book.epoch + 1, catalogue=run.catalogue, policy=run.policy)
    pages.load(book, pages.newest(run.rows, [SHARD])[SHARD], run.rows, run.now)
    effects = book.step(list(enumerate(run.log)), run.now, reconcile=False)

    def accounts(of: Book) -> dict[tuple[str, int], Counts]:
        return {key: m.counts() for key, m in of.memberships.items() if not m.replaced}  # those tell nothing any more

    assert accounts(book) == accounts(run.book)
    assert effects.suspects == 0
    for actuator, setpoints in book.setpoints.items():
        mine, saved = setpoints.columns, run.book.setpoints[actuator].columns
        for name in ("generation", "armed", "acknowledged", "before", "first", "second"):
            assert (mine[name] == saved[name]).all(), name


def test_the_same_inputs_send_the_same_commands() -> None:
    assert play(7, steps=50).trace() == play(7, steps=50).trace()
