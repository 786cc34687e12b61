"""The break-glass files follow what the books hold (R36)."""

from __future__ import annotations

from pathlib import Path

import structlog
from structlog.testing import capture_logs

from tests.unit.domain.world import AUTO
from vpp_dispatch.dispatch import held
from vpp_dispatch.dispatch.breakglass import BreakGlass
from vpp_dispatch.domain.signal import Actuator

from .test_publisher import Rig


def filed(folder: Path) -> dict[tuple[int, str, int], tuple[int, int | None]]:
    """(shard, SN, actuator) -> (generation, first of the default) of what the files say is held."""
    if not list(folder.glob("held-*.jsonl")):
        return {}
    found = held.read([folder]).held
    return {(shard, h.sn, h.actuator): (h.generation, h.first) for shard, of in found.items() for h in of}


def rig_on(folder: Path) -> Rig:
    rig = Rig()
    rig.shards.break_glass = BreakGlass(folder=folder, metrics=rig.metrics, log=structlog.get_logger())
    return rig


async def test_r36_what_is_set_stands_in_the_file_before_it_is_published(tmp_path: Path) -> None:
    rig = rig_on(tmp_path)
    book = rig.book(3, 2)
    rig.event(book)
    seen: list[dict[tuple[int, str, int], tuple[int, int | None]]] = []
    rig.link.before_publish = lambda: seen.append(filed(tmp_path))
    await rig.drain()
    assert seen == [{(3, sn, Actuator.EMS): (1, AUTO[0]) for sn in book.roster.sns}]
    rig.tick(12)
    await rig.drain()
    content = (tmp_path / "held-3.jsonl").read_bytes()
    assert content.count(b"\n") == 3, "a retry is no news"


async def test_r36_what_is_released_leaves_the_file(tmp_path: Path) -> None:
    rig = rig_on(tmp_path)
    book = rig.book(3, 2)
    rig.event(book, end=5)
    rig.answer((await rig.drain())[0])
    setpoints = book.setpoints[Actuator.EMS]
    setpoints.columns["armed"][0] = False  # as the read-back of its release does
    await rig.shards.keep_files()
    assert list(filed(tmp_path)) == [(3, book.roster.sns[1], Actuator.EMS)]
    setpoints.columns["armed"][1] = False
    await rig.shards.keep_files()
    assert filed(tmp_path) == {}


async def test_r36_a_new_owner_writes_down_what_its_predecessor_left(tmp_path: Path) -> None:
    rig = rig_on(tmp_path)
    book = rig.book(3, 2)
    rig.event(book)
    await rig.drain()
    rig.shards.break_glass.reset()  # type: ignore[union-attr]
    book.epoch = 7
    await rig.shards.keep_files()
    assert held.read([tmp_path]).shards[3].epoch == 7
    assert len(filed(tmp_path)) == 2


async def test_r36_a_disk_that_fails_stops_nothing_and_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    rig = rig_on(folder)
    book = rig.book(3, 2)
    rig.event(book)
    with capture_logs() as logs:
        assert sum(map(len, await rig.drain())) == 2
        await rig.shards.keep_files()
    told = [line for line in logs if line["event"] == "break_glass.not_written"]
    assert len(told) == 1 and "see to DATA_DIR" in told[0]["detail"]
    folder.unlink()
    await rig.shards.keep_files()
    assert len(filed(folder)) == 2, "and made good as soon as it can be"
