"""Break-glass files (R36): what each shard's owner holds, in files that need nothing else to be read.

One file per shard, `held-SHARD.jsonl`: a header, then one JSON object a line, appended before anything is published.
They are read when our Kafka is gone, by `vpp-dispatch release --from`, perhaps by a person, and perhaps after a worker
died in the middle of a line. docs/decisions/0008-break-glass.md says why they are made this way.

    {"shard":17,"epoch":42,"at":1795370531.0,"version":1}
    {"sn":"9010KETU000W0001","row":3,"actuator":1,"generation":5,"first":1,"second":0,"rated_w":10000}
    {"sn":"9010KETU000W0001","actuator":1,"released":true}
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.errors import BadInput

VERSION = 1
_Sn = Annotated[str, msgspec.Meta(pattern="^[0-9A-Z]{16}$")]
_Actuator = Annotated[int, msgspec.Meta(ge=1, le=4)]
_Pair = Annotated[int, msgspec.Meta(gt=-(2**31), lt=2**31)]


class Held(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An actuator that is, or is about to be, set to something else than its default.

    `row` < 2**24 and `generation` < 2**32 as in the correlation id of its setpoint; `first`/`second` the default that
    it returns to, a pair as in `domain.command`, None where it is not known; `rated_w` in W, 0 = not known.
    """

    sn: _Sn
    row: Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]
    actuator: _Actuator
    generation: Annotated[int, msgspec.Meta(ge=0, lt=(1 << 32) - 1)]
    first: _Pair | None = None
    second: _Pair | None = None
    rated_w: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0


class Released(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An actuator whose release is confirmed: it is not held any more."""

    sn: _Sn
    actuator: _Actuator
    released: bool = True


Entry = Held | Released


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line. `epoch` is the shard's, which rises with each owner; `at` epoch seconds of the rewrite."""

    shard: Annotated[int, msgspec.Meta(ge=0, lt=SHARDS)]
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    at: float
    version: int = VERSION


_encode_lines = msgspec.json.Encoder().encode_lines
_encode = msgspec.json.Encoder().encode


def file_name(shard: int) -> str:
    """The name of a shard's file."""
    return f"held-{shard}.jsonl"


# ---------------------------------------------------------------------------------------------- writing


@dataclass(slots=True)
class _Open:
    descriptor: int
    epoch: int
    appended: int = 0


class HeldFiles:
    """The files of the shards that a worker owns. Blocking, and meant to be: an append takes well under 0.1 ms.

    A shard is open from its `rewrite` until its `close`, or until something fails: then it is closed, `append` raises
    until the next `rewrite`, and the file keeps all its complete lines.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` need not exist yet."""
        self._folder = folder
        self._open: dict[int, _Open] = {}

    def is_open(self, shard: int, epoch: int) -> bool:
        """Whether `append` would be taken."""
        there = self._open.get(shard)
        return there is not None and there.epoch == epoch

    def appended(self, shard: int) -> int:
        """Entries appended since the last rewrite: tells when the file is worth another one. 0 if not open."""
        there = self._open.get(shard)
        return there.appended if there is not None else 0

    def rewrite(self, shard: int, epoch: int, entries: Iterable[Entry]) -> None:
        """Replaces the shard's file by one with these entries, atomically and durably, and opens it.

        Raises:
            OSError: it cannot be written, or a newer epoch's file stands there; the shard is closed then, and the file
                is as it was.
        """
        self.close(shard)
        path = self._folder / file_name(shard)
        self._folder.mkdir(parents=True, exist_ok=True)
        newer = _epoch_in(path)
        if newer is not None and newer > epoch:
            raise OSError(
                errno.EEXIST,
                f"it is of epoch {newer}, newer than {epoch}: another worker wrote it, or the state in Kafka was "
                "deleted since; if it was, delete the file",
                str(path),
            )
        header = Header(shard=shard, epoch=epoch, at=time.time())
        descriptor = _replaced(path, _encode(header) + b"\n" + _encode_lines(list(entries)))
        self._open[shard] = _Open(descriptor, epoch)

    def append(self, shard: int, epoch: int, entries: Sequence[Entry]) -> None:
        """Appends entries in one write, into the system's hands: they outlive this process, not the machine.

        Raises:
            OSError: the disk does not take them, or the shard is not open under this epoch; `rewrite` it then.
        """
        there = self._open.get(shard)
        if there is None or there.epoch != epoch:
            raise OSError(
                errno.EBADF, f"it is not open under epoch {epoch}: rewrite it", str(self._folder / file_name(shard))
            )
        if not entries:
            return
        try:
            _write(there.descriptor, _encode_lines(entries), self._folder / file_name(shard))
        except OSError:
            self.close(shard)
            raise
        there.appended += len(entries)

    def close(self, shard: int) -> None:
        """Gives a shard up. Its file stays: until a newer epoch's is somewhere, it is the best there is."""
        there = self._open.pop(shard, None)
        if there is not None:
            os.close(there.descriptor)

    def close_all(self) -> None:
        """Gives all shards up."""
        for shard in list(self._open):
            self.close(shard)


def _write(descriptor: int, content: bytes, path: Path) -> None:
    written = os.write(descriptor, content)
    if written < len(content):  # a full disk takes a part, and says no only to the next
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _epoch_in(path: Path) -> int | None:
    """The epoch of the file that stands there; None if there is none, or one that nobody could read anyway."""
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError), path.open("rb") as file:
        return msgspec.json.decode(file.readline(), type=Header).epoch
    return None


