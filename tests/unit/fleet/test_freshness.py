"""How the rate is split over workers, what that allows, and the sentences about it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.fleet.freshness import CONSENT_PART, Limits, calls_needed, freshness, parts, verdicts
from vpp_dispatch.settings import Settings

LIMITS = Limits(
    max_calls_per_s=1.0,
    page_size=100,
    calls_per_batch=3,
    consent_refresh_s=300,
    consent_max_age_s=3600,
    telemetry_refresh_s=300,
    telemetry_max_age_s=900,
    telemetry_policy="prefer",
)


@given(
    cuts=st.lists(st.integers(0, SHARDS), max_size=9),
    leader=st.integers(0, 9),
    reading=st.booleans(),
)
def test_r16_r18_the_parts_of_all_workers_are_within_the_rate(cuts: list[int], leader: int, reading: bool) -> None:
    edges = [0, *sorted(cuts), SHARDS]
    shards = [high - low for low, high in itertools.pairwise(edges)]
    mine = [
        parts(share=count / SHARDS, leads=n == leader % len(shards), reading=reading) for n, count in enumerate(shards)
    ]
    assert sum(part.consent + part.telemetry for part in mine) == pytest.approx(1.0)
    assert sum(part.consent for part in mine) == (CONSENT_PART if reading else 0)


def test_what_the_rate_allows() -> None:
    small = freshness(1000, LIMITS)
    assert (small.consent_reading_s, small.consent_age_s, small.telemetry_age_s) == (20, 320, 300)
    large = freshness(100_000, replace(LIMITS, max_calls_per_s=5))
    assert (large.consent_reading_s, large.consent_age_s, large.telemetry_age_s) == (400, 800, 1200)
    assert freshness(100_000, replace(LIMITS, max_calls_per_s=5, calls_per_batch=2)).telemetry_age_s == 800
    assert freshness(100_000, replace(LIMITS, max_calls_per_s=5, page_size=200)).telemetry_age_s == 600
    assert math.isinf(freshness(1000, replace(LIMITS, telemetry_policy="ignore")).telemetry_age_s)


@given(
    devices=st.integers(0, 300_000),
    refresh=st.floats(1, 3600),
    above=st.floats(1.01, 20),
    oldest=st.floats(1, 7200),
    policy=st.sampled_from(["require", "prefer", "ignore"]),
)
def test_the_calls_that_are_needed_are_enough_and_not_fewer(
    devices: int, refresh: float, above: float, oldest: float, policy: str
) -> None:
    limits = replace(
        LIMITS,
        consent_refresh_s=refresh,
        consent_max_age_s=refresh * above,
        telemetry_refresh_s=min(300.0, oldest),
        telemetry_max_age_s=oldest,
        telemetry_policy=policy,  # type: ignore[arg-type]
    )
    needed = calls_needed(devices, limits)

    def all_well(rate: float) -> bool:
        at = replace(limits, max_calls_per_s=rate)
        return {verdict.state for verdict in verdicts(freshness(devices, at), at)} == {"ok"}

    assert all_well(needed * 1.0001)
    assert not all_well(needed * 0.99)


def test_sentences_say_what_to_change() -> None:
    def told(devices: int, limits: Limits) -> list[tuple[str, str]]:
        return [(verdict.state, verdict.says) for verdict in verdicts(freshness(devices, limits), limits)]

    assert [state for state, _ in told(1000, LIMITS)] == ["ok", "ok"]
    assert told(0, replace(LIMITS, telemetry_policy="ignore"))[0][0] == "ok"
    consent, telemetry = told(50_000, LIMITS)
    assert consent[0] == "ok" and telemetry == (
        "note",
        "With 1 calls per second and 50,000 devices telemetry is up to 3,000 s old and counts until 900 s only, so it "
        "is often missing: raise VPP_DISPATCH_GOODWE__REALTIME__MAX_CALLS_PER_S to 3.4 if GoodWe allows it, or "
        "FLEET__TELEMETRY_MAX_AGE_S.",
    )
    assert told(50_000, replace(LIMITS, telemetry_policy="require"))[1][0] == "failed"
    consent, _ = told(100_000, LIMITS)
    assert consent[0] == "failed" and "nothing would start" in consent[1] and "MAX_CALLS_PER_S to 6.7" in consent[1]


def test_limits_are_those_of_the_settings() -> None:
    settings = Settings.load(None, {"VPP_DISPATCH_GOODWE__REALTIME__MAX_CALLS_PER_S": "1"})
    assert Limits.of(settings, page_size=100, tells_modes=True) == LIMITS
    assert Limits.of(settings, page_size=50, tells_modes=False).calls_per_batch == 2
