"""The registry as CSV: there and back, shares filled in, and complaints with their lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.fleet.sheet import COLUMNS, read_sheet, write_sheet

A, B, C = "9010KETU000W0001", "9010KETU000W0002", "9010KETU000W0003"

FULL = {
    "sn": A,
    "site": "site, 1",
    "groups": ["feeder-1", "vpp"],
    "area": "west",
    "rated_w": 10000,
    "site_share": 0.5,
    "default": {"export_limit_w": 5000, "ems_mode": 1, "ems_power_w": 0, "active_percent": 60.5, "power_factor": 100},
}


def test_there_and_back() -> None:
    sheet = read_sheet(write_sheet([FULL, {"sn": B}]))
    assert sheet.problems == []
    assert sheet.devices == {A: FULL, B: {"sn": B}}


@given(st.dictionaries(st.integers(0, 9999), st.tuples(st.text(min_size=1), st.integers(0, 10**6)), min_size=1))
def test_any_site_name_and_rating_comes_back(rows: dict[int, tuple[str, int]]) -> None:
    devices = [
        {"sn": f"9010KETU000W{n:04d}", "site": site, "rated_w": rated_w, "site_share": 0.0}
        for n, (site, rated_w) in rows.items()
        if site == site.strip() and len(site) <= 128 and site.isprintable()
    ]
    if devices:
        assert list(read_sheet(write_sheet(devices)).devices.values()) == devices


def test_semicolons_blank_lines_spaces_and_a_subset_of_columns_are_fine() -> None:
    sheet = read_sheet(f'sn;groups\n {A} ; "a;b"\n\n;\n{B};\n'.replace(' "a;b"', '"a;b"'))
    assert sheet.problems == []
    assert sheet.devices == {A: {"sn": A, "groups": ["a", "b"]}, B: {"sn": B}}


def test_shares_are_filled_in_by_rating_and_never_more_than_the_whole() -> None:
    sheet = read_sheet(f"sn,site,rated_w,site_share\n{A},s,10000,\n{B},s,5000,\n{C},s,5000,0.1\n")
    assert sheet.problems == [] and sheet.filled == 2
    assert [d["site_share"] for d in sheet.devices.values()] == [0.6, 0.3, 0.1]
    unrated = read_sheet(f"sn,site\n{A},s\n{B},s\n{C},s\n")
    assert [d["site_share"] for d in unrated.devices.values()] == [0.333333] * 3
    alone = read_sheet(f"sn,site\n{A},s\n")
    assert alone.devices == {A: {"sn": A, "site": "s"}} and alone.filled == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Line 1: there is no column sn. The columns are sn, site"),
        ("sn\n", "The file has no device"),
        (f"serial,site\n{A},s\n", "Line 1: there is no column sn"),
        (f"sn,rated_W\n{A},5\n", "Line 1: 'rated_W' is no column; did you mean rated_w?"),
        (f"sn,site,site\n{A},a,b\n", "Line 1: the column site stands twice; remove one."),
        (f"sn,site\n{A},s\nshort,s\n", "Line 3: sn 'short' is not 16 digits and capital letters."),
        (f"sn,site\n{A},s\n,s\n", "Line 3: there is no sn."),
        (f"sn,site\n{A},s\n{A},t\n", f"Line 3: {A} stands in line 2 too; keep one of them."),
        (f"sn,rated_w\n{A},10 kW\n", "Line 2: rated_w is '10 kW' and not a number; write it as 5000"),
        (f"sn,rated_w\n{A},nan\n", "Line 2: rated_w is 'nan' and not a number"),
        (f"sn,rated_w\n{A},10.5\n", "Line 2: rated_w is 10.5 and not a whole number."),
        (f"sn,site_share\n{A},1.5\n", "Line 2: Expected `float` <= 1.0"),
        (f"sn,default_ems_mode\n{A},1\n", "Line 2: default needs both ems_mode and ems_power_w, or neither."),
        (f"sn,site\n{A},s,west\n", "Line 2: it has more cells than the header"),
        (f"sn,site,site_share\n{A},s,0.7\n{B},s,0.7\n", "Lines 2, 3: the site_share of s adds up to 1.4, more than 1"),
        (f'sn,site\n{A},"s\n', "it is no CSV"),
    ],
)
def test_every_complaint_names_its_line(text: str, says: str) -> None:
    problems = read_sheet(text).problems
    assert [problem for problem in problems if says in problem], problems


def test_all_lines_are_told_at_once() -> None:
    assert len(read_sheet("sn\n" + "bad\n" * 5).problems) == 5


def test_the_columns_are_the_records_fields() -> None:
    header = write_sheet([]).strip().split(",")
    assert tuple(header) == COLUMNS