def write(path: Path, sections: Iterable[tuple[Header, Sequence[Entry]]]) -> None:
    """Writes several shards into one file, atomically and durably: what `release --from` leaves for its next try.

    Raises:
        OSError: it cannot be written; what stood there is as it was.
    """
    content = b"".join(_encode(header) + b"\n" + _encode_lines(entries) for header, entries in sections)
    os.close(_replaced(path, content))


def _replaced(path: Path, content: bytes) -> int:
    """Puts a file in the place of another; the descriptor of the new one, for appending."""
    # A name of its own for each process: workers that share a folder never write into one another's.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        _write(descriptor, content, path)
        os.fsync(descriptor)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


# ---------------------------------------------------------------------------------------------- reading


_decode_held = msgspec.json.Decoder(Held).decode
_decode_released = msgspec.json.Decoder(Released).decode


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """Any line; which it is follows from what is there."""

    shard: Any = None
    released: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A header with what follows it. `entries` by (SN, actuator): the last line wins; None = released."""

    path: Path
    written: float
    header: Header
    entries: dict[tuple[str, int], Held | None]


@dataclass(slots=True, kw_only=True)
class HeldFound:
    """What the files say is held.

    Attributes:
        shards: the header that counted, by shard.
        written: when the file that counted was written last, epoch seconds, by shard.
        held: what is held, by shard, in the order of SN and actuator.
        superseded: sections of an older epoch, which did not count.
        torn: files whose last line was cut off, each with its line number.
        files: how many were read.
    """

    shards: dict[int, Header] = field(default_factory=dict)
    written: dict[int, float] = field(default_factory=dict)
    held: dict[int, list[Held]] = field(default_factory=dict)
    superseded: list[Section] = field(default_factory=list)
    torn: list[tuple[Path, int]] = field(default_factory=list)
    files: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.held.values()))


def read(paths: Iterable[Path]) -> HeldFound:
    """What is held, from files and folders (their `held-*.jsonl`) of any number of workers.

    Of each shard only the newest epoch counts. Several sections of one epoch, as a remainder's after a first try, fold
    in the order of their times. A last line that was cut off is left out: what it would have announced was never
    published. Several files may stand in one, one after the other.

    Raises:
        BadInput: a file that cannot be read, or a line in it; a sentence with file, line and what to do.
    """
    found = HeldFound()
    sections: dict[int, list[Section]] = {}
    for path in dict.fromkeys(file for given in paths for file in _files(given)):
        found.files += 1
        for section in _sections(path, found):
            sections.setdefault(section.header.shard, []).append(section)
    for shard, of_shard in sorted(sections.items()):
        newest = max(section.header.epoch for section in of_shard)
        counting = sorted((s for s in of_shard if s.header.epoch == newest), key=lambda s: s.header.at)
        found.superseded += [section for section in of_shard if section.header.epoch < newest]
        entries: dict[tuple[str, int], Held | None] = {}
        for section in counting:
            entries |= section.entries
        found.shards[shard] = counting[-1].header
        found.written[shard] = max(section.written for section in counting)
        if held := [entry for _, entry in sorted(entries.items()) if entry is not None]:
            found.held[shard] = held
    return found


def _files(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    try:
        files = sorted(given.glob("held-*.jsonl"))
    except OSError as error:
        raise BadInput(f"{given} cannot be read ({error.strerror}): see to its rights.") from None
    if not files:
        raise BadInput(
            f"{given} has no held-*.jsonl: name the folder in VPP_DISPATCH_DATA_DIR of a worker, or such files."
        )
    return files


def _sections(path: Path, found: HeldFound) -> list[Section]:
    try:
        content, written = path.read_bytes(), path.stat().st_mtime
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): name a worker's folder, or see to it.") from None
    lines = content.split(b"\n")
    made: list[Section] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind = msgspec.json.decode(line, type=_Line)
            if kind.shard is not None:
                header = msgspec.json.decode(line, type=Header)
                if header.version != VERSION:
                    raise BadInput(
                        f"{path}, line {number}: version {header.version} of the file, and this program reads "
                        f"{VERSION}: use the vpp-dispatch of the version that wrote it."
                    )
                made.append(Section(path=path, written=written, header=header, entries={}))
                continue
            if not made:
                raise BadInput(
                    f"{path}, line {number}: no header with shard and epoch stands above it, so its age is not known: "
                    "this is no break-glass file, or not its beginning; leave it out."
                )
            entry: Entry = _decode_released(line) if kind.released else _decode_held(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if number == len(lines) and made:  # no newline behind it: cut off in mid write
                found.torn.append((path, number))
                continue
            raise BadInput(
                f"{path}, line {number}: it cannot be read ({error}). Look at it, then correct or delete this line; "
                "the device it stood for has to be seen to by hand."
            ) from None
        made[-1].entries[entry.sn, entry.actuator] = entry if isinstance(entry, Held) else None
    if not made:
        raise BadInput(f"{path} is empty: it is no break-glass file; leave it out.")
    return made
