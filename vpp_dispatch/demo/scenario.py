"""`make demo`: a grid operator, a fleet and the service on one machine, played for about a minute, and added up.

    python -m vpp_dispatch.demo.scenario [--keep]

Four events overlap on a simulated fleet while consent, connections and workers fail; every step waits for what it
needs to see, on the topics or in the simulator. Exit code 0 only if report = outcomes = simulator and everything is
released; 1 if something does not add up, with sentences that say what; 130 after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from aiokafka.errors import KafkaError

from vpp_dispatch.demo import picture
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.live import Screen
from vpp_dispatch.demo.meter import Meter
from vpp_dispatch.demo.plan import FEEDER, SHORTEST_S, Plan
from vpp_dispatch.demo.stack import Stack
from vpp_dispatch.demo.tally import Account, account_of, fleet_faults
from vpp_dispatch.demo.teller import STATUS, Teller, counted, states_of
from vpp_dispatch.errors import VppDispatchError


def add_up(plan: Plan, teller: Teller) -> list[str]:
    """Tells what was asked and what happened; returns what does not add up, in sentences."""
    profile = tomllib.loads(plan.stack.profile.read_text())
    percent = {family["name"] for family in profile["families"] if family["export_unit"] == "percent"}
    faults = []
    for event_id, played in plan.played.items():
        report = plan.stack.report(event_id)
        if report is None:
            faults.append(f"{event_id}: there is no report.")
            continue
        account = account_of(
            played,
            report=report,
            rows=plan.stack.outcomes(event_id),
            codes=plan.stack.codes(event_id),
            dump=plan.dump,
            percent_families=percent,
        )
        _tell(account, teller)
        faults += [f"{event_id}: {fault}" for fault in account.faults]
    for killed in plan.killed:
        if (code := plan.stack.workers[killed].process.poll()) != -signal.SIGKILL:
            faults.append(f"{killed} was to die of SIGKILL and ended with {code}.")
    if letters := plan.stack.dead_letters():
        why = sorted({letter.headers.get("dl_reason", "no reason") for letter in letters})
        faults.append(f"{len(letters)} dead letters, though nothing sent here deserves one: {', '.join(why)}.")
    in_fleet = fleet_faults(plan.dump)
    devices = plan.dump["devices"].values()
    home = sum(device["settings"] == device["default_settings"] for device in devices)
    teller.write()
    teller.write(f"  all inverters: {home} of {len(devices)} at their default, by the simulator's own state")
    return faults + in_fleet


POWER: Final = ("requested", "allocated", "acknowledged", "measured")
"""What of a report's power is told; measured only where each inverter has a sample."""


def _tell(account: Account, teller: Teller) -> None:
    report, release, write = account.report, account.report["release"], teller.write
    write()
    write(f"  {account.played.event_id}: {account.played.asked}")
    write(f"    happened   {report['devices']['targeted']} targeted: {states_of(report)}")
    for kind, number in account.carried_out.items():
        early = account.given_up[kind]
        of_it = f" ({kind})" if len(account.carried_out) > 1 else ""
        given_back = f", {early} of them given back early" if early else ""
        write(f"    simulator  {number} inverters were set{of_it}{given_back}")
    power = report["power_w"]
    if told := [f"{power[name]:,} {name}" for name in POWER if power[name] is not None]:
        write(f"    power      {', '.join(told)}, in W")
    write(f"    releases   {counted({name: release[name] for name in ('due', 'confirmed', 'pending', 'refused')})}")
    write("    responses  " + ", ".join(f"{code} {STATUS[code]} (r{revision})" for revision, code in account.codes))
    latency = report["latency_s"]
    write(f"    latency    desired to published: {_percentiles(latency['publish'])}")
    write(f"               published to result: {_percentiles(latency['result'])}")
    commands = {name.replace("_", " "): number for name, number in report["commands"].items()}
    write(f"    commands   {counted(commands)}")
    write(f"    adds up    {'NO' if account.faults else 'yes: report = outcomes = simulator'}")


def save(plan: Plan) -> None:
    """The evidence, into the run's folder: our topics as JSON lines, and the simulator's dump."""
    for name, records in plan.stack.records.items():
        with (plan.stack.folder / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps(record.value) + "\n" for record in records)
    (plan.stack.folder / "simulator.json").write_text(json.dumps(plan.dump))


