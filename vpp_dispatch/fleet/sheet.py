"""The registry as a CSV sheet: what people keep a fleet in. Columns are the record's fields, lists parted by `;`.

Every row is held to the same rules as the records on the topic (`fleet.registry`), and every complaint names its line.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vpp_dispatch.domain.answer import Refusal
from vpp_dispatch.domain.device import SN_PATTERN
from vpp_dispatch.fleet.registry import decode_record

DEFAULTS = ("export_limit_w", "ems_mode", "ems_power_w", "active_percent", "power_factor")
COLUMNS = ("sn", "site", "groups", "area", "rated_w", "site_share", *(f"default_{name}" for name in DEFAULTS))
"""Only `sn` is required; empty = absent. `default_...` is what the actuator returns to when nothing holds it."""

MOST_PROBLEMS = 20
_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a sheet says: registry records (as on the topic) by SN, and what is wrong with it, in sentences.

    `filled` counts the devices whose `site_share` was filled in.
    """

    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    filled: int = 0


def read_sheet(text: str) -> Sheet:
    """Reads a sheet, parted by commas or semicolons. Never raises: problems are in the result, with line numbers.

    A site of several devices without `site_share`: what the others leave of it is split by `rated_w` where all have
    one, else equally.
    """
    header, _, _ = text.partition("\n")
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    devices: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    try:
        if problems := list(_header(reader.fieldnames or ())):
            return Sheet(problems=problems)
        for row in reader:
            line = reader.line_num
            if None in row:
                problems.append(
                    f"Line {line}: it has more cells than the header; quote cells that hold a {delimiter!r}."
                )
                continue
            cells = {name: (cell or "").strip() for name, cell in row.items()}
            if not any(cells.values()):
                continue
            device, wrong = _device(cells)
            sn = str(device.get("sn", ""))
            if not wrong and not SN_PATTERN.fullmatch(sn):
                wrong = [f"sn {sn!r} is not 16 digits and capital letters"]
            if not wrong and isinstance(refusal := decode_record(sn.encode(), _bytes(device)), Refusal):
                told = refusal.detail.removeprefix(f"The record of {sn}: ")
                wrong = [told.removesuffix("; correct it and send it again.")]
            if sn in lines:
                wrong.append(f"{sn} stands in line {lines[sn]} too; keep one of them")
            problems += [f"Line {line}: {what}." for what in wrong]
            if sn and not wrong:
                lines[sn], devices[sn] = line, device
    except csv.Error as error:
        problems.append(f"Line {reader.line_num}: it is no CSV ({error}).")
    if not devices and not problems:
        problems.append("The file has no device: write one row for each, under the header.")
    filled = _fill_in(devices, lines, problems)
    return Sheet(devices=devices, problems=problems, filled=filled)


def _header(names: Iterable[str]) -> Iterable[str]:
    names = list(names)
    if "sn" not in names:
        yield f"Line 1: there is no column sn. The columns are {', '.join(COLUMNS)}; only sn is required."
    for name in names:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            yield f"Line 1: {name!r} is no column{f'; did you mean {close[0]}?' if close else '; remove it.'}"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"Line 1: the column {name} stands twice; remove one."


def _device(cells: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(the record of a row, what is wrong with it)."""
    device: dict[str, Any] = {}
    default: dict[str, Any] = {}
    wrong: list[str] = []
    for name in COLUMNS:
        text = cells.get(name, "")
        if not text:
            if name == "sn":
                wrong.append("there is no sn")
        elif name in ("sn", "site", "area"):
            device[name] = text
        elif name == "groups":
            device["groups"] = [group.strip() for group in text.split(";") if group.strip()]
        elif (number := _number(text)) is None:
            wrong.append(f"{name} is {text!r} and not a number; write it as 5000 or 0.5, without a unit")
        elif name.startswith("default_"):
            default[name.removeprefix("default_")] = number
        else:
            device[name] = number
    return device | ({"default": default} if default else {}), wrong


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _fill_in(devices: dict[str, dict[str, Any]], lines: Mapping[str, int], problems: list[str]) -> int:
    """Fills in `site_share`; complains about sites whose shares are more than the whole. How many were filled in."""
    sites: dict[str, list[dict[str, Any]]] = {}
    for device in devices.values():
        if "site" in device:
            sites.setdefault(device["site"], []).append(device)
    filled = 0
    for site, there in sites.items():
        blank = [device for device in there if "site_share" not in device]
        given = sum(device["site_share"] for device in there if "site_share" in device)
        if given > 1 + _SHARE_TOLERANCE * len(there):
            where = ", ".join(str(lines[device["sn"]]) for device in there)
            problems.append(f"Lines {where}: the site_share of {site} adds up to {given:g}, more than 1; lower it.")
        if len(there) == 1:
            continue
        left = max(1 - given, 0.0)
        weights = [device.get("rated_w", 0) for device in blank]
        if not all(weights):
            weights = [1] * len(blank)
        for device, weight in zip(blank, weights, strict=True):
            # Rounded down: the shares of a site must never be more than the whole.
            device["site_share"] = math.floor(left * weight / sum(weights) * 1e6) / 1e6
            filled += 1
    return filled


def write_sheet(devices: Iterable[Mapping[str, Any]]) -> str:
    """The sheet of registry records; `read_sheet` reads it back."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for device in devices:
        row = {name: device[name] for name in ("sn", "site", "area", "rated_w", "site_share") if name in device}
        default = {f"default_{name}": value for name, value in device.get("default", {}).items()}
        writer.writerow(row | default | {"groups": ";".join(device.get("groups", ()))})
    return out.getvalue()


def _bytes(device: Mapping[str, Any]) -> bytes:
    return json.dumps(device, ensure_ascii=False).encode()
