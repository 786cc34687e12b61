"""The command line. Imports what a command needs only when it runs, so that `--help` is there at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vpp_dispatch.errors import ConfigurationError, VppDispatchError

if TYPE_CHECKING:
    from vpp_dispatch.settings import Settings

EXIT_CODES = """
\b
Exit codes:
  0  done; for `run`: stopped as asked, by SIGTERM or SIGINT
  1  a fault: the log's last lines say which
  2  the command line or the configuration has to change: a sentence says where
"""


class Refused(click.ClickException):
    """The configuration has to change."""

    exit_code = 2


class Failed(click.ClickException):
    """A fault that a person has to look at."""

    exit_code = 1


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"vpp-dispatch {version('vpp-dispatch')}")
        except PackageNotFoundError:
            raise Failed("vpp-dispatch is not installed, so it has no version: install it with pip.") from None
        context.exit()


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="TOML file with settings; VPP_DISPATCH_ variables win over it.",
)


def _load(config: Path | None) -> Settings:
    from vpp_dispatch.settings import Settings

    try:
        return Settings.load(config, os.environ)
    except ConfigurationError as error:
        raise Refused(str(error)) from error


def _complete(config: Path | None) -> Settings:
    settings = _load(config)
    if unmet := settings.unmet():
        raise Refused("\n".join(unmet))
    return settings


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Dispatches GoodWe inverters for a grid operator, and proves what happened to each.

    Settings are environment variables VPP_DISPATCH_..., or a TOML file; docs/configuration.md has all of them.
    """


@main.command(epilog=EXIT_CODES)
@config_option
def run(config: Path | None) -> None:
    """Run one worker of the service until it is told to stop."""
    settings = _complete(config)
    from vpp_dispatch.service import run as run_service

    try:
        code = run_service(settings)
    except ConfigurationError as error:
        raise Refused(str(error)) from error
    except VppDispatchError as error:
        raise Failed(f"{error} ({error.reason})") from error
    sys.exit(code)


@main.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run a simulated GoodWe: topics, API, inverters. Has a --help of its own."""
    from vpp_dispatch.simulator.__main__ import command

    code = command.main(args=list(arguments), prog_name="vpp-dispatch simulate", standalone_mode=False)
    sys.exit(code if isinstance(code, int) else 0)


@main.group(name="config")
def config_group() -> None:
    """Look at the configuration without running anything."""


@config_group.command()
@config_option
def show(config: Path | None) -> None:
    """Print each setting with its value and where that comes from. Secrets are never shown, only their files."""
    for line in _load(config).lines():
        click.echo(line)


@config_group.command()
@config_option
def check(config: Path | None) -> None:
    """Say whether the settings fit and are complete. Connects to nothing."""
    _complete(config)
    click.echo("The settings fit.")


if __name__ == "__main__":
    main()
