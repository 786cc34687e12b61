"""What all commands share: errors with their exit codes, settings, times and durations as people write them."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import re
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vpp_dispatch.errors import BadInput, ConfigurationError, VppDispatchError

if TYPE_CHECKING:
    from vpp_dispatch.settings import Settings

T = TypeVar("T")

EXIT_CODES = """
\b
Exit codes:
  0  done
  1  a fault: a sentence says which, and what to do
  2  the command line, the file or the configuration has to change: a sentence says where
"""


class Refused(click.ClickException):
    """The command line, a file or the configuration has to change."""

    exit_code = 2


class Failed(click.ClickException):
    """A fault that a person has to look at."""

    exit_code = 1


class Commands(click.Group):
    """A group that says which command was meant, or which there are."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = self.list_commands(ctx)
            close = difflib.get_close_matches(args[0], names, n=1)
            error.message += f" Did you mean {close[0]}?" if close else f" There are {', '.join(names)}."
            raise


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="TOML file with settings; VPP_DISPATCH_ variables win over it.",
)


def load(config: Path | None) -> Settings:
    """The settings, complete or not. Raises Refused."""
    from vpp_dispatch.settings import Settings

    try:
        return Settings.load(config, os.environ)
    except ConfigurationError as error:
        raise Refused(str(error)) from error


def complete(config: Path | None) -> Settings:
    """The settings, with everything that the service needs to run. Raises Refused."""
    settings = load(config)
    if unmet := settings.unmet():
        raise Refused("\n".join(unmet))
    return settings


def execute(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work; our faults become sentences with an exit code."""
    kafka, silent = logging.getLogger("aiokafka"), logging.NullHandler()
    propagated, kafka.propagate = kafka.propagate, False  # what it has to say comes as a sentence of ours
    kafka.addHandler(silent)
    try:
        return asyncio.run(work)
    except (ConfigurationError, BadInput) as error:
        raise Refused(str(error)) from error
    except VppDispatchError as error:
        raise Failed(str(error)) from error
    finally:
        kafka.removeHandler(silent)
        kafka.propagate = propagated


def on_terminal() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhd])+")


def seconds_of(text: str) -> float | None:
    """`90`, `90s`, `30m`, `1h30m`, `2d` in seconds; None if it is none of them."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)([smhd])", text))


class Duration(click.ParamType):
    """A length of time, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        seconds = seconds_of(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no length of time: write 90s, 30m, 1h30m or 2d.", param, ctx)
        return seconds


class Moment(click.ParamType):
    """A point in time, in epoch seconds: RFC 3339 with its offset, or so long from now."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value)
        if text == "now":
            return time.time()
        if text.startswith("+") and (ahead := seconds_of(text[1:])) is not None:
            return time.time() + ahead
        from vpp_dispatch.operators.wire import epoch_seconds

        try:
            return epoch_seconds(text)
        except ValueError as error:
            self.fail(f"{value!r} {error}, or so long from now, such as +30m.", param, ctx)


DURATION = Duration()
MOMENT = Moment()
