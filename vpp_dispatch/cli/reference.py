"""`docs/cli.md` from the commands themselves: `python -m vpp_dispatch.cli.reference --write | --check`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from vpp_dispatch.cli import main as commands

INTRO = """# Command line

Written from `vpp_dispatch/cli/` by `python -m vpp_dispatch.cli.reference --write`: change it there.

Every command says by `--help` what stands here. All but `simulate` and `completion` take the service's own settings:
environment variables `VPP_DISPATCH_...`, or a TOML file by `--config` ([configuration.md](configuration.md)). They need
what the work needs: `signal`, `switch` and `fleet` the address and security of your Kafka, `release` GoodWe's and the
profile, `preflight` everything. They may run on any machine that reaches it, and take nothing away from the service.

What a script would want is on standard output, what is meant for a person besides on standard error. `--json` prints
one JSON object a line. Errors are sentences that say what to change.

| exit code | of | means |
|---|---|---|
| 0 | all | done; of a watch: completed, or what was asked for: cancelled by `cancel`, aborted by `abort` |
| 1 | all | a fault: Kafka is away, an API refuses, a check of `preflight` failed |
| 2 | all | the command line, the file or the configuration has to change |
| 3, 4 | a watch | completed partially; nobody took part |
| 3 | `release` | some releases are not confirmed; the file that is named has them |
| 5, 6 | a watch | cancelled; superseded by other events until its end |
| 7 | a watch | refused by the service: responses 252, 253, 254 |
| 8 | a watch, `switch` | `--timeout` is over; the event goes on, the record is kept |
| 130 | all that wait | Ctrl-C; the event goes on, a record will be taken, the rest of `release` is in its file |

A signal by hand, from nothing to its end; `send` prints the event's name, which `cancel` and `watch` want:

```sh
vpp-dispatch preflight
vpp-dispatch fleet import fleet.csv --dry-run && vpp-dispatch fleet import fleet.csv
vpp-dispatch signal send --event-id mine-1 --control export_limit=1500 --group feeder-03 --for 30m --watch
vpp-dispatch signal cancel mine-1 --reason "fault cleared" --watch
```

A script that has to know how it ended:

```sh
vpp-dispatch signal send event.json --watch --json > event.log
case $? in 0) echo all of them ;; 3) echo some of them ;; *) tail -1 event.log ;; esac
```
"""

OF_ITS_OWN = ("simulate",)
SIMULATE = """Runs a GoodWe for everyone without an account: the six topics, the Real-Time Data API over HTTP, and a
fleet of inverters with batteries, sun, owners who withdraw consent, and faults of every kind. All its options:
`vpp-dispatch simulate --help`.

```sh
vpp-dispatch simulate --bootstrap-servers localhost:9092 --create-topics --publish-fleet fleet.devices.v1
```"""


def paths(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command that does something, in the order of the help."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from paths(command, (*above, name))
        elif command is not None:
            yield (*above, name)


def help_of(path: tuple[str, ...]) -> str:
    """What a command's `--help` prints, 80 columns wide."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            commands.main([*path, "--help"], prog_name="vpp-dispatch")
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue().rstrip()


def page() -> str:
    """The content of docs/cli.md."""
    parts = [INTRO]
    for path in paths(commands):
        if path == OF_ITS_OWN:  # a program of its own, with its own options
            parts.append(f"## vpp-dispatch {' '.join(path)}\n\n{SIMULATE}\n")
            continue
        text = "\n".join(line.rstrip() for line in help_of(path).splitlines())
        parts.append(f"## vpp-dispatch {' '.join(path)}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Writes or checks docs/cli.md of the checkout that this file is in."""
    file = Path(__file__).parents[2] / "docs" / "cli.md"
    if arguments == ["--write"]:
        file.write_text(page(), encoding="utf-8")
        return 0
    if arguments != ["--check"]:
        print("Usage: python -m vpp_dispatch.cli.reference --write | --check", file=sys.stderr)
        return 2
    if file.is_file() and file.read_text(encoding="utf-8") == page():
        return 0
    print(f"{file.name} differs from cli/: run `python -m vpp_dispatch.cli.reference --write`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
