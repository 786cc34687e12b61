"""The command: audits a finished run from its topics and the simulator's dump; exit code 1 if there are violations."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import examine
from .evidence import OURS, Limits, Topics, collect
from .wire import Wire


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if there are violations."""
    defaults, limits = Topics(), Limits()
    parser = argparse.ArgumentParser(description="Audits a finished run from its topics and the simulator's dump.")
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--goodwe-bootstrap-servers", help="if GoodWe has a cluster of its own")
    parser.add_argument("--dump", nargs="*", default=[], type=Path, help="answers of the simulators' GET /sim/dump")
    parser.add_argument("--profile", type=Path, help="a GoodWe profile file, if not the default one")
    parser.add_argument("--prefix", default="", help="stands before each topic name")
    for role in OURS:
        parser.add_argument(f"--{role.replace('_', '-')}", nargs="+", default=getattr(defaults, role), metavar="TOPIC")
    for role in ("requests", "results"):
        parser.add_argument(f"--{role}", nargs=3, metavar=("SINGLE", "MULTI", "QUERY"), help="absent = the profile's")
    for name in ("consent_refresh_s", "registry_s", "cancel_s", "late_s", "result_timeout_s", "answer_s", "switch_s"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(limits, name), metavar="S")
    parser.add_argument("--expect-events", type=int, default=0, metavar="N", help="at least so many closed events")
    parser.add_argument("--max-in-flight", type=int, default=0, metavar="N", help="as the service was configured")
    parser.add_argument("--dead-band-w", type=int, default=0, metavar="W", help="as the service was configured")
    parser.add_argument("--family-defaults", action="store_true", help="`family` is among the service's defaults")
    parser.add_argument("--open-events", action="store_true", help="accepted events may be without their close")
    args = vars(parser.parse_args(arguments))
    given_topics = {r: tuple(args[r]) for r in (*OURS, "requests", "results") if args[r] is not None}
    topics = Topics(prefix=args["prefix"], **given_topics)
    if args["profile"] and args["requests"] is None and args["results"] is None:
        of_profile = Topics.of_profile(args["profile"])
        topics = replace(topics, requests=of_profile.requests, results=of_profile.results)
    given = {name: args[name] for name in Limits.__slots__ if name in args}
    evidence = asyncio.run(
        collect(
            args["bootstrap_servers"],
            topics=topics,
            goodwe_bootstrap_servers=args["goodwe_bootstrap_servers"],
            dumps=[json.loads(path.read_bytes()) for path in args["dump"]],
        )
    )
    verdict = examine(evidence, Limits(**given), Wire.read(args["profile"]) if args["profile"] else Wire())
    print(verdict)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