def _percentiles(latency: dict[str, float | None]) -> str:
    told = [f"{name} {latency[name]:g} s" for name in ("p50", "p95", "max") if latency[name] is not None]
    return " ".join(told) or "unknown"


TRY: Final = (
    f"vpp-dispatch signal send --event-id mine --control export_limit=500 --group {FEEDER} --for 5m --watch",
    "vpp-dispatch signal watch mine             # in one more terminal",
    "vpp-dispatch signal cancel mine --watch    # everything goes back",
    f"vpp-dispatch signal send --event-id what-if --control charge=2000 --group {FEEDER} --for 5m --test --watch",
    "vpp-dispatch switch show",
    "vpp-dispatch preflight",
    "vpp-dispatch run > worker-new.log 2>&1 &    # one more worker; wait until its shards are half of all",
)
"""What `--keep` says to try: each works as it stands, in this order."""
SETTINGS = {"FLEET__CONSENT_REFRESH_S": "4", "FLEET__TELEMETRY_REFRESH_S": "6"}
"""Short enough to see facts take effect, and long enough for reading them not to be what two cores are busy with."""


async def _run(servers: str, prefix: str, folder: Path, teller: Teller, options: dict[str, Any]) -> int:
    keep: bool = options["keep"]
    stack = Stack(bootstrap_servers=servers, prefix=prefix, folder=folder, settings=SETTINGS)
    plan = Plan(stack, teller, inverters=options["inverters"], seconds=options["seconds"])
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    tasks: list[asyncio.Task[None]] = []
    screen = Screen(plan.course, teller, stack.report)
    try:
        try:
            await plan.start()
            tasks = [
                asyncio.create_task(teller.follow(stack)),
                asyncio.create_task(Meter(stack, plan.course, plan.sns).run()),
            ]
            with screen.shown(not options["plain"]) as live:
                if live is not None:
                    tasks.append(asyncio.create_task(screen.follow(live)))
                await _with_company(plan.play(), tasks)
            faults = []
        except (VppDispatchError, KafkaError, OSError) as error:
            why = str(error) if isinstance(error, VppDispatchError) else f"{type(error).__name__}: {error}"
            faults = [f"the plan could not be played to its end. {why}"]
            if stack.simulator is not None and stack.simulator.running and stack.url.startswith("http"):
                with contextlib.suppress(OSError):  # then the dump of the start has to do
                    plan.dump = await stack.ask("/sim/dump")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        teller.catch_up(stack)
        if plan.played and plan.dump:
            teller.write("\nWhat was asked, and what happened")
            faults += add_up(plan, teller)
            save(plan)
        _conclude(teller, faults)
        if plan.course.began_at:
            _picture(plan, teller, options["picture"] or folder / "demo.svg")
        if keep:
            await _stay(teller, stack)
    finally:
        teller.say("demo", "stopping everything")
        try:
            await stack.stop()
        finally:
            for child in (*stack.workers.values(), *([stack.simulator] if stack.simulator else [])):
                if child.running:  # a second Ctrl-C came while they were stopping
                    child.kill()
    return 1 if faults else 0


def _conclude(teller: Teller, faults: list[str]) -> None:
    teller.write()
    if faults:
        teller.write("  It does NOT add up:")
        for fault in faults:
            teller.write(f"  - {fault}")
    else:
        teller.write("  Everything adds up, and everything is released.")
    teller.write()


