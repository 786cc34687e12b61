"""Queries of our metrics: on the chosen workers, gauges of shards summed, counters by `rate` or `increase` only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PER_WORKER: Final = "{{pod}} {{instance}}"
"""Legend of one worker: in Kubernetes the pod stands before the address, elsewhere the address stands alone."""


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and what its series are called."""

    expr: str
    legend: str


def of(name: str, matchers: str = "") -> str:
    """A selector of one of our metrics on the chosen workers; `name` is without the prefix."""
    return f'vpp_dispatch_{name}{{job="$job",instance=~"$worker"{"," if matchers else ""}{matchers}}}'


def process(name: str) -> str:
    """A selector of one of the metrics that Prometheus' own clients show of a process."""
    return f'process_{name}{{job="$job",instance=~"$worker"}}'


def total(name: str, by: str = "", matchers: str = "") -> str:
    """A gauge summed over the workers, by labels."""
    return f"sum{_by(by)}({of(name, matchers)})"


def worst(name: str, by: str = "", matchers: str = "") -> str:
    """The largest of a gauge over the workers, by labels."""
    return f"max{_by(by)}({of(name, matchers)})"


def pace(name: str, by: str = "", matchers: str = "") -> str:
    """How much a counter grows per second, summed over the workers, by labels."""
    return f"sum{_by(by)}(rate({of(name + '_total', matchers)}[$__rate_interval]))"


def grown(name: str, by: str = "", *, window: str = "$__interval") -> str:
    """How much a counter grew in a window, by labels: between two points of a panel of bars, or in the whole range.

    A counter with labels is not there before its first time, and `increase` counts from the first value that it sees:
    the first signal of an operator would be missed. So one that was not there when the window began counts whole.
    `increase` draws its ends out to those of the window; hence the rounding.
    """
    return f"round(sum{_by(by)}({_whole(of(f'{name}_total'), window)}))"


_ZERO: Final = f"0 * count({of('owned_shards')})"


def or_zero(expr: str) -> str:
    """The same, and 0 while nothing of the kind ever happened; nothing still if no worker answers.

    For counters with labels. Everything else is there from the start, and where it is not, 0 would be a lie.
    """
    return f"{expr} or {_ZERO}"


def or_none(expr: str, label: str) -> str:
    """The same, and a single series of 0 that is called `none` by `label` while nothing of the kind ever happened."""
    return f'{expr} or (label_replace({_ZERO}, "{label}", "none", "", "") unless on () {expr})'


def quantiles(name: str) -> list[Query]:
    """Median, 95 and 99 of 100 of a histogram over all workers, in seconds; without traffic there are none."""
    buckets = f"sum by (le) (rate({of(name + '_bucket')}[$__rate_interval]))"
    return [
        Query(f"histogram_quantile({q}, {buckets}) >= 0", legend)  # without traffic NaN, which is >= nothing
        for q, legend in ((0.5, "half within"), (0.95, "95 % within"), (0.99, "99 % within"))
    ]


def rare_quantiles(name: str) -> list[Query]:
    """The same of what happens now and then, the first time of a worker included, per bar."""
    buckets = f"sum by (le) ({_whole(of(name + '_bucket'), '$__interval')})"
    return [
        Query(f"histogram_quantile({q}, {buckets}) >= 0", legend)
        for q, legend in ((0.5, "half within"), (1, "all within"))
    ]


def _whole(series: str, window: str) -> str:
    return f"(last_over_time({series}[{window}]) unless {series} offset {window}) or increase({series}[{window}])"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
