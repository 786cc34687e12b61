"""What the service tells about one event, followed to its end: heard, judged, and shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vpp_dispatch.cli.base import execute, on_terminal
from vpp_dispatch.domain.answer import STATUS
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Entry, Reader

EXIT_CODE_OF = {3: 0, 8: 3, 10: 4, 6: 5, 7: 6, 252: 7, 253: 7, 254: 7}
"""Exit code by the response that ended the event."""

TIMED_OUT = 8
INTERRUPTED = 130
LOOK_BACK_S = 8 * 86_400
"""The service forgets an event seven days after its end."""

RESPONSE_WAIT_S = 10.0
"""Between the final report and the final response; after it the report alone decides."""

FINAL = (3, 6, 7, 8, 10)
ABORTED = "aborted"
"""The reason of the final response of an event that was aborted (R36)."""

REMEDY = {
    252: "the service cannot do this, or this source may not ask for it; the reasons say which",
    253: "correct the signal by the reasons, and send it with a higher revision",
    254: "it was read after its expiry or its end: send it again with later times",
}


@dataclass
class Following:
    """What was heard of one event. `source` None = of any source, but only one may have an event of this name."""

    event_id: str
    source: str | None = None
    revision: int | None = None
    responses: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] | None = None
    about: str = ""
    """what is asked for, in words, where that is known: the report adds its controls up and does not name them"""
    final_at: float | None = None
    """when its final report was heard, on the clock that `hear` is given"""

    def __post_init__(self) -> None:
        self.named = self.source is not None

    def hear(self, entry: Entry, now: float) -> dict[str, Any] | None:
        """Takes a record; what is new in it as `{"response": ...}` or `{"report": ...}`, else None.

        Raises:
            ConfigurationError: two sources have an event of this name.
        """
        if entry.value is None or self.event_id.encode() not in (entry.key or b""):
            return None
        try:
            value = json.loads(entry.value)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("event_id") != self.event_id:
            return None
        if self.source is None:
            self.source = value["source"]
        elif value["source"] != self.source:
            if self.named:
                return None
            raise ConfigurationError(
                f"{self.source} and {value['source']} both have an event {self.event_id}: name one by --source."
            )
        if "code" in value:
            known = {(r["revision"], r["code"], tuple(r["reasons"])) for r in self.responses}
            if (value["revision"], value["code"], tuple(value["reasons"])) in known:
                return None
            self.responses.append(value)
            return {"response": value}
        if self.report is not None and value["sequence"] <= self.report["sequence"]:
            return None
        self.report = value
        self.final_at = now if value["final"] else None
        return {"report": value}

    @property
    def is_over(self) -> bool:
        """Whether the event as it was last accepted has its final report."""
        accepted = max((r["revision"] for r in self.responses if r["code"] == 1), default=0)
        return self.report is not None and self.report["final"] and self.report["revision"] >= accepted

    @property
    def aborted(self) -> bool:
        """Whether we ended it ourselves (R36)."""
        return any(ABORTED in r["reasons"] for r in self.responses if r["code"] in FINAL)

    @property
    def last_revision(self) -> int:
        """The highest that was answered; 0 = none."""
        heard = [r["revision"] for r in self.responses] + ([self.report["revision"]] if self.report else [])
        return max(heard, default=0)

    def ended_with(self, now: float) -> int | None:
        """The response code that ended it, or None while it goes on."""
        if (refused := self._refused()) is not None:
            return refused
        report = self.report
        if report is None or not report["final"] or report["revision"] < (self.revision or 0):
            return None
        codes = [r["code"] for r in self.responses if r["revision"] == report["revision"] and r["code"] in FINAL]
        if codes:
            return int(codes[-1])
        if self.final_at is None or now - self.final_at < RESPONSE_WAIT_S:
            return None
        devices = report["devices"]
        did = devices["applied"] + devices["verified"]
        return 10 if not did else 3 if did == devices["targeted"] else 8

    def _refused(self) -> int | None:
        """The refusal that ends the watch: of the revision that is watched, or of an event that was never received."""
        received = {r["revision"] for r in self.responses if r["code"] == 1}
        for r in self.responses:
            if r["code"] < 252:
                continue
            if self.revision is None and not received and self.report is None:
                return int(r["code"])
            if r["revision"] == self.revision and (
                self.revision not in received or "duplicate_identifier" in r["reasons"]
            ):
                return int(r["code"])
        return None


# ---------------------------------------------------------------------------------------------- in words


def counted(counts: Iterable[tuple[str, int]]) -> str:
    """`22 offline, 6 consent missing`."""
    return ", ".join(f"{number:,} {word.replace('_', ' ')}" for word, number in counts if number)


def _why(report: dict[str, Any], state: str) -> str:
    start = f"{state}."
    return counted((w.removeprefix(start), n) for w, n in report["reasons"].items() if w.startswith(start))


def _at(value: dict[str, Any]) -> str:
    return str(value["at"])[11:19]


def response_line(response: dict[str, Any]) -> str:
    """One response in words."""
    code = response["code"]
    reasons = f" ({', '.join(response['reasons'])})" if response["reasons"] else ""
    remedy = f": {REMEDY[code]}" if code in REMEDY else ""
    return f"{_at(response)}  response to r{response['revision']}: {code} {STATUS[code]}{reasons}{remedy}"


def report_line(report: dict[str, Any]) -> str:
    """One report in words."""
    states = []
    for state, number in report["devices"].items():
        if state != "targeted" and number:
            why = _why(report, state)
            states.append(f"{number:,} {state}" + (f" ({why})" if why else ""))
    release, power = report["release"], report["power_w"]
    line = (
        f"{_at(report)}  {report['state']}, {report['devices']['targeted']:,} targeted: {', '.join(states) or 'none'}"
    )
    if release["due"]:
        line += f"; released {release['confirmed']:,} of {release['due']:,}"
        if open_ := counted((k, release[k]) for k in ("pending", "refused")):
            line += f" ({open_})"
    if power["acknowledged"] is not None and power["requested"]:
        line += f"; {power['acknowledged']:,} of {power['requested']:,} W acknowledged"
    if power["measured"] is not None:
        line += f", {power['measured']:,} W measured"
    if missing := report["shards"]["missing"]:
        line += f"; of {len(missing)} shards nothing is known yet"
    return line


def verdict(following: Following, code: int) -> str:
    """How it ended, in one sentence; what is left set comes first."""
    report = following.report
    name = f"{following.event_id} of {following.source}"
    if code >= 252 or report is None:
        return f"{name} was refused ({code} {STATUS[code]})."
    devices, release = report["devices"], report["release"]
    did = devices["applied"] + devices["verified"]
    words = "aborted" if following.aborted else STATUS[code].replace("_", " ")
    text = f"{name} is over: {words}, {did:,} of {devices['targeted']:,} inverters did it"
    if left := release["pending"] + release["refused"]:
        return f"{text}. {left:,} are not confirmed as released: the service goes on trying; look at them."
    return f"{text}, {release['confirmed']:,} of {release['due']:,} releases confirmed."


_COLOURS = {
    "applied": "green", "verified": "green", "rejected": "red", "unconfirmed": "yellow", "published": "cyan",
    "accepted": "cyan", "pending": "blue",
}  # fmt: skip


def picture(following: Following) -> Group:
    """The newest report as a table, the responses above it."""
    lines: list[Any] = [Text(following.about, style="bold")] if following.about else []
    lines += [Text(response_line(r)) for r in following.responses]
    report = following.report
    if report is None:
        return Group(*lines, Text(f"Waiting for a report on {following.event_id} ...", style="dim"))
    table = Table(
        title=f"{report['event_id']} r{report['revision']} of {report['source']}: {report['state']}",
        caption=f"report {report['sequence']} of {_at(report)} UTC",
    )
    table.add_column("state")
    table.add_column("inverters", justify="right")
    table.add_column("")
    table.add_column("why")
    targeted = report["devices"]["targeted"]
    for state, number in report["devices"].items():
        if number or state in ("targeted", "applied"):
            bar = "" if state == "targeted" or not targeted else "█" * max(1 if number else 0, 20 * number // targeted)
            style = _COLOURS.get(state, "")
            table.add_row(Text(state, style), f"{number:,}", Text(bar, style), _why(report, state))
    release, power, latency = report["release"], report["power_w"], report["latency_s"]["result"]
    table.add_section()
    table.add_row("release", f"{release['due']:,}", "", counted((k, release[k]) for k in release if k != "due"))
    if power["requested"] is not None:
        watts = ", ".join(
            f"{power[k]:,} {k}" for k in ("allocated", "acknowledged", "measured") if power[k] is not None
        )
        table.add_row("power, W", f"{power['requested']:,}", "", watts)
    commands = report["commands"]
    table.add_row(
        "commands", f"{commands['published']:,}", "", counted((k, commands[k]) for k in commands if k != "published")
    )
    if latency["p50"] is not None:
        table.add_row(
            "latency, s", f"{latency['p50']:g}", "", f"median; 95 % {latency['p95']:g}, longest {latency['max']:g}"
        )
    return Group(*lines, table)


# ---------------------------------------------------------------------------------------------- following


def _topics(settings: Settings, source: str | None) -> list[str]:
    """Where answers on a source's events are; without a source all."""
    if source is not None:
        return [settings.responses_topic(source), settings.reports_topic(source)]
    t = settings.topics
    return [t.responses, t.reports, *settings.responses.topics.values(), *settings.reports.topics.values()]


