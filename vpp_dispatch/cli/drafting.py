"""A dispatch signal from options and a JSON file: put together, completed, checked, and said in words."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from vpp_dispatch.cli.base import Refused
from vpp_dispatch.cli.controls import merged, named_in_tables, unique

if TYPE_CHECKING:
    from vpp_dispatch.domain.signal import Control, Signal

OPEN_ENDED_EXPIRES_S = 3600
"""An event without an end is not begun later than so long after its start."""


def read_body(file: IO[bytes]) -> dict[str, Any]:
    """The JSON object in a file. Raises Refused."""

    named = getattr(file, "name", "<stdin>")
    name = "Standard input" if named == "<stdin>" else named
    try:
        body = json.loads(file.read().decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name} is no JSON in UTF-8 ({error}): correct the file.") from None
    if not isinstance(body, dict):
        raise Refused(f"{name} holds no JSON object: write the signal as one object.")
    return body


def put_options(body: dict[str, Any], given: Mapping[str, Any], now: float) -> None:
    """Puts the options that are given, by their names, over what stands in `body`; `now` in epoch seconds.

    Raises Refused where they contradict each other.
    """
    from vpp_dispatch.operators.envelope import rfc3339

    ends = [name for name, there in (("--end", given["end"]), ("--for", given["lasts_s"])) if there is not None]
    ends += ["--open-ended"] if given["open_ended"] else []
    if len(ends) > 1:
        raise Refused(f"{' and '.join(ends)} contradict each other: keep one.")
    if given["controls"]:
        body["controls"] = merged(given["controls"])
    if targets := targets_of(given) or ("targets" not in body and named_in_tables(body.get("controls"))):
        body["targets"] = targets
    for name in ("start", "end"):
        if given[name] is not None:
            body[f"{name}_at"] = rfc3339(given[name])
    if ends:
        for name in ("end_at", "open_ended"):
            if not (name == "end_at" and given["end"] is not None):
                body.pop(name, None)
    if given["lasts_s"] is not None:
        body["end_at"] = rfc3339(_start_of(body, now) + given["lasts_s"])
    if given["open_ended"]:
        body["open_ended"] = True
    for option, name in (("ramp_up", "ramp_up_s"), ("ramp_down", "ramp_down_s")):
        if given[option] is not None:
            body[name] = int(given[option])
    if given["expires"] is not None:
        body["expires_at"] = rfc3339(given["expires"])
    for name in ("priority", "event_id", "revision", "source"):
        if given[name] is not None:
            body[name] = given[name]
    if given["test"]:
        body["test"] = True


def targets_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The targets that options name; empty = none."""
    targets: dict[str, Any] = {n: list(given[n]) for n in ("devices", "sites", "groups", "areas") if given[n]}
    return targets | ({"all": True} if given["everyone"] else {})


def _start_of(body: Mapping[str, Any], now: float) -> float:
    from vpp_dispatch.operators.wire import epoch_seconds

    if "start_at" not in body:
        return now
    try:
        return epoch_seconds(body["start_at"])
    except ValueError as error:
        raise Refused(f"start_at {error}.") from None


def fill_in(body: dict[str, Any], source: str, now: float) -> None:
    """Fills in what is absent and can be known; `now` in epoch seconds. Raises Refused."""
    from vpp_dispatch.operators.envelope import rfc3339

    controls = body.get("controls")
    first = controls[0] if isinstance(controls, list) and controls else None
    body.setdefault("action", "dispatch")
    kind = str(first["kind"]) if isinstance(first, dict) and first.get("kind") else str(body["action"])
    body.setdefault("source", source)
    stamp = time.strftime("%m%d-%H%M%S", time.gmtime(now))
    body.setdefault("event_id", f"{kind[:32].replace('_', '-')}-{stamp}-{secrets.token_hex(2)}")
    body.setdefault("revision", 1)
    body.setdefault("created_at", rfc3339(now))
    if "expires_at" not in body:
        body["expires_at"] = body.get("end_at") or rfc3339(_start_of(body, now) + OPEN_ENDED_EXPIRES_S)


def encoded(body: Mapping[str, Any]) -> bytes:
    """The bytes of a signal. Raises Refused."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused("Nothing was sent, since a text in it is not Unicode: write it in UTF-8.") from None


def checked(value: bytes) -> Signal:
    """The signal as the service would read it. Raises Refused where it would refuse it."""
    from vpp_dispatch.domain.answer import Refusal
    from vpp_dispatch.operators.messages import decode_signal

    decoded = decode_signal(value)
    if isinstance(decoded, Refusal):
        raise Refused(f"Nothing was sent, since the service would refuse it ({decoded.reason}): {decoded.detail}")
    return decoded


def not_too_late(decoded: Signal, now: float) -> None:
    """Raises Refused where the service would answer 254 at once (R3, R4); `now` in epoch seconds."""
    from vpp_dispatch.operators.envelope import rfc3339

    for name, at in (("end_at", decoded.end_at), ("expires_at", decoded.expires_at)):
        if at is not None and at <= now:
            raise Refused(
                f"Nothing was sent, since its {name} ({rfc3339(at)}) is over and the service would refuse it (254): "
                "give a later one."
            )


def described(decoded: Signal) -> str:
    """A signal in words: what, of whom, when."""
    from vpp_dispatch.operators.envelope import rfc3339

    why = f" ({decoded.reason})" if decoded.reason else ""
    if decoded.action == "cancel":
        return f"cancel{why}"
    parts = [", ".join(_control(c) for c in decoded.controls) or str(decoded.action)]
    if (t := decoded.targets) is not None:
        named: Sequence[tuple[str, tuple[str, ...]]] = (
            ("inverter", t.devices), ("site", t.sites), ("group", t.groups), ("area", t.areas),
        )  # fmt: skip
        words = [
            f"{word} {', '.join(names)}" if len(names) < 4 else f"{len(names)} {word}s"
            for word, names in named
            if names
        ]
        parts.append("all inverters" if t.all else " and ".join(words))
    if decoded.action == "dispatch":
        start = rfc3339(decoded.start_at) if decoded.start_at is not None else "now"
        parts.append(f"{start} to {rfc3339(decoded.end_at) if decoded.end_at is not None else 'its cancellation'}")
        parts.append(f"priority {decoded.priority}")
    return ", ".join(parts) + (", a test" if decoded.test else "") + why


def _control(control: Control) -> str:
    words = control.kind.value.replace("_", " ")
    if control.each_w is not None:
        return f"{words} {control.each_w:,} W each"
    if control.total_w is not None:
        return f"{words} {control.total_w:,} W in total"
    if control.each_percent is not None:
        return f"{words} {control.each_percent:g} %"
    if control.cos_phi is not None:
        return f"{words} {control.cos_phi:g} {control.excitation}"
    if control.sites_w or control.devices_w:
        return f"{words} by a table of {len(control.sites_w) + len(control.devices_w):,}"
    return words
