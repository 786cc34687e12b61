"""Identity, envelope, key and schema of what the service publishes (R1, R8, R23)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .case import Case
from .evidence import Record, Rule, Violation
from .model import BY_GOODWE, body_of

_UNSURE = (frozenset({None, "no_answer"}), frozenset({1, 8}))
_DONE = (frozenset({None}), frozenset({2, 3, 6, 7}))
# The public vocabulary: reasons and response codes of an outcome row by its state.
WORDS: dict[str, tuple[frozenset[str | None], frozenset[int]]] = {
    "skipped": (
        frozenset(
            {
                "unknown_target", "not_in_table", "not_registered", "consent_missing", "consent_stale", "capability",
                "offline", "faulted", "off_grid", "soc", "telemetry_stale", "default_unknown", "superseded",
            }
        ),
        frozenset({10}),
    ),
    "unused": (frozenset({None}), frozenset({10})),
    "rejected": (BY_GOODWE | {"consent_withdrawn", "removed", "released", "opted_out"}, frozenset({8})),
    **dict.fromkeys(("pending", "published", "accepted", "unconfirmed"), _UNSURE),
    **dict.fromkeys(("applied", "verified"), _DONE),
}  # fmt: skip

Values = tuple[Any, ...]
Pair = tuple[str, str]  # SN, actuator
EventKey = tuple[str, str, int]  # source, event id, revision


def identities(case: Case) -> Iterator[Violation]:
    """One id, one content; one place, one device; sequences rise (R1, R23)."""
    first: dict[tuple[str, str], Record] = {}
    highest: dict[tuple[str, ...], int] = {}
    shard_of: dict[str, Any] = {}
    for role in ("responses", "reports", "outcomes"):
        for record in case.of[role]:
            ce_id = (dict(record.headers).get("ce_id") or b"").decode(errors="replace")
            known = first.setdefault((role, ce_id), record)
            if ce_id and known.value != record.value:
                yield Violation(Rule.IDENTITY, f"id {ce_id} with two contents, also {known.where}", record.where)
            body = body_of(record)
            if role == "responses" or known is not record or not isinstance(body, dict):
                continue
            place = (role, str(body.get("shard"))) if role == "outcomes" else (role, body["source"], body["event_id"])
            if body["sequence"] <= highest.get(place, -1):
                what = f"sequence {body['sequence']} of {'/'.join(place[1:])} after {highest[place]}"
                yield Violation(Rule.IDENTITY, what, record.where)
            highest[place] = max(highest.get(place, -1), body["sequence"])
            for row in body.get("outcomes", ()):
                if shard_of.setdefault(row["sn"], body["shard"]) != body["shard"]:
                    yield Violation(Rule.IDENTITY, f"{row['sn']} has outcomes of two shards", record.where)
    stamp = case.wire.fields["timestamp"]
    contents: dict[str, tuple[Any, Record]] = {}
    place_of: dict[str, tuple[int, int]] = {}
    device_at: dict[tuple[int, int], str] = {}
    for command in case.commands:
        body = {name: value for name, value in body_of(command.record).items() if name != stamp}
        content, known = contents.setdefault(command.id, (body, command.record))
        if content != body or known.role != command.record.role:
            yield Violation(
                Rule.IDENTITY,
                f"correlation id {command.id} with two contents, also {known.where}",
                command.record.where,
            )
        row = (command.names.shard, command.names.row)
        if place_of.setdefault(command.sn, row) != row or device_at.setdefault(row, command.sn) != command.sn:
            what = f"shard {row[0]} row {row[1]} of {command.sn} is {device_at.get(row)}'s, or it has two"
            yield Violation(Rule.IDENTITY, what, command.record.where)
        if shard_of.get(command.sn, row[0]) != row[0]:
            yield Violation(
                Rule.IDENTITY, f"{command.sn} is told by shard {shard_of[command.sn]}", command.record.where
            )


def messages(case: Case) -> Iterator[Violation]:
    """Envelope, key and schema of what the service publishes; keys of its commands."""
    schema_of = {"responses": "response", "reports": "report", "outcomes": "outcomes"}
    validators = _validators(case)
    for role, name in schema_of.items():
        records = case.of[role]
        every = max(1, len(records) // (case.limits.sample if role == "outcomes" else 10 * case.limits.sample))
        for index, record in enumerate(records):
            body = body_of(record)
            if not isinstance(body, dict):
                yield Violation(Rule.MESSAGE, f"a {name} that is no JSON object", record.where)
                continue
            yield from _envelope(record, name, body)
            if name in validators and (index % every == 0 or index == len(records) - 1):
                case.checked[f"schema.{name}"] += 1
                if name == "outcomes":
                    rows = body.get("outcomes") or []
                    body = {**body, "outcomes": rows[:: max(1, len(rows) // case.limits.sample)]}
                fault = validators[name](body)
                if fault:
                    yield Violation(Rule.MESSAGE, f"a {name} against its schema: {fault}", record.where)
    for revision in case.revisions.values():
        for row in revision.rows:
            state, reason, code = row.body.get("state"), row.body.get("reason"), row.body.get("response_code")
            reasons, codes = WORDS.get(str(state), (frozenset(), frozenset()))
            if reason not in reasons or code not in codes:
                what = f"an outcome of {row.body['sn']} with state {state}, reason {reason}, response code {code}"
                yield Violation(Rule.MESSAGE, what, row.record.where)
    for command in case.commands:
        if command.record.key != command.sn.encode():
            yield Violation(
                Rule.MESSAGE, f"a command to {command.sn} with key {command.record.key!r}", command.record.where
            )
    origins = {(r.topic, r.partition, r.offset): r for role in ("signals", "registry") for r in case.of[role]}
    for record in case.of["dead_letters"]:
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        lacking = [n for n in ("topic", "partition", "offset", "reason", "detail", "at") if f"dl_{n}" not in headers]
        if lacking:
            yield Violation(Rule.MESSAGE, f"a dead letter without dl_ {' '.join(lacking)}", record.where)
            continue
        if not (headers["dl_partition"].isdigit() and headers["dl_offset"].isdigit()):
            yield Violation(Rule.MESSAGE, "a dead letter whose origin is no number", record.where)
            continue
        origin = origins.get((headers["dl_topic"], int(headers["dl_partition"]), int(headers["dl_offset"])))
        if origin is not None and origin.value != record.value:
            yield Violation(Rule.MESSAGE, f"a dead letter with other bytes than {origin.where}", record.where)


def _envelope(record: Record, name: str, body: dict[str, Any]) -> Iterator[Violation]:
    headers = {key: (value or b"").decode(errors="replace") for key, value in record.headers}
    source, event = body.get("source"), body.get("event_id")
    match name:
        case "response":
            ce_id, key = f"{source}/{event}/{body.get('revision')}/{body.get('code')}", str(event)
        case "report":
            ce_id, key = f"{source}/{event}/{body.get('sequence')}", f"{source}/{event}"
        case _:
            ce_id, key = f"{body.get('shard')}/{body.get('sequence')}", str(body.get("shard"))
    want = {
        "ce_specversion": "1.0",
        "ce_source": "vpp-dispatch",
        "ce_type": f"vpp.dispatch.{name}.v1",
        "content-type": "application/json",
    }
    for header, value in want.items():
        if headers.get(header) != value:
            yield Violation(
                Rule.MESSAGE, f"{header} of a {name} is {headers.get(header)!r}, not {value!r}", record.where
            )
    for header in ("ce_id", "ce_time", "ce_subject"):
        if not headers.get(header):
            yield Violation(Rule.MESSAGE, f"a {name} without {header}", record.where)
    if headers.get("ce_id") not in (None, "", ce_id):
        yield Violation(Rule.MESSAGE, f"ce_id {headers['ce_id']!r} of a {name} is not {ce_id!r}", record.where)
    if record.key != key.encode():
        yield Violation(Rule.MESSAGE, f"key {record.key!r} of a {name} is not {key!r}", record.where)


def _validators(case: Case) -> dict[str, Callable[[Any], str | None]]:
    if not case.evidence.schemas:
        case.notes.append("no schemas: bodies were not validated")
        return {}
    try:
        import jsonschema
    except ImportError:
        case.notes.append("jsonschema is not installed: bodies were not validated")
        return {}

    def judge(schema: Any) -> Callable[[Any], str | None]:
        validator = jsonschema.Draft202012Validator(schema)

        def fault(body: Any) -> str | None:
            error = jsonschema.exceptions.best_match(validator.iter_errors(body))
            return None if error is None else f"{error.json_path} {error.message[:200]}"

        return fault

    return {name: judge(schema) for name, schema in case.evidence.schemas.items()}
