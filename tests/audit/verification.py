"""What was read back of setpoints (R27): verified is what was read equal; two differences are the owner's choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .case import Case
from .evidence import INF, Rule, Violation
from .model import Command, Pair, Revision
from .wire import ACTUATOR_OF, plain

TAKEN_S = 5.0
"""After so long a result has been read by whoever publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """One successful answer to a query: `values` in the actuator's order, `newest` the set that stood when it came."""

    asked_at: float
    at: float
    values: tuple[object, ...]
    newest: Command | None
    answered_at: float

    @property
    def valid(self) -> bool:
        """Whether the query was sent after a result of the newest set."""
        return self.answered_at <= self.asked_at

    @property
    def differs(self) -> bool:
        """Whether it shows another value than the setpoint that stands."""
        return self.newest is not None and self.newest.kind == "setpoint" and self.values != self.newest.values


def read_backs(case: Case, pair: Pair) -> list[ReadBack]:
    """What was read of an actuator, in order."""
    names, sets = case.wire.parameters[pair[1]], case.sets.get(pair, [])
    found = []
    for query in case.reads.get(pair, []):
        for result in case.results.get(query.id, []):
            if result.meaning != "success" or result.at < query.at:
                continue
            known = [c for c in sets if c.at <= result.at]
            newest = max(known, key=lambda c: c.newness, default=None)
            answers = [
                answer.at
                for c in known
                if newest is not None and c.names.generation == newest.names.generation
                for answer in case.results.get(c.id, [])
            ]
            values = tuple(result.values.get(name) for name in names)
            found.append(
                ReadBack(
                    asked_at=query.at,
                    at=result.at,
                    values=values,
                    newest=newest,
                    answered_at=min(answers, default=INF),
                )
            )
    return sorted(found, key=lambda read: read.at)


def verification(case: Case) -> Iterator[Violation]:
    """Each `verified` was read back equal; each `opted_out` differed twice, and nothing goes there any more."""
    if not case.joined:
        return  # `releases` has noted it
    for revision in case.revisions.values():
        for row in revision.rows:
            body = row.body
            if body["state"] == "verified":
                case.checked["verified"] += 1
                yield from _verified(case, body["sn"], body["correlation_id"], row.record.at, row.record.where)
        if revision.commands:
            for (sn, kind), row in revision.effective().items():
                if row.body["reason"] == "opted_out":
                    case.checked["opted_out"] += 1
                    first = min(
                        r.record.at
                        for r in revision.rows
                        if (r.body["sn"], r.body["kind"], r.body["reason"]) == (sn, kind, "opted_out")
                    )
                    yield from _opted_out(case, revision, (sn, ACTUATOR_OF[kind]), first)
    for pair in case.sets:
        yield from _fought(case, pair)


def _verified(case: Case, sn: str, correlation_id: str | None, told_at: float, where: str) -> Iterator[Violation]:
    command = case.of_id.get(plain(correlation_id or ""))
    if command is None:
        yield Violation(Rule.READ_BACK, f"{sn} is verified by {correlation_id}, which is no command", where)
        return
    equal = [
        read
        for read in read_backs(case, (sn, command.actuator))
        if read.at <= told_at and read.values == command.values and read.asked_at >= command.at
    ]
    # A release may also be proven by two readings after the result timeout, which `releases` judges.
    if not any(read.valid for read in equal) and (command.kind == "setpoint" or not equal):
        how = "by a query that was sent before the set was answered" if equal else "and was never read back equal"
        yield Violation(Rule.READ_BACK, f"{command.actuator} of {sn} is verified {how}", where)


def _alone(case: Case, revision: Revision, pair: Pair, first: float, last: float) -> bool:
    """Whether nobody else could have had a say on the actuator: no other event, no release signal."""
    sn, actuator = pair
    return not any(
        r is not revision
        and r.accepted
        and sn in r.allowed
        and (actuator in r.controls or r.action == "release")
        and r.start <= last
        and r.released_by + case.limits.late_s >= first
        for r in case.revisions.values()
    )


def _opted_out(case: Case, revision: Revision, pair: Pair, told_at: float) -> Iterator[Violation]:
    sn, actuator = pair
    if not _alone(case, revision, pair, revision.start, told_at):
        return
    reads = [read for read in read_backs(case, pair) if revision.start <= read.at <= told_at and read.differs]
    again = any(
        first.at <= c.at <= second.asked_at for first, second in pairwise(reads) for c in case.sets.get(pair, [])
    )
    if not again:
        what = f"{actuator} of {sn} is told as opted out; {len(reads)} readings differed, and none after another try"
        yield Violation(Rule.OWNER, what, revision.name)
    for command in case.sets.get(pair, []):
        if command.at > told_at + case.limits.late_s and _alone(case, revision, pair, revision.start, command.at):
            what = f"{command.kind} {command.values} of {actuator} to {sn}, whose owner had opted out"
            yield Violation(Rule.OWNER, what, command.record.where)


def _fought(case: Case, pair: Pair) -> Iterator[Violation]:
    """Sent again once for a difference, never twice (of one event alone; an equal reading begins anew)."""
    sn, actuator = pair
    for revision in case.targeting[sn]:
        if actuator not in revision.controls or not _alone(case, revision, pair, revision.start, revision.over_at):
            continue
        values: tuple[object, ...] = ()
        second_at, seen = INF, 0
        for read in read_backs(case, pair):
            if not revision.start <= read.at <= revision.over_at or not read.valid or read.newest is None:
                continue
            if not read.differs or read.newest.values != values:
                values, second_at, seen = read.newest.values, INF, 0
            if read.differs:
                seen += 1
                second_at = min(second_at, read.at) if seen >= 2 else INF
                case.checked["drifts"] += 1
        for command in case.sets[pair]:
            again = command.kind == "setpoint" and command.values == values
            if again and second_at + TAKEN_S < command.at <= revision.over_at:
                what = f"{actuator} of {sn} is set once more after it had been found changed twice"
                yield Violation(Rule.OWNER, what, command.record.where)
