"""The audit of a run that a test made: what `tests.audit` judges, fetched from the run's topics and its simulator."""

from __future__ import annotations

from typing import Any

from tests.audit import Case, Command, Evidence, Limits, Topics, Verdict, Wire, collect, examine
from tests.waiting import eventually
from vpp_dispatch.demo.stack import Stack

_DRAINED_S = 30.0


async def audited(stack: Stack, *, events: int = 0, **limits: Any) -> Verdict:
    """Audits a run that is over; call it while the stack still runs.

    Args:
        stack: the run.
        events: how many closed events there must be at least.
        limits: fields of `tests.audit.Limits`, over those that follow from the stack's settings.

    Raises:
        AssertionError: there are violations; the message lists them. Or the simulator did not come to rest.
    """
    await eventually(lambda: _at_rest(stack), _DRAINED_S, "the simulator to answer all it was asked")
    settings = stack.loaded()
    evidence = await _evidence(stack)
    expected: dict[str, Any] = {
        "consent_refresh_s": settings.fleet.consent_refresh_s,
        "result_timeout_s": settings.goodwe.result_timeout_s,
        "max_in_flight": settings.goodwe.max_in_flight,
        "dead_band_w": settings.guard.dead_band_w,
        "family_defaults": "family" in settings.dispatch.defaults,
        "expect_events": events,
    }
    verdict = examine(evidence, Limits(**(expected | limits)), Wire.read(stack.profile))
    assert not verdict.violations, f"the audit found\n{verdict}"
    return verdict


async def commands(stack: Stack) -> list[Command]:
    """All commands on GoodWe's request topics by now, in the order in which its broker took them."""
    return Case(await _evidence(stack), Limits(), Wire.read(stack.profile)).commands


async def _evidence(stack: Stack) -> Evidence:
    # The dump before the topics: whatever the simulator executed is on them then.
    dump = await stack.ask("/sim/dump")
    return await collect(
        stack.bootstrap_servers,
        topics=Topics.of_profile(stack.profile, prefix=stack.prefix),
        goodwe_bootstrap_servers=stack.goodwe_servers,
        dumps=[dump],
    )


async def _at_rest(stack: Stack) -> bool:
    health = await stack.ask("/sim/health")
    return not health["pending"] and not health["unpublished"]
