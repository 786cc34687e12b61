"""Correlation ids: UUIDv8 that name the setpoint and route themselves (R23).

    shard 8 | row 24 | actuator 4 | generation 32 | attempt 8 | digest 46       = 122 bits, around version and variant

The digest is the first 46 bits of blake2b(SN \\0 name=value \\0 ...), so that an answer to a command that was never
recorded cannot pass for its successor's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from vpp_dispatch.domain.command import U8, U32, Commands

DIGEST_BITS = 46


def digest(content: bytes) -> int:
    """46 bits of a command's content: `SN\\0name=value\\0name=value`, a query's `SN\\0name\\0name`."""
    return int.from_bytes(hashlib.blake2b(content).digest()[:6], "big") >> 2


def pack(*, shard: U8, row: U32, actuator: U8, generation: U32, attempt: U8, digests: Sequence[int]) -> U8:
    """Ids of shape (n, 16), dtype u1, from columns of length n; `actuator` 0..15, `row` < 2**24, `digests` < 2**46."""
    generation = generation.astype(np.uint64)
    high = (
        shard.astype(np.uint64) << np.uint64(56)
        | row.astype(np.uint64) << np.uint64(32)
        | actuator.astype(np.uint64) << np.uint64(28)
        | (generation >> np.uint64(20)) << np.uint64(16)
        | np.uint64(0x8000)
        | (generation >> np.uint64(8)) & np.uint64(0xFFF)
    )
    low = (
        np.uint64(1 << 63)
        | (generation & np.uint64(0xFF)) << np.uint64(54)
        | attempt.astype(np.uint64) << np.uint64(46)
        | np.array(digests, np.uint64)
    )
    return np.stack([high, low], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)


def ids_of(commands: Commands, digests: Sequence[int]) -> U8:
    """The ids of commands whose contents have these digests; shape and limits as in `pack`."""
    return pack(
        shard=commands.shard,
        row=commands.row,
        actuator=commands.actuator,
        generation=commands.generation,
        attempt=commands.attempt,
        digests=digests,
    )


def unpack(ids: U8) -> tuple[U8, U32, U8, U32, U8]:
    """(shard, row, actuator, generation, attempt) of ids of shape (n, 16)."""
    words = np.ascontiguousarray(ids).view(">u8").astype(np.uint64).reshape(-1, 2)
    high, low = words[:, 0], words[:, 1]
    generation = (
        ((high >> np.uint64(16)) & np.uint64(0xFFF)) << np.uint64(20)
        | (high & np.uint64(0xFFF)) << np.uint64(8)
        | (low >> np.uint64(54)) & np.uint64(0xFF)
    )
    return (
        (high >> np.uint64(56)).astype(np.uint8),
        ((high >> np.uint64(32)) & np.uint64(0xFFFFFF)).astype(np.uint32),
        ((high >> np.uint64(28)) & np.uint64(0xF)).astype(np.uint8),
        generation.astype(np.uint32),
        ((low >> np.uint64(46)) & np.uint64(0xFF)).astype(np.uint8),
    )


def text(id_bytes: bytes) -> str:
    """The 36-character form of one id."""
    x = id_bytes.hex()
    return f"{x[:8]}-{x[8:12]}-{x[12:16]}-{x[16:20]}-{x[20:]}"


def is_ours(id_bytes: bytes) -> bool:
    """Whether 16 bytes have the version and variant of our ids."""
    return len(id_bytes) == 16 and id_bytes[6] >> 4 == 8 and id_bytes[8] >> 6 == 2
