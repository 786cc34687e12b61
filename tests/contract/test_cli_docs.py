"""docs/cli.md has every command, as its --help has it."""

from __future__ import annotations

from pathlib import Path

from vpp_dispatch.cli import main, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_every_command_has_its_section() -> None:
    titles = [line.removeprefix("## vpp-dispatch ") for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    commands = [" ".join(path) for path in reference.paths(main)]
    assert titles == commands
    assert {"run", "preflight", "signal send", "signal watch", "signal cancel", "fleet import", "config check"} <= set(
        commands
    )


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == reference.page(), "run `python -m vpp_dispatch.cli.reference --write`"
