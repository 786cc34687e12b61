"""The audit: reads the topics and the simulator's dump after a run, and finds everything that must not have happened.

    python -m tests.audit --bootstrap-servers HOST:PORT --dump dump.json [--prefix P] [--expect-events N]

It imports nothing of the service, has its own decoders, and judges by `docs/semantics.md` alone: `audit(evidence)` is
pure, `collect(...)` makes the evidence from topics. The folder can be copied to any machine with aiokafka and run
there (jsonschema and msgspec are used where they are installed).

    evidence  records, dumps, tolerances      setpoints     keys, targets, windows, primacy
    wire      profile, scales, ids            releases      debts, and how they were paid
    model     what it is decoded into         verification  read-backs of setpoints, opt-outs
    asked     values of controls, defaults    overrides     release signals, aborts, switches
    case      all of it in relation           pace          ramps, early releases, commands in flight
    accounts  outcomes, reports, simulator    answers       responses and their order
    messages  identity, envelope, schema

How a release is told from a setpoint on the wire: by content. A set command is a release if its values are a default
of the device (the registry's, or the simulator's at its start, or what the owner set), or if no control could ask for
them (EMS mode auto; export limit off). Everything else is a setpoint. The newest command of an actuator is the one
with the highest (generation, attempt) of its correlation ids among those appended so far.

Whether a setpoint was allowed is judged by its value and the broker's append time: some event that targets the device
and asks for this value must be active then. What the rules leave open is not judged; what cannot be judged for want of
evidence stands in the verdict's notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .accounts import outcomes, reports
from .answers import order
from .case import Case
from .evidence import ROLES, Evidence, Limits, Record, Rule, Topics, Violation, collect, read_schemas
from .messages import identities, messages
from .model import STATES, Command
from .overrides import aborts, release_signals, switches
from .pace import early_releases, in_flight, one_at_a_time, ramps
from .releases import releases
from .setpoints import never_set, permissions_and_windows, primacy
from .verification import verification
from .wire import Wire, decode_id


def enough(case: Case) -> Iterator[Violation]:
    """An audit of nothing proves nothing."""
    if case.checked["events.closed"] < case.limits.expect_events:
        what = f"{case.checked['events.closed']} closed events, expected {case.limits.expect_events}"
        yield Violation(Rule.EVIDENCE, what, "events")
    for dump in case.evidence.dumps:
        for record in dump.get("unreadable", []):
            where = f"{record['topic']}/{record['partition']}@{record['offset']}"
            what = f"a request that the simulator could not read: {record['reason']}"
            yield Violation(Rule.MESSAGE, what, where)


__all__ = [
    "ROLES", "STATES", "Case", "Command", "Evidence", "Limits", "Record", "Rule", "Topics", "Verdict", "Violation",
    "Wire", "audit", "collect", "decode_id", "examine", "read_schemas",
]  # fmt: skip

CHECKS = (
    enough, outcomes, reports, permissions_and_windows, never_set, primacy, releases, early_releases, verification,
    switches, aborts, release_signals, ramps, in_flight, one_at_a_time, order, identities, messages,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found, how much was looked at, and what could not be."""

    violations: list[Violation]
    checked: dict[str, int]
    notes: list[str]

    def __str__(self) -> str:
        lines = [str(violation) for violation in self.violations]
        counts = " ".join(f"{name}={count}" for name, count in sorted(self.checked.items()))
        return "\n".join([*lines, f"checked: {counts}", *(f"note: {note}" for note in self.notes), self.sentence])

    @property
    def sentence(self) -> str:
        by_rule = Counter(violation.rule.value for violation in self.violations)
        told = ", ".join(f"{count} {rule}" for rule, count in sorted(by_rule.items()))
        return f"{len(self.violations)} violations: {told}" if self.violations else "no violation"


def examine(evidence: Evidence, limits: Limits | None = None, wire: Wire | None = None) -> Verdict:
    """Judges evidence; pure."""
    case = Case(evidence, limits or Limits(), wire or Wire())
    found = list(case.early)
    for check in CHECKS:
        found.extend(check(case))
    return Verdict(violations=sorted(set(found)), checked=dict(case.checked), notes=case.notes)


def audit(evidence: Evidence, limits: Limits | None = None, wire: Wire | None = None) -> list[Violation]:
    """The violations alone."""
    return examine(evidence, limits, wire).violations
