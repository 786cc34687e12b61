"""Topics and a simulator's dump made by hand, for tests of the audit: right as they come, wrong where it is planted."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from tests import audit
from tests.audit import Evidence, Limits, Record, Rule, Wire

T0 = 1_800_000_000.0
HYBRIDS = tuple(f"9010KETU000W000{n}" for n in range(1, 5))
PERCENT = "9012KDTU000W0005"  # PV only; its export limit is in percent of 12 kW
DEVICES = (*HYBRIDS, PERCENT)
OUTSIDER = "9010KETU000W0009"  # named by a signal, never registered
EMS, EXPORT = ("EMS Power Mode", "EMS Power Set"), ("Export Limit Enable", "Export Power Limit")
ACTIVE, REACTIVE = ("Active Power Limit",), ("Power Factor",)
ACTUATOR: dict[tuple[str, ...], int] = {EMS: 1, EXPORT: 2, ACTIVE: 3, REACTIVE: 4}
AUTO, NO_LIMIT = (1, 0), (0, 10000)
CODES = {"0": "success", "1001": "offline", "1099": "failed"}
STATUS = {
    1: "received", 2: "started", 3: "completed", 6: "cancelled", 7: "superseded",
    8: "completed_partially", 10: "no_participation", 252: "not_applicable", 254: "expired",
}  # fmt: skip


WORST_LAST = (
    "unused", "skipped", "verified", "applied", "accepted", "published", "pending", "unconfirmed", "rejected",
)  # fmt: skip
RESPONSE_CODE = {"applied": 2, "verified": 2, "skipped": 10, "unused": 10}


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def id_of(sn: str, actuator: int, generation: int, attempt: int, parts: Iterable[str], row: int | None = None) -> str:
    """A third encoder of correlation ids, so that the audit's decoder is tested against another hand's."""
    digest = hashlib.blake2b("\0".join([sn, *parts]).encode()).digest()
    row = int(sn[-4:]) if row is None else row
    widths = ((17, 8), (row, 24), (actuator, 4), (generation, 32), (attempt, 8))
    bits = "".join(f"{value:0{width}b}" for value, width in widths)
    bits += "".join(f"{byte:08b}" for byte in digest)[:46]
    return str(uuid.UUID(int=int(f"{bits[:48]}1000{bits[48:60]}10{bits[60:]}", 2)))


class Run:
    """Topics and a simulator's dump in the making; `add` appends, `edit` plants."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {role: [] for role in audit.ROLES}
        self.generation: dict[tuple[str, int], int] = {}
        self.outcome_sequence = 0
        self.devices: dict[str, dict[str, Any]] = {}
        self.queries: dict[str, list[dict[str, Any]]] = {}  # of the dump
        for sn in DEVICES:
            self.install(sn)

    def install(self, sn: str) -> None:
        """A device at GoodWe's, as it leaves the factory."""
        settings = dict(zip(EXPORT, (0, 100) if sn == PERCENT else NO_LIMIT, strict=True)) | {ACTIVE[0]: 1000}
        if sn != PERCENT:
            settings |= dict(zip(EMS, AUTO, strict=True)) | {REACTIVE[0]: 100}
        self.devices[sn] = {
            "settings": dict(settings), "default_settings": settings, "online": True, "listed": True,
            "authorized": [[T0 - 1000, None]], "owner_changes": [], "commands": [],
        }  # fmt: skip

    def registered(self, sn: str, at: float = -500, **more: Any) -> None:
        self.add("registry", sn, {"sn": sn, "site": f"s-{sn[-1]}"} | more, at)

    def turn(self, switch: str, on: bool, at: float, event: str | None = None) -> Record:
        """A switch, or an abort, as it stands in the event inbox."""
        body = {"switch": switch, "on": on, "event": event, "at": T0 + at, "by": "somebody", "reason": "a test"}
        return self.add("event_inbox", switch, b"switch\n" + msgspec.msgpack.encode(body), at)

    def event(self, event: str, start: float, end: float, controls: list[dict[str, Any]], **more: Any) -> None:
        """A dispatch for all, accepted ten seconds before its start, and started."""
        fields = {"start_at": rfc3339(T0 + start), "end_at": rfc3339(T0 + end), "targets": {"all": True}} | more
        self.signal(event, 1, start - 11, controls=controls, **fields)
        self.response(event, 1, 1, start - 10)
        self.response(event, 1, 2, start)

    def close(
        self, event: str, at: float, rows: list[dict[str, Any]], code: int, due: int, *why: str, **more: Any
    ) -> None:
        """Outcomes, final report and final response, a second apart."""
        rows = [{**row, "response_code": 3 if row["response_code"] == 2 else row["response_code"]} for row in rows]
        self.outcomes(rows, at)
        self.report(event, 1, 9, at + 1, rows, final=True, due=due, **more)
        self.response(event, 1, code, at + 2, why)

    def add(
        self,
        role: str,
        key: str,
        body: Any,
        at: float,
        headers: dict[str, str] | None = None,
        offset: int | None = None,
    ) -> Record:
        record = Record(
            role=role,
            topic=role,
            partition=0,
            offset=len(self.records[role]) if offset is None else offset,
            at=T0 + at,
            key=key.encode(),
            value=None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
            headers=tuple((name, value.encode()) for name, value in (headers or {}).items()),
        )
        self.records[role].append(record)
        return record

    def ours(self, role: str, name: str, key: str, ce_id: str, body: Any, at: float) -> Record:
        return self.add(
            role, key, body, at,
            {
                "ce_specversion": "1.0", "ce_id": ce_id, "ce_source": "vpp-dispatch",
                "ce_type": f"vpp.dispatch.{name}.v1", "ce_time": rfc3339(T0 + at), "ce_subject": key,
                "content-type": "application/json",
            },
        )  # fmt: skip

    def signal(self, event: str, revision: int, at: float, action: str = "dispatch", **more: Any) -> Record:
        body = {
            "event_id": event, "source": "gridco", "revision": revision, "action": action,
            "created_at": rfc3339(T0 + at), "expires_at": rfc3339(T0 + 900),
        } | more  # fmt: skip
        return self.add("signals", event, body, at)

    def response(self, event: str, revision: int, code: int, at: float, reasons: tuple[str, ...] = ()) -> Record:
        body = {
            "event_id": event, "source": "gridco", "revision": revision, "code": code,
            "status": STATUS.get(code, "invalid"), "at": rfc3339(T0 + at), "reasons": list(reasons),
        }  # fmt: skip
        return self.ours("responses", "response", event, f"gridco/{event}/{revision}/{code}", body, at)

    def report(
        self,
        event: str,
        revision: int,
        sequence: int,
        at: float,
        rows: list[dict[str, Any]],
        *,
        final: bool,
        due: int,
        requested: int | None = None,
        watts: bool = True,
    ) -> Record:
        worst: dict[str, dict[str, Any]] = {}
        for row in rows:
            best_first = WORST_LAST.index(row["state"])
            if row["sn"] not in worst or best_first > WORST_LAST.index(worst[row["sn"]]["state"]):
                worst[row["sn"]] = row
        devices = {state: sum(row["state"] == state for row in worst.values()) for state in audit.STATES}
        reasons: dict[str, int] = {}
        for row in worst.values():
            if row["state"] in ("skipped", "rejected"):
                word = f"{row['state']}.{row['reason']}"
                reasons[word] = reasons.get(word, 0) + 1
        power = sum(row.get("setpoint_w") or 0 for row in rows if row["state"] in ("applied", "verified"))
        shared = sum(row.get("setpoint_w") or 0 for row in rows)
        asked = shared if requested is None else requested
        none = {"p50": None, "p95": None, "max": None}
        body = {
            "event_id": event, "source": "gridco", "revision": revision, "sequence": sequence,
            "state": "closed" if final else "active", "final": final, "at": rfc3339(T0 + at),
            "devices": {"targeted": len(worst), **devices}, "reasons": reasons,
            "release": {"due": due, "confirmed": due, "pending": 0, "refused": 0},
            "power_w": {
                "requested": asked, "allocated": shared, "acknowledged": power, "measured": None,
                "shortfall": asked - shared,
            },
            "commands": {"published": len(rows), "retried": 0, "duplicate_results": 0, "late_results": 0},
            "latency_s": {"publish": none, "result": none},
            "shards": {"expected": 64, "reported": 64, "missing": []},
        }  # fmt: skip
        if not watts:
            body["power_w"] = dict.fromkeys(("requested", "allocated", "acknowledged", "measured", "shortfall"))
        return self.ours("reports", "report", f"gridco/{event}", f"gridco/{event}/{sequence}", body, at)

    def outcomes(self, rows: list[dict[str, Any]], at: float) -> Record:
        self.outcome_sequence += 1
        body = {"shard": 17, "sequence": self.outcome_sequence, "at": rfc3339(T0 + at), "outcomes": rows}
        return self.ours("outcomes", "outcomes", "17", f"17/{self.outcome_sequence}", body, at)

    def row(
        self,
        event: str,
        sn: str,
        kind: str,
        state: str,
        command: str | None = None,
        watts: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        sent = command is not None
        value = {"setpoint_percent", "cos_phi"} & more.keys()
        return ({} if value else {"setpoint_w": watts}) | {
            "sn": sn, "event_id": event, "source": "gridco", "revision": 1, "kind": kind,
            "state": state, "reason": None, "response_code": RESPONSE_CODE.get(state, 8), "correlation_id": command,
            "attempt": 1 if sent else None, "published_at": rfc3339(T0 + 1) if sent else None,
            "result_at": rfc3339(T0 + 2) if sent else None, "corrects": None,
        } | more  # fmt: skip

    def command(
        self,
        sn: str,
        names: tuple[str, ...],
        values: tuple[int, ...],
        at: float,
        code: str = "0",
        answered: bool = True,
        again: tuple[int, int] | None = None,
    ) -> str:
        """A set command, its execution half a second later, and its result after one second.

        `again`: generation and attempt of one that is sent once more; absent = a new generation.
        """
        actuator = ACTUATOR[names]
        newest = self.generation.get((sn, actuator), 0)
        generation, attempt = again or (newest + 1, 1)
        self.generation[sn, actuator] = max(newest, generation)
        parameters = [{"name": name, "value": value} for name, value in zip(names, values, strict=True)]
        parts = [f"{p['name']}={p['value']}" for p in parameters]
        correlation_id = id_of(sn, actuator, generation, attempt, parts)
        role = "single" if len(names) == 1 else "multi"
        body = {"requestId": correlation_id, "sn": sn, "timestamp": int(1000 * (T0 + at))}
        body |= {"parameter": parameters[0]} if role == "single" else {"parameters": parameters}
        self.add(f"{role}_request", sn, body, at)
        if sn in self.devices:
            if code == "0" and generation > newest:
                self.devices[sn]["settings"].update(zip(names, values, strict=True))
            done = self.executed(sn, correlation_id, role, parameters, code)
            done["results"] = [self.answer(code, at + 1)] if answered else []
            self.devices[sn]["commands"].append(done)
        if answered:
            self.result(role, sn, correlation_id, code, [{**p, "code": code} for p in parameters], at + 1)
        return correlation_id

    def result(self, role: str, sn: str, correlation_id: str, code: str, told: list[Any], at: float) -> Record:
        body = {"requestId": correlation_id, "sn": sn, "code": code, "message": CODES[code], "parameters": told}
        return self.add(f"{role}_result", sn, body, at)

    @staticmethod
    def answer(code: str, at: float) -> dict[str, Any]:
        """A result in the simulator's account."""
        return {"stage": "applied", "code": code, "due_at": T0 + at - 0.01, "published_at": T0 + at + 0.01}

    @staticmethod
    def executed(sn: str, correlation_id: str, role: str, parameters: list[Any], code: str) -> dict[str, Any]:
        return {
            "correlation_id": correlation_id, "sn": sn, "role": role, "parameters": parameters, "executed": code == "0",
            "code": code, "results": [],
        }  # fmt: skip

    def read(self, sn: str, names: tuple[str, ...], values: tuple[int, ...], at: float) -> str:
        """A query and, after one second, the values read."""
        actuator = ACTUATOR[names] + 8
        counter = self.generation[sn, actuator] = self.generation.get((sn, actuator), 0) + 1
        correlation_id = id_of(sn, actuator, counter, 1, names)
        body = {"requestId": correlation_id, "sn": sn, "parameters": list(names), "timestamp": int(1000 * (T0 + at))}
        self.add("query_request", sn, body, at)
        told = [{"name": name, "value": value, "code": "0"} for name, value in zip(names, values, strict=True)]
        self.result("query", sn, correlation_id, "0", told, at + 1)
        done = self.executed(sn, correlation_id, "query", [{"name": name} for name in names], "0")
        self.queries.setdefault(sn, []).append({**done, "results": [self.answer("0", at + 1)]})
        return correlation_id

    def release(self, sn: str, names: tuple[str, ...], values: tuple[int, ...], at: float) -> str:
        """A release, answered, then read back; returns the query's id."""
        self.command(sn, names, values, at)
        return self.read(sn, names, values, at + 1.5)

    # -- planting

    def index(self, role: str, match: Callable[[dict[str, Any]], bool]) -> int:
        found = [i for i, record in enumerate(self.records[role]) if match(json.loads(record.value or b"null") or {})]
        assert found, f"nothing in {role} to plant on"
        return found[0]

    def edit(
        self, role: str, match: Callable[[dict[str, Any]], bool], change: Callable[[dict[str, Any]], object]
    ) -> Record:
        """Changes the body of the first record that matches."""
        index = self.index(role, match)
        body = json.loads(self.records[role][index].value or b"")
        change(body)
        self.records[role][index] = changed = replace(self.records[role][index], value=json.dumps(body).encode())
        return changed

    def move(self, role: str, match: Callable[[dict[str, Any]], bool], at: float) -> Record:
        """Changes the append time of the first record that matches."""
        index = self.index(role, match)
        self.records[role][index] = moved = replace(self.records[role][index], at=T0 + at)
        return moved

    def drop(self, role: str, match: Callable[[dict[str, Any]], bool]) -> Record:
        return self.records[role].pop(self.index(role, match))

    def evidence(self) -> Evidence:
        devices = {
            sn: {**device, "commands": [*device["commands"], *self.queries.get(sn, [])]}
            for sn, device in self.devices.items()
        }
        dump = {"pending": 0, "unreadable": [], "unknown_sns": {}, "devices": devices}
        return Evidence(records=self.records, dumps=(dump,), schemas=audit.read_schemas(), at=T0 + 600)

    def rules(self, limits: Limits, wire: Wire | None = None) -> set[Rule]:
        return {violation.rule for violation in audit.audit(self.evidence(), limits, wire)}


def event_is(event: str, **more: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body.get("event_id") == event and all(body.get(name) == value for name, value in more.items())


def sequence_is(sequence: int) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body["sequence"] == sequence


def told(sn: str, *values: int) -> Callable[[dict[str, Any]], bool]:
    def match(body: dict[str, Any]) -> bool:
        parameters = [body["parameter"]] if "parameter" in body else body["parameters"]
        return bool(body["sn"] == sn and [p.get("value") for p in parameters] == list(values))

    return match


def of(sn: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body["sn"] == sn