async def last_heard(settings: Settings, event_id: str, source: str | None) -> Following:
    """All that the service told about an event so far."""
    following = Following(event_id, source)
    async with Reader(settings, _topics(settings, source), since=time.time() - LOOK_BACK_S) as reader:
        while not reader.caught_up:
            for entry in await reader.batch():
                following.hear(entry, 0.0)
    return following


async def last_known(settings: Settings, event_id: str, source: str | None) -> tuple[str, int] | None:
    """(source, highest revision) of an event that the service answered; None = it never did."""
    following = await last_heard(settings, event_id, source)
    return (following.source, following.last_revision) if following.source and following.last_revision else None


class _Teller:
    """Shows what is heard: a live table, lines, or JSON lines."""

    def __init__(self, following: Following, *, as_json: bool) -> None:
        self._following = following
        self._as_json = as_json
        self._live: Live | None = None
        if not as_json and on_terminal():
            self._live = Live(picture(following), console=Console(), refresh_per_second=4)
            self._live.start()

    def heard(self, new: dict[str, Any]) -> None:
        if self._live is not None:
            self._live.update(picture(self._following))
        elif self._as_json:
            click.echo(json.dumps(new, ensure_ascii=False))
        else:
            click.echo(response_line(new["response"]) if "response" in new else report_line(new["report"]))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


