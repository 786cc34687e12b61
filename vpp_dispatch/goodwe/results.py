"""Results of GoodWe's as values: their one JSON form, and the columns that they become for each shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from vpp_dispatch.domain.command import ResultCode, Results
from vpp_dispatch.domain.device import shard_of
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.goodwe.profile import Profile


class Role(IntEnum):
    """Which pair of topics a message belongs to."""

    SINGLE = 0
    MULTI = 1
    QUERY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Bytes that are no result of ours (R8).

    `reason` is stable: undecodable, no_id, foreign_id, wrong_topic, no_code; of results that carry no id also no_sn and
    no_actuator.
    """

    reason: str
    detail: str


class DecodedResult(NamedTuple):
    """One result. `id` 16 bytes; `first`/`second` what a query read (an export limit in steps), else NO_VALUE.

    `at` epoch seconds at which the broker appended it.

    A query's SUCCESS always carries a complete pair; where something is missing it is PARTIAL.
    """

    id: bytes
    code: ResultCode
    accepted: bool
    first: int
    second: int
    at: float


class SlotResult(NamedTuple):
    """One result of a profile whose results carry no id; see `domain.inputs.SlotResults` and `DecodedResult`."""

    sn: str
    actuator: int
    single: bool
    code: ResultCode
    accepted: bool
    first: int
    second: int
    at: float


class Record(Protocol):
    """A record as a Kafka client hands it over; `timestamp` epoch milliseconds."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRecord:
    """A record of a result topic that cannot be used, whole, for the dead letters. `appended_at` epoch s."""

    topic: str
    partition: int
    offset: int
    appended_at: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    reason: str
    detail: str


def by_shard(results: Sequence[DecodedResult]) -> dict[int, Results]:
    """Columns for each shard, the order kept; the shard is the first byte of an id."""
    if not results:
        return {}
    ids_, codes_, accepted_, firsts_, seconds_, ats_ = zip(*results, strict=True)
    ids = np.frombuffer(b"".join(ids_), np.uint8).reshape(-1, 16)
    codes, accepted = np.array(codes_, np.uint8), np.array(accepted_, np.bool_)
    firsts, seconds, ats = np.array(firsts_, np.int32), np.array(seconds_, np.int32), np.array(ats_, np.float64)
    shards = ids[:, 0]
    grouped = {}
    for shard in np.unique(shards).tolist():
        rows = np.flatnonzero(shards == shard)
        grouped[shard] = Results(
            ids=ids[rows],
            code=codes[rows],
            accepted=accepted[rows],
            first=firsts[rows],
            second=seconds[rows],
            at=ats[rows],
        )
    return grouped


def slots_by_shard(results: Sequence[SlotResult]) -> dict[int, SlotResults]:
    """As `by_shard`, of results that name only a device: the shard is that of its SN."""
    rows_of: dict[int, list[SlotResult]] = {}
    for result in results:
        rows_of.setdefault(shard_of(result.sn), []).append(result)
    grouped = {}
    for shard, rows in rows_of.items():
        sns, actuators, singles, codes, accepted, firsts, seconds, ats = zip(*rows, strict=True)
        grouped[shard] = SlotResults(
            sn=list(sns),
            actuator=np.array(actuators, np.uint8),
            single=np.array(singles, np.bool_),
            code=np.array(codes, np.uint8),
            accepted=np.array(accepted, np.bool_),
            first=np.array(firsts, np.int32),
            second=np.array(seconds, np.int32),
            at=np.array(ats, np.float64),
        )
    return grouped


def id_bytes(text: str | None) -> bytes | None:
    """16 bytes of an id in either text form, any case; None if it is none."""
    if text is None:
        return None
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        text = text.replace("-", "")
    if len(text) != 32:
        return None
    try:
        id_ = bytes.fromhex(text)
    except ValueError:
        return None
    return id_ if len(id_) == 16 else None


def code_text(code: str | int) -> str:
    """A code as text, however it is typed."""
    return code if isinstance(code, str) else str(code)


def decoder(profile: Profile) -> Callable[[bytes], Any]:
    """A decoder of the one shape of a result; fields that are not named are skipped."""
    f = profile.fields
    parameter = msgspec.defstruct(
        "ResultParameter",
        [
            ("name", str | None, msgspec.field(name=f.name, default=None)),
            ("value", Any, msgspec.field(name=f.value, default=None)),
            ("code", str | int | None, msgspec.field(name=f.code, default=None)),
        ],
        gc=False,
    )
    # What joins a result to its command; the other is skipped, so that whatever stands there refuses nothing.
    identity = (
        ("correlation_id", str | None, msgspec.field(name=f.correlation_id, default=None))
        if profile.correlation.echoed
        else ("sn", str | None, msgspec.field(name=f.sn, default=None))
    )
    result = msgspec.defstruct(
        "Result",
        [
            identity,
            ("code", str | int | None, msgspec.field(name=f.code, default=None)),
            ("stage", str | None, msgspec.field(name=f.stage, default=None)),
            ("parameters", list[parameter] | None, msgspec.field(name=f.parameters, default=None)),  # type: ignore[valid-type]
        ],
    )
    return msgspec.json.Decoder(result).decode
