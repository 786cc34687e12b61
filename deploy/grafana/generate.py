"""The dashboards as code, and the JSON that Grafana reads: `python -m deploy.grafana.generate --write | --check`.

One module per dashboard says what is on it; boards.py and panels.py say how that becomes Grafana's JSON. The files in
dashboards/ are written from here and never by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.boards import build
from deploy.grafana.commands import COMMANDS
from deploy.grafana.fleet import FLEET
from deploy.grafana.live import LIVE
from deploy.grafana.slo import SLO
from deploy.grafana.workers import WORKERS

BOARDS: Final = (LIVE, FLEET, COMMANDS, WORKERS, SLO)
FOLDER: Final = Path(__file__).parent / "dashboards"
RUNBOOKS: Final = "https://runbooks.example.com/vpp-dispatch"
"""Where the links to runbooks lead until the variable `runbooks` says otherwise: docs/runbooks/ served as pages."""


def rendered() -> dict[str, str]:
    """The content of each file in dashboards/, by its name."""
    files = {}
    for board in BOARDS:
        made = build(board, [other for other in BOARDS if other is not board], RUNBOOKS)
        files[f"{board.uid}.json"] = JSONEncoder(sort_keys=True, indent=2).encode(made) + "\n"
    return files


def loaded() -> list[dict[str, Any]]:
    """The dashboards as they stand in dashboards/, in the order of reading."""
    return [json.loads((FOLDER / f"{board.uid}.json").read_text(encoding="utf-8")) for board in BOARDS]


def differing() -> list[str]:
    """Names of files in dashboards/ that are not what the source makes: changed, missing, or too many."""
    wanted = rendered()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(arguments: list[str]) -> int:
    """Writes or checks; returns the exit code."""
    if arguments == ["--write"]:
        FOLDER.mkdir(exist_ok=True)
        for path in FOLDER.glob("*"):
            path.unlink()
        for name, content in rendered().items():
            (FOLDER / name).write_text(content, encoding="utf-8")
        return 0
    if arguments != ["--check"]:
        print("Usage: python -m deploy.grafana.generate --write | --check", file=sys.stderr)
        return 2
    if names := differing():
        print(
            f"deploy/grafana/dashboards: {', '.join(names)} differ: run `python -m deploy.grafana.generate --write`.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
