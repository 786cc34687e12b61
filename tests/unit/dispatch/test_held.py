"""Break-glass files: what is written is read back, by epoch and time; what is broken is named, with its line."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from vpp_dispatch.dispatch.held import Held, HeldFiles, Released, file_name, read
from vpp_dispatch.errors import BadInput

A, B, C = "9010KETU000W0001", "9010KETU000W0002", "9010KETU000W0003"


def held(sn: str, *, generation: int = 5, actuator: int = 1, first: int | None = 1, second: int | None = 0) -> Held:
    return Held(sn=sn, row=3, actuator=actuator, generation=generation, first=first, second=second, rated_w=10_000)


def of(folder: Path, shard: int) -> Path:
    return folder / file_name(shard)


@pytest.fixture
def files(tmp_path: Path) -> HeldFiles:
    return HeldFiles(tmp_path / "made" / "by" / "itself")


def test_r36_what_is_appended_is_held_until_it_is_released(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    files.rewrite(17, 42, [held(A), held(B, first=None, second=None)])
    files.append(17, 42, [held(A, generation=6), held(A, actuator=2, first=0, second=9000), Released(sn=B, actuator=1)])
    found = read([tmp_path])
    assert found.held == {17: [held(A, generation=6), held(A, actuator=2, first=0, second=9000)]}
    assert len(found) == 2 and found.files == 1
    header = found.shards[17]
    assert (header.shard, header.epoch, header.version) == (17, 42, 1)
    files.append(17, 42, [held(B, first=None, second=None)])
    assert read([of(tmp_path, 17)]).held[17][-1] == held(B, first=None, second=None)


def test_the_lines_are_as_they_are_documented(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    files.rewrite(17, 42, [held(A)])
    files.append(17, 42, [held(B, first=None, second=None), Released(sn=A, actuator=1)])
    header, *lines = map(json.loads, of(tmp_path, 17).read_text().splitlines())
    assert header == {"shard": 17, "epoch": 42, "at": header["at"], "version": 1}
    assert lines == [
        {"sn": A, "row": 3, "actuator": 1, "generation": 5, "first": 1, "second": 0, "rated_w": 10000},
        {"sn": B, "row": 3, "actuator": 1, "generation": 5, "rated_w": 10000},
        {"sn": A, "actuator": 1, "released": True},
    ]


def test_what_is_appended_outlives_the_process_at_once(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    files.rewrite(1, 1, [])
    files.append(1, 1, [held(A)])
    assert len(read([tmp_path])) == 1, "nothing may wait in a buffer of this process"
    assert [p.name for p in tmp_path.iterdir()] == ["held-1.jsonl"], "no temporary file is left"
    assert stat.S_IMODE(of(tmp_path, 1).stat().st_mode) & 0o007 == 0, "serial numbers are nobody else's business"


def test_r36_of_each_shard_only_the_newest_epoch_counts_whichever_worker_wrote_it(tmp_path: Path) -> None:
    for name, shard, epoch, sn in [("a", 1, 7, A), ("a", 2, 9, A), ("b", 1, 8, B), ("c", 2, 4, C), ("c", 3, 4, C)]:
        HeldFiles(tmp_path / name).rewrite(shard, epoch, [held(sn)])
    found = read([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert {shard: [e.sn for e in entries] for shard, entries in found.held.items()} == {1: [B], 2: [A], 3: [C]}
    assert sorted((s.header.shard, s.header.epoch) for s in found.superseded) == [(1, 7), (2, 4)]
    assert read([tmp_path / "b", tmp_path / "a", tmp_path / "c", tmp_path / "c"]).held == found.held


def test_a_newer_epoch_that_holds_nothing_wins_too(tmp_path: Path) -> None:
    HeldFiles(tmp_path / "a").rewrite(1, 7, [held(A)])
    HeldFiles(tmp_path / "b").rewrite(1, 8, [])
    assert len(read([tmp_path / "a", tmp_path / "b"])) == 0


def test_a_remainder_folds_over_the_files_it_came_from(tmp_path: Path) -> None:
    HeldFiles(tmp_path).rewrite(1, 7, [held(A), held(B)])
    later = json.loads(of(tmp_path, 1).read_text().splitlines()[0])["at"] + 1
    rest = tmp_path / "rest.jsonl"
    again = '{"shard":2,"epoch":3,"at":1.0,"version":1}\n'
    rest.write_text(
        f'{{"shard":1,"epoch":7,"at":{later},"version":1}}\n{{"sn":"{A}","actuator":1,"released":true}}\n'
        f'{{"sn":"{B}","row":3,"actuator":1,"generation":6}}\n{again}'
    )
    for order in ([tmp_path, rest], [rest, tmp_path]):
        found = read(order)
        assert [(e.sn, e.generation) for e in found.held[1]] == [(B, 6)]
    assert found.shards.keys() == {1, 2}, "several files may stand in one"


def test_a_rewrite_replaces_the_file_whole_and_goes_on(tmp_path: Path) -> None:
    files = HeldFiles(tmp_path)
    files.rewrite(1, 1, [held(A)])
    files.append(1, 1, [held(B)])
    assert files.appended(1) == 1
    files.rewrite(1, 2, [held(C)])
    assert files.appended(1) == 0 and files.is_open(1, 2) and not files.is_open(1, 1)
    files.append(1, 2, [held(B)])
    assert [e.sn for e in read([tmp_path]).held[1]] == [B, C]


def test_nothing_is_appended_under_another_epoch_or_before_the_rewrite(files: HeldFiles) -> None:
    with pytest.raises(OSError, match="rewrite it") as first:
        files.append(1, 1, [held(A)])
    assert first.value.errno == errno.EBADF
    files.rewrite(1, 2, [])
    for epoch in (1, 3):
        with pytest.raises(OSError, match=f"epoch {epoch}"):
            files.append(1, epoch, [held(A)])
    files.append(1, 2, [])
    files.close_all()
    assert not files.is_open(1, 2)
    with pytest.raises(OSError, match="rewrite it"):
        files.append(1, 2, [held(A)])


def test_an_older_epoch_never_replaces_a_newer_file(tmp_path: Path) -> None:
    new, thawed = HeldFiles(tmp_path), HeldFiles(tmp_path)
    thawed.rewrite(1, 7, [held(A)])
    new.rewrite(1, 8, [held(B)])
    thawed.append(1, 7, [held(C)])  # into the file that it had: it is nobody's any more
    with pytest.raises(OSError, match="epoch 8, newer than 7"):
        thawed.rewrite(1, 7, [held(A)])
    assert [e.sn for e in read([tmp_path]).held[1]] == [B]


@pytest.mark.parametrize("taken", [0, 40])
def test_a_full_disk_is_an_oserror_and_keeps_the_complete_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    files = HeldFiles(tmp_path)
    files.rewrite(1, 1, [held(A)])
    real = os.write

    def full(descriptor: int, content: bytes) -> int:
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            files.append(1, 1, [held(B)])
        assert not files.is_open(1, 1)
        with pytest.raises(OSError, match=r"No space left"):
            files.rewrite(1, 1, [held(A), held(B)])
    found = read([tmp_path])
    assert [e.sn for e in found.held[1]] == [A]
    assert found.torn == ([(of(tmp_path, 1), 3)] if taken else [])
    assert [p.name for p in tmp_path.iterdir()] == ["held-1.jsonl"]
    files.rewrite(1, 1, [held(A), held(B)])
    assert [e.sn for e in read([tmp_path]).held[1]] == [A, B]


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        HeldFiles(file / "folder").rewrite(1, 1, [])


def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    HeldFiles(tmp_path).rewrite(1, 1, [held(A), held(B)])
    file = of(tmp_path, 1)
    whole = file.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole) + 1):
        file.write_bytes(whole[:cut])
        found = read([file])
        complete = cut >= len(whole) - 1
        assert [e.sn for e in found.held[1]] == ([A, B] if complete else [A])
        assert found.torn == ([] if complete or cut == last else [(file, 3)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ('{"sn":"x"}\n', "line 1: no header with shard and epoch"),
        ("[1]\n", "line 1: it cannot be read"),
        ('{"shard":1', "line 1: it cannot be read"),
        ('{"shard":64,"epoch":1,"at":1}\n', "line 1: it cannot be read"),
        ('{"shard":1,"epoch":1,"at":1,"version":2}\n', "version 2 of the file, and this program reads 1"),
        ('{"shard":1,"epoch":1,"at":1}\nnonsense\n{"x":1}\n', "line 2: it cannot be read"),
        ('{"shard":1,"epoch":1,"at":1}\n{"sn":"short","row":1,"actuator":1,"generation":1}\n', "line 2"),
        (f'{{"shard":1,"epoch":1,"at":1}}\n{{"sn":"{A}","row":1,"actuator":5,"generation":1}}\n', "line 2"),
        (f'{{"shard":1,"epoch":1,"at":1}}\n\n{{"sn":"{A}","actuator":1}}\n', "line 3"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "held-1.jsonl"
    file.write_text(content)
    with pytest.raises(BadInput, match=says) as told:
        read([tmp_path])
    assert str(file) in str(told.value)


def test_bytes_that_are_no_text_are_named_too(tmp_path: Path) -> None:
    file = tmp_path / "held-1.jsonl"
    file.write_bytes(b'{"shard":1,"epoch":1,"at":1}\n\xff\xfe\n{}\n')
    with pytest.raises(BadInput, match="line 2"):
        read([file])


def test_a_folder_or_a_file_that_is_not_there_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="VPP_DISPATCH_DATA_DIR"):
        read([tmp_path])
    with pytest.raises(BadInput, match="nowhere"):
        read([tmp_path / "nowhere"])
