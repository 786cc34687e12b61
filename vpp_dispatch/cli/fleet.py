"""`vpp-dispatch fleet`: the registry, in and out as a CSV sheet, and as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpp_dispatch.cli.base import EXIT_CODES, Commands, Refused, config_option, execute, load, on_terminal

if TYPE_CHECKING:
    from vpp_dispatch.settings import Settings
    from vpp_dispatch.topics import Draft


@click.group(cls=Commands, short_help="The registry: import, export, show.")
def fleet() -> None:
    """The registry: which inverters may be dispatched, where they are, what they return to."""


@dataclass
class Registry:
    """What the registry topic says: the newest record of each SN, with the partition it is in."""

    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    partitions: dict[str, int] = field(default_factory=dict)
    unusable: int = 0


async def _registry(settings: Settings) -> Registry:
    from vpp_dispatch.domain.answer import Refusal
    from vpp_dispatch.fleet.registry import Removed, decode_record
    from vpp_dispatch.topics import read_all

    found = Registry()
    newest: dict[str, float] = {}
    async for entry in read_all(settings, settings.topics.registry):
        record = decode_record(entry.key, entry.value)
        if isinstance(record, Refusal):
            found.unusable += 1
            continue
        # A foreign partitioner may have put the records of one SN into two partitions: then the later one counts.
        if entry.at < newest.get(record.sn, 0.0):
            continue
        newest[record.sn] = entry.at
        found.partitions[record.sn] = entry.partition
        if isinstance(record, Removed) or entry.value is None:
            found.devices.pop(record.sn, None)
        else:
            found.devices[record.sn] = json.loads(entry.value)
    found.devices = dict(sorted(found.devices.items()))
    return found


def _warn(found: Registry) -> None:
    if found.unusable:
        click.echo(
            f"{found.unusable:,} records on the topic cannot be used and are left out; the service put them among the "
            "dead letters, with the reason.",
            err=True,
        )


# ---------------------------------------------------------------------------------------------- import


@fleet.command(name="import", epilog=EXIT_CODES, short_help="Write a CSV file into the registry.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the file and say what would change; write nothing.")
@click.option("--replace", is_flag=True, help="Remove what is registered and not in the file; it is released first.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@config_option
def import_(file: Path, dry_run: bool, replace: bool, yes: bool, config: Path | None) -> None:
    """Write the devices of the CSV FILE (- = standard input) into the registry.

    Every row is checked first, and nothing is written unless all are right. Only what is new or differs is written.

    \b
    Columns, in any order; only sn is required:
      sn                      serial number, 16 digits and capital letters
      site, area              names
      groups                  names, parted by ;
      rated_w                 rated power in W; absent = read from the SN
      site_share              its part of its site's value, 0 to 1; absent = filled in by rated_w
      default_export_limit_w, default_ems_mode, default_ems_power_w,
      default_active_percent, default_power_factor
                              what it returns to when no event holds it

    \b
    vpp-dispatch fleet import fleet.csv --dry-run
    vpp-dispatch fleet import fleet.csv --replace --yes
    """
    from vpp_dispatch.fleet.sheet import MOST_PROBLEMS, read_sheet

    settings = load(config)
    sheet = read_sheet(_text(file))
    if sheet.problems:
        more = len(sheet.problems) - MOST_PROBLEMS
        lines = sheet.problems[:MOST_PROBLEMS] + ([f"... and {more} more."] if more > 0 else [])
        raise Refused("\n".join(["Nothing was written; the file has to change.", *lines]))
    registry = execute(_registry(settings))
    drafts, counts = _changes(sheet.devices, registry, replace=replace)
    filled = f" site_share was filled in for {sheet.filled:,}." if sheet.filled else ""
    told = f"{counts['new']:,} new, {counts['changed']:,} changed, {counts['same']:,} the same"
    told += f", {counts['removed']:,} removed" if replace else f", {counts['removed']:,} others left as they are"
    if dry_run:
        click.echo(f"The file fits: {told}.{filled} Nothing was written (--dry-run).")
        return
    if replace and counts["removed"] and not yes:
        if not sys.stdin.isatty() or str(file) == "-":
            raise Refused(
                f"--replace would remove {counts['removed']:,} devices: nothing was written. Look at --dry-run, then "
                "say --yes."
            )
        click.confirm(f"Remove {counts['removed']:,} devices that are not in the file?", abort=True)
    if drafts:
        from vpp_dispatch.topics import publish

        execute(publish(settings, settings.topics.registry, drafts))
    click.echo(f"Written to {settings.topics.registry}: {told}.{filled}")


def _text(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{file} is not UTF-8 ({error.reason} at byte {error.start}): save it as CSV UTF-8.") from None
    except OSError as error:
        raise Refused(f"{file} cannot be read ({error.strerror}).") from None


def _changes(
    wanted: Mapping[str, dict[str, Any]], registry: Registry, *, replace: bool
) -> tuple[list[Draft], dict[str, int]]:
    from vpp_dispatch.fleet.registry import decode_record
    from vpp_dispatch.topics import Draft

    drafts: list[Draft] = []
    counts = {"new": 0, "changed": 0, "same": 0, "removed": 0}

    def put(sn: str, value: bytes | None) -> None:
        # Where its other records are, so that compaction and order see all of them.
        drafts.append(Draft(key=sn.encode(), value=value, partition=registry.partitions.get(sn)))

    for sn, device in wanted.items():
        value = json.dumps(device, ensure_ascii=False).encode()
        there = registry.devices.get(sn)
        if there is None:
            counts["new"] += 1
        elif decode_record(sn.encode(), json.dumps(there).encode()) == decode_record(sn.encode(), value):
            counts["same"] += 1
            continue
        else:
            counts["changed"] += 1
        put(sn, value)
    others = [sn for sn in registry.devices if sn not in wanted]
    counts["removed"] = len(others)
    if replace:
        for sn in others:
            put(sn, None)
    return drafts, counts


# ---------------------------------------------------------------------------------------------- export, show


@fleet.command(epilog=EXIT_CODES, short_help="Write the registry as CSV.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE")
@config_option
def export(output: Path | None, config: Path | None) -> None:
    """Write the registry as CSV to standard output, or to a file; `fleet import` reads it back.

    \b
    vpp-dispatch fleet export -o fleet.csv
    """
    from vpp_dispatch.fleet.sheet import write_sheet

    registry = execute(_registry(load(config)))
    _warn(registry)
    text = write_sheet(registry.devices.values())
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{output} cannot be written ({error.strerror}).") from None
    click.echo(f"Written to {output}: {len(registry.devices):,} devices.")


@fleet.command(epilog=EXIT_CODES, short_help="Show what is registered.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="Only of this site. May be repeated.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Only of this group.")
@click.option("--area", "areas", multiple=True, metavar="NAME", help="Only of this area.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: the records as they are on the topic.")
@config_option
def show(
    sites: tuple[str, ...], groups: tuple[str, ...], areas: tuple[str, ...], as_json: bool, config: Path | None
) -> None:
    """Show what is registered: a table on a terminal, columns parted by tabs in a pipe.

    Several filters narrow it down: --group feeder-03 --area west shows what is in both. It tells what the registry
    says; whether an owner consents is read by `vpp-dispatch preflight`.

    \b
    vpp-dispatch fleet show --group feeder-03 --area west
    vpp-dispatch fleet show --json | jq -r .sn
    """
    registry = execute(_registry(load(config)))
    _warn(registry)
    shown = [
        device
        for device in registry.devices.values()
        if (not sites or device.get("site") in sites)
        and (not areas or device.get("area") in areas)
        and (not groups or set(groups) & set(device.get("groups", ())))
    ]
    if as_json:
        for device in shown:
            click.echo(json.dumps(device, ensure_ascii=False))
        return
    titles = ("sn", "site", "groups", "area", "rated_w", "site_share", "default")
    rows = [
        (
            device["sn"],
            device.get("site", ""),
            " ".join(device.get("groups", ())),
            device.get("area", ""),
            str(device.get("rated_w", "")),
            str(device.get("site_share", "")),
            " ".join(f"{name}={value}" for name, value in device.get("default", {}).items()),
        )
        for device in shown
    ]
    if not on_terminal():
        for row in (titles, *rows):
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, caption=f"{len(shown):,} of {len(registry.devices):,} registered devices")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
