"""Counts fold into a report that adds up (R34)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.domain.account import LATENCY_BUCKETS_S, Counts, Latency, State
from vpp_dispatch.domain.answer import EventState, PowerAccount, Quantiles, Report
from vpp_dispatch.domain.report import fold, quantile, report

BUCKETS = len(LATENCY_BUCKETS_S) + 1


def latency(*seconds: float) -> Latency:
    where = np.searchsorted(LATENCY_BUCKETS_S, seconds)
    return Latency(counts=tuple(np.bincount(where, minlength=BUCKETS).tolist()), max_s=max(seconds, default=0.0))


def counts(skipped: int = 0, applied: int = 0, rejected: int = 0, *, closed: bool = False, **more: Any) -> Counts:
    states = [0] * len(State)
    states[State.SKIPPED], states[State.APPLIED], states[State.REJECTED] = skipped, applied, rejected
    reasons = {word: n for word, n in (("skipped.offline", skipped), ("rejected.busy", rejected)) if n}
    return Counts(states=tuple(states), reasons=reasons, settled=closed, closed=closed, **more)


def made(
    by_shard: dict[int, Counts],
    *,
    expected: tuple[int, ...] = (1, 2, 3),
    state: EventState = "active",
    watts: bool = True,
) -> Report:
    return report(
        event_id="e",
        source="west",
        revision=2,
        sequence=7,
        state=state,
        at=100.0,
        counts=by_shard,
        expected=expected,
        watts=watts,
    )


def test_r34_states_reasons_and_power_are_the_sums_over_the_shards() -> None:
    told = made(
        {
            1: counts(2, 5, 1, requested_w=8000, allocated_w=6000, acknowledged_w=5000, published=6, retried=1),
            2: counts(1, 3, 0, requested_w=4000, allocated_w=3000, acknowledged_w=3000, published=3, late_results=2),
        }
    )
    assert {state: n for state, n in told.devices.items() if n} == {
        State.SKIPPED: 3,
        State.APPLIED: 8,
        State.REJECTED: 1,
    }
    assert told.reasons == {"skipped.offline": 3, "rejected.busy": 1}
    assert told.power_w == PowerAccount(requested=12000, allocated=9000, acknowledged=8000, shortfall=3000)
    assert (told.commands.published, told.commands.retried, told.commands.late_results) == (9, 1, 2)


@pytest.mark.parametrize(
    ("state", "second", "measured"),
    [
        ("closed", {"measured_w": 2900, "measured": 3}, 7800),
        ("closed", {"measured_w": -5000, "measured": 3}, 0),  # the other way round than asked, all together
        ("closed", {"measured_w": 1900, "measured": 2, "unmeasured": 1}, None),
        ("closed", {}, 4900),  # nobody was applied there
        ("ending", {"measured_w": 2900, "measured": 3}, None),
    ],
)
def test_r34_measured_is_whole_or_null(state: EventState, second: dict[str, int], measured: int | None) -> None:
    parts = {
        1: counts(applied=5, closed=True, measured_w=4900, measured=5),
        2: counts(closed=True, **second),
    }
    assert made(parts, expected=(1, 2), state=state).power_w.measured == measured


def test_r34_what_a_missing_shard_measured_is_missing() -> None:
    told = made({1: counts(applied=5, measured_w=4900, measured=5, closed=True)}, expected=(1, 2), state="closed")
    assert told.power_w.measured is None


def test_r34_release_pending_is_what_is_neither_confirmed_nor_refused() -> None:
    told = made({1: counts(release_due=5, release_confirmed=3, release_refused=1), 2: counts(release_due=2)})
    assert (told.release.due, told.release.confirmed, told.release.pending, told.release.refused) == (7, 3, 3, 1)


def test_power_is_null_for_kinds_without_watts() -> None:
    assert made({1: counts(applied=3)}, watts=False).power_w == PowerAccount()


def test_nothing_is_short_when_more_was_allocated_than_asked() -> None:
    assert made({1: counts(requested_w=1, allocated_w=5)}).power_w.shortfall == 0


def test_while_it_runs_a_shard_is_missing_until_it_has_told_anything() -> None:
    told = made({2: counts(applied=1)})
    assert (told.shards.expected, told.shards.reported, told.shards.missing) == (3, 1, (1, 3))
    assert not told.final


def test_at_the_close_a_shard_is_missing_unless_it_has_closed() -> None:
    told = made({1: counts(applied=1, closed=True), 2: counts(applied=4)}, state="closed")
    assert told.final
    assert told.shards.missing == (2, 3)
    assert told.devices[State.APPLIED] == 5, "what is known of a missing shard still counts"


def test_an_event_that_addressed_nobody_has_an_empty_account() -> None:
    told = made({}, expected=(), state="closed")
    assert sum(told.devices.values()) == 0
    assert told.publish_latency_s == Quantiles()
    assert (told.shards.expected, told.shards.missing) == (0, ())


def test_all_settled_means_every_shard_and_at_least_one() -> None:
    assert fold([counts(closed=True), counts(closed=True)]).settled
    assert not fold([counts(closed=True), counts()]).settled
    assert not fold([]).settled


def test_quantiles_are_linear_inside_a_bucket() -> None:
    four_between_1_and_2 = [0] * BUCKETS
    four_between_1_and_2[LATENCY_BUCKETS_S.index(1.5)] = 4  # the bucket above 1 s, up to 1.5 s
    assert quantile(Latency(counts=tuple(four_between_1_and_2), max_s=1.5), 0.5) == pytest.approx(1.25)
    assert quantile(Latency(counts=tuple(four_between_1_and_2), max_s=1.5), 1.0) == pytest.approx(1.5)


def test_a_quantile_is_never_above_the_largest() -> None:
    assert quantile(latency(1.01), 0.95) == 1.01
    assert quantile(latency(9000.0, 9500.0), 1.0) == 9500.0, "in the open bucket too"


def test_latencies_are_null_when_nothing_was_measured() -> None:
    assert made({1: counts()}).result_latency_s == Quantiles()


@given(st.lists(st.floats(min_value=0.001, max_value=4000), min_size=1, max_size=60))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds: list[float]) -> None:
    for q in (0.5, 0.95):
        true = float(np.quantile(seconds, q, method="inverted_cdf"))
        bounds = (0.0, *LATENCY_BUCKETS_S, max(seconds))
        bucket = int(np.searchsorted(LATENCY_BUCKETS_S, true))
        found = quantile(latency(*seconds), q)
        assert found is not None
        assert bounds[bucket] <= found <= bounds[bucket + 1] + 1e-9


some_counts = st.builds(
    counts,
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    closed=st.booleans(),
    requested_w=st.integers(0, 9000),
    held_at_end=st.integers(0, 5),
)


@given(st.lists(some_counts, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_r34_the_order_of_the_shards_does_not_matter(parts: list[Counts], order: random.Random) -> None:
    mixed = list(parts)
    order.shuffle(mixed)
    total = fold(parts)
    assert fold(mixed) == total
    assert total.targeted == sum(part.targeted for part in parts)
    assert sum(total.reasons.values()) == total.states[State.SKIPPED] + total.states[State.REJECTED]


@given(some_counts, some_counts, some_counts)
def test_a_fold_of_folds_is_the_fold(a: Counts, b: Counts, c: Counts) -> None:
    assert fold([fold([a, b]), c]) == fold([a, b, c])
