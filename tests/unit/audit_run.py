"""Topics and a simulator's dump made by hand, for tests of the audit: right as they come, wrong where it is planted."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests import audit
from tests.audit import Evidence, Limits, Record, Rule, Wire

T0 = 1_800_000_000.0
HYBRIDS = tuple(f"9010KETU000W000{n}" for n in range(1, 5))
PERCENT = "9012KDTU000W0005"  # PV only; its export limit is in percent of 12 kW
DEVICES = (*HYBRIDS, PERCENT)
OUTSIDER = "9010KETU000W0009"  # named by a signal, never registered
EMS, EXPORT = ("EMS Power Mode", "EMS Power Set"), ("Export Limit Enable", "Export Power Limit")
ACTUATOR = {EMS: 1, EXPORT: 2}
AUTO, NO_LIMIT = (1, 0), (0, 10000)
CODES = {"0": "success", "1001": "offline", "1099": "failed"}
STATUS = {
    1: "received", 2: "started", 3: "completed", 6: "cancelled", 8: "completed_partially", 10: "no_participation",
    252: "not_applicable", 254: "expired",
}  # fmt: skip


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def id_of(sn: str, actuator: int, generation: int, attempt: int, parts: Iterable[str], row: int | None = None) -> str:
    """A third encoder of correlation ids, so that the audit's decoder is tested against another hand's."""
    digest = hashlib.blake2b("\0".join([sn, *parts]).encode()).digest()
    row = int(sn[-1]) if row is None else row
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
        for sn in DEVICES:
            settings = dict(zip(EXPORT, (0, 100) if sn == PERCENT else NO_LIMIT, strict=True))
            if sn != PERCENT:
                settings |= dict(zip(EMS, AUTO, strict=True))
            self.devices[sn] = {
                "settings": dict(settings), "default_settings": settings, "online": True, "listed": True,
                "authorized": [[T0 - 1000, None]], "owner_changes": [], "commands": [],
            }  # fmt: skip

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
    ) -> Record:
        devices = {state: sum(row["state"] == state for row in rows) for state in audit.STATES}
        reasons: dict[str, int] = {}
        for row in rows:
            if row["state"] in ("skipped", "rejected"):
                word = f"{row['state']}.{row['reason']}"
                reasons[word] = reasons.get(word, 0) + 1
        power = sum(row["setpoint_w"] or 0 for row in rows if row["state"] in ("applied", "verified"))
        shared = sum(row["setpoint_w"] or 0 for row in rows)
        asked = shared if requested is None else requested
        none = {"p50": None, "p95": None, "max": None}
        body = {
            "event_id": event, "source": "gridco", "revision": revision, "sequence": sequence,
            "state": "closed" if final else "active", "final": final, "at": rfc3339(T0 + at),
            "devices": {"targeted": len(rows), **devices}, "reasons": reasons,
            "release": {"due": due, "confirmed": due, "pending": 0, "refused": 0},
            "power_w": {
                "requested": asked, "allocated": shared, "acknowledged": power, "measured": None,
                "shortfall": asked - shared,
            },
            "commands": {"published": len(rows), "retried": 0, "duplicate_results": 0, "late_results": 0},
            "latency_s": {"publish": none, "result": none},
            "shards": {"expected": 64, "reported": 64, "missing": []},
        }  # fmt: skip
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
        return {
            "sn": sn, "event_id": event, "source": "gridco", "revision": 1, "kind": kind, "setpoint_w": watts,
            "state": state, "reason": None, "response_code": 2 if state == "applied" else 10, "correlation_id": command,
            "attempt": 1 if sent else None, "published_at": rfc3339(T0 + 1) if sent else None,
            "result_at": rfc3339(T0 + 2) if sent else None, "corrects": None,
        } | more  # fmt: skip

    def command(
        self,
        sn: str,
        names: tuple[str, str],
        values: tuple[int, int],
        at: float,
        code: str = "0",
        answered: bool = True,
    ) -> str:
        """A set command, its execution half a second later, and its result after one second."""
        actuator = ACTUATOR[names]
        generation = self.generation[sn, actuator] = self.generation.get((sn, actuator), 0) + 1
        parameters = [{"name": name, "value": value} for name, value in zip(names, values, strict=True)]
        parts = [f"{p['name']}={p['value']}" for p in parameters]
        correlation_id = id_of(sn, actuator, generation, 1, parts)
        body = {"requestId": correlation_id, "sn": sn, "parameters": parameters, "timestamp": int(1000 * (T0 + at))}
        self.add("multi_request", sn, body, at)
        if sn in self.devices:
            if code == "0":
                self.devices[sn]["settings"].update(zip(names, values, strict=True))
            self.devices[sn]["commands"].append(self.executed(sn, correlation_id, "multi", parameters, code))
        if answered:
            values_told = [{**p, "code": code} for p in parameters]
            result = {
                "requestId": correlation_id,
                "sn": sn,
                "code": code,
                "message": CODES[code],
                "parameters": values_told,
            }
            self.add("multi_result", sn, result, at + 1)
        return correlation_id

    @staticmethod
    def executed(sn: str, correlation_id: str, role: str, parameters: list[Any], code: str) -> dict[str, Any]:
        return {
            "correlation_id": correlation_id, "sn": sn, "role": role, "parameters": parameters, "executed": code == "0",
            "code": code, "results": [],
        }  # fmt: skip

    def read(self, sn: str, names: tuple[str, str], values: tuple[int, int], at: float) -> str:
        """A query and, after one second, the values read."""
        actuator = ACTUATOR[names] + 8
        counter = self.generation[sn, actuator] = self.generation.get((sn, actuator), 0) + 1
        correlation_id = id_of(sn, actuator, counter, 1, names)
        body = {"requestId": correlation_id, "sn": sn, "parameters": list(names), "timestamp": int(1000 * (T0 + at))}
        self.add("query_request", sn, body, at)
        told = [{"name": name, "value": value, "code": "0"} for name, value in zip(names, values, strict=True)]
        result = {"requestId": correlation_id, "sn": sn, "code": "0", "message": "success", "parameters": told}
        self.add("query_result", sn, result, at + 1)
        return correlation_id

    def release(self, sn: str, names: tuple[str, str], values: tuple[int, int], at: float) -> str:
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
        dump = {"pending": 0, "unreadable": [], "unknown_sns": {}, "devices": self.devices}
        return Evidence(records=self.records, dumps=(dump,), schemas=audit.read_schemas(), at=T0 + 600)

    def rules(self, limits: Limits, wire: Wire | None = None) -> set[Rule]:
        return {violation.rule for violation in audit.audit(self.evidence(), limits, wire)}


def event_is(event: str, **more: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body.get("event_id") == event and all(body.get(name) == value for name, value in more.items())


def sequence_is(sequence: int) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body["sequence"] == sequence


def told(sn: str, *values: int) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body["sn"] == sn and [p.get("value") for p in body["parameters"]] == list(values)


def of(sn: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: body["sn"] == sn
