"""`vpp-dispatch signal abort`: one event ended from our own side (R36)."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vpp_dispatch.cli.base import DURATION, Refused, config_option, execute, load
from vpp_dispatch.cli.switch import by_option, reason_option, record

ABORT_EXIT_CODES = """
\b
Exit codes:
  0    aborted: the final response has this reason; or it was completed just before
  1    a fault: a sentence says which
  2    the command line or the configuration has to change, or there is nothing to abort; nothing was recorded
  3-7  it ended otherwise before the abort was taken: the codes of `signal watch`
  8    --timeout is over; what was recorded will be taken
  130  Ctrl-C; what was recorded will be taken
"""


@click.command(epilog=ABORT_EXIT_CODES, short_help="End an event from our side, at once.")
@click.argument("source")
@click.argument("event")
@reason_option
@by_option
@click.option("--watch/--no-watch", "follow", default=True, help="Stay until it is over (the default), or do not.")
@click.option(
    "--timeout", "timeout_s", type=DURATION, metavar="DURATION", help="Stop watching after so long, with exit code 8."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines only.")
@config_option
def abort(
    source: str,
    event: str,
    reason: str,
    by: str | None,
    follow: bool,
    timeout_s: float | None,
    as_json: bool,
    config: Path | None,
) -> None:
    """End EVENT of SOURCE from our side: its holds are given up at once, without a ramp, whatever the operator sent.

    A cancellation comes from the operator and is answered 6; an abort is ours, needs no right on a signals topic, and
    the event's final response has the reason `aborted`. One that is scheduled never starts.

    \b
    vpp-dispatch signal abort gridco-west dis-1122-03 --reason "breaker open at feeder-12"
    """
    from vpp_dispatch.cli.watching import last_heard, watch

    settings = load(config)
    heard = execute(last_heard(settings, event, source))
    if not heard.last_revision:
        raise Refused(
            f"Nothing was ever told about an event {event!r} of {source!r}, so there is nothing to abort: check both "
            "names (`vpp-dispatch signal watch EVENT` finds the source)."
        )
    if heard.is_over and heard.report is not None:
        raise Refused(
            f"The event {event} of {source} is over, by its final report of {heard.report['at']}: there is nothing to "
            "abort. If inverters are still set, see its `release` in `vpp-dispatch signal watch`."
        )
    number = record(settings, "abort", on=True, by=by, reason=reason, event=f"{source}/{event}")
    told = f"Recorded in {settings.topics.event_inbox} (number {number}): abort {source}/{event}, {reason!r}."
    click.echo(json.dumps({"recorded": {"number": number, "event": event, "source": source}}) if as_json else told)
    if follow:
        watch(settings, event, source=source, timeout_s=timeout_s, as_json=as_json, abort=True)
