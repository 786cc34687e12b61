"""The command line. Imports what a command needs only when it runs, so that `--help` is there at once."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from vpp_dispatch.cli.abort import abort
from vpp_dispatch.cli.base import EXIT_CODES, Commands, Failed, Refused, complete, config_option, load
from vpp_dispatch.cli.fleet import fleet
from vpp_dispatch.cli.preflight import preflight
from vpp_dispatch.cli.release import release
from vpp_dispatch.cli.signal import signal
from vpp_dispatch.cli.switch import switch
from vpp_dispatch.errors import ConfigurationError, VppDispatchError

RUN_EXIT_CODES = EXIT_CODES.replace("0  done", "0  stopped as asked, by SIGTERM or SIGINT")


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"vpp-dispatch {version('vpp-dispatch')}")
        except PackageNotFoundError:
            raise Failed("vpp-dispatch is not installed, so it has no version: install it with pip.") from None
        context.exit()


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Dispatches GoodWe inverters for a grid operator, and proves what happened to each.

    \b
    The service     config check, preflight, run
    A fleet         fleet import, fleet show, fleet export
    A signal        signal send, signal watch, signal cancel, signal release
    In trouble      signal abort, switch releases-only, switch drain, release --from
    Without GoodWe  simulate

    Settings are environment variables VPP_DISPATCH_..., or a TOML file; docs/configuration.md has all of them.
    """


@main.command(epilog=RUN_EXIT_CODES)
@config_option
def run(config: Path | None) -> None:
    """Run one worker of the service until it is told to stop.

    \b
    vpp-dispatch run --config vpp.toml
    """
    settings = complete(config)
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


@main.group(name="config", cls=Commands, short_help="Check and show the configuration.")
def config_group() -> None:
    """Look at the configuration without running anything."""


@config_group.command(epilog=EXIT_CODES, short_help="Print each setting and its origin.")
@config_option
def show(config: Path | None) -> None:
    """Print each setting with its value and where that comes from. Secrets are never shown, only their files.

    \b
    vpp-dispatch config show --config vpp.toml
    """
    for line in load(config).lines():
        click.echo(line)


@config_group.command(epilog=EXIT_CODES, short_help="Say whether settings and profile fit.")
@config_option
def check(config: Path | None) -> None:
    """Say whether the settings and the GoodWe profile fit and are complete. Connects to nothing.

    `vpp-dispatch preflight` goes on from here: it connects to everything that the service needs.

    \b
    vpp-dispatch config check --config vpp.toml
    """
    from vpp_dispatch.goodwe.profile import load_profile

    settings = load(config)
    wrong = settings.unmet()
    try:
        profile = load_profile(settings.goodwe.profile)
    except ConfigurationError as error:
        wrong = [*wrong, str(error)]
    if wrong:  # all of it at once
        raise Refused("\n".join(wrong))
    click.echo(f"The settings fit, and so does the GoodWe profile {profile.name} ({settings.goodwe.profile}).")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    \b
    bash   echo 'eval "$(vpp-dispatch completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(vpp-dispatch completion zsh)"' >> ~/.zshrc
    fish   vpp-dispatch completion fish > ~/.config/fish/completions/vpp-dispatch.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise Failed(f"The installed click cannot complete in {shell}: use another shell, or install click again.")
    click.echo(made(main, {}, "vpp-dispatch", "_VPP_DISPATCH_COMPLETE").source())


signal.add_command(abort)
for command in (signal, fleet, preflight, release, switch):
    main.add_command(command)