async def _with_company(work: Coroutine[Any, Any, None], company: Sequence[asyncio.Task[None]]) -> None:
    """Awaits the work; what goes wrong in a task beside it goes wrong here, and at once."""
    worker = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({worker, *company}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        assert worker in done, "those beside it go on until they are cancelled"
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


def _picture(plan: Plan, teller: Teller, path: Path) -> None:
    """Writes the picture of the run and says where it is."""
    began = datetime.fromtimestamp(plan.course.began_at, UTC)
    try:
        drawn = picture.draw(
            plan.course,
            title="A minute of dispatch: what was asked, and what the inverters did",
            subtitle=f"{plan.inverters:,} simulated GoodWe inverters, Apache Kafka and two workers on one machine, "
            f"{began:%Y-%m-%d %H:%M} UTC",
            remarks={event_id: _set_of(plan.stack.report(event_id)) for event_id in plan.played},
        )
        path.write_text(drawn)
    except ValueError as error:
        teller.write(f"  There is no picture. {error}")
    except OSError as error:
        teller.write(f"  The picture could not be written: {error}")
    else:
        teller.write(f"  A picture of it: {path}")
    teller.write()


def _set_of(report: Mapping[str, Any] | None) -> str:
    devices = report["devices"] if report else {}
    return f"{devices['applied'] + devices['verified']:,} of {devices['targeted']:,} set" if devices else ""


async def _stay(teller: Teller, stack: Stack) -> None:
    """Leaves everything running until Ctrl-C."""
    settings = stack.folder / "demo.env"
    here = shlex.quote(str(Path(sys.executable).parent))
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in stack.variables().items()]
    settings.write_text("".join([*lines, f'export PATH={here}:"$PATH"\n']))
    write = teller.write
    write("  Everything runs on until Ctrl-C. In another terminal, take the settings of this run:")
    write(f"    . {shlex.quote(str(settings))}")
    write("  and try, in this order:")
    for command in TRY:
        write(f"    {command}")
    for worker in stack.workers.values():
        if worker.running:
            write(f"    kill -9 {worker.pid}    # {worker.name}: the new one takes over")
            write(f"    curl -s http://127.0.0.1:{stack.port(worker)}/metrics    # {worker.name}, while it lives")
    write(f"    curl -s {stack.url}/sim/health    # the simulator")
    body = stack.signal(
        f"mine-{int(time.time())}",
        end_at=time.time() + 600,
        targets={"groups": [FEEDER]},
        controls=[{"kind": "export_limit", "each_w": 500}],
    )
    write("  Any Kafka tool can send a signal (kcat stands for it), within ten minutes:")
    write(f"    kcat -b {stack.bootstrap_servers} -t {stack.signals_topic} -P <<< '{json.dumps(body)}'")
    write(f"    kcat -b {stack.bootstrap_servers} -t {stack.prefix}dispatch.responses.v1 -C")
    write()
    teller.catch_up(stack)
    await teller.follow(stack)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, until Ctrl-C, and say what to try.")
@click.option("--inverters", type=click.IntRange(100, 100_000), default=2000, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(SHORTEST_S, 3600),
    default=60.0,
    show_default=True,
    help="From the first signal to the end of the longest event.",
)
@click.option(
    "--bootstrap-servers",
    metavar="HOST:PORT",
    envvar="VPP_DISPATCH_KAFKA__BOOTSTRAP_SERVERS",
    help="Play on this Kafka, under topic names of its own, and start none.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Where to write the picture of the run (SVG); demo.svg in the folder if absent.",
)
@click.option("--plain", is_flag=True, help="Lines as in a pipe, also on a terminal.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Of logs and evidence; must be empty.")
def main(bootstrap_servers: str | None, folder: Path | None, **options: Any) -> None:
    """Play a dispatch from signal to verified inverters and back, on real Kafka, and add it up."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    os.environ.pop("VPP_DISPATCH_KAFKA__BOOTSTRAP_SERVERS", None)
    folder = folder or Path(tempfile.mkdtemp(prefix="vpp-dispatch-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    teller = Teller()
    teller.say("demo", f"logs and evidence go to {folder}")
    code = 130
    try:
        if bootstrap_servers:
            prefix = f"demo-{uuid.uuid4().hex[:8]}-"
            teller.say("demo", f"using Kafka at {bootstrap_servers}, topics {prefix}...")
            code = asyncio.run(_run(bootstrap_servers, prefix, folder, teller, options))
        else:
            teller.say("demo", "starting Apache Kafka")
            with Broker(data_dir=folder / "kafka") as broker:
                teller.say("demo", f"Apache Kafka serves at {broker.bootstrap_servers} (process {broker.pid})")
                code = asyncio.run(_run(broker.bootstrap_servers, "", folder, teller, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        teller.say("demo", "stopped as asked, before the end")
    except VppDispatchError as error:
        teller.say("fault", str(error))
        code = 1
    finally:
        shutil.rmtree(folder / "kafka" / "data", ignore_errors=True)
    teller.say("demo", f"everything is stopped; logs, the topics' messages and the simulator's state are in {folder}")
    sys.exit(code)


if __name__ == "__main__":
    main()
