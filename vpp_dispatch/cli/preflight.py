"""`vpp-dispatch preflight`: is everything there that the service needs?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vpp_dispatch.cli.base import config_option, execute, load

if TYPE_CHECKING:
    from vpp_dispatch.settings import Settings

EXIT_CODES = """
\b
Exit codes:
  0  everything that the service needs is there
  1  something is missing; each FAILED line says what and what to do
  2  the command line or the configuration has to change
"""

_STYLES = {"ok": ("ok", "green"), "note": ("note", "yellow"), "failed": ("FAILED", "red")}


@click.command(epilog=EXIT_CODES, short_help="Connect to everything and say what is missing.")
@click.option(
    "--create-topics", is_flag=True, help="Create the topics of our side that are missing, the operators' too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: check, state, says.")
@config_option
def preflight(create_topics: bool, as_json: bool, config: Path | None) -> None:
    """Connect to everything that the service needs, and say what is missing and what to do about it.

    Looked at: settings, GoodWe profile, our Kafka with its topics and partition counts, the clock against the broker's,
    GoodWe's six topics, the Real-Time Data API (a log-in and one list of authorized SNs), how many devices may be
    dispatched, and how fresh consent and telemetry can be within the API's rate limit. No inverter is told anything.

    \b
    vpp-dispatch preflight --config vpp.toml
    vpp-dispatch preflight --create-topics
    """
    sys.exit(execute(_look(load(config), create_topics=create_topics, as_json=as_json)))


async def _look(settings: Settings, *, create_topics: bool, as_json: bool) -> int:
    from vpp_dispatch.checks import inspect

    counts = {"ok": 0, "note": 0, "failed": 0}
    async for finding in inspect(settings, create_topics=create_topics):
        counts[finding.state] += 1
        if as_json:
            click.echo(json.dumps({"check": finding.check, "state": finding.state, "says": finding.says}))
            continue
        word, colour = _STYLES[finding.state]
        click.echo(f"{click.style(f'{word:6}', fg=colour)}  {finding.check:14}  {finding.says}")
    if not as_json:
        if counts["failed"]:
            click.echo(f"\n{counts['failed']} of {sum(counts.values())} checks failed.")
        else:
            click.echo("\nEverything that the service needs is there.")
    return 1 if counts["failed"] else 0
