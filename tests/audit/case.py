"""The evidence, decoded and put in relation: windows and targets, commands and results, defaults and values."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from .asked import asked_values, registered_default
from .evidence import CLOCK_S, INF, REQUESTS, RESULTS, ROLES, Evidence, Limits, Record, Rule, Violation
from .model import FINAL, Command, EventKey, Pair, Result, Revision, Row, Turn, body_of, epoch
from .wire import ACTUATORS, Values, Wire, decode_id, digest_of, plain


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
        self.turns = self._turns()
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
        self.reads: dict[Pair, list[Command]] = defaultdict(list)  # queries by what they read
        for command in self.commands:
            self.checked[f"commands.{command.kind}"] += 1
            if command.kind == "query":
                self.queries[command.id].append(command)
                self.reads[command.sn, command.actuator].append(command)
            else:
                self.sets[command.sn, command.actuator].append(command)
        self.joined = wire.echoed or bool(evidence.dumps)
        self.results = self._results()
        self.of_id: dict[str, Command] = {}
        for command in self.commands:
            self.of_id.setdefault(command.id, command)

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
            body = None if record.value is None else body_of(record)
            if body is None or isinstance(body, dict):
                history[sn].append((record.at, body))
        self.checked["registry.devices"] = len(history)
        return history

    def _revisions(self) -> dict[EventKey, Revision]:
        found: dict[EventKey, Revision] = {}
        for record in self.of["signals"]:
            body = body_of(record)
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
            body = body_of(record)
            if not isinstance(body, dict):
                continue
            key = (body.get("source"), body.get("event_id"), body.get("revision"))
            revision = self.revisions.get(key)  # type: ignore[arg-type]
            if revision is None:
                self.early.append(Violation(Rule.ORDER, f"response {body.get('code')} to no signal", record.where))
            elif isinstance(body.get("code"), int):
                revision.codes.setdefault(body["code"], record)
        for record in self.of["reports"]:
            body = body_of(record)
            if isinstance(body, dict) and body.get("final"):
                asked = self.revisions.get((body.get("source"), body.get("event_id"), body.get("revision")))  # type: ignore[arg-type]
                revision = self._reported(asked)
                if revision is None:
                    self.early.append(Violation(Rule.ORDER, "final report of no accepted event", record.where))
                else:
                    revision.finals.append((record, body))
        for record in self.of["outcomes"]:
            body = body_of(record)
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
            start = epoch(body.get("start_at"))
            read = accepted.at if accepted else revision.record.at
            revision.start = max(start if start is not None else revision.record.at, revision.record.at)
            end = epoch(body.get("end_at"))
            revision.end = end if end is not None else read + 86400.0 if body.get("open_ended") else read
            revision.over_at = revision.end
            for other in by_event[revision.key[:2]]:
                if other.key[2] <= revision.key[2] or not other.accepted:
                    continue
                moment = other.codes[1].at
                if any(revision.codes[code].at < moment for code in FINAL & revision.codes.keys()):
                    continue  # it was closed already
                if other.action == "dispatch":
                    revision.replaced = True
                    moment = max(moment, epoch(other.body.get("start_at")) or moment)
                    told, moment = moment, moment + other.ramp_up_s + self.limits.cancel_s
                elif other.action == "cancel":
                    revision.cancelled = True
                    answer = other.codes.get(6, other.codes[1])
                    told = epoch((body_of(answer) or {}).get("at")) or answer.at
                    moment = answer.at + self.limits.cancel_s
                    if "ramp_down_s" in other.body:
                        revision.ramp_down_s = other.ramp_down_s
                else:
                    continue
                if moment < revision.end + self.limits.late_s:
                    # What is taken back has its own tolerance, so the window's is taken off here.
                    revision.end = moment - self.limits.late_s
                    revision.ended_by = "its cancellation" if other.action == "cancel" else "its replacement"
                    revision.over_at = min(revision.over_at, told)
            self._abort(revision)
        self.checked["events"] = sum(r.accepted and r.action != "cancel" for r in self.revisions.values())
        self.checked["events.closed"] = sum(bool(r.finals) for r in self.revisions.values())

    def _turns(self) -> list[Turn]:
        """Switches and aborts, in the order of the event inbox (its other records are the service's own business)."""
        found = []
        for record in self.of["event_inbox"]:
            tag, _, packed = (record.value or b"").partition(b"\n")
            if tag != b"switch":
                continue
            try:
                import msgspec
            except ImportError:
                self.notes.append("msgspec is not installed: switches and aborts were not read")
                return []
            body = msgspec.msgpack.decode(packed)
            found.append(
                Turn(switch=body["switch"], on=body["on"], event=body.get("event"), at=record.at, where=record.where)
            )
        self.checked["switches"] = len(found)
        return found

    def _abort(self, revision: Revision) -> None:
        """An abort ends an accepted dispatch at once; one that comes at or after the end changes nothing."""
        name = "/".join(revision.key[:2])
        for turn in self.turns:
            accepted = revision.codes.get(1)
            if turn.switch != "abort" or turn.event != name or accepted is None or revision.action != "dispatch":
                continue
            if revision.replaced or revision.test or not accepted.at <= turn.at < revision.over_at:
                continue
            revision.aborted_at = revision.over_at = turn.at
            revision.ramp_down_s = 0
            revision.end = min(revision.end, turn.at + self.limits.cancel_s - self.limits.late_s)
            revision.ended_by = "its abort"
            return

    def on_between(self, switch: str) -> list[tuple[float, float]]:
        """When a switch was on: [on, off), epoch seconds."""
        found: list[tuple[float, float]] = []
        since = None
        for turn in (t for t in self.turns if t.switch == switch):
            if turn.on and since is None:
                since = turn.at
            elif not turn.on and since is not None:
                found.append((since, turn.at))
                since = None
        return found if since is None else [*found, (since, INF)]

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
                matches = [_matches(sn, record, targets) for record in in_force(history, first, last)]
                if any(matches):
                    revision.allowed.add(sn)
                    if all(matches):
                        revision.required.add(sn)
            named = {sn for sn in targets.get("devices") or () if isinstance(sn, str)}
            revision.allowed |= named
            revision.required |= named
            if revision.end + self.limits.late_s <= revision.start or (
                (revision.cancelled or revision.aborted_at is not None) and not started
            ):
                revision.required.clear()  # it never started

    def _commands(self) -> list[Command]:
        fields, found = self.wire.fields, []
        actuator_of = {names: actuator for actuator, names in self.wire.parameters.items()}
        for role in REQUESTS:
            if any(not record.appended for record in self.of[role]):
                topic = self.of[role][0].topic
                self.early.append(Violation(Rule.EVIDENCE, "the times are the producer's, not the broker's", topic))
            for record in self.of[role]:
                body = body_of(record)
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
        self.answered_at: dict[tuple[str, str], list[float]] = defaultdict(list)  # (SN, role) -> final results
        names = self._joined() if not self.wire.echoed else {}
        for role in RESULTS:
            for record in self.of[role]:
                body = body_of(record)
                if not isinstance(body, dict) or body.get(fields["stage"]) == self.wire.accepted:
                    continue
                self.answered_at[str(body.get(fields["sn"])), role.removesuffix("_result")].append(record.at)
                items = body.get(fields["parameters"]) or []
                told = body.get(fields["correlation_id"], "") if self.wire.echoed else names.get(record.where, "")
                result = Result(
                    id=plain(str(told)),
                    sn=str(body.get(fields["sn"])),
                    meaning=self.meaning(body.get(fields["code"])),
                    values={item.get(fields["name"]): item.get(fields["value"]) for item in items},
                    at=record.at,
                )
                found[result.id].append(result)
        return found

    def _joined(self) -> dict[str, str]:
        """Which command each result answers where no id is echoed: the simulator's account, by SN, topic and order.

        A result that cannot be joined so answers nothing here, and a note tells of it.
        """
        answers: dict[tuple[str, str], list[tuple[float, str, str]]] = defaultdict(list)
        for commands in self.executed.values():
            for c in commands:
                for answer in c["results"]:
                    if answer.get("published_at") is not None:
                        told = (answer["due_at"], str(answer["code"]), c["correlation_id"])
                        answers[c["sn"], c["role"]].append(told)
        names: dict[str, str] = {}
        apart = 0
        for role in RESULTS:
            records: dict[str, list[tuple[str, str]]] = defaultdict(list)
            for record in self.of[role]:
                body = body_of(record)
                if isinstance(body, dict):
                    code = str(body.get(self.wire.fields["code"]))
                    records[str(body.get(self.wire.fields["sn"]))].append((record.where, code))
            for sn, told_of in records.items():
                known = sorted(answers[sn, role.removesuffix("_result")], key=lambda answer: answer[0])
                if [code for _, code, _ in known] != [code for _, code in told_of]:
                    apart += len(told_of)
                    continue
                names |= {where: of for (where, _), (_, _, of) in zip(told_of, known, strict=True)}
        if apart:
            self.notes.append(f"{apart} results without an id could not be joined with the simulator's account")
        return names

    # -- what follows

    def meaning(self, code: Any) -> str:
        return self.wire.codes.get(str(code), "unknown_code")

    def rated_w(self, sn: str) -> int:
        told = [record["rated_w"] for _, record in self.registry.get(sn, []) if record and record.get("rated_w")]
        return int(told[-1]) if told else self.wire.rated_w(sn)

    def export_raw_w(self, sn: str, raw: float) -> float:
        """An export limit of the wire in W: some families have percent of the rating."""
        return raw * self.rated_w(sn) / 100 if self.wire.in_percent(sn) else self.wire.watts_of("export", raw)

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
                and (
                    value := registered_default(
                        self.wire, sn, actuator, record, record.get("rated_w") or self.rated_w(sn)
                    )
                )
            ):
                found.append(value)
        if self.limits.family_defaults and actuator in self.wire.family_defaults:
            found.append(self.wire.family_defaults[actuator])
        return found

    def is_default(self, command: Command) -> bool:
        if command.actuator == "ems" and command.values[0] == self.wire.modes["auto"]:
            return True
        if command.actuator == "export" and command.values[0] == 0:
            return True
        return command.values in self.defaults(command.sn, command.actuator, command.at)

    def asked(self, revision: Revision, sn: str, actuator: str) -> set[Values]:
        """The raw values that an event may ask of a device; empty if it asks nothing of it.

        Several only where the registry changed while the event was known. A `total_w` is not judged here.
        """
        control = revision.controls.get(actuator)
        if control is None:
            return set()
        history = self.registry.get(sn, [])
        tolerance = self.limits.registry_s
        records = in_force(history, revision.record.at - tolerance, revision.end + tolerance)
        rated = self.rated_w(sn)
        asked = (
            asked_values(self.wire, control, sn, record or {}, (record or {}).get("rated_w") or rated)
            for record in records
        )
        return {values for values in asked if values is not None}

    def asks(self, revision: Revision, sn: str, actuator: str, values: Values) -> bool:
        """Whether these raw values can be what the event asks of the device."""
        control = revision.controls.get(actuator)
        if control is None or "total_w" not in control:
            asked = self.asked(revision, sn, actuator)
            return values in asked or any(self._within_dead_band(actuator, values, wanted) for wanted in asked)
        if actuator == "ems" and values[0] != self.wire.modes.get(control["kind"]):
            return False
        return bool(0 <= values[1] <= self.wire.raw_of(actuator, control["total_w"]))

    def _within_dead_band(self, actuator: str, values: Values, wanted: Values) -> bool:
        """Whether a device may have kept these raw values where others are wanted; of a limit only tighter ones (R21).

        A generation limit is in per mille of the rating, and is not judged."""
        if actuator not in ("ems", "export") or values[0] != wanted[0]:
            return False
        change = self.wire.watts_of(actuator, wanted[1]) - self.wire.watts_of(actuator, values[1])
        return (0 if actuator == "export" else -self.limits.dead_band_w) <= change <= self.limits.dead_band_w

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


def in_force(
    history: Sequence[tuple[float, dict[str, Any] | None]], first: float, last: float
) -> list[dict[str, Any] | None]:
    """The states that were in force at some moment of [first, last]; before the first record there is none."""
    index = bisect.bisect_right(history, first, key=lambda entry: entry[0])
    before = history[index - 1][1] if index else None
    return [before, *(record for at, record in history[index:] if at <= last)]
