"""The audit: reads the topics and the simulator's dump after a run, and finds everything that must not have happened.

    python tests/audit.py --bootstrap-servers HOST:PORT --dump dump.json [--prefix P] [--expect-events N]

It imports nothing of the service, has its own decoder, and judges by `docs/semantics.md` alone: `audit(evidence)` is
pure, `collect(...)` makes the evidence from topics. One file, although it is long: it can be copied to any machine
with aiokafka and run there (jsonschema is used where it is installed).

How a release is told from a setpoint on the wire: by content. A set command is a release if its values are a default
of the device (the registry's, or the simulator's at its start, or what the owner set), or if no control could ask for
them (EMS mode auto; export limit off). Everything else is a setpoint. The newest command of an actuator is the one
with the highest (generation, attempt) of its correlation ids among those appended so far.

Whether a setpoint was allowed is judged by its value and the broker's append time: some event that targets the device
and asks for this value must be active then.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import hashlib
import json
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
INF = float("inf")
CLOCK_S = 0.002  # append times are whole milliseconds, rounded down


class Rule(StrEnum):
    """What can be violated."""

    EVIDENCE = "evidence"  # what was read cannot prove anything, or there is less of it than expected
    OUTCOME = "outcome"  # none, two that conflict, or one of a device that was not targeted
    REPORT = "report"  # report, outcomes, final response and simulator disagree
    PERMISSION = "permission"  # a setpoint without registry, consent, or an event that targets the device
    WINDOW = "window"  # a setpoint before the start, after the end, or after the cancellation of its event
    RELEASE = "release"  # a device left set, or a release reported as confirmed that was not
    ORDER = "order"  # responses out of order, twice or missing; outcomes, final report, final response out of order
    IDENTITY = "identity"  # one id with two contents or two devices, a sequence that does not rise
    MESSAGE = "message"  # envelope, key or schema
    READ_BACK = "read_back"  # a release confirmed by a query that may have overtaken the set


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One thing that must not have happened. `where`: topic, partition and offset, or the event or device."""

    rule: Rule
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.rule.value}: {self.what} [{self.where}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a topic. `at`: epoch seconds; the broker's append time if `appended`, else the producer's."""

    role: str
    topic: str
    partition: int
    offset: int
    at: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    appended: bool = True

    @property
    def where(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"

    @property
    def order(self) -> tuple[float, str, int, int]:
        return (self.at, self.topic, self.partition, self.offset)


REQUESTS = ("single_request", "multi_request", "query_request")
RESULTS = ("single_result", "multi_result", "query_result")
ROLES = ("signals", "registry", "responses", "reports", "outcomes", "dead_letters", *REQUESTS, *RESULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is judged: records by role (see ROLES), dumps of simulators, JSON Schemas by message name.

    `at`: epoch seconds when it was taken; everything is expected to be over by then.
    """

    records: dict[str, list[Record]]
    dumps: tuple[dict[str, Any], ...] = ()
    schemas: dict[str, Any] = field(default_factory=dict)
    at: float = INF


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Tolerances, seconds, and what must at least be there."""

    consent_refresh_s: float = 300.0  # as the service was configured; R16 adds 5 s
    registry_s: float = 2.0  # a removal takes effect within this
    cancel_s: float = 2.0  # a cancellation too, counted from its response 6
    late_s: float = 1.0  # R28
    result_timeout_s: float = 300.0  # as the service was configured
    answer_s: float = 15.0  # a signal younger than this may be unanswered
    open_events: bool = False  # True: accepted events may be without their close
    expect_events: int = 0
    sample: int = 40  # outcomes messages, and rows of each, that are held against the schema


# ------------------------------------------------------------------------------------------ the wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """GoodWe's side as the default profile has it; `read` takes another profile file."""

    fields: dict[str, str] = field(
        default_factory=lambda: (
            {n: n for n in ("sn", "parameter", "parameters", "name", "value", "timestamp", "code", "stage")}
            | {"correlation_id": "requestId"}
        )
    )
    echoed: bool = True
    accepted: str = "accepted"
    codes: dict[str, str] = field(
        default_factory=lambda: {
            "0": "success",
            "1001": "offline",
            "1002": "unauthorized",
            "1003": "busy",
            "1004": "value",
            "1005": "unsupported",
            "1099": "failed",
        }
    )
    modes: dict[str, int] = field(
        default_factory=lambda: {
            "auto": 1,
            "standby": 8,
            "import_target": 9,
            "export_target": 10,
            "charge": 11,
            "discharge": 12,
        }
    )
    parameters: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "ems": ("EMS Power Mode", "EMS Power Set"),
            "export": ("Export Limit Enable", "Export Power Limit"),
            "active": ("Active Power Limit",),
            "reactive": ("Power Factor",),
        }
    )
    percent_series: frozenset[str] = frozenset({"DTU", "DTS", "KDT", "KMT"})
    ratings: dict[str, int] = field(default_factory=lambda: {"5048": 5000})

    @classmethod
    def read(cls, path: Path) -> Wire:
        """Raises OSError, KeyError or TOMLDecodeError if the file is no profile."""
        profile = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(
            fields=profile["fields"],
            echoed=profile["correlation"]["echoed"],
            accepted=profile["results"]["accepted"],
            codes=profile["codes"],
            modes=profile["ems_modes"],
            parameters={name: tuple(table["parameters"]) for name, table in profile["actuators"].items()},
            percent_series=frozenset(
                series for f in profile["families"] if f["export_unit"] == "percent" for series in f["series"]
            ),
            ratings=profile.get("ratings", {}),
        )

    def rated_w(self, sn: str) -> int:
        """Rated power by characters 2 to 5 of the SN in W; 0 if they tell none."""
        code = sn[1:5]
        if code in self.ratings:
            return self.ratings[code]
        whole, kilo, tenths = code.partition("K")
        try:
            return round(float(f"{whole}.{tenths or 0}") * 1000) if kilo else int(code)
        except ValueError:
            return 0


