"""`vpp-dispatch signal`: a dispatch signal, a release, a cancellation by hand; an abort; and what becomes of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from vpp_dispatch.cli.base import DURATION, MOMENT, Commands, Refused, config_option, execute, load
from vpp_dispatch.cli.controls import ControlType
from vpp_dispatch.cli.drafting import (
    checked,
    described,
    encoded,
    fill_in,
    not_too_late,
    put_options,
    read_body,
    targets_of,
)

if TYPE_CHECKING:
    from vpp_dispatch.domain.signal import Signal
    from vpp_dispatch.settings import Settings

DEFAULT_SOURCE = "operator"
"""Of a signal by hand, where the topic takes any source and nobody names one."""

CANCEL_EXPIRES_S = 86_400
"""A cancellation that is read late is still wanted."""

WATCH_EXIT_CODES = """
\b
Exit codes of a watch:
  0    completed: all targeted devices did it; of `cancel --watch`: cancelled
  1    a fault: a sentence says which
  2    the command line, the file or the configuration has to change
  3    completed partially: some did
  4    no participation: none did
  5    cancelled
  6    superseded: other events stood before it until its end
  7    refused by the service (responses 252, 253, 254)
  8    --timeout is over; the event goes on
  130  Ctrl-C; the event goes on
"""


RELEASE_EXPIRES_S = 600.0
"""A release drops what is held when it is read; long after it was sent that may be something else."""


@click.group(cls=Commands, short_help="Send, watch, cancel, abort a dispatch signal; release.")
def signal() -> None:
    """Send a dispatch signal by hand, watch what becomes of it, cancel or abort it, release what it holds."""


source_option = click.option("--source", metavar="NAME", help="Who sends it; the source that the topic is bound to.")
timeout_option = click.option(
    "--timeout", "timeout_s", type=DURATION, metavar="DURATION", help="Stop watching after so long, with exit code 8."
)
device_option = click.option("--device", "devices", multiple=True, metavar="SN", help="This inverter. May be repeated.")
site_option = click.option("--site", "sites", multiple=True, metavar="NAME", help="The inverters of this site.")
group_option = click.option("--group", "groups", multiple=True, metavar="NAME", help="The inverters of this group.")
area_option = click.option("--area", "areas", multiple=True, metavar="NAME", help="The inverters of this area.")
all_option = click.option("--all", "everyone", is_flag=True, help="All inverters.")
watch_option = click.option("--watch", "follow", is_flag=True, help="Stay and follow it to its end.")


def _topic(settings: Settings, source: str | None) -> tuple[str, str]:
    """(signals topic, source) of a signal by hand. Raises Refused where several would do, or none."""
    bound = settings.signals.topics
    if source is None:
        if len(bound) > 1:
            names = ", ".join(name for name in bound.values() if name != "*")
            raise Refused(f"There are several signals topics, each with its source: name one by --source ({names}).")
        topic, only = next(iter(bound.items()))
        return topic, DEFAULT_SOURCE if only == "*" else only
    for wanted in (source, "*"):
        for topic, name in bound.items():
            if name == wanted:
                return topic, source
    raise Refused(
        f"No signals topic is bound to the source {source!r}; there is {', '.join(bound.values())} "
        "(VPP_DISPATCH_SIGNALS__TOPICS)."
    )


# ---------------------------------------------------------------------------------------------- send


@signal.command(epilog=WATCH_EXIT_CODES, short_help="Send a dispatch signal, from options or a JSON file.")
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--control",
    "controls",
    type=ControlType(),
    multiple=True,
    metavar="KIND[=VALUE]",
    help="What is asked: charge=2000 (W each), discharge=total:2000000 (W), export_limit=@limits.csv (a table), "
    "charge=site:site-0001=3000 (an entry of a table), standby, generation_limit=60%, power_factor=0.95:over. Repeat "
    "it for another actuator, or for another entry.",
)
@device_option
@site_option
@group_option
@area_option
@all_option
@click.option("--start", type=MOMENT, metavar="TIME", help="2026-11-22T11:00:00Z, or +5m from now; absent = at once.")
@click.option("--end", type=MOMENT, metavar="TIME", help="When everything is put back.")
@click.option("--for", "lasts_s", type=DURATION, metavar="DURATION", help="Instead of --end: 30m, 1h30m, 90s.")
@click.option("--open-ended", is_flag=True, help="Until it is cancelled, or the longest event is over.")
@click.option("--priority", type=click.IntRange(0, 255), help="The lower wins; 255, the weakest, if absent.")
@click.option("--ramp-up", type=DURATION, metavar="DURATION", help="Stagger the starts over it.")
@click.option("--ramp-down", type=DURATION, metavar="DURATION", help="Stagger the releases over it.")
@click.option("--test", is_flag=True, help="Judge it only: no inverter is told anything.")
@click.option("--event-id", metavar="NAME", help="Made from kind and time if absent.")
@click.option("--revision", type=click.IntRange(min=1), help="1 if absent; a change of an event needs a higher one.")
@source_option
@click.option("--expires", type=MOMENT, metavar="TIME", help="First read later than this it is refused; absent = END.")
@click.option("--dry-run", is_flag=True, help="Check and print it, and send nothing.")
@watch_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only.")
@config_option
def send(file: IO[bytes] | None, config: Path | None, **given: Any) -> None:
    """Send a dispatch signal, from options or from a JSON FILE (- = standard input).

    Options win over what stands in the file. What is absent and can be known is filled in: source, event id, revision,
    created_at, expires_at. Nothing is sent that the service would refuse by its form. Sending the same JSON twice is
    safe: it counts once.

    A table is a CSV file with the columns site or device, and w, or a JSON file {"sites": {...}, "devices": {...}}.
    Where all controls go by table and no target is named, the targets are who stands in the tables.

    \b
    vpp-dispatch signal send --control export_limit=1500 --group feeder-03 --for 30m --watch
    vpp-dispatch signal send --control charge=2000 --all --start +10m --for 1h --priority 100
    vpp-dispatch signal send --control export_limit=@limits.csv --for 5m
    vpp-dispatch signal send --control generation_limit=60% --control power_factor=0.95:under --area west --for 1h
    vpp-dispatch signal send --control discharge=total:2000000 --all --for 1h --ramp-up 5m --ramp-down 5m
    vpp-dispatch signal send event.json --dry-run
    """
    settings = load(config)
    now = time.time()
    body = read_body(file) if file is not None else {}
    put_options(body, given, now)
    if not file and not (body.get("controls") and body.get("targets")):
        raise Refused(
            "Say what is asked, of whom and until when: for example --control charge=2000 --group feeder-03 --for 30m, "
            "or give a JSON file."
        )
    topic, source = _topic(settings, body.get("source") if isinstance(body.get("source"), str) else None)
    fill_in(body, source, now)
    value = encoded(body)
    decoded = checked(value)
    not_too_late(decoded, now)
    _send(
        settings, topic, decoded, value, dry_run=given["dry_run"], follow=given["follow"],
        timeout_s=given["timeout_s"], as_json=given["as_json"],
    )  # fmt: skip


def _send(
    settings: Settings,
    topic: str,
    decoded: Signal,
    value: bytes,
    *,
    dry_run: bool,
    follow: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    # Before it leaves: whoever loses the connection now can send these very bytes again, which is safe (R1).
    click.echo(value.decode())
    what = f"{decoded.event_id} r{decoded.revision} of {decoded.source}: {described(decoded)}"
    if dry_run:
        click.echo(f"Not sent (--dry-run): {what}.", err=as_json)
        return
    from vpp_dispatch.topics import Draft, publish

    [(partition, offset)] = execute(publish(settings, topic, [Draft(key=decoded.event_id.encode(), value=value)]))
    click.echo(f"Sent to {topic} (partition {partition}, offset {offset}): {what}.", err=as_json)
    if follow:
        from vpp_dispatch.cli.watching import watch

        watch(
            settings,
            decoded.event_id,
            source=decoded.source,
            revision=decoded.revision,
            since=min(decoded.created_at, time.time()) - 60,
            timeout_s=timeout_s,
            as_json=as_json,
            wanted=6 if decoded.action == "cancel" else 3,
            about=described(decoded),
        )


# ---------------------------------------------------------------------------------------------- cancel, watch


@signal.command(epilog=WATCH_EXIT_CODES, short_help="Cancel an event.")
@click.argument("event")
@click.option("--reason", metavar="TEXT", help="Why; it goes with the signal.")
@click.option("--ramp-down", type=DURATION, metavar="DURATION", help="Stagger the releases over it.")
@click.option("--revision", type=click.IntRange(min=1), help="One above the last that was answered, if absent.")
@source_option
@click.option("--dry-run", is_flag=True, help="Check and print it, and send nothing.")
@watch_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only.")
@config_option
def cancel(
    event: str,
    reason: str | None,
    ramp_down: float | None,
    revision: int | None,
    source: str | None,
    dry_run: bool,
    follow: bool,
    timeout_s: float | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Cancel EVENT: its holds are given up at once, and every inverter goes back.

    Source and revision are looked up in what the service answered. An event that was never answered can be cancelled
    too, by --revision (and --source): it then never starts.

    \b
    vpp-dispatch signal cancel dis-1122-03 --reason "fault cleared" --ramp-down 5m --watch
    """
    from vpp_dispatch.cli.watching import last_known
    from vpp_dispatch.operators.envelope import rfc3339

    settings = load(config)
    if revision is None:
        known = execute(last_known(settings, event, source))
        if known is None:
            raise Refused(
                f"Nothing was ever answered about an event {event!r}{f' of {source}' if source else ''}: check the "
                "name, or give --revision (2 cancels revision 1) so that it is cancelled before it starts."
            )
        source, revision = known[0], known[1] + 1
    topic, source = _topic(settings, source)
    now = time.time()
    body: dict[str, Any] = {
        "event_id": event,
        "source": source,
        "revision": revision,
        "action": "cancel",
        "created_at": rfc3339(now),
        "expires_at": rfc3339(now + CANCEL_EXPIRES_S),
    }
    if reason:
        body["reason"] = reason
    if ramp_down is not None:
        body["ramp_down_s"] = int(ramp_down)
    value = encoded(body)
    _send(settings, topic, checked(value), value, dry_run=dry_run, follow=follow, timeout_s=timeout_s, as_json=as_json)


