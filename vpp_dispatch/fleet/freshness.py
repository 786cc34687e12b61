"""How the API's rate is split, and how fresh consent and telemetry of a fleet can be within it (R16, R18)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from vpp_dispatch.settings import Settings

CONSENT_PART: Final = 0.5
"""Of the rate, kept for the list of consents. Fixed, so that all workers agree on it without asking each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What one worker may take of the API's rate, 0..1: for the list of consents, and for telemetry."""

    consent: float
    telemetry: float


def parts(*, share: float, leads: bool, reading: bool) -> Parts:
    """A worker's parts of the rate; over all workers they never add up to more than 1.

    The list has `CONSENT_PART` while it is read, by the one worker that leads; the rest goes to telemetry by share of
    the shards. While the list is not being read, the leader's telemetry has that part too.

    Args:
        share: of the shards, 0..1; over all workers at most 1.
        leads: whether this worker reads the list; one of all does.
        reading: whether it is reading it now.
    """
    telemetry = (1 - CONSENT_PART) * share
    if not leads:
        return Parts(consent=0.0, telemetry=telemetry)
    if reading:
        return Parts(consent=CONSENT_PART, telemetry=telemetry)
    return Parts(consent=0.0, telemetry=CONSENT_PART + telemetry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the API allows and the settings ask for; times in seconds.

    `page_size`: devices per call and rows per page. `calls_per_batch`: calls that telemetry of one batch of devices
    takes at most: operation, bms, and grid-status where its codes are known.
    """

    max_calls_per_s: float
    page_size: int
    calls_per_batch: int
    consent_refresh_s: float
    consent_max_age_s: float
    telemetry_refresh_s: float
    telemetry_max_age_s: float
    telemetry_policy: Literal["require", "prefer", "ignore"]

    @classmethod
    def of(cls, settings: Settings, *, page_size: int, tells_modes: bool) -> Limits:
        """Those of some settings; what the profile says is passed."""
        fleet = settings.fleet
        return cls(
            max_calls_per_s=settings.goodwe.realtime.max_calls_per_s,
            page_size=page_size,
            calls_per_batch=3 if tells_modes else 2,
            consent_refresh_s=fleet.consent_refresh_s,
            consent_max_age_s=fleet.consent_max_age_s,
            telemetry_refresh_s=fleet.telemetry_refresh_s,
            telemetry_max_age_s=fleet.telemetry_max_age_s,
            telemetry_policy=fleet.telemetry_policy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What the rate allows for `devices` devices; all times in seconds.

    `consent_reading_s`: one reading of the list of authorized SNs. `consent_age_s`: how old consent gets before the
    next reading is complete. `telemetry_age_s`: how old a device's sample gets; inf where none is read.
    """

    devices: int
    consent_reading_s: float
    consent_age_s: float
    telemetry_age_s: float


def freshness(devices: int, limits: Limits) -> Freshness:
    """Computes it for `devices` registered and consenting devices, by the part of the rate that is always there.

    Each is taken to be online and to have a battery. The leader's telemetry is somewhat younger: see `parts`.
    """
    batches = max(1, math.ceil(devices / limits.page_size))
    reading_s = batches / (limits.max_calls_per_s * CONSENT_PART)
    round_s = limits.calls_per_batch * batches / (limits.max_calls_per_s * (1 - CONSENT_PART))
    return Freshness(
        devices=devices,
        consent_reading_s=reading_s,
        consent_age_s=max(limits.consent_refresh_s, reading_s) + reading_s,
        telemetry_age_s=math.inf if limits.telemetry_policy == "ignore" else max(limits.telemetry_refresh_s, round_s),
    )


def calls_needed(devices: int, limits: Limits) -> float:
    """The fewest calls per second with which neither consent nor telemetry gets older than it may."""
    batches = max(1, math.ceil(devices / limits.page_size))
    # The longest reading: its age is max(refresh, reading) + reading.
    longest_s = min(limits.consent_max_age_s / 2, limits.consent_max_age_s - limits.consent_refresh_s)
    consent = batches / (CONSENT_PART * longest_s)
    if limits.telemetry_policy == "ignore":
        return consent
    return max(consent, limits.calls_per_batch * batches / (limits.telemetry_max_age_s * (1 - CONSENT_PART)))


State = Literal["ok", "note", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence on freshness. `failed`: the settings cannot work so; `note`: they work, and less is known."""

    state: State
    says: str


def verdicts(can: Freshness, limits: Limits) -> Iterator[Verdict]:
    """What the log and `preflight` tell of it, and what to change where it is worse than the settings ask."""
    at = f"With {limits.max_calls_per_s:g} calls per second and {can.devices:,} devices"
    raised = (
        f"raise VPP_DISPATCH_GOODWE__REALTIME__MAX_CALLS_PER_S to {_up(calls_needed(can.devices, limits)):g} if GoodWe "
        "allows it, or "
    )
    told = f"{at} consent is at most {can.consent_age_s:,.0f} s old"
    if can.consent_age_s > limits.consent_max_age_s:
        yield Verdict(
            "failed",
            f"{told}, and is stale after {limits.consent_max_age_s:g} s, so nothing would start: {raised}"
            "FLEET__CONSENT_MAX_AGE_S.",
        )
    else:
        yield Verdict("ok", f"{told}; a withdrawal takes effect within it.")
    if limits.telemetry_policy == "ignore":
        return
    told = f"{at} telemetry is up to {can.telemetry_age_s:,.0f} s old"
    if can.telemetry_age_s <= limits.telemetry_max_age_s:
        yield Verdict("ok", f"{told}, and counts until {limits.telemetry_max_age_s:g} s.")
        return
    required = limits.telemetry_policy == "require"
    effect = "most devices are skipped" if required else "it is often missing"
    yield Verdict(
        "failed" if required else "note",
        f"{told} and counts until {limits.telemetry_max_age_s:g} s only, so {effect}: {raised}"
        "FLEET__TELEMETRY_MAX_AGE_S.",
    )


def _up(rate: float) -> float:
    """Two digits, rounded up: what is told has to be enough."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(rate / step - 1e-9) * step