ACTUATORS = {1: "ems", 2: "export", 3: "active", 4: "reactive"}
ACTUATOR_OF = {
    "charge": "ems", "discharge": "ems", "standby": "ems", "import_target": "ems", "export_target": "ems",
    "export_limit": "export", "generation_limit": "active", "power_factor": "reactive",
}  # fmt: skip
STATES = ("skipped", "unused", "pending", "published", "accepted", "applied", "verified", "rejected", "unconfirmed")
BADNESS = {state: rank for rank, state in enumerate(
    ("unused", "skipped", "verified", "applied", "accepted", "published", "pending", "unconfirmed", "rejected")
)}  # fmt: skip
BY_GOODWE = frozenset({"unauthorized", "busy", "value", "unsupported", "failed", "partial", "unknown_code"})
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
ALONE, FINAL = frozenset({252, 253, 254}), frozenset({3, 7, 8, 10})

Values = tuple[Any, ...]
Pair = tuple[str, str]  # SN, actuator
EventKey = tuple[str, str, int]  # source, event id, revision


@dataclass(frozen=True, slots=True)
class CorrelationId:
    """A decoded id: shard 8 | row 24 | actuator 4 | generation 32 | attempt 8 | digest 46, a UUIDv8's 122 free bits."""

    shard: int
    row: int
    actuator: int
    generation: int
    attempt: int
    digest: int


def plain(correlation_id: str) -> str:
    """One spelling of an id."""
    return correlation_id.replace("-", "").lower()


def decode_id(correlation_id: str) -> CorrelationId | None:
    """Own decoder; None if the text is no UUIDv8."""
    text = plain(correlation_id)
    if len(text) != 32 or text[12] != "8" or text[16] not in "89ab":
        return None
    try:
        free = int(text[:12], 16) << 74 | int(text[13:16], 16) << 62 | int(text[16:], 16) & (1 << 62) - 1
    except ValueError:
        return None
    return CorrelationId(
        free >> 114,
        free >> 90 & 0xFFFFFF,
        free >> 86 & 0xF,
        free >> 54 & 0xFFFFFFFF,
        free >> 46 & 0xFF,
        free & (1 << 46) - 1,
    )


def digest_of(sn: str, parts: Iterable[str]) -> int:
    """First 46 bits of blake2b(SN, NUL, name=value, NUL, ...)."""
    return int.from_bytes(hashlib.blake2b("\0".join((sn, *parts)).encode()).digest(), "big") >> (512 - 46)