# ---------------------------------------------------------------------------------------------- release


@signal.command(name="release", epilog=WATCH_EXIT_CODES, short_help="Drop what a source holds, and put it back.")
@click.argument("name", required=False, metavar="[SOURCE/EVENT]")
@device_option
@site_option
@group_option
@area_option
@all_option
@click.option("--reason", metavar="TEXT", help="Why; it goes with the signal.")
@click.option("--ramp-down", type=DURATION, metavar="DURATION", help="Stagger the releases over it.")
@click.option(
    "--expires-in",
    type=DURATION,
    default=RELEASE_EXPIRES_S,
    metavar="DURATION",
    help="First read later than this it is refused; absent = 10m.",
)
@click.option("--revision", type=click.IntRange(min=1), help="1 if absent.")
@source_option
@click.option("--dry-run", is_flag=True, help="Check and print it, and send nothing.")
@watch_option
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only.")
@config_option
def release_command(
    name: str | None,
    reason: str | None,
    ramp_down: float | None,
    expires_in: float,
    revision: int | None,
    source: str | None,
    dry_run: bool,
    follow: bool,
    timeout_s: float | None,
    as_json: bool,
    config: Path | None,
    **given: Any,
) -> None:
    """Drop what one source holds on the targets, and put it back: to what others hold, else to the default.

    Its running events go on for the inverters that are not named; its scheduled events stay. The default is asserted
    even where it is believed to be set. What other sources hold stays. A release is an event of its own: SOURCE/EVENT
    names it (or EVENT with --source); absent, the name is made from the time.

    \b
    vpp-dispatch signal release --device 9010KETU000W0001 --reason "owner called" --watch
    vpp-dispatch signal release gridco-west/rel-1122-01 --group feeder-12 --ramp-down 5m
    """
    from vpp_dispatch.operators.envelope import rfc3339

    settings = load(config)
    targets = targets_of(given)
    if not targets:
        raise Refused("Say what is to be released: --device, --site, --group, --area, or --all.")
    event = None
    if name is not None:
        before, slash, event = name.partition("/")
        if not slash:
            event = name
        elif source not in (None, before):
            raise Refused(f"{name} and --source {source} name two sources: keep one.")
        else:
            source = before
    topic, source = _topic(settings, source)
    now = time.time()
    body: dict[str, Any] = {"action": "release", "targets": targets, "expires_at": rfc3339(now + expires_in)}
    for field, value in (("event_id", event), ("revision", revision), ("reason", reason)):
        if value is not None:
            body[field] = value
    if ramp_down is not None:
        body["ramp_down_s"] = int(ramp_down)
    fill_in(body, source, now)
    bytes_ = encoded(body)
    _send(
        settings, topic, checked(bytes_), bytes_, dry_run=dry_run, follow=follow, timeout_s=timeout_s, as_json=as_json
    )


@signal.command(name="watch", epilog=WATCH_EXIT_CODES, short_help="Follow an event to its end.")
@click.argument("event")
@source_option
@click.option("--revision", type=click.IntRange(min=1), help="Wait for the end of this revision, or of a later one.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only.")
@config_option
def watch_command(
    event: str, source: str | None, revision: int | None, timeout_s: float | None, as_json: bool, config: Path | None
) -> None:
    """Follow EVENT to its end: responses, and the newest report as a table.

    On a terminal the table is live; in a pipe there is one line per change. It reads only, and it may be started
    before, during or after the event. Watching takes no part in the event: Ctrl-C does not end it.

    \b
    vpp-dispatch signal watch dis-1122-03
    vpp-dispatch signal watch dis-1122-03 --json --timeout 10m | tail -1
    """
    from vpp_dispatch.cli.watching import watch

    watch(load(config), event, source=source, revision=revision, timeout_s=timeout_s, as_json=as_json)
