"""Controls of a signal as people write them: KIND=VALUE on the command line, and tables in CSV and JSON files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vpp_dispatch.cli.base import Refused

FORMS = (
    "watts per device (2000), watts in total (total:2000000), percent of the rating (60%), a power factor with its "
    "excitation (0.95:over), watts of one site or device (site:site-0001=3000, device:9010KETU000W0001=1500; repeat "
    "it), or a table in a CSV or JSON file (@limits.csv)"
)


class ControlType(click.ParamType):
    """KIND=VALUE as a control of the contract."""

    name = "control"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        from vpp_dispatch.domain.signal import Kind

        kind, given, text = str(value).partition("=")
        kind = kind.replace("-", "_")
        kinds = [k.value for k in Kind]
        if kind not in kinds:
            self.fail(f"{kind!r} is no kind of control; there are {', '.join(kinds)}.", param, ctx)
        control: dict[str, Any] = {"kind": kind}
        if not given:
            return control
        if text.startswith("@"):
            return control | {"by_target_w": read_table(Path(text[1:]))}
        try:
            return control | _form(text)
        except ValueError:
            self.fail(f"{text!r} is no value: write {FORMS}.", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from vpp_dispatch.domain.signal import Kind

        return [click.shell_completion.CompletionItem(k.value) for k in Kind if k.value.startswith(incomplete)]


def _form(text: str) -> dict[str, Any]:
    """The fields of a control's value. Raises ValueError."""
    if text.startswith("total:"):
        return {"total_w": int(text[6:].removesuffix("W"))}
    for word, table in (("site:", "sites"), ("device:", "devices")):
        if text.startswith(word):
            name, _, watts = text.removeprefix(word).rpartition("=")
            if not name:
                raise ValueError(text)
            return {"by_target_w": {table: {name: int(watts.removesuffix("W"))}}}
    if text.endswith("%"):
        return {"each_percent": float(text[:-1])}
    if ":" in text:
        number, _, excitation = text.partition(":")
        return {"cos_phi": float(number), "excitation": excitation}
    return {"each_w": int(text.removesuffix("W"))}


def read_table(file: Path) -> dict[str, dict[str, int]]:
    """Watts by site and device from a file: CSV with the columns site or device, and w; or the JSON of `by_target_w`.

    Raises Refused: one sentence with file and line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Refused(f"The table {file} cannot be read ({error.strerror}): name a CSV or JSON file.") from None
    except UnicodeDecodeError:
        raise Refused(f"The table {file} is not UTF-8: save it as CSV UTF-8, or as JSON.") from None
    if text.lstrip().startswith("{"):
        return _json_table(file, text)
    lines = text.splitlines()
    head = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=";" if ";" in head else ",")
    names = [name.strip().lower() for name in rows.fieldnames or ()]
    rows.fieldnames = ["device" if name == "sn" else name for name in names]
    columns = set(rows.fieldnames)
    if "w" not in columns or not columns & {"site", "device"} or columns - {"site", "device", "w"}:
        raise Refused(f"The table {file} has the columns {', '.join(names) or '(none)'}; it takes site, device and w.")
    table: dict[str, dict[str, int]] = {}
    for row in rows:
        filled = [(kind, name.strip()) for kind in ("site", "device") if (name := row.get(kind) or "").strip()]
        where = f"The table {file}, line {rows.line_num}"
        if len(filled) != 1:
            raise Refused(f"{where}: it has to name one site or one device.")
        [(kind, name)] = filled
        try:
            watts = int((row["w"] or "").strip())
        except ValueError:
            raise Refused(f"{where}: w is {row['w']!r} and has to be a whole number of watts.") from None
        entries = table.setdefault(f"{kind}s", {})
        if name in entries:
            raise Refused(f"{where}: {name} stands there twice; keep one of them.")
        entries[name] = watts
    if not table:
        raise Refused(f"The table {file} has no row: write one line for each site or device.")
    return table


def _json_table(file: Path, text: str) -> dict[str, dict[str, int]]:
    says = f'The table {file} has to be JSON such as {{"sites": {{"site-0001": 3000}}, "devices": {{}}}}'
    try:
        table = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{says}; it cannot be read: {error}.") from None
    if not table or set(table) - {"sites", "devices"} or not all(isinstance(part, dict) for part in table.values()):
        raise Refused(f"{says}; it has {', '.join(table) or 'nothing'}.")
    return {name: dict(part) for name, part in table.items() if part}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands twice in one object")
    return dict(pairs)


def merged(controls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Controls with the tables of one kind put together. Raises Refused where one name stands in two of them."""
    found: list[dict[str, Any]] = []
    for control in controls:
        there = next((c for c in found if c["kind"] == control["kind"] and c.keys() == control.keys()), None)
        if there is None or "by_target_w" not in control:
            found.append(dict(control))
            continue
        table = {name: dict(part) for name, part in there["by_target_w"].items()}
        for name, part in control["by_target_w"].items():
            if twice := sorted(table.get(name, {}).keys() & part.keys()):
                raise Refused(f"{', '.join(twice)} stands twice in the table of {control['kind']}: keep one of them.")
            table[name] = table.get(name, {}) | part
        there["by_target_w"] = table
    return found


def named_in_tables(controls: Any) -> dict[str, list[str]]:
    """The sites and devices of controls that all go by table; nothing if one does not."""
    named: dict[str, list[str]] = {}
    for control in controls if isinstance(controls, list) else ():
        table = control.get("by_target_w") if isinstance(control, dict) else None
        if not isinstance(table, dict):
            return {}
        for name in ("sites", "devices"):
            part = table.get(name)
            if isinstance(part, dict):
                named[name] = list(dict.fromkeys([*named.get(name, []), *part]))
    return {name: names for name, names in named.items() if names}
