"""GoodWe's cloud as a state machine without I/O: requests in, executed commands and results out, time as an argument.

    receive()  a request was read   -> its effect is due half a latency later, per SN and topic in order
    run()      the clock moved on   -> due effects reach the devices, due results are handed out

What a command does is decided when it takes effect, not when it arrives; a query reads the settings of that moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec

from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import Draws, Faults, draw
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.ledger import Answer, Command, Ledger
from vpp_dispatch.simulator.profile import Profile


@dataclass(slots=True)
class Outgoing:
    """A result that is due: `body` is the message but for its timestamp."""

    topic: str
    sn: str
    body: dict[str, Any]
    answer: Answer


class Cloud:
    """The state behind both interfaces."""

    def __init__(
        self, *, profile: Profile, inverters: Inverters, consent: Consent, faults: Faults, started_at: float
    ) -> None:
        self.profile = profile
        self.inverters = inverters
        self.consent = consent
        self.faults = faults
        self.ledger = Ledger()
        self.started_at = started_at
        self._order = count()
        self._effects: list[tuple[float, int, Command, Draws]] = []
        self._results: list[tuple[float, int, Outgoing]] = []
        self._last_effect: dict[tuple[str, str], float] = {}
        self._last_result: dict[tuple[str, str], float] = {}
        self._first: dict[str, Command] = {}
        self._times_seen: dict[str, int] = {}

    # -- requests

    def receive(
        self, *, role: str, value: bytes | None, topic: str, partition: int, offset: int, arrival_at: float, now: float
    ) -> None:
        """A request was read from the topic of `role` (`single`, `multi`, `query`); times in epoch seconds."""
        parsed = self._parse(role, value)
        if isinstance(parsed, str):
            self.ledger.add_unreadable(topic=topic, partition=partition, offset=offset, reason=parsed)
            return
        correlation_id, sn, items = parsed
        names = tuple(name for name, _ in items)
        row = self.inverters.row_of.get(sn)
        kind = "query" if role == "query" else "set"
        if kind == "set" and row is not None and self._gives_back(row, items):
            kind = "release"
        command = Command(
            correlation_id=correlation_id,
            sn=sn,
            role=role,
            kind=kind,
            items=items,
            topic=topic,
            partition=partition,
            offset=offset,
            arrival_at=arrival_at,
            seen_at=now,
            repeat=self._times_seen.get(correlation_id, 0),
        )
        self._times_seen[correlation_id] = command.repeat + 1
        self.ledger.add(command)
        faults, draws = self.faults, draw(self.faults.seed, correlation_id, command.repeat)
        if draws.swallow < faults.swallow_rate or faults.rule("swallow", sn=sn, role=role, kind=kind, names=names):
            command.swallowed = True
            self.ledger.totals["requests.swallowed"] += 1
            return

        first = self._first.get(correlation_id)
        if first is None or first.swallowed:
            first = self._first[correlation_id] = command
        command.conflict = (first.sn, first.role, first.items) != (sn, role, items)
        latency_s = faults.latency(draws)
        effect_at = now + latency_s / 2 + faults.out_of_step_s[role]
        if delay := faults.rule("delay_effect", sn=sn, role=role, kind=kind, names=names):
            effect_at += delay.seconds
        if draws.reorder_effect < faults.reorder_effects:
            effect_at += faults.held_back_s
        else:
            effect_at = max(effect_at, self._last_effect.get((sn, role), 0.0))
            self._last_effect[sn, role] = effect_at
        two = faults.results_per_command == 2 and role != "query" and not command.conflict
        if two and self._refused_by_cloud(command, row, now) is None:
            success = str(self.profile.codes.get("success", "0"))
            self._answer(command, stage=self.profile.accepted, code=success, at=now + latency_s / 4, draws=draws)
        heapq.heappush(self._effects, (effect_at, next(self._order), command, draws))

    def _parse(self, role: str, value: bytes | None) -> tuple[str, str, list[tuple[str, Any]]] | str:
        fields = self.profile.fields
        try:
            message = msgspec.json.decode(value or b"")
            correlation_id, sn = message[fields["correlation_id"]], message[fields["sn"]]
            if role == "query":
                items = [(name, None) for name in message[fields["parameters"]]]
            else:
                written = [message[fields["parameter"]]] if role == "single" else message[fields["parameters"]]
                items = [(item[fields["name"]], item[fields["value"]]) for item in written]
        except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            return f"{type(error).__name__}: {error}"
        if not all(isinstance(text, str) for text in (correlation_id, sn, *(name for name, _ in items))) or not items:
            return "the id, the SN and the names are strings, and there is at least one name"
        return correlation_id, sn, items

    def _gives_back(self, row: int, items: Sequence[tuple[str, Any]]) -> bool:
        column_of = self.profile.column_of
        if not all(name in column_of for name, _ in items):
            return False
        return self.inverters.restores(row, [(column_of[name], value) for name, value in items])

    # -- effects

    def next_due(self) -> float | None:
        """When `run` has something to do next, epoch s; None if nothing is pending."""
        heads = [heap[0][0] for heap in (self._effects, self._results) if heap]
        return min(heads) if heads else None

    @property
    def pending(self) -> int:
        """Commands that have not taken effect, and results that are not due."""
        return len(self._effects) + len(self._results)

    def run(self, now: float) -> list[Outgoing]:
        """Let everything happen that is due at `now` (epoch s).

        Returns:
            The results to publish now, in this order. Lost ones are not among them.
        """
        while self._effects and self._effects[0][0] <= now:
            _, _, command, draws = heapq.heappop(self._effects)
            self._take_effect(command, draws, now)
        due = []
        while self._results and self._results[0][0] <= now:
            due.append(heapq.heappop(self._results)[2])
        return due

    def _take_effect(self, command: Command, draws: Draws, now: float) -> None:
        first = self._first[command.correlation_id]
        if command.conflict:
            command.effect_at = now
            code = str(self.profile.codes.get("failed", "1099"))
            command.code, command.values = code, [(name, value, code) for name, value in command.items]
        else:
            if first.code is None and not first.swallowed:
                self._execute(first, draws, now)
            if first.swallowed:  # an offline device that is not answered for
                command.swallowed = True
                return
            command.effect_at = command.effect_at or now
            command.code, command.values = first.code, first.values
        self.ledger.totals[f"code.{command.code}"] += 1
        at = now + self.faults.latency(draws) / 2
        self._answer(command, stage=self.profile.applied, code=command.code or "", at=at, draws=draws)

    def _refused_by_cloud(self, command: Command, row: int | None, now: float) -> str | None:
        standing = self.consent.standing(command.sn, now=now)
        if row is None or standing == "none":
            return "unauthorized"
        if standing == "withdrawn" and (self.faults.after_withdrawal == "refuse" or command.kind == "set"):
            return "unauthorized"
        return None if len(command.items) <= self.profile.max_parameters else "failed"

    def _execute(self, command: Command, draws: Draws, now: float) -> None:
        """Once per correlation id. Parameters are written one by one, as an inverter's registers are."""
        inverters, codes = self.inverters, self.profile.codes
        row = inverters.row_of.get(command.sn)
        command.effect_at = now
        names = tuple(name for name, _ in command.items)
        refusal = self._refused_by_cloud(command, row, now)
        if refusal is None and row is not None and not inverters.online[row]:
            refusal = "offline"
            if self.faults.offline_silent:
                command.swallowed, command.effect_at = True, None
                return
        code = None if refusal is None else str(codes.get(refusal, codes.get("failed", "1099")))
        if code is None:
            rule = self.faults.rule("refuse", sn=command.sn, role=command.role, kind=command.kind, names=names)
            code = rule.code if rule else self.faults.refusal(draws)
        if code is not None or row is None:
            command.code = code
            command.values = [(name, value, code or "") for name, value in command.items]
            return
        fails = len(names) - 1 if command.role == "multi" and draws.partial < self.faults.partial else -1
        success = str(codes.get("success", "0"))
        for position, (name, value) in enumerate(command.items):
            column = self.profile.column_of.get(name)
            if column is None:
                outcome = "unsupported"
            elif command.role == "query":
                outcome = "success" if inverters.supports[column, row] else "unsupported"
                value = int(inverters.settings[column, row]) if outcome == "success" else None
            else:
                outcome = "failed" if position == fails else inverters.write(row, column, value)
            command.values.append((name, value, str(codes.get(outcome, codes.get("failed", "1099")))))
        command.executed = any(each == success for _, _, each in command.values)
        command.code = next((each for _, _, each in command.values if each != success), success)
        self.ledger.totals[f"executed.{command.kind}"] += command.executed

    # -- results

    def _answer(self, command: Command, *, stage: str, code: str, at: float, draws: Draws) -> None:
        faults, sn, role, kind = self.faults, command.sn, command.role, command.kind
        names = tuple(name for name, _ in command.items)
        if delay := faults.rule("delay_result", sn=sn, role=role, kind=kind, names=names, stage=stage):
            at += delay.seconds
        if faults.is_late(command.correlation_id, command.repeat):
            at += faults.late_s
            self.ledger.totals["results.late"] += 1
        elif draws.reorder < faults.reorder:
            at += faults.held_back_s
        elif delay is None:
            at = max(at, self._last_result.get((sn, role), 0.0))
            self._last_result[sn, role] = at
        answer = Answer(stage=stage, code=code, due_at=at)
        command.answers.append(answer)
        if faults.rule("drop", sn=sn, role=role, kind=kind, names=names, stage=stage) or draws.loss < faults.loss:
            answer.dropped = True
            self.ledger.totals["results.dropped"] += 1
            return
        body = self._body(command, stage=stage, code=code)
        topic = self.profile.result_topics[role]
        heapq.heappush(self._results, (at, next(self._order), Outgoing(topic, sn, body, answer)))
        if (
            faults.rule("duplicate", sn=sn, role=role, kind=kind, names=names, stage=stage)
            or draws.duplicate < faults.duplicates
        ):
            copy = Answer(stage=stage, code=code, due_at=at + draws.loss * faults.latency_s[1], copy=True)
            command.answers.append(copy)
            self.ledger.totals["results.duplicated"] += 1
            heapq.heappush(self._results, (copy.due_at, next(self._order), Outgoing(topic, sn, body, copy)))

    def _body(self, command: Command, *, stage: str, code: str) -> dict[str, Any]:
        profile, fields = self.profile, self.profile.fields
        body: dict[str, Any] = {fields["correlation_id"]: command.correlation_id} if profile.echoed else {}
        body |= {
            fields["sn"]: command.sn,
            fields["code"]: self._wire(code),
            fields["message"]: profile.meanings.get(code, "unknown"),
            fields["stage"]: stage,
        }
        accepted = [(name, value, code) for name, value in command.items]
        values = command.values if stage == profile.applied else accepted
        parameters = []
        for name, value, each in values:
            parameter = {fields["name"]: name, fields["value"]: value, fields["code"]: self._wire(each)}
            if command.role == "query" and value is None:
                del parameter[fields["value"]]
            parameters.append(parameter)
        body[fields["parameters"]] = parameters
        return body

    def _wire(self, code: str) -> str | int:
        return int(code) if self.profile.integer_codes and code.lstrip("-").isdigit() else code

    # -- what changes from outside

    def set_online(self, sns: Sequence[str], online: bool, *, now: float) -> None:
        """Devices lose or regain their connection.

        Raises:
            KeyError: an unknown SN; nothing is changed then.
        """
        rows = [self.inverters.row_of[sn] for sn in sns]
        self.inverters.advance(now)
        for sn, row in zip(sns, rows, strict=True):
            if bool(self.inverters.online[row]) != online:
                self.inverters.online[row] = online
                self.ledger.online_changes.setdefault(sn, []).append((now, online))

    def owner_sets(self, sn: str, name: str, value: object, *, now: float) -> str:
        """The owner changes a setting by hand, on the device: no consent and no connection is needed.

        Returns:
            `success`, or what the inverter has against it.

        Raises:
            KeyError: an unknown SN or parameter.
        """
        row, column = self.inverters.row_of[sn], self.profile.column_of[name]
        outcome = self.inverters.write(row, column, value)
        if outcome == "success":
            self.ledger.owner_changes.setdefault(sn, []).append({"at": now, "name": name, "value": value})
        return outcome

    def dump(self, now: float, *, only: Collection[str] | None = None) -> dict[str, Any]:
        """Everything (or these SNs), for an auditor; times in epoch seconds, values raw as on the wire."""
        inverters, ledger = self.inverters, self.ledger
        names = [column.name for column in self.profile.columns]
        devices = {}
        for row, sn in enumerate(inverters.sns):
            if only is not None and sn not in only:
                continue
            supported = [index for index in range(len(names)) if inverters.supports[index, row]]
            key = self.consent.key(sn, now=now)
            devices[sn] = {
                "sn": sn,
                "family": inverters.families[row],
                "rated_w": int(inverters.rated_w[row]),
                "settings": {names[index]: int(inverters.settings[index, row]) for index in supported},
                "default_settings": {names[index]: int(inverters.defaults[index, row]) for index in supported},
                "online": bool(inverters.online[row]),
                "online_changes": ledger.online_changes.get(sn, []),
                "listed": key.listed,
                "authorized": key.intervals,
                "owner_changes": ledger.owner_changes.get(sn, []),
                "commands": [command.shown() for command in ledger.commands.get(sn, [])],
            }
        foreign = {sn: commands for sn, commands in ledger.commands.items() if sn not in inverters.row_of}
        return {
            "at": now,
            "started_at": self.started_at,
            "seed": self.faults.seed,
            "profile": self.profile.name,
            "pending": self.pending,
            "totals": dict(sorted(ledger.totals.items())),
            "faults": self.faults.shown(),
            "unreadable": ledger.unreadable,
            "unknown_sns": {sn: [command.shown() for command in commands] for sn, commands in foreign.items()},
            "devices": devices,
        }
