"""`python -m vpp_dispatch.simulator`, and the product's `vpp-dispatch simulate`."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from aiohttp import web
from aiokafka.errors import KafkaConnectionError, KafkaError
from click.core import ParameterSource

from vpp_dispatch.simulator.api import RealTimeApi
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.control import Control, write_dump
from vpp_dispatch.simulator.faults import SHAPES, FaultError, Faults, parse_loss_of
from vpp_dispatch.simulator.fleet import Device, FleetError, generate_fleet, read_fleet
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import Profile, ProfileError, load_profile
from vpp_dispatch.simulator.security import SecurityError, read_security
from vpp_dispatch.simulator.topics import Publisher, Topics, create_topics
from vpp_dispatch.simulator.weather import WEATHERS

log = logging.getLogger("vpp_dispatch.simulator")
_DAY_S: Final = 86_400
_REQUEST_CONFIG: Final = {"message.timestamp.type": "LogAppendTime"}


class _Rarely(logging.Filter):
    """Lets the same line of a library through every five seconds: an outage of the broker says it 80 times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last.get(str(record.msg), -5.0) < 5.0:
            return False
        self._last[str(record.msg)] = now
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command line asks for, read and checked; see `simulate --help`."""

    bootstrap_servers: str
    fleet_bootstrap_servers: str
    profile: Profile
    devices: list[Device]
    seed: int
    faults: Faults
    offline: float
    no_consent: float
    solar_hour: float | None
    http_host: str
    http_port: int
    tls: tuple[str, str] | None
    account: str | None
    password: str | None = field(repr=False)
    create: bool
    partitions: int
    group: str
    registry_topic: str | None
    state_file: Path | None
    security: Mapping[str, Any] = field(repr=False)
    fleet_security: Mapping[str, Any] = field(repr=False)


def build_cloud(plan: Plan, *, now: float) -> Cloud:
    """The state at the start (epoch s); the same for the same plan and time."""
    shift_s = 0.0 if plan.solar_hour is None else plan.solar_hour * 3600 - now % _DAY_S
    inverters = Inverters(profile=plan.profile, devices=plan.devices, seed=plan.seed, now=now, solar_shift_s=shift_s)
    random = np.random.default_rng([plan.seed, 3])
    offline = random.random(len(inverters)) < plan.offline
    refused = random.random(len(inverters)) < plan.no_consent
    consent = Consent()
    for sn, without in zip(inverters.sns, refused.tolist(), strict=True):
        consent.add(sn, authorized_at=None if without else now)
    cloud = Cloud(profile=plan.profile, inverters=inverters, consent=consent, faults=plan.faults, started_at=now)
    cloud.set_online([sn for sn, off in zip(inverters.sns, offline.tolist(), strict=True) if off], False, now=now)
    return cloud


async def _create(
    servers: str, security: Mapping[str, Any], topics: dict[str, dict[str, str]], partitions: int
) -> None:
    while True:
        try:
            return await create_topics(
                bootstrap_servers=servers, topics=topics, partitions=partitions, security=security
            )
        except KafkaError as error:
            if not error.retriable and not isinstance(error, KafkaConnectionError):
                raise
            log.warning("topics.not_created error=%r", error)
            await asyncio.sleep(0.5)


async def _serve(plan: Plan, application: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    context = None
    if plan.tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*plan.tls)
    await web.TCPSite(runner, plan.http_host, plan.http_port, ssl_context=context).start()
    host, port = runner.addresses[0][:2]
    return runner, f"{'https' if context else 'http'}://{host}:{port}"


async def run(plan: Plan, *, stop: asyncio.Event | None = None) -> None:
    """Simulate until `stop` is set, or SIGTERM or SIGINT comes. Prints one line of JSON when ready.

    Raises:
        OSError: the port is taken, or the certificate cannot be read.
    """
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cloud = build_cloud(plan, now=time.time())
    api = RealTimeApi(cloud=cloud, seed=plan.seed, account=plan.account, password=plan.password)
    topics = Topics(cloud=cloud, bootstrap_servers=plan.bootstrap_servers, group=plan.group, security=plan.security)
    registry = None
    if plan.registry_topic:
        registry = Publisher(bootstrap_servers=plan.fleet_bootstrap_servers, security=plan.fleet_security)
    control = Control(cloud=cloud, api=api, topics=topics, registry=registry, registry_topic=plan.registry_topic or "")
    application = web.Application(client_max_size=64 << 20)
    application.add_routes([*api.routes(), *control.routes()])
    if plan.state_file is not None:
        loop.add_signal_handler(signal.SIGUSR1, lambda path: write_dump(cloud.dump(time.time()), path), plan.state_file)

    runner, url = await _serve(plan, application)
    started = asyncio.create_task(_start(plan, topics, registry))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            started.result()
            ready = {"ready": True, "url": url, "control": f"{url}/sim", "inverters": len(cloud.inverters)}
            click.echo(msgspec.json.encode(ready).decode())
            sys.stdout.flush()
            await stopping
    finally:
        for task in (started, stopping):
            task.cancel()
        await asyncio.gather(started, stopping, return_exceptions=True)
        await topics.stop()
        if registry is not None:
            await registry.stop()
        await runner.cleanup()
        if plan.state_file is not None:
            write_dump(cloud.dump(time.time()), plan.state_file)


async def _start(plan: Plan, topics: Topics, registry: Publisher | None) -> None:
    profile = plan.profile
    if plan.create:
        wanted = dict.fromkeys((*profile.request_topics.values(), *profile.result_topics.values()), _REQUEST_CONFIG)
        await _create(plan.bootstrap_servers, plan.security, wanted, plan.partitions)
        if plan.registry_topic is not None:
            compacted = {plan.registry_topic: {"cleanup.policy": "compact"}}
            await _create(plan.fleet_bootstrap_servers, plan.fleet_security, compacted, plan.partitions)
    await topics.start()
    if registry is not None and plan.registry_topic is not None:
        topic = plan.registry_topic
        await registry.publish(
            [(topic, device.sn, msgspec.json.encode(device.registry_record())) for device in plan.devices]
        )


def _shares(texts: Sequence[str], option: str) -> dict[str, float]:
    try:
        return {key: float(value) for key, _, value in (text.partition(":") for text in texts)}
    except ValueError as error:
        raise click.BadParameter(f"{option} is NAME:NUMBER, not {texts}") from error


# Options that are faults: the option's name -> the fault's, as the control API calls it.
_FAULTS: Final = {
    "latency": "latency_s",
    "latency_shape": "latency_shape",
    "loss": "loss",
    "duplicates": "duplicates",
    "reorder": "reorder",
    "reorder_effects": "reorder_effects",
    "late": "late",
    "late_s": "late_s",
    "swallow": "swallow_rate",
    "partial": "partial",
    "after_withdrawal": "after_withdrawal",
    "refusals": "refusals",
    "topics_out_of_step": "out_of_step_s",
    "results_per_command": "results_per_command",
}
_WEATHERS_TOLD: Final = "\n\n".join(f"{name}: {weather.says}." for name, weather in WEATHERS.items())


@click.command(
    name="simulate",
    context_settings={"show_default": True},
    epilog=f"Weathers:\n\n{_WEATHERS_TOLD}\n\nAn option for a fault wins over the weather, --faults over both. While "
    'it runs, POST /sim/weather and /sim/faults change the same: `curl -d \'{"weather": "storm"}\' URL/sim/weather`.',
)
@click.option("--bootstrap-servers", required=True, help="GoodWe's cluster: where the six topics are.")
@click.option("--profile", "profile_name", default="goodwe", help="A built-in profile, or the path of one.")
@click.option("--inverters", default=100, help="Size of a generated fleet.")
@click.option(
    "--fleet-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or JSON lines: sn, site, groups, area, rated_w.",
)
@click.option("--seed", default=1, help="The same seed makes the same fleet and the same draws per command.")
@click.option("--feeders", default=4, help="Groups of a generated fleet: feeder-01 ...")
@click.option("--sites", type=int, help="Sites of a generated fleet; one per inverter by default.")
@click.option("--series", default="", help="Only these series in a generated fleet, with commas: ETU,ETT.")
@click.option("--registered-limits", default=0.25, help="Share of a generated fleet with an export limit of its own.")
@click.option(
    "--publish-fleet", "registry_topic", metavar="TOPIC", help="Publish registry records there: fleet.devices.v1."
)
@click.option("--fleet-bootstrap-servers", help="The registry's cluster, if it is another one.")
@click.option(
    "--kafka-security",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with protocol, mechanism, username, password_file, ca_file, cert_file, key_file, as in the "
    "service's [kafka.security]; in the clear by default.",
)
@click.option(
    "--fleet-kafka-security",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The same for the registry's cluster, if that is another one.",
)
@click.option("--http-host", default="127.0.0.1")
@click.option("--http-port", default=0, help="0 = a free one.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False))
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False))
@click.option("--account", help="The only account that is accepted; any by default.")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--latency", nargs=2, type=float, default=(0.02, 0.2), help="Least and most seconds from command to result."
)
@click.option(
    "--weather",
    type=click.Choice(list(WEATHERS)),
    default="calm",
    help="A set of faults to begin with; see below.",
)
@click.option(
    "--latency-shape",
    type=click.Choice(SHAPES),
    default="uniform",
    help="How results are spread between the two: evenly; in a burst, few of them later; or trickling in, half of "
    "them within a sixth, one of a hundred after the most.",
)
@click.option("--late", default=0.0, help="Share of results held back for --late-s.")
@click.option("--late-s", default=330.0, help="More than the service waits for a result, which is 300 s by default.")
@click.option("--swallow", default=0.0, help="Share of commands lost before they reach the device.")
@click.option(
    "--faults",
    "more_faults",
    metavar="JSON",
    help='Any faults as POST /sim/faults takes them: \'{"realtime": {"error_rate": 0.1}}\'.',
)
@click.option("--loss", default=0.0, help="Share of results that are lost.")
@click.option("--loss-of", multiple=True, metavar="[SN][:set|release|query][:COUNT|*]", help="Lose chosen results.")
@click.option("--duplicates", default=0.0, help="Share of results sent twice.")
@click.option("--reorder", default=0.0, help="Share of results that later ones overtake.")
@click.option(
    "--reorder-effects", default=0.0, help="Share of commands that later ones overtake on the way to the device."
)
@click.option("--refusals", multiple=True, metavar="CODE:SHARE")
@click.option("--partial", default=0.0, help="Share of multi-parameter commands whose last parameter fails.")
@click.option("--offline", default=0.0, help="Share of devices offline at the start.")
@click.option("--no-consent", default=0.0, help="Share of devices whose owners never authorized.")
@click.option(
    "--after-withdrawal",
    type=click.Choice(["release", "refuse"]),
    default="release",
    help="What a device may be sent after its consent was withdrawn: releases and queries, or nothing.",
)
@click.option(
    "--topics-out-of-step", multiple=True, metavar="ROLE:SECONDS", help="Delay a request topic: single, multi, query."
)
@click.option("--results-per-command", type=click.IntRange(1, 2), help="Default: the profile's.")
@click.option(
    "--solar-hour", type=click.FloatRange(0, 24), help="Solar time at the start; the wall clock (UTC) by default."
)
@click.option("--create-topics/--no-create-topics", default=False, help="Create missing topics.")
@click.option("--partitions", default=6, help="Of topics that are created.")
@click.option("--group", default="goodwe-simulator", help="Group under which requests are read.")
@click.option(
    "--state-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Dump everything there on SIGUSR1 and at exit.",
)
def command(**options: Any) -> None:
    """Be GoodWe: six Kafka topics and the Real-Time Data API, with inverters behind them."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Rarely())
    given = click.get_current_context().get_parameter_source
    asked = {name for name in options if given(name) is not ParameterSource.DEFAULT}
    asyncio.run(run(_plan(options, asked)))


