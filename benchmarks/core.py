"""What the books and the publisher cost by themselves: one worker's 64 shards, no Kafka, no event loop to wait for.

    python -m benchmarks.core [--devices 100000] [--profile]

A warm event for all devices: composed, published in batches, answered, folded, ticked. The clock that the books see is
the CPU time used so far, so that ticks (every 0.25 s) and results (gathered for 1 s) come as often as they would on a
core of its own, and the figures do not depend on what else the machine does. For comparing two versions of the code.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final

import click
import numpy as np
import structlog

from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.dispatch.publisher import Publisher
from vpp_dispatch.dispatch.shards import Shards
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, Commands, ResultCode, Results
from vpp_dispatch.domain.device import SHARDS, Record
from vpp_dispatch.domain.inputs import Consent, RegistryChange, Selector
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.observability.metrics import Metrics

START: Final = 1_000_000.0
TICK_S, LINGER_S = 0.25, 1.0


def clock() -> float:
    """Epoch seconds of a world in which only our own work takes time."""
    return START + time.process_time()


@dataclass
class Link:
    """A broker that takes everything at once, and remembers it until it is answered."""

    codec: Codec
    reachable: bool = True
    lag: int = 0
    unanswered: list[tuple[np.ndarray, np.ndarray, Commands]] = field(default_factory=list)
    batches: int = 0
    _last: Commands | None = None

    def prepare(self, commands: Commands) -> Any:
        self._last = commands
        return self.codec.prepare(commands)

    async def publish(self, prepared: Any, *, now: float, give_up_after_s: float) -> None:
        assert self._last is not None
        self.unanswered.append((prepared.ids, self._last.shard, self._last))
        self.batches += 1

    def results(self, now: float) -> dict[int, list[Results]]:
        """A success for each command since the last time, by shard."""
        found: dict[int, list[Results]] = {}
        for ids, shards, commands in self.unanswered:
            for shard in np.unique(shards).tolist():
                mine = shards == shard
                n = int(mine.sum())
                query = commands.actuator[mine] >= 8
                found.setdefault(shard, []).append(
                    Results(
                        ids=ids[mine],
                        code=np.full(n, ResultCode.SUCCESS, np.uint8),
                        accepted=np.zeros(n, bool),
                        first=np.where(query, 0, NO_VALUE).astype(np.int32),
                        second=np.where(query, 0, NO_VALUE).astype(np.int32),
                        at=np.full(n, now),
                    )
                )
        self.unanswered.clear()
        return found


class _Nowhere:
    def put(self, key: bytes, value: bytes) -> Awaitable[Any]:
        raise AssertionError("nothing is saved here")

    def drop(self, key: bytes) -> Awaitable[Any]:
        raise AssertionError("nothing is saved here")


def build(devices: int) -> tuple[Shards, Publisher, Link]:
    """64 books with registered, consenting hybrids whose defaults are known."""
    profile = load_profile("goodwe")
    catalogue = Catalogue(profile)
    policy, metrics, log = Policy(), Metrics(), structlog.get_logger()
    lease = Lease(session_timeout_s=1e6, clock=clock)
    lease.renew(clock())
    link = Link(Codec(profile, catalogue))
    common: dict[str, Any] = {"lease": lease, "metrics": metrics, "log": log, "fault": lambda name: None}
    shards = Shards(
        catalogue=catalogue,
        policy=policy,
        table=_Nowhere(),
        outlet=None,  # type: ignore[arg-type]  # nothing is told
        outcomes_topic="",
        dead_letters_topic="",
        inbox_topic="",
        **common,
    )
    publisher = Publisher(
        shards=shards,
        link=link,
        max_in_flight=10 * devices,
        max_per_s=0,
        result_timeout_s=policy.result_timeout_s,
        retry_interval_s=policy.retry_backoff_s,
        request_timeout_s=5.0,
        clock=clock,
        **common,
    )
    publisher.open = True
    for shard in range(SHARDS):
        book = shards.books[shard] = Book(
            shard=shard, epoch=1, catalogue=catalogue, policy=policy, digests=lambda c: link.prepare(c).digests
        )
        shards.positioned(shard, 0)
        sns = [f"9010KETU{shard:03d}W{i:04d}" for i in range(len(range(shard, devices, SHARDS)))]
        changes = tuple((i, sn, Record(sn=sn, default={Actuator.EXPORT: (0, 0)})) for i, sn in enumerate(sns))
        book.step([(0, RegistryChange(partition=0, changes=changes))], clock())
        book.step([(1, Consent(at=clock(), authorized=tuple((sn, None) for sn in sns)))], clock())
    return shards, publisher, link


async def play(shards: Shards, publisher: Publisher, link: Link, devices: int) -> tuple[float, int]:
    """Until every device has acknowledged its setpoint; CPU seconds, and ticks."""
    now = clock()
    selector = Selector(
        event="grid/bench",
        source="grid",
        event_id="bench",
        revision=1,
        start_at=now,
        end_at=now + 1e5,
        priority=100,
        created_at=now,
        accepted_at=now,
        controls=(Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=1500),),
        targets=Targets(all=True),
    )
    started = time.process_time()
    for book in shards.books.values():
        book.step([(2, selector)], clock())
        for setpoints in book.setpoints.values():  # as a checkpoint of the arming would
            setpoints.durable[:] = True
    tick_at, results_at, ticks, offset, done = clock() + TICK_S, clock() + LINGER_S, 0, 3, 0
    while done < devices:
        idle = not await publisher.publish_some()
        now = clock()
        if now >= results_at or idle:
            results_at = now + LINGER_S
            for shard, parts in link.results(now).items():
                effects = shards.books[shard].step([(offset + i, part) for i, part in enumerate(parts)], now)
                offset += len(parts)
                done += int(effects.codes[ResultCode.SUCCESS])
        if now >= tick_at or idle:
            tick_at, ticks = now + TICK_S, ticks + 1
            shards.tick(now)
    return time.process_time() - started, ticks


@click.command()
@click.option("--devices", multiple=True, type=click.IntRange(64, 600_000), default=(10_000, 100_000))
@click.option("--profile", is_flag=True, help="Tell by function where the time went.")
def main(devices: tuple[int, ...], profile: bool) -> None:
    """Measure a warm event for all devices of one worker, without Kafka."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for n in devices:
        rig = build(n)
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        seconds, ticks = asyncio.run(play(*rig, n))
        profiler.disable()
        click.echo(
            f"{n:,} devices: {seconds:.2f} s CPU, {1e6 * seconds / n:.0f} us per device, "
            f"{rig[2].batches} batches, {ticks} ticks"
        )
        if profile:
            pstats.Stats(profiler).sort_stats("cumulative").print_stats("vpp_dispatch", 25)


if __name__ == "__main__":
    main()
