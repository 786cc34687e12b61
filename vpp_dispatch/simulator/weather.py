"""Named sets of faults, for people who try things out: `--weather`, and POST /sim/weather while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Weather:
    """A named set of faults: `faults` as `Faults.change` takes them, but refusals by meaning, not by code."""

    says: str
    faults: Mapping[str, Any]


WEATHERS: Final[Mapping[str, Weather]] = {
    "calm": Weather("answers within a fifth of a second, and nothing goes wrong", {}),
    "slow": Weather(
        "answers trickle in over three minutes, some pages of the API take 5 s",
        {"latency_s": [3, 180], "latency_shape": "trickle", "realtime": {"slow_rate": 0.1, "slow_s": 5}},
    ),
    "rough": Weather(
        "answers trickle in over a minute, some are lost, doubled, overtaken or later than the service waits; topics "
        "are out of step; the API has its faults, expires tokens and moves its lists",
        {
            "latency_s": [0.5, 60],
            "latency_shape": "trickle",
            "out_of_step_s": {"single": 2, "query": 1},
            "loss": 0.02,
            "duplicates": 0.05,
            "reorder": 0.05,
            "late": 0.01,
            "refusals": {"busy": 0.02},
            "realtime": {
                "error_rate": 0.05,
                "slow_rate": 0.1,
                "slow_s": 3,
                "token_ttl_s": 120,
                "list_changes_rate": 0.02,
                "rate_limit_per_s": 5,
                "retry_after_s": 3,
            },
        },
    ),
    "storm": Weather(
        "minutes of latency, commands and answers lost, effects out of order, refusals; every second call to the API "
        "fails, and its rate limit names no time to wait",
        {
            "latency_s": [2, 240],
            "latency_shape": "trickle",
            "out_of_step_s": {"single": 5, "query": 10},
            "loss": 0.1,
            "duplicates": 0.1,
            "reorder": 0.2,
            "reorder_effects": 0.02,
            "late": 0.05,
            "swallow_rate": 0.02,
            "partial": 0.01,
            "refusals": {"busy": 0.05, "failed": 0.01},
            "realtime": {
                "error_rate": 0.5,
                "slow_rate": 0.3,
                "slow_s": 10,
                "token_ttl_s": 60,
                "list_changes_rate": 0.1,
                "rate_limit_per_s": 2,
                "retry_after_s": None,
            },
        },
    ),
}
