"""How fresh consent and telemetry of a fleet can be within the API's rate limit (R16, R18)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vpp_dispatch.fleet.synchroniser import TELEMETRY_BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What the rate allows for `devices` devices; all times in seconds.

    `consent_reading_s`: one reading of the list of authorized SNs. `consent_age_s`: how old consent gets before the
    next reading is complete. `telemetry_age_s`: how old a device's sample gets, at best.
    """

    devices: int
    consent_reading_s: float
    consent_age_s: float
    telemetry_age_s: float


def freshness(
    devices: int, *, max_calls_per_s: float, page_size: int, consent_refresh_s: float, telemetry_refresh_s: float
) -> Freshness:
    """Computes it for `devices` registered and consenting devices, each with a battery (two calls per batch).

    The list of consents takes its calls out of the same rate.
    """
    pages = max(1, math.ceil(devices / page_size))
    consent_reading_s = pages / max_calls_per_s
    left = max(max_calls_per_s - pages / max(consent_refresh_s, consent_reading_s), max_calls_per_s / 10)
    calls = 2 * math.ceil(devices / TELEMETRY_BATCH)
    return Freshness(
        devices=devices,
        consent_reading_s=consent_reading_s,
        consent_age_s=max(consent_refresh_s, consent_reading_s) + consent_reading_s,
        telemetry_age_s=max(telemetry_refresh_s, calls / left),
    )


def calls_needed(devices: int, *, age_s: float, page_size: int, consent_refresh_s: float) -> float:
    """The calls per second with which telemetry is never older than `age_s`."""
    pages = max(1, math.ceil(devices / page_size))
    return 2 * math.ceil(devices / TELEMETRY_BATCH) / age_s + pages / consent_refresh_s
