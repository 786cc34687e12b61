"""The registry by hand: what would be written, what is refused, and what is shown."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vpp_dispatch import topics
from vpp_dispatch.cli import main
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Draft, Entry

A, B, C = "9010KETU000W0001", "9010KETU000W0002", "9010KETU000W0003"


class Topic:
    """The registry topic: what is on it, and what was published."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.drafts: list[Draft] = []

    def put(self, sn: str, record: dict[str, Any] | None, *, at: float = 1.0, partition: int = 0) -> None:
        value = None if record is None else json.dumps({"sn": sn} | record).encode()
        self.entries.append(Entry(topic="t", partition=partition, offset=0, at=at, key=sn.encode(), value=value))


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    made = Topic()

    async def read_all(_: Settings, __: str) -> AsyncIterator[Entry]:
        for entry in made.entries:
            yield entry

    async def publish(_: Settings, __: str, drafts: Sequence[Draft]) -> list[tuple[int, int]]:
        made.drafts += drafts
        return [(0, 0)] * len(drafts)

    monkeypatch.setattr(topics, "read_all", read_all)
    monkeypatch.setattr(topics, "publish", publish)
    for name in list(os.environ):
        if name.startswith("VPP_DISPATCH_"):
            monkeypatch.delenv(name)
    return made


@pytest.fixture
def fleet(topic: Topic, tmp_path: Path) -> Callable[..., Result]:
    def run(*arguments: str, sheet: str | bytes | None = None, given: str | None = None) -> Result:
        if sheet is not None:
            file = tmp_path / "fleet.csv"
            file.write_bytes(sheet.encode() if isinstance(sheet, str) else sheet)
            arguments = (*arguments, str(file))
        return CliRunner().invoke(main, ["fleet", *arguments], input=given)

    return run


def test_only_what_is_new_or_differs_is_written_where_its_records_are(
    fleet: Callable[..., Result], topic: Topic
) -> None:
    topic.put(A, {"site": "s", "rated_w": 5000}, partition=4)
    topic.put(B, {"area": "west", "site_share": 1.0})
    result = fleet("import", sheet=f"sn,site,area,rated_w\n{A},t,,5000\n{B},,west,\n{C},,,\n")
    assert result.exit_code == 0, result.output
    assert "1 new, 1 changed, 1 the same, 0 others left as they are" in result.output
    assert [(d.key.decode(), json.loads(d.value or b""), d.partition) for d in topic.drafts] == [
        (A, {"sn": A, "site": "t", "rated_w": 5000}, 4),
        (C, {"sn": C}, None),
    ]


def test_replace_removes_by_tombstones_and_only_when_told_so(fleet: Callable[..., Result], topic: Topic) -> None:
    topic.put(A, {})
    topic.put(B, {})
    sheet = f"sn\n{A}\n"
    assert "1 others left as they are" in fleet("import", sheet=sheet).output and topic.drafts == []
    dry = fleet("import", "--replace", "--dry-run", sheet=sheet)
    assert dry.exit_code == 0 and "1 removed" in dry.output and topic.drafts == []
    asked = fleet("import", "--replace", sheet=sheet)
    assert asked.exit_code == 2 and "would remove 1 devices" in asked.stderr and topic.drafts == []
    assert fleet("import", "--replace", "--yes", sheet=sheet).exit_code == 0
    assert [(d.key.decode(), d.value) for d in topic.drafts] == [(B, None)]


def test_nothing_is_written_of_a_file_with_a_wrong_row(fleet: Callable[..., Result], topic: Topic) -> None:
    result = fleet("import", sheet=f"sn,rated_w\n{A},5000\n{B},5 kW\nshort,1\n")
    assert result.exit_code == 2 and topic.drafts == []
    assert "Line 3: rated_w is '5 kW'" in result.stderr and "Line 4: sn 'short'" in result.stderr
    many = fleet("import", sheet="sn\n" + "bad\n" * 50)
    assert "... and 30 more." in many.stderr


@pytest.mark.parametrize(
    ("sheet", "says"), [("", "there is no column sn"), ("sn\n", "has no device"), (b"sn\n\xff\n", "is not UTF-8")]
)
def test_a_file_that_is_no_sheet(fleet: Callable[..., Result], topic: Topic, sheet: str | bytes, says: str) -> None:
    result = fleet("import", "--replace", "--yes", sheet=sheet)
    assert (result.exit_code, topic.drafts) == (2, []) and says in result.stderr


def test_a_sheet_comes_by_standard_input_too_and_excels_mark_is_no_column(
    fleet: Callable[..., Result], topic: Topic
) -> None:
    assert fleet("import", "-", given=f"\ufeffsn;site\n{A};s\n").exit_code == 0
    assert [d.key.decode() for d in topic.drafts] == [A]
    assert fleet("import", "nowhere.csv").exit_code == 2


def test_the_newest_record_counts_also_across_partitions(fleet: Callable[..., Result], topic: Topic) -> None:
    topic.put(A, {"site": "new"}, at=5.0, partition=1)
    topic.put(A, {"site": "old"}, at=2.0, partition=0)
    topic.put(B, {"site": "gone"})
    topic.put(B, None, at=2.0)
    topic.entries.append(Entry(topic="t", partition=0, offset=0, at=0.0, key=b"?", value=b"{}"))
    result = fleet("export")
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.startswith("sn,site,groups") and [row.split(",")[:2] for row in rows] == [[A, "new"]]
    assert "1 records on the topic cannot be used" in result.stderr


def test_what_is_exported_is_imported_without_a_change(
    fleet: Callable[..., Result], topic: Topic, tmp_path: Path
) -> None:
    topic.put(A, {"site": "s, 1", "groups": ["g", "h"], "site_share": 0.4, "default": {"export_limit_w": 3000}})
    topic.put(B, {"site": "s, 1", "site_share": 0.6})
    file = tmp_path / "out.csv"
    assert "2 devices" in fleet("export", "-o", str(file)).output
    assert "0 new, 0 changed, 2 the same" in fleet("import", str(file)).output and topic.drafts == []
    refused = fleet("export", "-o", str(tmp_path / "nowhere" / "out.csv"))
    assert refused.exit_code == 2 and "cannot be written" in refused.stderr


def test_show_filters_narrow_down(fleet: Callable[..., Result], topic: Topic) -> None:
    topic.put(A, {"site": "s", "groups": ["g", "h"], "area": "west"})
    topic.put(B, {"site": "t", "groups": ["g"], "area": "east", "default": {"active_percent": 60}})
    topic.put(C, {})

    def shown(*arguments: str) -> list[str]:
        return [json.loads(line)["sn"] for line in fleet("show", "--json", *arguments).stdout.splitlines()]

    assert shown() == [A, B, C]
    assert shown("--group", "g") == [A, B]
    assert shown("--group", "g", "--area", "west") == [A]
    assert shown("--site", "s", "--site", "t") == [A, B]
    assert shown("--site", "nowhere") == []
    titles, *rows = fleet("show", "--area", "east").stdout.splitlines()
    assert titles.split("\t")[0] == "sn" and rows == [f"{B}\tt\tg\teast\t\t\tactive_percent=60"]
