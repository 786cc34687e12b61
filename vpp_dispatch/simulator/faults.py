"""What goes wrong, and when: rates drawn per command from the seed, and rules that pick chosen commands.

A draw is a function of (seed, correlation id, how often that id was answered before): a run with the same seed and the
same commands meets the same faults, in whatever order they arrive. Named sets of faults: `weather`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Final

from vpp_dispatch.simulator.profile import ROLES
from vpp_dispatch.simulator.weather import WEATHERS

KINDS: Final = ("set", "release", "query")
RULES: Final = ("drop", "refuse", "delay_effect", "delay_result", "duplicate", "swallow")
SHAPES: Final = ("uniform", "burst", "trickle")
_RATES: Final = ("loss", "duplicates", "reorder", "reorder_effects", "late", "swallow_rate", "partial")
_SCALE: Final = 1 / 2**32
_NORMAL: Final = NormalDist()
_SIGMA: Final = 0.8  # of the log-normal tail of `trickle`
_AT_MOST: Final = _NORMAL.inv_cdf(0.99)  # where `trickle` reaches the most seconds
_LONGEST: Final = 3.0  # times the most seconds


class FaultError(ValueError):
    """A description of faults that cannot be used."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Uniform numbers in [0, 1), one per question, for one answer to one command."""

    latency: float
    loss: float
    duplicate: float
    reorder: float
    reorder_effect: float
    refusal: float
    swallow: float
    partial: float


def draw(seed: int, correlation_id: str, answer: int) -> Draws:
    """The draws of the `answer`-th answer (0 = first) to a command."""
    digest = hashlib.blake2b(f"{seed}\0{correlation_id}\0{answer}".encode(), digest_size=32).digest()
    return Draws(*(number * _SCALE for number in struct.unpack("<8I", digest)))


def draw_late(seed: int, correlation_id: str, answer: int) -> float:
    """The draw of lateness, in [0, 1); apart, so that it moves none of the others."""
    digest = hashlib.blake2b(f"{seed}\0{correlation_id}\0{answer}".encode(), digest_size=4, person=b"late").digest()
    return float(int.from_bytes(digest, "little") * _SCALE)


@dataclass(slots=True, kw_only=True)
class Rule:
    """Picks commands. What is None matches anything; `count` is how often it still applies, None = always.

    Attributes:
        action: of `RULES`. `drop` loses a result, `swallow` the command itself (neither executed nor answered).
        kind: `set`, `release` (gives the device back) or `query`.
        parameter: the command names this parameter.
        stage: only results of this stage (`accepted`, `applied`); for `drop` and `duplicate`.
        code: GoodWe's code, for `refuse`.
        seconds: for the delays.
        per_sn: count for each SN on its own.
    """

    action: str
    sns: frozenset[str] | None = None
    kind: str | None = None
    role: str | None = None
    parameter: str | None = None
    stage: str | None = None
    count: int | None = 1
    per_sn: bool = False
    code: str = ""
    seconds: float = 0.0
    used: int = 0
    _used_by_sn: dict[str, int] = field(default_factory=dict)

    def take(self, *, sn: str, role: str, kind: str, names: tuple[str, ...], stage: str | None) -> bool:
        """True if it matches and is not used up; uses it once."""
        if (
            (self.sns is not None and sn not in self.sns)
            or (self.kind is not None and self.kind != kind)
            or (self.role is not None and self.role != role)
            or (self.parameter is not None and self.parameter not in names)
            or (self.stage is not None and self.stage != stage)
        ):
            return False
        used = self._used_by_sn.get(sn, 0) if self.per_sn else self.used
        if self.count is not None and used >= self.count:
            return False
        self.used += 1
        if self.per_sn:
            self._used_by_sn[sn] = used + 1
        return True

    def shown(self) -> dict[str, Any]:
        """For people and for the dump."""
        return {
            "sns": None if self.sns is None else sorted(self.sns),
            **{
                name: getattr(self, name)
                for name in ("kind", "role", "parameter", "stage", "count", "per_sn", "code", "seconds", "used")
            },
        }


