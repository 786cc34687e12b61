"""What the operator was told of an event, and in which order (R33)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .case import Case
from .evidence import Record, Rule, Violation
from .model import ALONE, FINAL, EventKey, Revision, body_of


def order(case: Case) -> Iterator[Violation]:
    """Responses in the order of the contract, each once; then outcomes, final report, final response (R33)."""
    seen: dict[EventKey, list[tuple[int, str, Record, dict[str, Any]]]] = defaultdict(list)
    for record in case.of["responses"]:
        body = body_of(record)
        if isinstance(body, dict) and isinstance(body.get("code"), int):
            ce_id = (dict(record.headers).get("ce_id") or b"").decode(errors="replace")
            told = seen[body.get("source"), body.get("event_id"), body.get("revision")]  # type: ignore[index]
            if any(code == body["code"] and known != ce_id for code, known, *_ in told):
                yield Violation(Rule.ORDER, f"response {body['code']} twice under different ids", record.where)
            elif not any(code == body["code"] for code, *_ in told):
                told.append((body["code"], ce_id, record, body))
    for revision in case.revisions.values():
        told = seen[revision.key]
        repeat = [t for t in told if t[0] == 253 and "duplicate_identifier" in t[3].get("reasons", [])]
        codes = [t[0] for t in told if t not in repeat or len(told) == 1]
        if codes:
            yield from _grammar(case, revision, codes)
        elif not case.is_dead(revision.record) and revision.record.at < case.evidence.at - case.limits.answer_s:
            higher = any(
                r.key[:2] == revision.key[:2] and r.key[2] > revision.key[2] and r.codes
                for r in case.revisions.values()
            )
            if not higher:  # else it is stale, and dropped (R2)
                yield Violation(Rule.ORDER, "a signal without response or dead letter", revision.record.where)
        if revision.finals:
            yield from _close_order(revision)
    yield from _after_final(case)


def _grammar(case: Case, revision: Revision, codes: list[int]) -> Iterator[Violation]:
    whole = _whole_sequences(revision)
    if codes[0] in ALONE:
        right = len(codes) == 1
    else:
        right = any(codes == sequence[: len(codes)] for sequence in whole)
        over = revision.released_by < case.evidence.at and not case.limits.open_events
        if right and over and codes not in whole:
            yield Violation(Rule.ORDER, f"the event is over and was never closed; responses {codes}", revision.name)
        reported = revision.action != "cancel" and (codes[-1] in FINAL or (revision.cancelled and 2 in codes))
        if right and over and reported and not revision.finals:
            yield Violation(Rule.ORDER, f"the event is over without a final report; responses {codes}", revision.name)
    if not right:
        yield Violation(Rule.ORDER, f"responses {codes} in this order to a {revision.action}", revision.name)


def _whole_sequences(revision: Revision) -> list[list[int]]:
    """What an accepted revision may have been told by the time that all is over."""
    match revision.action:
        case "cancel":
            return [[1, 6]]
        case "release":
            return [[1, 2, 3], [1, 2, 8]]
        case _ if revision.test:
            return [[1, 3], [1, 10]]
        case _ if revision.aborted_at is not None:
            return [[1, *started, code] for code in sorted(FINAL) for started in ([], [2])]
        case _ if revision.cancelled or revision.replaced:
            return [[1], [1, 2]]
        case _:
            return [[1, 2, code] for code in sorted(FINAL)]


def _close_order(revision: Revision) -> Iterator[Violation]:
    report, _ = revision.finals[0]
    seen = set()
    for row in revision.rows:
        key = (row.body["sn"], row.body["kind"])
        if row.record.at > report.at and key not in seen:
            yield Violation(Rule.ORDER, f"first outcome of {key[0]} after the final report", row.record.where)
        seen.add(key)
    for code in sorted(FINAL & revision.codes.keys()):
        if revision.codes[code].at < report.at:
            yield Violation(Rule.ORDER, f"final response {code} before the final report", revision.codes[code].where)
    if revision.replaced and not revision.cancelled:
        yield Violation(Rule.ORDER, "a replaced revision has a final report", report.where)


def _after_final(case: Case) -> Iterator[Violation]:
    final: set[tuple[Any, Any, Any]] = set()
    for record in case.of["reports"]:
        body = body_of(record)
        if isinstance(body, dict):
            key = (body.get("source"), body.get("event_id"), body.get("revision"))
            if body.get("final"):
                final.add(key)
            elif key in final:
                yield Violation(Rule.ORDER, "a report that is not final after the final one", record.where)
