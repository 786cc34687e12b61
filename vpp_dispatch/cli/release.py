"""`vpp-dispatch release --from`: the break-glass (R36). Needs the files of what is held, and GoodWe's cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpp_dispatch.cli.base import DURATION, Failed, Refused, config_option, execute, load, on_terminal

if TYPE_CHECKING:
    from vpp_dispatch.cli.debts import Debts
    from vpp_dispatch.dispatch.held import HeldFound
    from vpp_dispatch.goodwe.codec import Codec
    from vpp_dispatch.settings import Settings

NOT_ALL = 3
INTERRUPTED = 130
SHOWN_SNS = 10
LINE_EVERY_S = 5.0
"""In a pipe there is at most one line of progress in so many seconds."""

EXIT_CODES = """
\b
Exit codes:
  0    all that is held is confirmed as released, or nothing was held; of --dry-run: the files can be read
  1    a fault: a sentence says which
  2    the command line, a file or the configuration has to change; nothing was published
  3    some are not confirmed: they are in the file that is named, for the next try
  130  Ctrl-C; what is not confirmed is in the file that is named
"""

WHAT_IT_MEANS = {
    "not_sent": "not published yet",
    "unreachable": "GoodWe's cluster did not take it",
    "no_answer": "published, no answer yet",
    "accepted": "GoodWe took it; the inverter has not confirmed",
    "not_read_back": "GoodWe says it is done; not read back yet",
    "differs": "read back, and it shows something else",
    "offline": "the inverter is offline: try again when it is back",
    "unsayable": "the value is outside the profile, or the rating is not known: give rated_w, or see to it by hand",
    "unauthorized": "GoodWe no longer lets this supplier control it: ask GoodWe, or the owner",
}


@click.command(epilog=EXIT_CODES, short_help="Break-glass: release what is held, without your Kafka.")
@click.option(
    "--from", "folders", type=click.Path(path_type=Path), multiple=True, required=True, metavar="PATH",
    help="A worker's data folder, or such a file. Repeat it for every worker.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read the files and say what is held; connect to nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Release although your Kafka answers, so that workers may be alive.")
@click.option("--family-defaults", is_flag=True, help="Where no default is known, go back to the family's.")
@click.option(
    "--timeout", "timeout_s", type=DURATION, default="15m", show_default=True, metavar="DURATION",
    help="Try for so long; offline inverters are tried again within it.",
)  # fmt: skip
@click.option(
    "--rest", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where what is not confirmed is written; absent = held-rest-TIME.jsonl here.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only: held, progress, ended.")
@config_option
def release(
    folders: tuple[Path, ...],
    dry_run: bool,
    yes: bool,
    force: bool,
    family_defaults: bool,
    timeout_s: float,
    rest: Path | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """Break-glass: put everything back that workers hold, when the service cannot.

    Each worker keeps held-SHARD.jsonl in its VPP_DISPATCH_DATA_DIR: what it holds, and what that returns to. This
    command needs only these files, of all workers, and GoodWe's Kafka with the profile. Of each shard the newest epoch
    counts. Every release is published, answered, and read back; it counts only when it is read back equal. What is left
    goes into a file that the next try takes by --from.

    While your Kafka answers, use `signal abort` or `switch releases-only on` instead: workers that are alive would set
    again what this releases.

    \b
    vpp-dispatch release --from /var/lib/vpp-dispatch --dry-run
    vpp-dispatch release --from worker-1/ --from worker-2/ --yes
    vpp-dispatch release --from held-rest-1122-190500.jsonl --timeout 2h
    """
    settings = load(config)
    found = _read(folders)
    codec, debts = _debts(settings, found, family_defaults=family_defaults)
    debts.refuse_unsayable(codec)
    held = _held(found, debts)
    if as_json:
        click.echo(json.dumps({"held": held}))
    else:
        for line in _described(found, debts, held, family_defaults=family_defaults):
            click.echo(line)
    if dry_run:
        if not as_json:
            click.echo("Nothing was published (--dry-run).")
        return
    if not len(found):
        _end(debts, None, as_json=as_json, interrupted=False)
    _our_kafka_is_gone(settings, force=force)
    if not yes:
        if not sys.stdin.isatty():
            raise Refused("Nothing was published: look at --dry-run, then say --yes, since nobody can be asked here.")
        click.confirm(f"Release these {len(debts.debts):,} now?", abort=True)
    left = rest or Path(time.strftime("held-rest-%m%d-%H%M%S.jsonl", time.gmtime()))
    _keep(left, found, debts, first=True)
    interrupted = False
    try:
        with _telling(as_json=as_json) as told:
            from vpp_dispatch.cli.paying import pay

            execute(pay(settings, codec, debts, timeout_s=timeout_s, told=told))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        there = _keep(left, found, debts, first=False)
        if sys.exc_info()[0] is not None and there:
            click.echo(f"What is not confirmed is in {left}.", err=True)
    _end(debts, left if there else None, as_json=as_json, interrupted=interrupted)


def _read(folders: tuple[Path, ...]) -> HeldFound:
    from vpp_dispatch.dispatch.held import read
    from vpp_dispatch.errors import BadInput

    try:
        return read(folders)
    except BadInput as error:
        raise Refused(f"Nothing was published. {error}") from error


def _debts(settings: Settings, found: HeldFound, *, family_defaults: bool) -> tuple[Codec, Debts]:
    from vpp_dispatch.cli.debts import Debts
    from vpp_dispatch.errors import ConfigurationError
    from vpp_dispatch.goodwe.codec import Codec
    from vpp_dispatch.goodwe.parameters import Catalogue
    from vpp_dispatch.goodwe.profile import load_profile

    try:
        profile = load_profile(settings.goodwe.profile)
        catalogue = Catalogue(profile)
        codec = Codec(profile, catalogue)
    except ConfigurationError as error:
        raise Refused(str(error)) from error
    debts = Debts(
        profile=profile,
        catalogue=catalogue,
        result_timeout_s=settings.goodwe.result_timeout_s,
        retry_s=settings.dispatch.release_retry_s,
    )
    debts.add(found, family_defaults=family_defaults)
    return codec, debts


# ---------------------------------------------------------------------------------------------- what is held


def _held(found: HeldFound, debts: Debts) -> dict[str, Any]:
    from vpp_dispatch.domain.signal import Actuator

    every = [entry for entries in found.held.values() for entry in entries]
    epochs = [header.epoch for header in found.shards.values()]
    now = time.time()
    return {
        "actuators": len(every),
        "inverters": len({entry.sn for entry in every}),
        "by_actuator": {a.name.lower(): n for a in Actuator if (n := sum(entry.actuator == a for entry in every))},
        "files": found.files,
        "shards": len(found.shards),
        "epochs": [min(epochs, default=None), max(epochs, default=None)],
        "last_written_s_ago": [
            round(now - max(found.written.values(), default=now), 1),
            round(now - min(found.written.values(), default=now), 1),
        ],
        "superseded_sections": len(found.superseded),
        "torn_files": [f"{path}, line {number}" for path, number in found.torn],
        "default_unknown": [entry.sn for _, entry in debts.unknown],
        "unsayable": [debt.reason.partition(": ")[2] for debt in debts.debts if debt.state == "refused"],
    }


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _described(found: HeldFound, debts: Debts, held: dict[str, Any], *, family_defaults: bool) -> Iterator[str]:
    kinds = ", ".join(f"{n:,} {name}" for name, n in held["by_actuator"].items()) or "nothing"
    (low, high), (newest, oldest) = held["epochs"], held["last_written_s_ago"]
    yield f"Held: {kinds}, of {held['inverters']:,} inverters."
    yield (
        f"Read from {held['files']:,} files of {held['shards']} of 64 shards, epochs {low} to {high}, last written "
        f"{_ago(oldest)} (the oldest) to {_ago(newest)} (the newest)."
    )
    if held["shards"] < 64:
        yield f"Of {64 - held['shards']} shards there is no file here: name the folders of all workers."
    if found.superseded:
        yield f"{len(found.superseded):,} files or parts are of an older epoch and do not count."
    for torn in held["torn_files"]:
        yield f"{torn} was cut off and is left out: what it would have announced was never published."
    if debts.unknown:
        yield (
            f"Of {len(debts.unknown):,} the default is not known; they are left as they are "
            f"({_some(held['default_unknown'])}). --family-defaults puts them back to what the profile has for "
            "their family."
        )
    elif family_defaults:
        n = sum(debt.held.first is None for debt in debts.debts)
        yield f"{n:,} without a known default go back to what the profile says of their family."
    if held["unsayable"]:
        yield f"{len(held['unsayable']):,} cannot be said to GoodWe: {_some(held['unsayable'], '; ')}."


def _some(names: list[str], between: str = ", ") -> str:
    more = len(names) - SHOWN_SNS
    return between.join(names[:SHOWN_SNS]) + (f" and {more:,} more" if more > 0 else "")


# ---------------------------------------------------------------------------------------------- doing it


def _our_kafka_is_gone(settings: Settings, *, force: bool) -> None:
    """Raises Refused where our Kafka answers and has the service's topics: then workers may be alive."""
    if not execute(_answers(settings)):
        return
    says = (
        f"Your Kafka at {settings.kafka.bootstrap_servers} answers: workers that are alive would set again what is "
        "released here"
    )
    if force:
        click.echo(f"{says}; going on (--force).", err=True)
        return
    raise Refused(
        f"{says}. Nothing was published. Use `vpp-dispatch signal abort SOURCE EVENT --reason TEXT` for one event, or "
        "`vpp-dispatch switch releases-only on --reason TEXT` for all; or stop all workers and say --force."
    )


