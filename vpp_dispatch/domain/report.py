"""The account of an event over its shards: their counts folded into one report (R34).

Counts fold by addition, so it does not matter which shard told first, or how often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from vpp_dispatch.domain.account import LATENCY_BUCKETS_S, SUMMED, Counts, Latency, State
from vpp_dispatch.domain.answer import (
    CommandAccount,
    EventState,
    PowerAccount,
    Quantiles,
    ReleaseAccount,
    Report,
    ShardAccount,
)


def fold(counts: Iterable[Counts]) -> Counts:
    """The sum of several shards' counts; `settled` and `closed` only if all are, and there is one."""
    parts = list(counts)
    if not parts:
        return Counts()
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.reasons)
    return Counts(
        states=tuple(map(sum, zip(*(part.states for part in parts), strict=True))),
        reasons=dict(reasons),
        publish_latency=_fold_latency([part.publish_latency for part in parts]),
        result_latency=_fold_latency([part.result_latency for part in parts]),
        settled=all(part.settled for part in parts),
        closed=all(part.closed for part in parts),
        **{name: sum(getattr(part, name) for part in parts) for name in SUMMED},
    )


def _fold_latency(parts: list[Latency]) -> Latency:
    return Latency(
        counts=tuple(map(sum, zip(*(part.counts for part in parts), strict=True))),
        max_s=max(part.max_s for part in parts),
    )


def quantile(latency: Latency, q: float) -> float | None:
    """The q-quantile (0..1) in seconds, linear inside its bucket and never above the largest; None where nothing was
    measured."""
    n = sum(latency.counts)
    if not n:
        return None
    rank, below, lower = q * n, 0, 0.0
    for count, upper in zip(latency.counts, (*LATENCY_BUCKETS_S, latency.max_s), strict=True):
        if count and below + count >= rank:
            return min(lower + (upper - lower) * (rank - below) / count, latency.max_s)
        below += count
        lower = upper
    return latency.max_s


def _quantiles(latency: Latency) -> Quantiles:
    if not any(latency.counts):
        return Quantiles()
    return Quantiles(p50=quantile(latency, 0.5), p95=quantile(latency, 0.95), max=latency.max_s)


def report(
    *,
    event_id: str,
    source: str,
    revision: int,
    sequence: int,
    state: EventState,
    at: float,
    counts: Mapping[int, Counts],
    expected: Collection[int],
    watts: bool,
) -> Report:
    """The report of an event (R34).

    Args:
        event_id: with `source` the event's name.
        source: whose event it is.
        revision: the dispatch's, or its cancellation's once that is accepted.
        sequence: a number that no other report of the event has.
        state: where the event stands; closed makes the report final.
        at: epoch seconds.
        counts: newest counts by shard.
        expected: the shards that were addressed. At the close a shard counts as reported only if it closed as well.
        watts: whether the controls have watts (standby, percent and power factor have none: then power is None).
    """
    total = fold(counts.values())
    final = state == "closed"
    reported = {shard for shard in expected if shard in counts and (counts[shard].closed or not final)}
    whole = final and len(reported) == len(expected)  # measured of some devices only, it would look like a shortfall
    return Report(
        event_id=event_id,
        source=source,
        revision=revision,
        sequence=sequence,
        state=state,
        final=final,
        at=at,
        devices=dict(zip(State, total.states, strict=True)),
        reasons=total.reasons,
        release=ReleaseAccount(
            confirmed=total.release_confirmed,
            pending=total.release_due - total.release_confirmed - total.release_refused,
            refused=total.release_refused,
        ),
        power_w=PowerAccount(
            requested=total.requested_w,
            allocated=total.allocated_w,
            acknowledged=total.acknowledged_w,
            measured=max(0, total.measured_w) if whole and total.measured and not total.unmeasured else None,
            shortfall=max(0, total.requested_w - total.allocated_w),
        )
        if watts
        else PowerAccount(),
        commands=CommandAccount(
            published=total.published,
            retried=total.retried,
            duplicate_results=total.duplicate_results,
            late_results=total.late_results,
        ),
        publish_latency_s=_quantiles(total.publish_latency),
        result_latency_s=_quantiles(total.result_latency),
        shards=ShardAccount(
            expected=len(expected), reported=len(reported), missing=tuple(sorted(set(expected) - reported))
        ),
    )