async def _follow(
    settings: Settings, following: Following, teller: _Teller, since: float, timeout_s: float | None
) -> int:
    """Follows to the end; the response code that ended it, or 0 after the timeout."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    asked = False
    async with Reader(settings, _topics(settings, following.source), since=since) as reader:
        while True:
            batch = await reader.batch()
            now = time.monotonic()
            new = [told for entry in batch if (told := following.hear(entry, now)) is not None]
            # Of what is already past, only responses and the newest report are news.
            shown = new if reader.caught_up else [told for told in new if "response" in told]
            for told in shown:
                teller.heard(told)
            if reader.caught_up:
                if not asked and following.report is not None and not any("report" in told for told in shown):
                    teller.heard({"report": following.report})
                if not asked and not following.last_revision:
                    click.echo(f"Nothing was answered on {following.event_id} yet; waiting.", err=True)
                asked = True
                if (code := following.ended_with(now)) is not None:
                    return code
            if until is not None and now > until:
                return 0


def watch(
    settings: Settings,
    event_id: str,
    *,
    source: str | None = None,
    revision: int | None = None,
    since: float | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
    wanted: int = 3,
    abort: bool = False,
    about: str = "",
) -> NoReturn:
    """Follows an event to its end and leaves with the exit code that says how it ended.

    `wanted` is the response code that counts as success: 3, or 6 where a cancellation is watched. With `abort` that is
    any end that has this reason. `about`: what is asked for, in words.
    """
    goes_on = "what was recorded will be taken by the first worker that runs" if abort else "it goes its way"
    following = Following(event_id, source, revision, about=about)
    teller = _Teller(following, as_json=as_json)
    try:
        began = time.time() - LOOK_BACK_S if since is None else since
        code = execute(_follow(settings, following, teller, began, timeout_s))
    except KeyboardInterrupt:
        teller.close()
        click.echo(f"No longer watching the event {event_id}; {goes_on}.", err=True)
        sys.exit(INTERRUPTED)
    finally:
        teller.close()
    if not code:
        click.echo(f"The event {event_id} is not over after {timeout_s:g} s; {goes_on}.", err=True)
        sys.exit(TIMED_OUT)
    exit_code = 0 if code == wanted or (abort and following.aborted) else EXIT_CODE_OF[code]
    if as_json:
        click.echo(json.dumps({"ended": {"code": code, "status": STATUS[code], "exit_code": exit_code}}))
    else:
        click.echo(verdict(following, code))
    sys.exit(exit_code)