@dataclass(slots=True, kw_only=True, eq=False)
class Command:
    """One record of a request topic. `kind`: setpoint, release or query; `values` in the actuator's order."""

    id: str
    names: CorrelationId
    sn: str
    actuator: str
    values: Values
    at: float
    record: Record
    kind: str = ""

    @property
    def newness(self) -> tuple[int, int]:
        return (self.names.generation, self.names.attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One record of a result topic, of a stage that is final. `values`: of a query, by name."""

    id: str
    sn: str
    meaning: str
    values: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One outcome row and the message it stood in."""

    record: Record
    sequence: int
    body: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        return {name: value for name, value in self.body.items() if name != "corrects"}


@dataclass(slots=True, kw_only=True, eq=False)
class Revision:
    """One signal, and what became of it. Times epoch seconds; `end` is where its window really ended."""

    key: EventKey
    body: dict[str, Any]
    record: Record
    codes: dict[int, Record] = field(default_factory=dict)
    start: float = INF
    end: float = INF
    ended_by: str = "its end"
    replaced: bool = False
    cancelled: bool = False
    required: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    finals: list[tuple[Record, dict[str, Any]]] = field(default_factory=list)
    controls: dict[str, dict[str, Any]] = field(init=False)  # by actuator

    def __post_init__(self) -> None:
        found = self.body.get("controls") or []
        known = (c for c in found if isinstance(c, dict) and c.get("kind") in ACTUATOR_OF)
        self.controls = {ACTUATOR_OF[control["kind"]]: control for control in known}

    @property
    def name(self) -> str:
        return "/".join(map(str, self.key))

    @property
    def action(self) -> str:
        return str(self.body.get("action"))

    @property
    def test(self) -> bool:
        return bool(self.body.get("test"))

    @property
    def accepted(self) -> bool:
        return 1 in self.codes

    @property
    def commands(self) -> bool:
        """Whether setpoints can follow from it."""
        return self.accepted and self.action == "dispatch" and not self.test

    @property
    def kinds(self) -> list[str]:
        return ["release"] if self.action == "release" else [c["kind"] for c in self.controls.values()]

    def effective(self, until: float = INF) -> dict[tuple[str, str], Row]:
        """The rows that count at a time, by (SN, kind)."""
        return {(row.body["sn"], row.body["kind"]): row for row in self.rows if row.record.at <= until}


def _json(record: Record) -> Any:
    try:
        return json.loads(record.value or b"")
    except (ValueError, UnicodeDecodeError):
        return None


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------ the case


class Case:
    """The evidence, decoded and put in relation. `checked` counts what was looked at, `notes` tell what was not."""

    def __init__(self, evidence: Evidence, limits: Limits, wire: Wire) -> None:
        self.evidence = evidence
        self.limits = limits
        self.wire = wire
        self.checked: Counter[str] = Counter()
        self.notes: list[str] = []
        self.early: list[Violation] = []  # found while decoding
        self.of = {role: sorted(evidence.records.get(role, []), key=lambda r: r.order) for role in ROLES}
        for role, records in self.of.items():
            self.checked[f"records.{role}"] = len(records)
        self.dead = self._dead_letters()
        self.devices: dict[str, dict[str, Any]] = {}
        self.executed: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for dump in evidence.dumps:
            self._read_dump(dump)
        self.registry = self._registry()
        self.revisions = self._revisions()
        self._answers()
        self._windows()
        self._targets()
        self.targeting: dict[str, list[Revision]] = defaultdict(list)
        for revision in self.revisions.values():
            if revision.commands:
                for sn in revision.allowed:
                    self.targeting[sn].append(revision)
        self.commands = self._commands()
        self.sets: dict[Pair, list[Command]] = defaultdict(list)
        self.queries: dict[str, list[Command]] = defaultdict(list)
        for command in self.commands:
            self.checked[f"commands.{command.kind}"] += 1
            if command.kind == "query":
                self.queries[command.id].append(command)
            else:
                self.sets[command.sn, command.actuator].append(command)
        self.results = self._results()

    # -- decoding

    def _dead_letters(self) -> set[tuple[str, int, int]]:
        found = set()
        for record in self.of["dead_letters"]:
            headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
            if all(headers.get(name, "").isdigit() for name in ("dl_partition", "dl_offset")):
                found.add((headers.get("dl_topic", ""), int(headers["dl_partition"]), int(headers["dl_offset"])))
        return found

    def is_dead(self, record: Record) -> bool:
        return (record.topic, record.partition, record.offset) in self.dead

    def _read_dump(self, dump: dict[str, Any]) -> None:
        self.devices |= dump["devices"]
        groups = [device["commands"] for device in dump["devices"].values()]
        for commands in [*groups, *dump.get("unknown_sns", {}).values()]:
            for command in commands:
                self.executed[plain(command["correlation_id"])].append(command)
                self.checked["simulator.executed"] += bool(command["executed"])
        if dump.get("pending"):
            self.notes.append(f"the simulator still had {dump['pending']} commands or results to come")
        self.checked["simulator.devices"] = len(self.devices)

    def _registry(self) -> dict[str, list[tuple[float, dict[str, Any] | None]]]:
        history: dict[str, list[tuple[float, dict[str, Any] | None]]] = defaultdict(list)
        for record in self.of["registry"]:
            if record.key is None or self.is_dead(record):
                continue
            sn = record.key.decode(errors="replace")
            body = None if record.value is None else _json(record)
            if body is None or isinstance(body, dict):
                history[sn].append((record.at, body))
        self.checked["registry.devices"] = len(history)
        return history

    def _revisions(self) -> dict[EventKey, Revision]:
        found: dict[EventKey, Revision] = {}
        for record in self.of["signals"]:
            body = _json(record)
            key = None
            if isinstance(body, dict):
                key = (body.get("source"), body.get("event_id"), body.get("revision"))
            if key is None or not (isinstance(key[0], str) and isinstance(key[1], str) and isinstance(key[2], int)):
                if not self.is_dead(record):
                    what = "a signal that cannot be read is in no dead letter"
                    self.early.append(Violation(Rule.ORDER, what, record.where))
                continue
            assert isinstance(body, dict)
            name = (key[0], key[1], key[2])
            # The first counts; another content under the same revision is refused (R1).
            if name not in found or (self.is_dead(found[name].record) and not self.is_dead(record)):
                found[name] = Revision(key=name, body=body, record=record)
        self.checked["signals"] = len(found)
        return found

    def _answers(self) -> None:
        for record in self.of["responses"]:
            body = _json(record)
            if not isinstance(body, dict):
                continue
            key = (body.get("source"), body.get("event_id"), body.get("revision"))
            revision = self.revisions.get(key)  # type: ignore[arg-type]
            if revision is None:
                self.early.append(Violation(Rule.ORDER, f"response {body.get('code')} to no signal", record.where))
            elif isinstance(body.get("code"), int):
                revision.codes.setdefault(body["code"], record)
        for record in self.of["reports"]:
            body = _json(record)
            if isinstance(body, dict) and body.get("final"):
                asked = self.revisions.get((body.get("source"), body.get("event_id"), body.get("revision")))  # type: ignore[arg-type]
                revision = self._reported(asked)
                if revision is None:
                    self.early.append(Violation(Rule.ORDER, "final report of no accepted event", record.where))
                else:
                    revision.finals.append((record, body))
        for record in self.of["outcomes"]:
            body = _json(record)
            rows = body.get("outcomes") if isinstance(body, dict) else None
            if not isinstance(rows, list) or not isinstance(body.get("sequence"), int):
                self.early.append(Violation(Rule.MESSAGE, "outcomes that cannot be read", record.where))
                continue
            for row in rows:
                key = (row.get("source"), row.get("event_id"), row.get("revision"))
                revision = self.revisions.get(key)
                self.checked["outcome.rows"] += 1
                if revision is None:
                    what = f"outcome of {row.get('sn')} in an event that nobody signalled, {key}"
                    self.early.append(Violation(Rule.OUTCOME, what, record.where))
                else:
                    revision.rows.append(Row(record=record, sequence=body["sequence"], body=row))

    def _reported(self, asked: Revision | None) -> Revision | None:
        """The dispatch that a final report is about: a cancelled event's carries the cancellation's revision."""
        if asked is None or asked.action != "cancel":
            return asked
        older = [r for r in self.revisions.values() if r.key[:2] == asked.key[:2] and r.key[2] < asked.key[2]]
        accepted = [r for r in older if r.accepted and r.action == "dispatch"]
        return max(accepted, key=lambda r: r.key[2], default=None)

    def _windows(self) -> None:
        by_event: dict[tuple[str, str], list[Revision]] = defaultdict(list)
        for revision in self.revisions.values():
            by_event[revision.key[:2]].append(revision)
        for revision in self.revisions.values():
            body = revision.body
            accepted = revision.codes.get(1)
            start = _time(body.get("start_at"))
            read = accepted.at if accepted else revision.record.at
            revision.start = max(start if start is not None else revision.record.at, revision.record.at)
            end = _time(body.get("end_at"))
            revision.end = end if end is not None else read + 86400.0 if body.get("open_ended") else read
            for other in by_event[revision.key[:2]]:
                if other.key[2] <= revision.key[2] or not other.accepted:
                    continue
                moment = other.codes[1].at
                if any(revision.codes[code].at < moment for code in FINAL & revision.codes.keys()):
                    continue  # it was closed already
                if other.action == "dispatch":
                    revision.replaced = True
                    moment = max(moment, _time(other.body.get("start_at")) or moment) + self.limits.cancel_s
                elif other.action == "cancel" and 6 in other.codes:
                    revision.cancelled = True
                    moment = other.codes[6].at + self.limits.cancel_s
                else:
                    continue
                if moment < revision.end + self.limits.late_s:
                    # What is taken back has its own tolerance, so the window's is taken off here.
                    revision.end = moment - self.limits.late_s
                    revision.ended_by = "its cancellation" if other.action == "cancel" else "its replacement"
        self.checked["events"] = sum(r.accepted and r.action != "cancel" for r in self.revisions.values())
        self.checked["events.closed"] = sum(bool(r.finals) for r in self.revisions.values())

    def _targets(self) -> None:
        tolerance = self.limits.registry_s
        for revision in self.revisions.values():
            targets = revision.body.get("targets")
            if not isinstance(targets, dict) or not revision.accepted:
                continue
            started = revision.codes.get(2)
            first = revision.start - tolerance
            last = max(revision.start, revision.codes[1].at, started.at if started else 0.0) + tolerance
            for sn, history in self.registry.items():
                matches = [_matches(sn, record, targets) for record in _in_force(history, first, last)]
                if any(matches):
                    revision.allowed.add(sn)
                    if all(matches):
                        revision.required.add(sn)
            named = {sn for sn in targets.get("devices") or () if isinstance(sn, str)}
            revision.allowed |= named
            revision.required |= named
            if revision.end + self.limits.late_s <= revision.start or (revision.cancelled and not started):
                revision.required.clear()  # it never started

    def _commands(self) -> list[Command]:
        fields, found = self.wire.fields, []
        actuator_of = {names: actuator for actuator, names in self.wire.parameters.items()}
        for role in REQUESTS:
            if any(not record.appended for record in self.of[role]):
                topic = self.of[role][0].topic
                self.early.append(Violation(Rule.EVIDENCE, "the times are the producer's, not the broker's", topic))
            for record in self.of[role]:
                body = _json(record)
                try:
                    sn, text = body[fields["sn"]], body[fields["correlation_id"]]
                    if role == "query_request":
                        names, values = tuple(body[fields["parameters"]]), tuple[Any, ...]()
                    else:
                        items = [body[fields["parameter"]]] if role == "single_request" else body[fields["parameters"]]
                        names = tuple(item[fields["name"]] for item in items)
                        values = tuple(item[fields["value"]] for item in items)
                except (KeyError, TypeError) as error:
                    self.early.append(
                        Violation(Rule.MESSAGE, f"a request that cannot be read: {error!r}", record.where)
                    )
                    continue
                decoded = decode_id(text)
                query = role == "query_request"
                actuator = actuator_of.get(names)
                if decoded is None or ACTUATORS.get(decoded.actuator - 8 * query) != actuator or actuator is None:
                    what = f"correlation id {text} does not fit a {role} of {names}"
                    self.early.append(Violation(Rule.IDENTITY, what, record.where))
                    continue
                parts = names if query else [f"{n}={v}" for n, v in zip(names, values, strict=True)]
                if decoded.digest not in (digest_of(sn, parts), digest_of(sn, [*parts, ""])):
                    what = f"the digest of {text} is not of its content {parts}"
                    self.early.append(Violation(Rule.IDENTITY, what, record.where))
                command = Command(
                    id=plain(text), names=decoded, sn=sn, actuator=actuator, values=values, at=record.at, record=record
                )
                command.kind = "query" if query else "release" if self.is_default(command) else "setpoint"
                found.append(command)
        return sorted(found, key=lambda command: command.record.order)

    def _results(self) -> dict[str, list[Result]]:
        fields = self.wire.fields
        found: dict[str, list[Result]] = defaultdict(list)
        for role in RESULTS:
            for record in self.of[role]:
                body = _json(record)
                if not isinstance(body, dict) or body.get(fields["stage"]) == self.wire.accepted:
                    continue
                items = body.get(fields["parameters"]) or []
                result = Result(
                    id=plain(str(body.get(fields["correlation_id"], ""))),
                    sn=str(body.get(fields["sn"])),
                    meaning=self.meaning(body.get(fields["code"])),
                    values={item.get(fields["name"]): item.get(fields["value"]) for item in items},
                    at=record.at,
                )
                found[result.id].append(result)
        return found

    # -- what follows

    def meaning(self, code: Any) -> str:
        return self.wire.codes.get(str(code), "unknown_code")

    def rated_w(self, sn: str) -> int:
        told = [record["rated_w"] for _, record in self.registry.get(sn, []) if record and record.get("rated_w")]
        return int(told[-1]) if told else self.wire.rated_w(sn)

    def export_raw_w(self, sn: str, raw: float) -> float:
        """An export limit of the wire in W: some families have percent of the rating."""
        return raw * self.rated_w(sn) / 100 if sn[5:8] in self.wire.percent_series else raw

    def defaults(self, sn: str, actuator: str, until: float = INF) -> list[Values]:
        """The raw values that the device may have been given back to, the registry's newest last."""
        found: list[Values] = []
        names = self.wire.parameters[actuator]
        device = self.devices.get(sn)
        if device and all(name in device["default_settings"] for name in names):
            settings = dict(device["default_settings"])
            found.append(tuple(settings[name] for name in names))
            for change in device.get("owner_changes", []):
                settings[change["name"]] = change["value"]
                found.append(tuple(settings[name] for name in names))
        for at, record in self.registry.get(sn, []):
            if (
                record
                and at <= until + self.limits.registry_s
                and (value := self._registered_default(sn, actuator, record))
            ):
                found.append(value)
        return found

    def _registered_default(self, sn: str, actuator: str, record: dict[str, Any]) -> Values | None:
        default = record.get("default") or {}
        match actuator:
            case "ems" if "ems_mode" in default:
                return (default["ems_mode"], default["ems_power_w"])
            case "export" if "export_limit_w" in default:
                limit = default["export_limit_w"]
                if sn[5:8] in self.wire.percent_series:
                    limit = int(limit * 100 // max(self.rated_w(sn), 1))
                return (1, limit)
            case "active" if "active_percent" in default:
                return (round(default["active_percent"] * 10),)
            case "reactive" if "power_factor" in default:
                return (default["power_factor"],)
        return None

    def is_default(self, command: Command) -> bool:
        if command.actuator == "ems" and command.values[0] == self.wire.modes["auto"]:
            return True
        if command.actuator == "export" and command.values[0] == 0:
            return True
        return command.values in self.defaults(command.sn, command.actuator, command.at)

    def asks(self, revision: Revision, sn: str, actuator: str, values: Values) -> bool:
        """Whether these raw values can be what the event asks of the device."""
        control = revision.controls.get(actuator)
        if control is None:
            return False
        watts = self._asked_w(control, sn)
        match actuator:
            case "ems":
                if values[0] != self.wire.modes.get(control["kind"]):
                    return False
                if control["kind"] == "standby":
                    return bool(values[1] == 0)
                return bool(values[1] == watts if watts is not None else 0 <= values[1] <= control.get("total_w", INF))
            case "export":
                step = self.rated_w(sn) / 100 if sn[5:8] in self.wire.percent_series else 0.0
                told = self.export_raw_w(sn, values[1])
                return values[0] == 1 and (watts is None or watts - step - 1 <= told <= watts + (1 if step else 0))
            case "active":
                percent = control.get("each_percent")
                if percent is None:
                    percent = 100 * (watts or 0) / max(self.rated_w(sn), 1)
                return bool(abs(values[0] - 10 * percent) <= 1)
            case _:
                return bool(abs(_cos_phi(values[0]) - control.get("cos_phi", 0)) < 0.006)

    def _asked_w(self, control: dict[str, Any], sn: str) -> int | None:
        if "by_target_w" in control:
            table = control["by_target_w"]
            if sn in table.get("devices", {}):
                return int(table["devices"][sn])
            record: dict[str, Any] = next((r for _, r in reversed(self.registry.get(sn, [])) if r), {})
            return int(table.get("sites", {}).get(record.get("site"), -1) * record.get("site_share", 1))
        return control.get("each_w")

    def may_hold(self, revision: Revision, at: float) -> bool:
        return revision.start - CLOCK_S <= at <= revision.end + self.limits.late_s


def _matches(sn: str, record: dict[str, Any] | None, targets: dict[str, Any]) -> bool:
    if record is None:
        return False
    return bool(
        targets.get("all")
        or sn in (targets.get("devices") or ())
        or record.get("site") in (targets.get("sites") or ())
        or record.get("area") in (targets.get("areas") or ())
        or set(record.get("groups") or ()) & set(targets.get("groups") or ())
    )


def _in_force(
    history: Sequence[tuple[float, dict[str, Any] | None]], first: float, last: float
) -> list[dict[str, Any] | None]:
    """The states that were in force at some moment of [first, last]; before the first record there is none."""
    index = bisect.bisect_right(history, first, key=lambda entry: entry[0])
    before = history[index - 1][1] if index else None
    return [before, *(record for at, record in history[index:] if at <= last)]


def _cos_phi(raw: int) -> float:
    return raw / 100 if raw >= 80 else 1 - raw / 100


# ------------------------------------------------------------------------------------------ the rules


def outcomes(case: Case) -> Iterator[Violation]:
    """Each targeted device of a closed event has one outcome, and only those have one (R24, R34)."""
    for revision in case.revisions.values():
        if not revision.finals:
            continue
        closed_at = revision.finals[0][0].at
        rows = revision.effective()
        for kind in revision.kinds:
            for sn in sorted(revision.required):
                case.checked["outcomes.required"] += 1
                if (sn, kind) not in rows:
                    yield Violation(Rule.OUTCOME, f"{sn} has no outcome for {kind}", revision.name)
        for (sn, kind), row in rows.items():
            if sn not in revision.allowed or kind not in revision.kinds:
                yield Violation(Rule.OUTCOME, f"{sn} has an outcome for {kind} and was not targeted", row.record.where)
        standing: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in revision.rows:
            earlier = standing[row.body["sn"], row.body["kind"]]
            if earlier and row.content != earlier[-1].content:
                corrects = row.body.get("corrects")
                if row.record is earlier[-1].record:
                    what = "has two outcomes in one message"
                elif corrects is None and row.record.at > closed_at:
                    what = "has a second, different outcome after the close that corrects none"
                elif corrects is not None and corrects not in {old.sequence for old in earlier}:
                    what = f"has an outcome that corrects {corrects}, which is none of its own"
                else:
                    what = ""
                if what:
                    yield Violation(Rule.OUTCOME, f"{row.body['sn']} {what}", f"{revision.name} {row.record.where}")
            earlier.append(row)


def reports(case: Case) -> Iterator[Violation]:
    """Final report, outcomes, final response and simulator tell the same (R34)."""
    for revision in case.revisions.values():
        for index, (record, report) in enumerate(revision.finals):
            last = index == len(revision.finals) - 1
            rows = revision.effective(INF if last else record.at)
            racing = any(record.at - 2 <= r.record.at <= record.at and r.body.get("corrects") for r in revision.rows)
            if last or not racing:
                case.checked["final_reports"] += 1
                yield from _report_and_rows(revision, record, report, rows)
        if revision.finals and revision.commands:
            yield from _final_response(revision)
        if case.devices and revision.finals:
            yield from _rows_and_simulator(case, revision)
    yield from _unexplained(case)


def _report_and_rows(
    revision: Revision, record: Record, report: dict[str, Any], rows: dict[tuple[str, str], Row]
) -> Iterator[Violation]:
    def differ(what: str, told: Any, counted: Any) -> Iterator[Violation]:
        if told != counted:
            text = f"the report tells {what} {told}, the outcomes {counted}"
            yield Violation(Rule.REPORT, text, f"{revision.name} {record.where}")

    worst: dict[str, dict[str, Any]] = {}
    power = 0
    for (sn, _), row in rows.items():
        body = row.body
        if sn not in worst or BADNESS[body["state"]] > BADNESS[worst[sn]["state"]]:
            worst[sn] = body
        if body["state"] in ("applied", "verified"):
            power += body.get("setpoint_w") or 0
    devices = report["devices"]
    counted = Counter(body["state"] for body in worst.values())
    for state in STATES:
        yield from differ(state, devices.get(state, 0), counted[state])
    yield from differ("targeted", devices["targeted"], len(worst))
    reasons = Counter(
        f"{body['state']}.{body['reason']}" for body in worst.values() if body["state"] in ("skipped", "rejected")
    )
    yield from differ("reasons", {word: n for word, n in report["reasons"].items() if n}, dict(reasons))
    acknowledged = report["power_w"]["acknowledged"]
    if acknowledged is not None:
        yield from differ("acknowledged power", acknowledged, power)
    release = report["release"]
    if release["due"] != release["confirmed"] + release["pending"] + release["refused"]:
        yield Violation(Rule.REPORT, f"the releases do not add up: {release}", f"{revision.name} {record.where}")


def _final_response(revision: Revision) -> Iterator[Violation]:
    devices = revision.finals[0][1]["devices"]
    done, targeted = devices["applied"] + devices["verified"], devices["targeted"]
    right = 10 if not done else 3 if done == targeted else 8
    told = FINAL & revision.codes.keys()
    if told and not told & {right, 7}:
        what = f"final response {sorted(told)}, but {done} of {targeted} devices are applied or verified"
        yield Violation(Rule.REPORT, what, revision.codes[min(told)].where)


def _rows_and_simulator(case: Case, revision: Revision) -> Iterator[Violation]:
    for (sn, _), row in revision.effective().items():
        body = row.body
        state, reason = body["state"], body["reason"]
        where = f"{revision.name} {row.record.where}"
        done, refused = state in ("applied", "verified"), state == "rejected" and reason in BY_GOODWE
        if not (done or refused) or revision.action != "dispatch":
            continue
        case.checked["rows_against_simulator"] += 1
        executed = [c for c in case.executed.get(plain(body["correlation_id"] or ""), []) if c["sn"] == sn]
        if not executed:
            yield Violation(Rule.REPORT, f"{sn} is {state} by {body['correlation_id']}, which GoodWe never got", where)
        elif done:
            good = [c for c in executed if c["executed"] and case.meaning(c["code"]) == "success"]
            answers = case.results.get(plain(body["correlation_id"]), [])
            if not good:
                yield Violation(Rule.REPORT, f"{sn} is {state}, but the inverter did not execute it", where)
            elif not _is_row_value(case, body, {p["name"]: p["value"] for p in good[0]["parameters"]}):
                yield Violation(Rule.REPORT, f"{sn} is {state} with another setpoint than it executed", where)
            elif state == "applied" and case.wire.echoed and not any(a.meaning == "success" for a in answers):
                yield Violation(Rule.REPORT, f"{sn} is applied, but no result said so", where)
        else:
            meanings = {case.meaning(c["code"]) for c in executed} - {"success"}
            if not meanings or (reason not in ("partial", "failed", "unknown_code") and reason not in meanings):
                yield Violation(
                    Rule.REPORT, f"{sn} is rejected, {reason}, but GoodWe said {meanings or 'success'}", where
                )


def _is_row_value(case: Case, row: dict[str, Any], parameters: dict[str, Any]) -> bool:
    actuator = ACTUATOR_OF[row["kind"]]
    names = case.wire.parameters[actuator]
    if not all(name in parameters for name in names):
        return False
    values = [parameters[name] for name in names]
    setpoint = row.get("setpoint_w")
    match actuator:
        case "ems":
            return bool(values[0] == case.wire.modes[row["kind"]] and values[1] == (setpoint or 0))
        case "export":
            return (
                values[0] == 1 and setpoint is not None and abs(case.export_raw_w(row["sn"], values[1]) - setpoint) <= 1
            )
        case "active":
            percent = row.get("setpoint_percent")
            return bool(percent is None or abs(values[0] - 10 * percent) <= 1)
        case _:
            return bool(row.get("cos_phi") is None or abs(_cos_phi(values[0]) - row["cos_phi"]) < 0.006)


def _unexplained(case: Case) -> Iterator[Violation]:
    """A setpoint that was executed stands behind an outcome, or an event that was active asked for this value."""
    told = {
        plain(row.body["correlation_id"])
        for revision in case.revisions.values()
        for row in revision.rows
        if row.body.get("correlation_id")
    }
    requested = {command.id for command in case.commands}
    for commands in case.executed.values():
        for c in commands:
            if c["executed"] and c["role"] != "query" and plain(c["correlation_id"]) not in requested:
                what = f"the simulator executed {c['correlation_id']}, which is on no request topic"
                yield Violation(Rule.EVIDENCE, what, c["sn"])
    for command in case.commands:
        if command.kind != "setpoint" or command.id in told:
            continue
        active = [
            r for r in case.targeting[command.sn] if case.may_hold(r, command.at) and command.actuator in r.controls
        ]
        inactive = [r for r in case.targeting[command.sn] if r not in active]
        anyone = any(case.asks(r, command.sn, command.actuator, command.values) for r in [*active, *inactive])
        if active and not anyone:  # without an active event it is a matter of permission or window
            what = f"{command.sn} was told {command.values}, which no event asks of it and no outcome tells"
            yield Violation(Rule.REPORT, what, command.record.where)


def permissions_and_windows(case: Case) -> Iterator[Violation]:
    """Both keys (R16), a target and an open window (R28, R15) for each setpoint; releases are bound by nothing."""
    limits = case.limits
    for command in case.commands:
        if command.kind != "setpoint":
            continue
        sn, at, where = command.sn, command.at, command.record.where
        what = f"setpoint {command.values} to {sn}"
        targeting = [r for r in case.targeting[sn] if command.actuator in r.controls]
        if not any(_in_force(case.registry.get(sn, []), at - limits.registry_s, at)):
            yield Violation(Rule.PERMISSION, f"{what}, which is not in the registry", where)
        elif case.devices and not _consented(case, sn, at):
            yield Violation(Rule.PERMISSION, f"{what}, whose owner did not consent then", where)
        elif not targeting:
            yield Violation(Rule.PERMISSION, f"{what}, which no event targets", where)
        else:
            active = [r for r in targeting if case.may_hold(r, at)]
            asking = [r for r in targeting if case.asks(r, sn, command.actuator, command.values)]
            if not any(r in active for r in asking) and (asking or not active):
                nearest = (asking or targeting)[-1]
                if at < nearest.start:
                    told = f"{nearest.start - at:.3f} s before the start"
                else:
                    told = f"{at - nearest.end:.3f} s after {nearest.ended_by}"
                yield Violation(Rule.WINDOW, f"{what}, {told} of {nearest.name}", where)


def _consented(case: Case, sn: str, at: float) -> bool:
    tolerance = case.limits.consent_refresh_s + 5.0
    device = case.devices.get(sn)
    intervals = device["authorized"] if device else []
    return any(first <= at <= (INF if last is None else last + tolerance) for first, last in intervals)


def releases(case: Case) -> Iterator[Violation]:
    """Nothing is left set (R19), and a release that is told as confirmed was read back after the set (R27)."""
    accounts = {id(r): r.finals[-1][1]["release"] for r in case.revisions.values() if r.finals}
    still_open = {
        sn
        for r in case.revisions.values()
        if r.commands and not r.finals and r.end >= case.evidence.at
        for sn in r.allowed
    }
    for sn, device in case.devices.items():
        if sn not in still_open:
            case.checked["devices_at_default"] += 1
            yield from _left_set(case, sn, device, accounts)
    if not case.wire.echoed:
        case.notes.append("results carry no id: releases were not held against read-backs")
        return
    good, early = _read_backs(case)
    for revision in case.revisions.values():
        if not revision.finals or not revision.commands:
            continue
        record, report = revision.finals[-1]
        pairs = [(sn, actuator) for sn in revision.allowed for actuator in revision.controls]
        proven = sum(any(revision.start <= at <= record.at + 1 for at in good[pair]) for pair in pairs)
        case.checked["releases.confirmed"] += report["release"]["confirmed"]
        if report["release"]["confirmed"] > proven:
            doubtful = any(early[pair] and not good[pair] for pair in pairs)
            rule = Rule.READ_BACK if doubtful else Rule.RELEASE
            told = f"{report['release']['confirmed']} releases are told as confirmed, {proven} were validly read back"
            yield Violation(rule, told, f"{revision.name} {record.where}")
    for pair, sets in case.sets.items():
        yield from _episodes(case, pair, sets, accounts, good[pair], early[pair])


def _left_set(case: Case, sn: str, device: dict[str, Any], accounts: dict[int, dict[str, Any]]) -> Iterator[Violation]:
    owner = {change["name"]: change["value"] for change in device.get("owner_changes", [])}
    for actuator, names in case.wire.parameters.items():
        if not all(name in device["settings"] for name in names):
            continue
        values = tuple(device["settings"][name] for name in names)
        allowed = case.defaults(sn, actuator)
        if values in allowed:
            continue
        start = allowed[0] if allowed else ()
        if start and all(v in (d, owner.get(n, d)) for n, v, d in zip(names, values, start, strict=True)):
            continue
        owed = sum(
            accounts[id(r)]["pending"] + accounts[id(r)]["refused"] for r in case.targeting[sn] if id(r) in accounts
        )
        reachable = device["online"] and device.get("listed", True) and any(e is None for _, e in device["authorized"])
        if not reachable and owed:
            case.notes.append(f"{sn} is out of reach and still set, {actuator} {values}; its report says so")
        else:
            yield Violation(Rule.RELEASE, f"{actuator} is left at {values}, default {start}", sn)


def _read_backs(case: Case) -> tuple[dict[Pair, list[float]], dict[Pair, list[float]]]:
    """When each actuator was read back equal to its newest command, a release: validly, and too early to tell."""
    good: dict[Pair, list[float]] = defaultdict(list)
    early: dict[Pair, list[float]] = defaultdict(list)
    late: dict[tuple[Pair, str], list[float]] = defaultdict(list)
    for correlation_id, queries in case.queries.items():
        pair = (queries[0].sn, queries[0].actuator)
        sets = case.sets.get(pair)
        if not sets:
            continue
        names = case.wire.parameters[pair[1]]
        for result in case.results.get(correlation_id, []):
            known = [c for c in sets if c.at <= result.at]
            asked = max((q.at for q in queries if q.at <= result.at), default=None)
            if not known or asked is None or result.meaning != "success":
                continue
            newest = max(known, key=lambda c: c.newness)
            if newest.kind != "release" or tuple(result.values.get(name) for name in names) != newest.values:
                continue
            case.checked["read_backs"] += 1
            same = [c for c in known if c.names.generation == newest.names.generation]
            answered = min((a.at for c in same for a in case.results.get(c.id, [])), default=INF)
            if answered <= asked:
                good[pair].append(result.at)
            elif asked >= newest.at + case.limits.result_timeout_s - 0.5:
                agreeing = late[pair, newest.id]
                agreeing.append(result.at)
                if len(agreeing) > 1:
                    good[pair].append(max(agreeing))
            else:
                early[pair].append(result.at)
    return good, early


def _episodes(
    case: Case,
    pair: Pair,
    sets: list[Command],
    accounts: dict[int, dict[str, Any]],
    good: list[float],
    early: list[float],
) -> Iterator[Violation]:
    """Each time that an actuator was set, then released: if the events that held it tell no debt, it was read back."""
    sn, actuator = pair
    for index, command in enumerate(sets):
        following = sets[index + 1] if index + 1 < len(sets) else None
        if command.kind != "setpoint" or (following is not None and following.kind == "setpoint"):
            continue
        released_at = following.at if following else INF
        again_at = next((c.at for c in sets[index + 1 :] if c.kind == "setpoint"), INF)
        holders = [
            r
            for r in case.targeting[sn]
            if actuator in r.controls
            and not r.replaced
            and r.start <= released_at
            and r.end + case.limits.late_s >= command.at
        ]
        if not holders or not all(r.finals for r in holders):
            continue
        told = [accounts[id(r)] for r in holders]
        closed_at = max(r.finals[-1][0].at for r in holders)
        opted_out = any(r.body["reason"] == "opted_out" for h in holders for r in h.rows if r.body["sn"] == sn)
        missing = any(h.finals[-1][1]["shards"]["missing"] for h in holders)
        if any(t["pending"] + t["refused"] for t in told) or again_at <= closed_at or opted_out or missing:
            continue
        where = holders[-1].name
        executed = any(c["executed"] for c in case.executed.get(command.id, []))
        case.checked["releases.required"] += executed or not case.devices
        if following is None:
            if executed or not case.devices:
                yield Violation(
                    Rule.RELEASE, f"{actuator} of {sn} was set to {command.values} and never released", where
                )
        elif not sum(t["due"] for t in told):
            if executed:
                yield Violation(Rule.RELEASE, f"{actuator} of {sn} was set, and no report tells a release due", where)
        elif not any(command.at < at <= closed_at + 1 for at in good):
            overtook = any(command.at < at <= closed_at + 1 for at in early)
            if overtook:
                what = f"the read-back of {actuator} of {sn} was asked for before the newest set was answered"
                yield Violation(Rule.READ_BACK, what, where)
            elif executed or not case.devices:
                yield Violation(
                    Rule.RELEASE, f"{actuator} of {sn} is told as released and was not read back equal", where
                )


def order(case: Case) -> Iterator[Violation]:
    """Responses in the order of the contract, each once; then outcomes, final report, final response (R33)."""
    seen: dict[EventKey, list[tuple[int, str, Record, dict[str, Any]]]] = defaultdict(list)
    for record in case.of["responses"]:
        body = _json(record)
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
        over = revision.end < case.evidence.at and not case.limits.open_events
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
        body = _json(record)
        if isinstance(body, dict):
            key = (body.get("source"), body.get("event_id"), body.get("revision"))
            if body.get("final"):
                final.add(key)
            elif key in final:
                yield Violation(Rule.ORDER, "a report that is not final after the final one", record.where)


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
            body = _json(record)
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
        body = {name: value for name, value in _json(command.record).items() if name != stamp}
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
            body = _json(record)
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


CHECKS = (enough, outcomes, reports, permissions_and_windows, releases, order, identities, messages)


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


# ------------------------------------------------------------------------------------------ the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Topic names by role; several where sources have their own. `prefix` stands before each."""

    signals: tuple[str, ...] = ("dispatch.signals.v1",)
    registry: tuple[str, ...] = ("fleet.devices.v1",)
    responses: tuple[str, ...] = ("dispatch.responses.v1",)
    reports: tuple[str, ...] = ("dispatch.reports.v1",)
    outcomes: tuple[str, ...] = ("dispatch.outcomes.v1",)
    dead_letters: tuple[str, ...] = ("dispatch.dead-letters.v1",)
    requests: tuple[str, ...] = (
        "goodwe.control.single.request",
        "goodwe.control.multi.request",
        "goodwe.query.request",
    )
    results: tuple[str, ...] = ("goodwe.control.single.result", "goodwe.control.multi.result", "goodwe.query.result")
    prefix: str = ""

    def ours(self) -> dict[str, str]:
        """Topic -> role, on the operators' cluster."""
        return {self.prefix + name: role for role in ROLES[:6] for name in getattr(self, role)}

    def theirs(self) -> dict[str, str]:
        """Topic -> role, on GoodWe's cluster."""
        pairs = [*zip(self.requests, REQUESTS, strict=True), *zip(self.results, RESULTS, strict=True)]
        return {self.prefix + name: role for name, role in pairs}


def read_schemas(folder: Path = SCHEMAS) -> dict[str, Any]:
    """JSON Schemas of what the service publishes; empty if there are none."""
    paths = {name: folder / name / "v1.json" for name in ("response", "report", "outcomes")}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


async def collect(
    bootstrap_servers: str,
    *,
    topics: Topics | None = None,
    goodwe_bootstrap_servers: str | None = None,
    dumps: Sequence[dict[str, Any]] = (),
    timeout_s: float = 60.0,
) -> Evidence:
    """Reads the topics from the first record to the end that they have now. A topic that does not exist is empty.

    Raises:
        TimeoutError: the end was not reached in time.
        KafkaError: the cluster cannot be reached.
    """
    topics = topics or Topics()
    records: dict[str, list[Record]] = {role: [] for role in ROLES}
    clusters: dict[str, dict[str, str]] = defaultdict(dict)
    clusters[bootstrap_servers] |= topics.ours()
    clusters[goodwe_bootstrap_servers or bootstrap_servers] |= topics.theirs()
    for servers, roles in clusters.items():
        for record in await asyncio.wait_for(_read(servers, roles), timeout_s):
            records[record.role].append(record)
    return Evidence(records=records, dumps=tuple(dumps), schemas=read_schemas(), at=time.time())


async def _read(bootstrap_servers: str, roles: dict[str, str]) -> list[Record]:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    found: list[Record] = []
    described = await _described(bootstrap_servers, roles)
    partitions = [TopicPartition(t["topic"], p["partition"]) for t in described for p in t["partitions"]]
    if not partitions:
        return found
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        left = set(partitions)
        while left:
            for partition, batch in (await consumer.getmany(timeout_ms=200, max_records=10_000)).items():
                for r in batch:
                    if r.offset < ends[partition]:
                        found.append(
                            Record(
                                role=roles[r.topic],
                                topic=r.topic,
                                partition=r.partition,
                                offset=r.offset,
                                at=r.timestamp / 1000,
                                key=r.key,
                                value=r.value,
                                headers=tuple(r.headers),
                                appended=r.timestamp_type == 1,
                            )
                        )
            # By position, not by record: a compacted topic, or a transaction's marker, ends without a record.
            left = {partition for partition in left if await consumer.position(partition) < ends[partition]}
    finally:
        await consumer.stop()
    return found


async def _described(bootstrap_servers: str, roles: dict[str, str]) -> list[dict[str, Any]]:
    """Those of the topics that exist, with their partitions; waits for a cluster that has just started."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import NodeNotReadyError

    while True:
        # Asked of the admin client: a consumer that has not subscribed knows partitions only by luck.
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            existing = sorted(set(await admin.list_topics()) & roles.keys())
            return await admin.describe_topics(existing) if existing else []
        except NodeNotReadyError:  # its first answers name no broker, not even itself
            await asyncio.sleep(0.2)
        finally:
            await admin.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if there are violations."""
    defaults, limits = Topics(), Limits()
    parser = argparse.ArgumentParser(description="Audits a finished run from its topics and the simulator's dump.")
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--goodwe-bootstrap-servers", help="if GoodWe has a cluster of its own")
    parser.add_argument("--dump", nargs="*", default=[], type=Path, help="answers of the simulators' GET /sim/dump")
    parser.add_argument("--profile", type=Path, help="a GoodWe profile file, if not the default one")
    parser.add_argument("--prefix", default="", help="stands before each topic name")
    for role in ROLES[:6]:
        parser.add_argument(f"--{role.replace('_', '-')}", nargs="+", default=getattr(defaults, role), metavar="TOPIC")
    for role in ("requests", "results"):
        parser.add_argument(f"--{role}", nargs=3, default=getattr(defaults, role), metavar=("SINGLE", "MULTI", "QUERY"))
    for name in ("consent_refresh_s", "registry_s", "cancel_s", "late_s", "result_timeout_s", "answer_s"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(limits, name), metavar="S")
    parser.add_argument("--expect-events", type=int, default=0, metavar="N", help="at least so many closed events")
    parser.add_argument("--open-events", action="store_true", help="accepted events may be without their close")
    args = vars(parser.parse_args(arguments))
    topics = Topics(prefix=args["prefix"], **{r: tuple(args[r]) for r in (*ROLES[:6], "requests", "results")})
    given = {name: args[name] for name in Limits.__slots__ if name in args}
    evidence = asyncio.run(
        collect(
            args["bootstrap_servers"],
            topics=topics,
            goodwe_bootstrap_servers=args["goodwe_bootstrap_servers"],
            dumps=[json.loads(path.read_bytes()) for path in args["dump"]],
        )
    )
    verdict = examine(evidence, Limits(**given), Wire.read(args["profile"]) if args["profile"] else Wire())
    print(verdict)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
