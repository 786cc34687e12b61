"""`vpp-dispatch switch`: the switches on our own side (R36). Turning one is a numbered record in the event inbox."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vpp_dispatch.cli.base import DURATION, Commands, config_option, execute, load

if TYPE_CHECKING:
    from vpp_dispatch.domain.inputs import Switches
    from vpp_dispatch.settings import Settings

SwitchName = Literal["releases_only", "drain", "abort"]
NOT_TAKEN = 8
INTERRUPTED = 130
ROW = b"0|switches|state|"

EXIT_CODES = """
\b
Exit codes:
  0    done; of on and off: a worker has taken it
  1    a fault: a sentence says which
  2    the command line or the configuration has to change
  8    recorded, but no worker has taken it within --timeout; the first that runs takes it
  130  Ctrl-C; recorded, and it will be taken
"""

MEANS = {
    "releases_only": {
        True: "nothing but releases and their read-backs is published",
        False: "setpoints are published",
    },
    "drain": {
        True: "no new event is accepted; what runs goes on to its end",
        False: "new events are accepted",
    },
}

reason_option = click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the log.")
by_option = click.option("--by", metavar="NAME", help="Who; absent = this user at this host.")


@click.group(cls=Commands, short_help="Releases only, drain: turn and show the switches.")
def switch() -> None:
    """Turn and show the switches of the service: releases-only, the kill switch, and drain.

    They count for all workers, outlive them, and stay until they are turned back.
    """


def own_name() -> str:
    """user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has a number and no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def record(
    settings: Settings, name: SwitchName, *, on: bool, by: str | None, reason: str, event: str | None = None
) -> int:
    """Writes the record into the event inbox; its offset is its number. Raises Refused, Failed."""
    from vpp_dispatch.dispatch import inbox
    from vpp_dispatch.topics import Draft, publish

    turned = inbox.SwitchTurned(switch=name, on=on, at=time.time(), by=by or own_name(), reason=reason, event=event)
    draft = Draft(key=name.encode(), value=inbox.encode(turned), partition=0)
    [(_, number)] = execute(publish(settings, settings.topics.event_inbox, [draft]))
    return number


def state_of(key: bytes | None, value: bytes | None) -> tuple[int, Switches] | None:
    """(epoch, switches) of a row of the events' changelog; None if it is another row."""
    import msgspec

    from vpp_dispatch.domain.inputs import Switches
    from vpp_dispatch.errors import BadInput

    if key is None or value is None or not key.startswith(ROW):
        return None
    try:
        return int(key.removeprefix(ROW)), msgspec.msgpack.decode(value, type=Switches)
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadInput(
            f"The row of the switches cannot be read ({error}): use the vpp-dispatch of the service's version."
        ) from error


async def _read(settings: Settings, *, at_least: int | None = None, timeout_s: float = 0.0) -> Switches:
    """The switches as they stand, the highest epoch's; waits for a number at least that high, so long in seconds."""
    from vpp_dispatch.domain.inputs import Switches
    from vpp_dispatch.topics import Reader

    newest = (-1, Switches())
    until = time.monotonic() + timeout_s
    async with Reader(settings, [settings.topics.events_changelog]) as reader:
        while True:
            for entry in await reader.batch():
                found = state_of(entry.key, entry.value)
                if found is not None and (found[0], found[1].number) >= (newest[0], newest[1].number):
                    newest = found
            wanted = at_least is not None and newest[1].number < at_least
            if reader.caught_up and (not wanted or time.monotonic() > until):
                return newest[1]


def _turn(
    settings: Settings,
    name: Literal["releases_only", "drain"],
    *,
    on: bool,
    by: str | None,
    reason: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    number = record(settings, name, on=on, by=by, reason=reason)
    words = f"{name.replace('_', '-')} {'on' if on else 'off'}"
    if not as_json:
        click.echo(f"Recorded in {settings.topics.event_inbox} (number {number}): {words}, {reason!r}.")
    try:
        state = execute(_read(settings, at_least=number, timeout_s=timeout_s))
    except KeyboardInterrupt:
        click.echo(f"No longer waiting; {words} is recorded and will be taken.", err=True)
        sys.exit(INTERRUPTED)
    taken = state.number >= number
    code = 0 if taken else NOT_TAKEN
    if as_json:
        click.echo(json.dumps({"number": number, "taken": taken, **_values(state), "exit_code": code}))
    elif not taken:
        click.echo(
            f"No worker has taken it within {timeout_s:g} s: is one running, and does it reach Kafka (/readyz)? The "
            "record is kept, and the first worker that runs takes it before it publishes anything new; until then a "
            "worker that is cut off goes on with what it knew.",
            err=True,
        )
    elif getattr(state, name) is not on:
        click.echo(f"Taken, and turned back by somebody since (number {state.number}): {words} is not in force.")
    else:
        click.echo(f"Taken: {MEANS[name][on]}.")
    sys.exit(code)


def _values(state: Switches) -> dict[str, bool]:
    return {"releases_only": state.releases_only, "drain": state.drain}


state_argument = click.argument("state", type=click.Choice(["on", "off"]))
timeout_option = click.option(
    "--timeout", "timeout_s", type=DURATION, default="30s", show_default=True, metavar="DURATION",
    help="Wait for so long until a worker has taken it.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object only.")


@switch.command(name="releases-only", epilog=EXIT_CODES, short_help="The kill switch: publish nothing but releases.")
@state_argument
@reason_option
@by_option
@timeout_option
@json_option
@config_option
def releases_only(
    state: str, reason: str, by: str | None, timeout_s: float, as_json: bool, config: Path | None
) -> None:
    """The kill switch: while it is on, nothing but releases and their read-backs is published.

    Events go on in the books: what ends is released, what is asked for waits, and what still lasts is set when the
    switch is turned off. To put everything back at once, cancel or abort the events.

    \b
    vpp-dispatch switch releases-only on --reason "wrong setpoints on feeder-12"
    vpp-dispatch switch releases-only off --reason "corrected" --json
    """
    _turn(load(config), "releases_only", on=state == "on", by=by, reason=reason, timeout_s=timeout_s, as_json=as_json)


@switch.command(epilog=EXIT_CODES, short_help="Accept no new events; what runs goes on.")
@state_argument
@reason_option
@by_option
@timeout_option
@json_option
@config_option
def drain(state: str, reason: str, by: str | None, timeout_s: float, as_json: bool, config: Path | None) -> None:
    """While it is on no new event is accepted; what runs goes on to its end, and cancellations and releases are taken.

    \b
    vpp-dispatch switch drain on --reason "maintenance at 18:00"
    """
    _turn(load(config), "drain", on=state == "on", by=by, reason=reason, timeout_s=timeout_s, as_json=as_json)


@switch.command(epilog=EXIT_CODES, short_help="Show how the switches stand.")
@json_option
@config_option
def show(as_json: bool, config: Path | None) -> None:
    """Show how the switches stand, as a worker has taken them. Who turned them and why is in the workers' log.

    \b
    vpp-dispatch switch show --json
    """
    state = execute(_read(load(config)))
    number = state.number if state.number >= 0 else None
    if as_json:
        click.echo(json.dumps({"number": number, **_values(state)}))
        return
    for name, on in _values(state).items():
        click.echo(f"{name.replace('_', '-'):15}{'on' if on else 'off':5}{MEANS[name][on]}")
    click.echo("No switch was ever turned." if number is None else f"Turned last by number {number}.")
