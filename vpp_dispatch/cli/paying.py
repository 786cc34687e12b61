"""Break-glass (R36): the debts meet GoodWe's cluster. What to publish, and what an answer means, decides `debts`."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from vpp_dispatch.cli.debts import Debts
from vpp_dispatch.errors import ConfigurationError, ExternalFault, NotReachable
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.link import Link
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Entry, Reader

LOOK_BACK_S = 3600.0
"""Results are read from so long before the first release: GoodWe's clock may be behind ours."""


class _Out(Link):
    """A link that only publishes: results are read without a group, since one of the service's would take them away
    from it, and another one may not be allowed there."""

    async def _consume(self, deliver: Any, refuse: Any) -> None:
        await self._stopping.wait()


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of a result topic as the codec wants it; `timestamp` epoch milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def _record(entry: Entry) -> _Record:
    return _Record(entry.topic, entry.partition, entry.offset, int(entry.at * 1000), entry.key, entry.value)


def away(settings: Settings, why: str) -> NotReachable:
    """The sentence for a cluster of GoodWe's that cannot be used."""
    return NotReachable(
        f"GoodWe's Kafka at {settings.goodwe_bootstrap_servers} cannot be used ({why}), and nothing can be released "
        "without it. Set its address and security (VPP_DISPATCH_GOODWE__KAFKA__*), and the profile with its topics."
    )


def at_goodwe(settings: Settings) -> Settings:
    """The settings with GoodWe's cluster in the place of ours, for a `Reader`."""
    kafka = settings.kafka.model_copy(
        update={"bootstrap_servers": settings.goodwe_bootstrap_servers, "security": settings.goodwe_security}
    )
    return settings.model_copy(update={"kafka": kafka})


async def pay(
    settings: Settings, codec: Codec, debts: Debts, *, timeout_s: float, told: Callable[[Debts], Any]
) -> None:
    """Publishes and reads back until all is confirmed or refused, or `timeout_s` is over.

    `told` is called after every round. Paced by `goodwe.max_in_flight` and `goodwe.max_per_s`.

    Raises:
        ConfigurationError: a topic of the profile does not exist.
        NotReachable: GoodWe's cluster cannot be used from the start; what fails later is tried again.
    """
    link = _Out(
        profile=debts.profile,
        codec=codec,
        bootstrap_servers=settings.goodwe_bootstrap_servers,
        security=settings.goodwe_security.aiokafka(),
        client_id=f"{settings.kafka.group}-release-{socket.gethostname()}-{os.getpid()}",
        group_id=f"{settings.goodwe_group}-release",
        session_timeout_s=settings.kafka.session_timeout_s,
        request_timeout_s=settings.goodwe.request_timeout_s,
        log=structlog.wrap_logger(structlog.ReturnLogger()),  # what it has to say comes as a sentence of ours
    )
    until = time.monotonic() + timeout_s
    since = time.time() - LOOK_BACK_S
    await link.start(_nothing, _nothing)
    try:
        try:
            await asyncio.wait_for(link.wait_reachable(), min(timeout_s, 30.0))
        except TimeoutError:
            raise away(settings, link.trouble or "no answer") from None
        first = True
        while not debts.done and time.monotonic() < until:
            try:
                async with Reader(at_goodwe(settings), codec.result_topics, since=since) as reader:
                    first = False
                    await _rounds(link, reader, codec, debts, settings, until, told)
            except ConfigurationError:
                raise
            except ExternalFault as error:
                if first:
                    raise away(settings, str(error.__cause__ or error)) from error
                since = time.time() - LOOK_BACK_S
                await asyncio.sleep(1.0)
    finally:
        await link.stop()


async def _nothing(_: Any) -> None:
    """The link that only publishes hands over nothing."""


async def _rounds(
    link: Link,
    reader: Reader,
    codec: Codec,
    debts: Debts,
    settings: Settings,
    until: float,
    told: Callable[[Debts], Any],
) -> None:
    goodwe = settings.goodwe
    window = max(1, int(goodwe.max_in_flight))
    allowance, filled_at = 0.0, time.monotonic()
    while not debts.done and (now := time.monotonic()) < until:
        room = window - debts.in_flight(now)
        if goodwe.max_per_s:
            allowance = min(max(1.0, goodwe.max_per_s), allowance + (now - filled_at) * goodwe.max_per_s)
            room = min(room, int(allowance))
        filled_at = now
        batch = debts.due(now, room) if room > 0 and link.reachable else None
        if batch is not None:
            allowance -= len(batch.debts)
            debts.sent(batch, now)
            try:
                await link.publish(
                    link.prepare(batch.commands), now=time.time(), give_up_after_s=goodwe.request_timeout_s
                )
            except NotReachable as error:
                debts.failed(batch, time.monotonic(), str(error))
        entries = await reader.batch(wait_s=0.02 if batch is not None else 0.2)
        if entries:
            by_shard, _ = codec.decode_results([_record(entry) for entry in entries])
            for results in by_shard.values():
                debts.heard(results, time.monotonic())
        told(debts)