def parse_rule(action: str, data: Mapping[str, Any]) -> Rule:
    """A rule from JSON; `sn` or `sns`, the other fields as in `Rule`.

    Raises:
        FaultError: an unknown field or an impossible value.
    """
    known = {"sn", "sns", "kind", "role", "parameter", "stage", "count", "per_sn", "code", "seconds"}
    if unknown := set(data) - known:
        raise FaultError(f"{action}: unknown {sorted(unknown)}; known are {sorted(known)}")
    sns = data.get("sns", [data["sn"]] if "sn" in data else None)
    kind, role, count = data.get("kind"), data.get("role"), data.get("count", 1)
    if (
        kind not in (None, *KINDS)
        or role not in (None, *ROLES)
        or not (count is None or (type(count) is int and count > 0))
    ):
        raise FaultError(
            f"{action}: kind is one of {KINDS}, role of {ROLES}, count an integer above 0 or null: {dict(data)}"
        )
    if action == "refuse" and not data.get("code"):
        raise FaultError("refuse: which code?")
    return Rule(
        action=action,
        sns=None if sns is None else frozenset(sns),
        kind=kind,
        role=role,
        parameter=data.get("parameter"),
        stage=data.get("stage"),
        count=count,
        per_sn=bool(data.get("per_sn", False)),
        code=str(data.get("code", "")),
        seconds=float(data.get("seconds", 0)),
    )


def parse_loss_of(text: str) -> Rule:
    """A `drop` rule from the command line: `[SN][:set|release|query][:single|multi][:COUNT|*]`, parts in any order.

    `release` alone loses the first release's result; `9010KETU000W0001:set:2` the first two of that device's sets.

    Raises:
        FaultError: a part that is none of these.
    """
    data: dict[str, Any] = {}
    for part in text.split(":"):
        if part in KINDS:
            data["kind"] = part
        elif part in ROLES:
            data["role"] = part
        elif part == "*":
            data["count"] = None
        elif part.isdigit() and len(part) < 16:
            data["count"] = int(part)
        elif len(part) == 16 and part.isalnum():
            data["sn"] = part
        else:
            raise FaultError(f"{text!r}: {part!r} is neither an SN nor a kind, a role or a count")
    return parse_rule("drop", data)


@dataclass(slots=True)
class RealTimeFaults:
    """What goes wrong with the HTTPS API. `..._next` counts calls that still meet the fault.

    Attributes:
        rate_limit_per_s: calls per second of all; 0 = no limit. One second's worth may come at once, below 1 one call.
        rate_limit_style: `http` = status 429, `code` = status 200 with GoodWe's code.
        retry_after_s: named with a rate limit; None = not named.
        error_rate, error_next, error_status: HTTP 5xx.
        slow_rate, slow_next, slow_s: pages that take their time.
        list_changes_rate, list_changes_next: pages after the first that come from a list which changed meanwhile (an
            SN is missed).
        token_error: `http` = status 401, `code` = status 200 with GoodWe's code.
        token_expires_next: calls that come just after their token has expired.
        login_refused_next: log-ins that are refused, whatever the password.
        offline_rows: `flag` = rows with `online` false, `sn` = rows with nothing but the SN.
        telemetry_age_s: how old samples are.
    """

    rate_limit_per_s: float = 0.0
    rate_limit_next: int = 0
    rate_limit_style: str = "http"
    retry_after_s: float | None = 1.0
    error_rate: float = 0.0
    error_next: int = 0
    error_status: int = 503
    slow_rate: float = 0.0
    slow_next: int = 0
    slow_s: float = 2.0
    list_changes_rate: float = 0.0
    list_changes_next: int = 0
    token_error: str = "http"
    token_expires_next: int = 0
    login_refused_next: int = 0
    token_ttl_s: float = 3600.0
    offline_rows: str = "flag"
    telemetry_age_s: float = 0.0


