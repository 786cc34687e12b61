"""Command lines as they stand in documents and in compose.yaml, parsed by the real command line without being run."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from vpp_dispatch.cli import main
from vpp_dispatch.simulator.__main__ import command as simulate


def parsed(words: Sequence[str]) -> click.Context:
    """What the command that `words` name makes of them; `words` without the program's name.

    Raises:
        click.UsageError: there is no such command, option or value.
    """
    if words and words[0] == "simulate":  # it hands everything on
        return simulate.make_context("simulate", list(words[1:]))
    command: click.Command = main
    context = command.make_context("vpp-dispatch", list(words))
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        if found is None:
            raise click.UsageError(f"{' '.join(words)}: there is no such command")
        command = found
        context = command.make_context(name, rest, parent=context)
    return context


def names_one(words: Sequence[str]) -> bool:
    """Whether `words` are a command's name and nothing else: `signal send`, `switch`."""
    command: click.Command = main
    for word in words:
        found = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if found is None:
            return False
        command = found
    return bool(words)


def lines(text: str, *programs: str) -> Iterator[list[str]]:
    """The words after one of `programs` of each command in `text`, which is shell: continued lines joined, no comments.

    A program stands at the start of a line, after a `|`, `&&`, `;` or ` -- `, or anywhere after `docker`. A command
    ends at the next of these, or at a redirection; variables stay words as they are.
    """
    for line in text.replace("\\\n", " ").splitlines():
        if not any(program in line for program in programs):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
        lexer.whitespace_split = True
        words = list(lexer)
        for i, word in enumerate(words):
            before = words[i - 1] if i else ";"
            if word in programs and (set(before) <= set(";|&<>") or before == "--" or "docker" in words[:i]):
                after = words[i + 1 :]
                end = next((j for j, word in enumerate(after) if word and set(word) <= set(";|&<>")), len(after))
                yield after[:end]


@contextlib.contextmanager
def among(folder: Path, *paths: str) -> Iterator[None]:
    """Runs the block in a folder in which these files, or folders where they end with a slash, are there."""
    for path in paths:
        target = folder / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.touch()
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