async def _answers(settings: Settings) -> bool:
    from vpp_dispatch.errors import VppDispatchError
    from vpp_dispatch.topics import Reader, refuses

    try:
        async with asyncio.timeout(10), Reader(settings, [settings.topics.event_inbox], since=time.time()):
            return True
    except (VppDispatchError, TimeoutError) as error:
        # One that lets us in for nothing, by a wrong password or a missing ACL, is one that workers may well be using.
        if getattr(error, "reason", "") == "unauthorized":
            return True
    return await refuses(settings.kafka.bootstrap_servers, settings.kafka.security)


def _keep(left: Path, found: HeldFound, debts: Debts, *, first: bool) -> bool:
    """Writes what is left, or removes the file if nothing is; whether there is one. Raises Refused, Failed.

    It is written before anything is published: whoever is killed in the middle goes on with it.
    """
    from vpp_dispatch.dispatch.held import write

    try:
        if not debts.unknown and all(debt.state == "confirmed" for debt in debts.debts):
            left.unlink(missing_ok=True)
            return False
        write(left, debts.rest(found, time.time()))
    except OSError as error:
        says = f"{left} cannot be written ({error.strerror})"
        if first:
            raise Refused(f"{says}: name another file by --rest. Nothing was published.") from None
        raise Failed(
            f"{says}, so what is not confirmed is not noted: start again with the same --from; what is released "
            "already is then released once more, which is safe."
        ) from None
    return True