class Faults:
    """All that goes wrong now. Everything can be changed while the simulator runs.

    Attributes:
        latency_s: least and most time from a command to its result; it takes effect half way.
        latency_shape: how the time is spread between them. `uniform`; `burst` = three of four within a tenth of it;
            `trickle` = log-normal: half within a sixth of it, one of a hundred above the most, none above three times.
        out_of_step_s: extra time before the effect, by topic role; so a query can overtake a set.
        loss, duplicates: share of results that are lost, or sent twice.
        reorder: share of results held back by `reorder_s`, so that later ones overtake them.
        late: share of results held back by `late_s`, which should be more than the service waits.
        reorder_effects: the same for the effect on the device.
        swallow_rate: share of commands that are lost before they reach the device.
        partial: share of multi-parameter commands whose last parameter fails.
        refusals: GoodWe's code -> share of commands answered with it.
        offline_silent: an offline device's commands are not answered at all.
        after_withdrawal: what a device may be sent after its consent was withdrawn: `release` = commands that give it
            back, and queries; `refuse` = nothing.
        results_per_command: 1, or 2 (accepted, then applied).
    """

    def __init__(self, *, seed: int, results_per_command: int = 1) -> None:
        self.seed = seed
        self._results_per_command = results_per_command
        self.rules: list[Rule] = []
        self.realtime = RealTimeFaults()
        self.reset()

    def reset(self) -> None:
        """Everything as at the start of a simulator without options: nothing goes wrong."""
        self.latency_s = (0.02, 0.2)
        self.latency_shape = "uniform"
        self.out_of_step_s = dict.fromkeys(ROLES, 0.0)
        self.loss = self.duplicates = self.reorder = self.reorder_effects = self.swallow_rate = self.partial = 0.0
        self.reorder_s: float | None = None
        self.late = 0.0
        self.late_s = 330.0
        self.refusals: dict[str, float] = {}
        self.offline_silent = False
        self.after_withdrawal = "release"
        self.results_per_command = self._results_per_command
        self.rules.clear()
        self.realtime = RealTimeFaults()

    def set_weather(self, name: str, *, codes: Mapping[str, str]) -> None:
        """One of WEATHERS in place of everything that goes wrong now; `codes`: GoodWe's code by meaning.

        Raises:
            FaultError: there is no such weather.
        """
        if name not in WEATHERS:
            raise FaultError(f"there is no weather {name!r}: {', '.join(WEATHERS)}")
        faults = dict(WEATHERS[name].faults)
        named = faults.pop("refusals", {})
        # A contract that lacks a code for it has no such refusal.
        faults["refusals"] = {codes[meaning]: share for meaning, share in named.items() if meaning in codes}
        self.reset()
        self.change(faults)

    def latency(self, draws: Draws) -> float:
        """Seconds from a command to its result."""
        least, most = self.latency_s
        part = draws.latency
        if self.latency_shape == "burst":
            part = part**8
        elif self.latency_shape == "trickle":
            part = min(math.exp(_SIGMA * (_NORMAL.inv_cdf(max(part, _SCALE)) - _AT_MOST)), _LONGEST)
        return least + part * (most - least)

    def is_late(self, correlation_id: str, answer: int) -> bool:
        """Whether the `answer`-th answer to a command is held back by `late_s`."""
        return self.late > 0 and draw_late(self.seed, correlation_id, answer) < self.late

    @property
    def held_back_s(self) -> float:
        """How long a reordered result or effect is held back, s."""
        return self.reorder_s if self.reorder_s is not None else max(0.5, 2 * self.latency_s[1])

    def rule(
        self, action: str, *, sn: str, role: str, kind: str, names: tuple[str, ...], stage: str | None = None
    ) -> Rule | None:
        """The first rule of an action that matches; it is used once by asking."""
        for rule in self.rules:
            if rule.action == action and rule.take(sn=sn, role=role, kind=kind, names=names, stage=stage):
                return rule
        return None

    def refusal(self, draws: Draws) -> str | None:
        """GoodWe's code that a command is refused with, or None."""
        left = draws.refusal
        for code, share in self.refusals.items():
            if left < share:
                return code
            left -= share
        return None

    def change(self, data: Mapping[str, Any]) -> None:
        """Apply a JSON object: rates and switches by name, rules as lists by action, `clear_rules`, `realtime`.

        Raises:
            FaultError: an unknown name or an impossible value; nothing is changed then.
        """
        rules = [parse_rule(action, rule) for action in RULES for rule in _listed(data.get(action, []))]
        simple = {key: value for key, value in data.items() if key not in (*RULES, "clear_rules", "realtime")}
        checked = {name: _checked(name, value) for name, value in simple.items()}
        realtime = dict(data.get("realtime", {}))
        for name, value in realtime.items():
            if name not in RealTimeFaults.__dataclass_fields__:
                raise FaultError(f"realtime: unknown {name}; known are {sorted(RealTimeFaults.__dataclass_fields__)}")
            expected = getattr(RealTimeFaults(), name)
            if not (
                isinstance(value, str)
                if isinstance(expected, str)
                else _is_number(value) or (name == "retry_after_s" and value is None)
            ):
                raise FaultError(f"realtime: {name} cannot be {value!r}")
        if data.get("clear_rules"):
            self.rules.clear()
        self.rules.extend(rules)
        for name, value in checked.items():
            if name == "out_of_step_s":
                self.out_of_step_s.update(value)
            else:
                setattr(self, name, value)
        for name, value in realtime.items():
            setattr(self.realtime, name, value)

    def shown(self) -> dict[str, Any]:
        """Everything as `change` would take it, for people and for the dump."""
        names = (*_RATES, "latency_s", "latency_shape", "reorder_s", "late_s", "out_of_step_s", "refusals")
        switches = ("offline_silent", "after_withdrawal", "results_per_command")
        return {
            **{name: getattr(self, name) for name in (*names, *switches)},
            **{action: [rule.shown() for rule in self.rules if rule.action == action] for action in RULES},
            "realtime": {name: getattr(self.realtime, name) for name in RealTimeFaults.__dataclass_fields__},
        }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _listed(rules: Any) -> list[Mapping[str, Any]]:
    listed = rules if isinstance(rules, list) else [rules]
    if not all(isinstance(rule, Mapping) for rule in listed):
        raise FaultError(f"a rule is an object, not {rules!r}")
    return listed


def _checked(name: str, value: Any) -> Any:
    if name in _RATES and _is_number(value) and value <= 1:
        return float(value)
    if (
        name == "latency_s"
        and isinstance(value, list | tuple)
        and len(value) == 2
        and all(map(_is_number, value))
        and value[0] <= value[1]
    ):
        return (float(value[0]), float(value[1]))
    if name == "latency_shape" and value in SHAPES:
        return value
    if name == "late_s" and _is_number(value):
        return float(value)
    if name == "reorder_s" and (value is None or _is_number(value)):
        return value
    if (
        name == "out_of_step_s"
        and isinstance(value, Mapping)
        and all(role in ROLES and _is_number(s) for role, s in value.items())
    ):
        return {role: float(seconds) for role, seconds in value.items()}
    if (
        name == "refusals"
        and isinstance(value, Mapping)
        and all(_is_number(s) for s in value.values())
        and sum(value.values()) <= 1
    ):
        return {str(code): float(share) for code, share in value.items()}
    if name == "offline_silent" and isinstance(value, bool):
        return value
    if name == "after_withdrawal" and value in ("release", "refuse"):
        return value
    if name == "results_per_command" and value in (1, 2):
        return value
    raise FaultError(f"unknown or impossible: {name} = {value!r}")