def _faults(options: dict[str, Any], asked: Collection[str], profile: Profile) -> Faults:
    """The faults at the start: those of the weather, over them the options that were given, over both --faults."""
    wished = {
        **options,
        "refusals": _shares(options["refusals"], "--refusals"),
        "topics_out_of_step": _shares(options["topics_out_of_step"], "--topics-out-of-step"),
    }
    faults = Faults(seed=options["seed"], results_per_command=profile.results_per_command)
    faults.set_weather(options["weather"], codes=profile.codes)
    faults.change({fault: wished[name] for name, fault in _FAULTS.items() if name in asked})
    if options["more_faults"]:
        try:
            more = msgspec.json.decode(options["more_faults"], type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise click.BadParameter(f"--faults is a JSON object ({error})") from error
        faults.change(more)
    faults.rules.extend(parse_loss_of(text) for text in options["loss_of"])
    return faults


def _plan(options: dict[str, Any], asked: Collection[str]) -> Plan:
    """`asked`: the options that were given, and not left at their default."""
    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    try:
        profile = load_profile(options["profile_name"])
        if options["fleet_file"] is not None:
            devices = read_fleet(options["fleet_file"], profile=profile)
        else:
            devices = generate_fleet(
                profile=profile,
                inverters=options["inverters"],
                seed=options["seed"],
                feeders=options["feeders"],
                sites=options["sites"],
                series=[name for name in options["series"].split(",") if name],
                registered_limits=options["registered_limits"],
            )
        faults = _faults(options, asked, profile)
        security = read_security(options["kafka_security"])
        fleet_security = read_security(options["fleet_kafka_security"])
    except (ProfileError, FleetError, FaultError, SecurityError) as error:
        raise click.ClickException(str(error)) from error
    if options["fleet_bootstrap_servers"] is None and options["fleet_kafka_security"] is None:
        fleet_security = security
    password_file = options["password_file"]
    return Plan(
        bootstrap_servers=options["bootstrap_servers"],
        fleet_bootstrap_servers=options["fleet_bootstrap_servers"] or options["bootstrap_servers"],
        profile=profile,
        devices=devices,
        seed=options["seed"],
        faults=faults,
        offline=options["offline"],
        no_consent=options["no_consent"],
        solar_hour=options["solar_hour"],
        http_host=options["http_host"],
        http_port=options["http_port"],
        tls=(options["tls_cert"], options["tls_key"]) if options["tls_cert"] else None,
        account=options["account"],
        password=password_file.read_text(encoding="utf-8").strip() if password_file else None,
        create=options["create_topics"],
        partitions=options["partitions"],
        group=options["group"],
        registry_topic=options["registry_topic"],
        state_file=options["state_file"],
        security=security,
        fleet_security=fleet_security,
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `args` default to those of the process."""
    command(args=None if args is None else list(args), prog_name="simulate")


if __name__ == "__main__":
    main()