@contextlib.contextmanager
def _telling(*, as_json: bool) -> Iterator[Callable[[Debts], None]]:
    """What shows the progress: a bar on a terminal, a line now and then in a pipe, JSON lines."""
    last: list[Any] = [None, 0.0]

    def line(debts: Debts) -> None:
        now = time.monotonic()
        if now - last[1] < LINE_EVERY_S and not debts.done:
            return
        counts, reasons = debts.counts(), debts.reasons()
        if (counts, reasons) == last[0]:
            return
        last[:] = [(counts, reasons), now]
        click.echo(json.dumps({"progress": {**counts, "reasons": reasons}}) if as_json else _line(debts))

    if as_json or not on_terminal():
        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("released"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=None)

        def drawn(debts: Debts) -> None:
            now = time.monotonic()
            if now - last[1] < 0.25 and not debts.done:
                return
            last[1] = now
            confirmed = debts.counts()["confirmed"]
            bar.update(task, total=len(debts.debts), completed=confirmed, description=_line(debts))

        yield drawn


def _line(debts: Debts) -> str:
    counts = debts.counts()
    why = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in debts.reasons().items())
    return (
        f"{counts['confirmed']:,} of {len(debts.debts):,} confirmed, {counts['pending']:,} pending, "
        f"{counts['refused']:,} refused" + (f" ({why})" if why else "")
    )


def _end(debts: Debts, left: Path | None, *, as_json: bool, interrupted: bool) -> None:
    """Says how it ended and leaves with the exit code that says it too."""
    counts, unknown = debts.counts(), len(debts.unknown)
    all_done = not unknown and counts["confirmed"] == len(debts.debts)
    code = INTERRUPTED if interrupted else 0 if all_done else NOT_ALL
    if as_json:
        ended = {**counts, "default_unknown": unknown, "reasons": debts.reasons()}
        click.echo(json.dumps({"ended": {**ended, "rest": str(left) if left else None, "exit_code": code}}))
        sys.exit(code)
    if all_done:
        click.echo(f"All {len(debts.debts):,} are confirmed as released." if debts.debts else "Nothing is held.")
        sys.exit(code)
    click.echo(_line(debts) + (f"; {unknown:,} left as they are, without a known default." if unknown else "."))
    for reason in debts.reasons():
        sns = [d.held.sn for d in debts.debts if d.state != "confirmed" and d.reason.partition(":")[0] == reason]
        means = WHAT_IT_MEANS.get(reason, f"GoodWe's answer: {reason.replace('_', ' ')}")
        click.echo(f"  {len(sns):,} {means}: {_some(sns)}")
    click.echo(f"What is not confirmed is in {left}; go on with: vpp-dispatch release --from {left}")
    sys.exit(code)
