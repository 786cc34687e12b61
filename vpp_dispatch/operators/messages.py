"""Bytes and the domain meet here, on the operators' side: signals are decoded, answers are encoded.

`python -m vpp_dispatch.operators.messages --write | --check` makes `schemas/` from the models, or compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from pydantic import ValidationError

from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.answer import STATUS, Identity, OutcomeRow, Quantiles, Refusal, Refused, Report, Response
from vpp_dispatch.domain.signal import Action, Control, Kind, Signal, Targets
from vpp_dispatch.errors import InvariantBroken
from vpp_dispatch.operators.envelope import Message, rfc3339, write_envelope
from vpp_dispatch.operators.signal import ControlV1, SignalV1, TargetsV1
from vpp_dispatch.operators.wire import MAX_COUNT

MAX_BYTES = 1024 * 1024
"""Largest signal."""

MAX_READ_BYTES = 4 * MAX_BYTES
"""A larger body is not even read for its identity."""

MAX_ROWS = 500
"""Outcome rows of one message."""

_DETAIL_CHARS = 500


# ---------------------------------------------------------------------------------------------- signals


def decode_signal(body: bytes | None) -> Signal | Refusal:
    """Decodes one signal (R1, R8); `digest` is equal for any two spellings of the same content. Never raises.

    What needs more than the bytes is not judged here: the topic's source, the clock, the longest event, the grant.
    """
    if body is None:
        return _refusal(Refused.UNDECODABLE, "The body is empty; send the signal as one JSON object.", None)
    if len(body) > MAX_READ_BYTES:
        return _refusal(
            Refused.TOO_LARGE, f"The body has {len(body)} bytes, more than 1 MiB; name groups, not devices.", None
        )
    try:
        content = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return _refusal(Refused.UNDECODABLE, f"The body is not JSON in UTF-8 ({error}); mend its encoder.", None)
    if not isinstance(content, dict):
        return _refusal(Refused.UNDECODABLE, "The body is JSON but no object; send the signal as one object.", None)
    identity = _identity(content)
    if len(body) > MAX_BYTES:
        detail = f"The body has {len(body)} bytes, more than 1 MiB; name groups, not devices."
        return _refusal(Refused.TOO_LARGE, detail, identity)
    try:
        model = SignalV1.model_validate(content)
    except ValidationError as error:
        return _invalid(error, identity)
    except RecursionError:
        return _refusal(Refused.INVALID, "The body is nested too deeply; keep to the schema.", identity)
    return _signal(model)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Readers disagree on which of the two counts; for a setpoint that is not acceptable.
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _refusal(reason: Refused, detail: str, identity: Identity | None) -> Refusal:
    printable = detail.encode(errors="backslashreplace").decode()
    return Refusal(reason=reason, detail=printable[:_DETAIL_CHARS], identity=identity)


def _identity(content: dict[str, Any]) -> Identity | None:
    """Who sent what, read as leniently as an answer needs: only these three fields have to be right."""
    source, event_id, revision = content.get("source"), content.get("event_id"), content.get("revision")
    for name in (source, event_id):
        if not isinstance(name, str) or not 1 <= len(name) <= 64 or not _is_text(name):
            return None
    if isinstance(revision, float) and revision.is_integer():
        revision = int(revision)
    if not isinstance(revision, int) or isinstance(revision, bool) or not 1 <= revision <= MAX_COUNT:
        return None
    return Identity(source=source, event_id=event_id, revision=revision)  # type: ignore[arg-type]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return False
    return True


def _invalid(error: ValidationError, identity: Identity | None) -> Refusal:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the signal"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if unknown:
        detail = f"{where} is not a field of a signal{more}; leave it out, or put it into ext."
        return _refusal(Refused.UNKNOWN_FIELD, detail, identity)
    return _refusal(Refused.INVALID, f"{where}: {first['msg']}{more}; correct it and send a new revision.", identity)


def _signal(model: SignalV1) -> Signal:
    # One order for what has none, so that the digest is of the content and not of its spelling.
    controls = sorted((_control(control) for control in model.controls or ()), key=lambda control: control.actuator)
    values: dict[str, Any] = {
        "event_id": model.event_id,
        "source": model.source,
        "revision": model.revision,
        "action": model.action,
        "created_at": model.created_at,
        "expires_at": model.expires_at,
        "start_at": model.start_at,
        "end_at": model.end_at,
        "open_ended": model.open_ended,
        "priority": model.priority,
        "targets": None if model.targets is None else _targets(model.targets),
        "controls": tuple(controls),
        "ramp_up_s": model.ramp_up_s,
        "ramp_down_s": model.ramp_down_s,
        "names_ramp_down": model.action is Action.CANCEL and "ramp_down_s" in model.model_fields_set,
        "test": model.test,
        "reason": model.reason,
    }
    canonical = msgspec.json.encode(values, order="deterministic")
    return Signal(**values, digest=hashlib.blake2b(canonical, digest_size=16).hexdigest())


def _targets(targets: TargetsV1) -> Targets:
    return Targets(
        all=targets.all,
        devices=tuple(sorted(set(targets.devices))),
        sites=tuple(sorted(set(targets.sites))),
        groups=tuple(sorted(set(targets.groups))),
        areas=tuple(sorted(set(targets.areas))),
    )


def _control(control: ControlV1) -> Control:
    table = control.by_target_w
    return Control(
        kind=control.kind,
        form=control.form,
        each_w=control.each_w,
        sites_w={} if table is None else dict(table.sites),
        devices_w={} if table is None else dict(table.devices),
        total_w=control.total_w,
        each_percent=control.each_percent,
        cos_phi=control.cos_phi,
        excitation=control.excitation,
    )


# ---------------------------------------------------------------------------------------------- answers


def encode_response(response: Response, *, traceparent: str | None = None) -> Message:
    """The bytes of a response, equal for an equal response (R1).

    Raises:
        InvariantBroken: the code is not in STATUS.
    """
    if response.code not in STATUS:
        raise InvariantBroken(f"there is no response code {response.code}")
    key = f"{response.source}/{response.event_id}"
    value = {
        "event_id": response.event_id,
        "source": response.source,
        "revision": response.revision,
        "code": response.code,
        "status": STATUS[response.code],
        "at": rfc3339(response.at),
        "reasons": response.reasons,
    }
    id = f"{key}/{response.revision}/{response.code}"
    headers = write_envelope(name="response", id=id, at=response.at, subject=key, traceparent=traceparent)
    return Message(key=response.event_id.encode(), value=msgspec.json.encode(value), headers=headers)


def encode_report(report: Report, *, traceparent: str | None = None) -> Message:
    """The bytes of a report; `targeted` and `due` are summed here, so that they cannot disagree (R34)."""
    key = f"{report.source}/{report.event_id}"
    states = {state.name.lower(): int(report.devices.get(state, 0)) for state in State}
    release = report.release
    value = {
        "event_id": report.event_id,
        "source": report.source,
        "revision": report.revision,
        "sequence": report.sequence,
        "state": report.state,
        "final": report.final,
        "at": rfc3339(report.at),
        "devices": {"targeted": sum(states.values()), **states},
        "reasons": {word: report.reasons[word] for word in sorted(report.reasons)},
        "release": {
            "due": release.due,
            "confirmed": release.confirmed,
            "pending": release.pending,
            "refused": release.refused,
        },
        "power_w": asdict(report.power_w),
        "commands": asdict(report.commands),
        "latency_s": {"publish": _quantiles(report.publish_latency_s), "result": _quantiles(report.result_latency_s)},
        "shards": asdict(report.shards),
    }
    id = f"{key}/{report.sequence}"
    headers = write_envelope(name="report", id=id, at=report.at, subject=key, traceparent=traceparent)
    return Message(key=key.encode(), value=msgspec.json.encode(value), headers=headers)


def _quantiles(quantiles: Quantiles) -> dict[str, float | None]:
    return {name: None if s is None else round(float(s), 3) for name, s in asdict(quantiles).items()}


_STATE_WORDS = {state: state.name.lower() for state in State}


def encode_outcomes(
    rows: Sequence[OutcomeRow], *, shard: int, sequence: int, at: float, traceparent: str | None = None
) -> Message:
    """The bytes of 1 to 500 outcome rows of one shard; `at` in epoch seconds. About 2 us per row.

    Raises:
        InvariantBroken: no row, or more than 500.
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise InvariantBroken(f"an outcomes message has 1 to {MAX_ROWS} rows, not {len(rows)}")
    times: dict[float | None, str | None] = {None: None}
    value = {
        "shard": shard,
        "sequence": sequence,
        "at": rfc3339(at),
        "outcomes": [_row(row, times) for row in rows],
    }
    headers = write_envelope(
        name="outcomes", id=f"{shard}/{sequence}", at=at, subject=f"shard/{shard}", traceparent=traceparent
    )
    return Message(key=str(shard).encode(), value=msgspec.json.encode(value), headers=headers)


def _row(row: OutcomeRow, times: dict[float | None, str | None]) -> dict[str, Any]:
    # Rows of one batch share their times, so the text of each is made once.
    for moment in (row.published_at, row.result_at):
        if moment not in times:
            assert moment is not None
            times[moment] = rfc3339(moment)
    setpoint: tuple[str, float | None] = ("setpoint_w", row.setpoint_w)
    if row.kind is Kind.POWER_FACTOR:
        setpoint = ("cos_phi", row.cos_phi)
    elif row.kind is Kind.GENERATION_LIMIT and row.setpoint_w is None:
        setpoint = ("setpoint_percent", row.setpoint_percent)
    return {
        "sn": row.sn,
        "event_id": row.event_id,
        "source": row.source,
        "revision": row.revision,
        "kind": row.kind,
        setpoint[0]: setpoint[1],
        "state": _STATE_WORDS[row.state],
        "reason": row.reason.word,
        "response_code": row.response_code,
        "correlation_id": row.correlation_id,
        "attempt": row.attempt,
        "published_at": times[row.published_at],
        "result_at": times[row.result_at],
        "corrects": row.corrects,
    }


if __name__ == "__main__":
    from vpp_dispatch.operators.schemas import main

    raise SystemExit(main())
