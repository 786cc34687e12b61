"""Commands to bytes and results from bytes: the only place where a setpoint meets GoodWe's names, scales and units.

Encoding fills byte templates (about two microseconds a command); a test holds them to models of the six messages.
Decoding never raises: bytes that cannot be used are a `Refusal`.

The pair of a query's result: as in `domain.command`, except that an export limit is counted in raw values, each worth
the catalogue's `step_w`. Only the book knows a rating that the registry told, and for families that count in percent
that is what a step depends on, so it multiplies: limit in W = second * step_w, made whole as `parameters.Scale` does.

Where results carry the id they become `Results`; where the profile says that they do not, `SlotResults`, which name the
device and the topics only (R26).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.command import FORCED_ISLANDING, NO_VALUE, U8, Commands, ResultCode, Results
from vpp_dispatch.domain.device import SHARDS, SN_PATTERN
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.parameters import ACTUATOR_NAMES, Catalogue
from vpp_dispatch.goodwe.profile import ActuatorRules, Meaning, Profile
from vpp_dispatch.goodwe.results import (
    DecodedResult,
    Record,
    Refusal,
    RefusedRecord,
    Role,
    SlotResult,
    by_shard,
    code_text,
    decoder,
    id_bytes,
    slots_by_shard,
)

__all__ = ["Codec", "DecodedResult", "Prepared", "Refusal", "RefusedRecord", "Role", "SlotResult"]

_Decoded = TypeVar("_Decoded")

_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_DASHES: Final = (8, 13, 18, 23)
_DIGITS: Final = tuple(i for i in range(36) if i not in _DASHES)

_RESULT_CODE: Final[dict[Meaning, ResultCode]] = {
    Meaning.SUCCESS: ResultCode.SUCCESS,
    Meaning.OFFLINE: ResultCode.OFFLINE,
    Meaning.UNAUTHORIZED: ResultCode.UNAUTHORIZED,
    Meaning.BUSY: ResultCode.BUSY,
    Meaning.VALUE: ResultCode.VALUE,
    Meaning.UNSUPPORTED: ResultCode.UNSUPPORTED,
    Meaning.FAILED: ResultCode.FAILED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Commands ready to be published: complete but for their timestamp. Columns of length n.

    `ids` (n, 16) u1, the correlation ids; `digests` u8, as they stand in the ids; `roles` Role numbers; `keys` the SNs
    as bytes; `heads` the messages up to the value of their last field, the timestamp; `refused` names commands that
    cannot be said to GoodWe (index, sentence): they have an id, and are never published.
    """

    ids: U8
    digests: NDArray[np.uint64]
    roles: list[int]
    keys: list[bytes]
    heads: list[bytes]
    refused: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


class _Template(NamedTuple):
    """How one actuator's commands are written: `content` is what the digest covers, `head` the message."""

    role: Role
    content: bytes
    head: bytes
    rules: ActuatorRules


class Codec:
    """Writes commands and reads results as one profile has it. `catalogue` is the same profile's."""

    def __init__(self, profile: Profile, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        topics = profile.topics
        self.request_topics: tuple[str, str, str] = (topics.single_request, topics.multi_request, topics.query_request)
        self.result_topics: tuple[str, str, str] = (topics.single_result, topics.multi_result, topics.query_result)
        self._role_of = {topic: Role(i) for i, topic in enumerate(self.result_topics)}
        self._dashed = profile.correlation.text == "uuid"
        self._templates = _templates(profile)
        self._code_of = {text: _RESULT_CODE[meaning] for text, meaning in profile.codes.items()}
        self._stages = {None: False, profile.results.applied: False, profile.results.accepted: True}
        self._decoder = decoder(profile)
        self._parameters = {a: getattr(profile.actuators, name) for a, name in ACTUATOR_NAMES.items()}
        self._scales = catalogue.scales
        self._actuator_of = {parameter: a for a, rules in self._parameters.items() for parameter in rules.parameters}

    # ------------------------------------------------------------------ commands

    def prepare(self, commands: Commands) -> Prepared:
        """Names, raw values, digests and ids of commands.

        A command that cannot be said (an SN that is none, a value outside its range) is in `refused`: one such device
        must not stop the batch.
        """
        refused: dict[int, str] = {}
        keys = self._keys(commands.sn, refused)
        digests: list[int] = [0] * len(keys)
        raws: list[tuple[int, ...]] = [()] * len(keys)
        kinds = commands.actuator.tolist()
        digest = correlation.digest
        for kind in set(kinds):
            template = self._templates[kind]
            content = template.content
            rows = [i for i, k in enumerate(kinds) if k == kind]
            if kind >= QUERY_BIT:
                for i in rows:
                    digests[i] = digest(content % keys[i])
                continue
            values = self._raw(Actuator(kind), commands, rows, refused)
            for i, value in zip(rows, values, strict=True):
                raws[i] = value
                digests[i] = digest(content % (keys[i], *value))
        ids = correlation.ids_of(commands, digests)
        heads_of = {kind: self._templates[kind].head for kind in set(kinds)}
        heads = [
            heads_of[kind] % (text, key, *raw)
            for kind, text, key, raw in zip(kinds, self._texts(ids), keys, raws, strict=True)
        ]
        return Prepared(
            ids=ids,
            digests=np.array(digests, np.uint64),
            roles=[int(self._templates[kind].role) for kind in kinds],
            keys=keys,
            heads=heads,
            refused=tuple(sorted(refused.items())),
        )

    def encode(self, prepared: Prepared, *, now: float) -> tuple[list[int], list[bytes], list[bytes]]:
        """(roles, keys, values), columns of length n with what is refused left out; `now` epoch seconds.

        Two encodings of one id differ in nothing but their timestamp.
        """
        tail = b"%d}" % int(now * 1000)
        if not prepared.refused:
            return prepared.roles, prepared.keys, [head + tail for head in prepared.heads]
        left_out = {i for i, _ in prepared.refused}
        index = [i for i in range(len(prepared)) if i not in left_out]
        return (
            [prepared.roles[i] for i in index],
            [prepared.keys[i] for i in index],
            [prepared.heads[i] + tail for i in index],
        )

    def _keys(self, sns: list[str], refused: dict[int, str]) -> list[bytes]:
        """SNs as bytes. Only what matches SN_PATTERN may enter a template."""
        valid = SN_PATTERN.fullmatch
        for i, sn in enumerate(sns):
            if not valid(sn):
                refused[i] = f"{sn!r} is no serial number: 16 of 0-9 and A-Z"
        return [sn.encode("utf-8", "backslashreplace") for sn in sns]

    def _raw(
        self, actuator: Actuator, commands: Commands, rows: Sequence[int], refused: dict[int, str]
    ) -> list[tuple[int, ...]]:
        """Raw values of setpoints, in the order of the actuator's parameters."""
        rules = self._parameters[actuator]
        firsts, seconds = commands.first.tolist(), commands.second.tolist()
        values: list[tuple[int, ...]]
        if actuator is Actuator.EMS:
            raw_of = self._scales[actuator].raw_of
            values = [(firsts[i], raw_of(seconds[i])) for i in rows]
            refused.update(
                {
                    i: f"{commands.sn[i]}: forced islanding is never dispatched"
                    for i in rows
                    if firsts[i] == FORCED_ISLANDING
                }
            )
        elif actuator is Actuator.EXPORT:
            percent, family_of = self.catalogue.percent_families, self.catalogue.family_of
            rated = commands.rated_w.tolist()
            raw_of = self._scales[actuator].raw_of
            values = []
            for i in rows:
                if family_of(commands.sn[i]) not in percent:
                    values.append((firsts[i], raw_of(seconds[i])))
                elif rated[i] > 0:
                    # Rounded down, never looser than asked; a limit above the rating limits nothing, as 100 % does.
                    values.append((firsts[i], min(seconds[i] * 100 // rated[i], 100)))
                else:
                    values.append((firsts[i], 0))
                    refused[i] = f"{commands.sn[i]} takes its export limit in percent, and its rating is not known"
        elif actuator is Actuator.ACTIVE:
            raw_of = self._scales[actuator].raw_of
            values = [(raw_of(firsts[i]),) for i in rows]
        else:
            values = [(firsts[i],) for i in rows]
        low, high = rules.min, rules.max
        for i, value in zip(rows, values, strict=True):
            for name, raw, least, most in zip(rules.parameters, value, low, high, strict=True):
                if not least <= raw <= most:
                    refused[i] = f"{commands.sn[i]}: {name} {raw} is outside {least}..{most}"
        return values

    def _texts(self, ids: U8) -> list[bytes]:
        """The ids as they stand on the wire."""
        n = len(ids)
        digits = _HEX[np.stack([ids >> 4, ids & 15], axis=2).reshape(n, 32)]
        width = 32
        if self._dashed:
            dashed = np.full((n, 36), ord("-"), np.uint8)
            dashed[:, _DIGITS] = digits
            digits, width = dashed, 36
        text = digits.tobytes()
        return [text[i : i + width] for i in range(0, n * width, width)]

    # ------------------------------------------------------------------ results

    def decode_result(
        self, role: Role, key: bytes | None, value: bytes | None, appended_at: float
    ) -> DecodedResult | Refusal:
        """One message of a result topic that carries its command's id; `appended_at` epoch seconds. Never raises,
        whatever the bytes are."""
        message = self._message(key, value)
        if isinstance(message, Refusal):
            return message
        id_ = id_bytes(message.correlation_id)
        if id_ is None:
            return Refusal(reason="no_id", detail="the correlation id is absent or no 128-bit id")
        if not (id_[6] >> 4 == 8 and id_[8] >> 6 == 2 and id_[0] < SHARDS):
            return Refusal(reason="foreign_id", detail=f"{correlation.text(id_)} is no id that this service makes")
        kind = id_[4] >> 4
        template = self._templates.get(kind)
        if template is None or template.role is not role:
            detail = f"{correlation.text(id_)} is no id of a {role.name.lower()} command"
            return Refusal(reason="wrong_topic", detail=detail)
        if message.code is None:
            return Refusal(reason="no_code", detail=f"{correlation.text(id_)} has no result code")
        code, accepted, first, second = self._outcome(role, kind, message)
        return DecodedResult(id_, code, accepted, first, second, appended_at)

    def decode_slot_result(
        self, role: Role, key: bytes | None, value: bytes | None, appended_at: float
    ) -> SlotResult | Refusal:
        """One message of a result topic that carries no id: of a device, and of a query by what it lists (R26).

        The SN stands in the message, or else in the record's key. Never raises, whatever the bytes are.
        """
        message = self._message(key, value)
        if isinstance(message, Refusal):
            return message
        sn = message.sn
        if sn is None:
            sn = (key or b"").decode("utf-8", "replace")
        if not SN_PATTERN.fullmatch(sn):
            return Refusal(reason="no_sn", detail="neither the message nor its key has a serial number")
        listed = {self._actuator_of[p.name] for p in message.parameters or [] if p.name in self._actuator_of}
        kind = 0
        if role is Role.QUERY:
            if len(listed) != 1:
                return Refusal(reason="no_actuator", detail=f"{sn}: it lists parameters of {len(listed)} actuators")
            kind = next(iter(listed)) | QUERY_BIT
        elif any(self._templates[actuator].role is not role for actuator in listed):
            return Refusal(
                reason="wrong_topic", detail=f"{sn}: it lists no parameters of a {role.name.lower()} command"
            )
        if message.code is None:
            return Refusal(reason="no_code", detail=f"{sn}: there is no result code")
        return SlotResult(sn, kind, role is Role.SINGLE, *self._outcome(role, kind, message), appended_at)

    def _message(self, key: bytes | None, value: bytes | None) -> Any:
        """A result as the profile names its fields, or a Refusal."""
        if value is None:
            return Refusal(reason="undecodable", detail=f"no value under the key {key!r}")
        try:
            return self._decoder(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Refusal(reason="undecodable", detail=f"no JSON result of the profile's form: {error}")

    def _outcome(self, role: Role, kind: int, message: Any) -> tuple[ResultCode, bool, int, int]:
        """(code, accepted, first, second) of a result whose actuator, if it is a query's, is known."""
        code = self._code_of.get(code_text(message.code), ResultCode.UNKNOWN_CODE)
        accepted = self._stages.get(message.stage)
        if accepted is None:  # a stage that the profile does not know: taken, since "applied" would claim too much
            accepted = True
        first = second = NO_VALUE
        if message.parameters is not None:
            code = self._with_parameters(code, message.parameters)
        if role is Role.QUERY and code is ResultCode.SUCCESS:
            first, second = self._pair(Actuator(kind - QUERY_BIT), message.parameters or [])
            if first == NO_VALUE or second == NO_VALUE:
                code = ResultCode.PARTIAL
        return code, accepted, first, second

    def _with_parameters(self, code: ResultCode, parameters: list[Any]) -> ResultCode:
        """PARTIAL where the parameters' own codes say anything else about success than the result's (R26)."""
        succeeded = code is ResultCode.SUCCESS
        for parameter in parameters:
            own = parameter.code
            if own is not None and (self._code_of.get(code_text(own)) is ResultCode.SUCCESS) is not succeeded:
                return ResultCode.PARTIAL
        return code

    def _pair(self, actuator: Actuator, parameters: list[Any]) -> tuple[int, int]:
        """What a query read, in the pair's terms; NO_VALUE for what is missing, no integer or outside its range."""
        rules: ActuatorRules = self._parameters[actuator]
        read = {parameter.name: parameter.value for parameter in parameters}
        raws: list[int] = []
        for name, low, high in zip(rules.parameters, rules.min, rules.max, strict=True):
            raw = read.get(name)
            if isinstance(raw, float) and raw.is_integer():
                raw = int(raw)
            if isinstance(raw, int) and not isinstance(raw, bool) and low <= raw <= high:
                raws.append(raw)
            else:
                raws.append(NO_VALUE)
        if NO_VALUE in raws:
            return raws[0], raws[1] if len(raws) > 1 else 0
        if actuator is Actuator.EMS:
            return raws[0], self._scales[actuator].value_of(raws[1])
        if actuator is Actuator.EXPORT:
            return raws[0], raws[1]
        if actuator is Actuator.ACTIVE:
            return self._scales[actuator].value_of(raws[0]), 0
        return raws[0], 0

    def decode_results(
        self, records: Iterable[Record]
    ) -> tuple[Mapping[int, Results | SlotResults], list[RefusedRecord]]:
        """Results regrouped by shard, in the order of the records, and the records that cannot be used.

        All are `Results`, or all `SlotResults` where the profile says that no id is echoed.
        """
        if self.catalogue.echoes:
            good, bad = self._sort(records, self.decode_result)
            return by_shard(good), bad
        slots, bad = self._sort(records, self.decode_slot_result)
        return slots_by_shard(slots), bad

    def _sort(
        self,
        records: Iterable[Record],
        decode: Callable[[Role, bytes | None, bytes | None, float], _Decoded | Refusal],
    ) -> tuple[list[_Decoded], list[RefusedRecord]]:
        good: list[_Decoded] = []
        bad: list[RefusedRecord] = []
        role_of = self._role_of
        for record in records:
            at = record.timestamp / 1000
            result = decode(role_of[record.topic], record.key, record.value, at)
            if not isinstance(result, Refusal):
                good.append(result)
            else:
                bad.append(
                    RefusedRecord(
                        topic=record.topic,
                        partition=record.partition,
                        offset=record.offset,
                        appended_at=at,
                        key=record.key,
                        value=record.value,
                        headers=tuple(record.headers or ()),
                        reason=result.reason,
                        detail=result.detail,
                    )
                )
        return good, bad


def _templates(profile: Profile) -> dict[int, _Template]:
    """By actuator number, with QUERY_BIT for its query. Heads end where the timestamp's digits begin."""
    f = profile.fields

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False).replace("%", "%%")

    start = f'{{{text(f.correlation_id)}:"%b",{text(f.sn)}:"%b",'
    end = f",{text(f.timestamp)}:"
    made = {}
    for actuator, name in ACTUATOR_NAMES.items():
        rules: ActuatorRules = getattr(profile.actuators, name)
        plain = [parameter.replace("%", "%%") for parameter in rules.parameters]
        objects = [f"{{{text(f.name)}:{text(parameter)},{text(f.value)}:%d}}" for parameter in rules.parameters]
        single = rules.command == "single"
        body = f"{text(f.parameter)}:{objects[0]}" if single else f"{text(f.parameters)}:[{','.join(objects)}]"
        made[int(actuator)] = _Template(
            role=Role.SINGLE if single else Role.MULTI,
            content="\0".join(["%b", *(f"{parameter}=%d" for parameter in plain)]).encode(),
            head=(start + body + end).encode(),
            rules=rules,
        )
        names = ",".join(text(parameter) for parameter in rules.parameters)
        made[actuator | QUERY_BIT] = _Template(
            role=Role.QUERY,
            content="\0".join(["%b", *plain]).encode(),
            head=(f"{start}{text(f.parameters)}:[{names}]{end}").encode(),
            rules=rules,
        )
    return made
