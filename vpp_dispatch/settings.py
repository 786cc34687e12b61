"""All settings: name, unit, default and meaning. Read once, at start; nothing reads the environment later.

    Settings
    |-- kafka       our cluster                 |-- topics      names of the topics of our side
    |-- signals, responses, reports             |-- grants      what a source may ask for (R9)
    |-- goodwe      profile, cluster, limits    |-- fleet       consent and telemetry
    |   |-- kafka                               |-- dispatch    retries, defaults, deadlines
    |   `-- realtime                            |-- guard       blast radius (R38; not built yet)
    |-- http, log                               `-- fault       a planted death, for the kill tests only

One list to read from top to bottom, and long for that reason only.

`python -m vpp_dispatch.settings --write` writes docs/configuration.md from this file, `--check` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator, model_validator

from vpp_dispatch import configuration
from vpp_dispatch.configuration import Section
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.security import SecuritySettings as SecuritySettings
from vpp_dispatch.security import secret

ANY_SOURCE = "*"
FAULTS_ALLOWED = "VPP_DISPATCH_FAULTS"

Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
SourceName = Annotated[str, Field(pattern=r"^[^/]{1,64}$")]
Kind = Literal[
    "charge", "discharge", "standby", "import_target", "export_target", "export_limit", "generation_limit",
    "power_factor",
]  # fmt: skip


def http_address(value: str) -> str:
    """An address that was set, without a slash at its end. Raises: ValueError."""
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise ValueError("it must not hold a user or a password: a ..._FILE is for them.")
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(f"{value!r} is no address: write https://host, with a path where there is one.")
    return value.rstrip("/")


class KafkaSettings(Section):
    """Our cluster."""

    bootstrap_servers: str = Field(
        default="localhost:9092", min_length=1, description="Brokers of our cluster, host:port, separated by commas."
    )
    group: TopicName = Field(default="vpp-dispatch", description="Consumer group and application id of all workers.")
    replication_factor: int = Field(
        default=3, ge=1, le=10, description="Copies of the topics that the service creates."
    )
    session_timeout_s: float = Field(
        default=15, ge=1, le=300, description="A worker that is silent for longer loses its shards, in seconds."
    )
    rebalance_timeout_s: float = Field(
        default=30, ge=1, le=600, description="Time a worker has to give up its shards in a rebalance, in seconds."
    )
    security: SecuritySettings = SecuritySettings()

    @property
    def heartbeat_interval_s(self) -> float:
        """A fifth of the session: 3 s of 15 s."""
        return self.session_timeout_s / 5

    @property
    def request_timeout_s(self) -> float:
        """Longer than any rebalance, since a join is a request: 40 s."""
        return max(self.session_timeout_s, self.rebalance_timeout_s) + 10

    @property
    def min_insync_replicas(self) -> int:
        """Of the topics that the service creates: one copy may be missing."""
        return max(1, self.replication_factor - 1)


class TopicSettings(Section):
    """Names of the topics of our side; see docs/architecture.md."""

    responses: TopicName = Field(
        default="dispatch.responses.v1", description="Responses of sources without their own topic."
    )
    reports: TopicName = Field(default="dispatch.reports.v1", description="Reports of sources without their own topic.")
    outcomes: TopicName = Field(default="dispatch.outcomes.v1", description="Outcomes per device: the audit trail.")
    dead_letters: TopicName = Field(
        default="dispatch.dead-letters.v1", description="What could not be used, with its reason."
    )
    registry: TopicName = Field(default="fleet.devices.v1", description="The registry of devices, compacted.")
    event_inbox: TopicName = Field(default="vpp-dispatch.event-inbox.v1", description="Internal; 1 partition.")
    shard_inbox: TopicName = Field(default="vpp-dispatch.shard-inbox.v1", description="Internal; 64 partitions.")
    events_changelog: TopicName = Field(
        default="vpp-dispatch-events-changelog", description="Internal; rows of the events, 1 partition, compacted."
    )
    pages_changelog: TopicName = Field(
        default="vpp-dispatch-pages-changelog", description="Internal; pages of the books, 64 partitions, compacted."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands for more than one topic: give each its own name.")
        return self


class SignalsSettings(Section):
    """Where signals come from."""

    topics: dict[TopicName, SourceName] = Field(
        default_factory=lambda: {"dispatch.signals.v1": ANY_SOURCE},
        min_length=1,
        description="Signals topic -> the one source that may use it (R9), a JSON object. `*` = any source: only where "
        "the broker lets a single operator write.",
    )


class ResponsesSettings(Section):
    """Where responses go."""

    topics: dict[SourceName, TopicName] = Field(
        default_factory=dict,
        description="Source -> its own responses topic, a JSON object; the others use TOPICS__RESPONSES.",
    )


class ReportsSettings(Section):
    """Where reports go."""

    topics: dict[SourceName, TopicName] = Field(
        default_factory=dict,
        description="Source -> its own reports topic, a JSON object; the others use TOPICS__REPORTS.",
    )


class GrantTargets(Section):
    """The union of areas and groups a source may target."""

    areas: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Grant(Section):
    """What one source may ask for (R9). The defaults grant everything.

    `min_priority`: the smallest number, so the strongest priority, it may use. `max_w`: the largest number of watts in
    one control (per device, in a table, or in total, as the control is given); None = no bound.
    """

    targets: Literal["all"] | GrantTargets = "all"
    kinds: tuple[Kind, ...] | None = None
    min_priority: int = Field(default=0, ge=0, le=255)
    max_w: int | None = Field(default=None, ge=0)


class GoodweKafkaSettings(Section):
    """GoodWe's cluster."""

    bootstrap_servers: str | None = Field(
        default=None,
        min_length=1,
        description="Brokers of GoodWe's cluster, host:port; absent = ours, and its security.",
    )
    group: TopicName | None = Field(
        default=None, description="Consumer group on the result topics; absent = KAFKA__GROUP with `-goodwe` appended."
    )
    security: SecuritySettings = SecuritySettings()


class RealtimeSettings(Section):
    """The Real-Time Data API."""

    base_url: str = Field(default="", description="Address of the Real-Time Data API, https://...; needed to run.")
    account: str = Field(default="", description="The supplier's access account; needed to run.")
    password_file: Path | None = Field(default=None, description="File with the account's password; needed to run.")
    ca_file: Path | None = Field(default=None, description="PEM file with the API's CA; absent = the system's CAs.")
    max_calls_per_s: float = Field(
        default=1, gt=0, le=1000, description="Most calls per second, all workers together; each takes its share."
    )
    connect_timeout_s: Seconds = Field(default=5, description="Longest time to connect, in seconds.")
    read_timeout_s: Seconds = Field(default=30, description="Longest wait for the next bytes of an answer, in seconds.")

    _password: SecretStr | None = PrivateAttr(None)

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return http_address(value)

    @model_validator(mode="after")
    def _read_password(self) -> Self:
        self._password = secret(self.password_file, "password")
        return self

    @property
    def password(self) -> SecretStr | None:
        """The account's password, as read from its file at start."""
        return self._password


class GoodweSettings(Section):
    """GoodWe's side: contract, cluster, limits."""

    profile: str = Field(
        default="goodwe", min_length=1, description="The contract: a built-in profile's name, or a file's path."
    )
    result_timeout_s: Seconds = Field(
        default=300,
        description="Without a result for so long a setpoint is unconfirmed and retried, in seconds (R25).",
    )
    max_in_flight: int = Field(
        default=20_000, ge=10, description="Most unanswered commands, all workers together (R40)."
    )
    max_per_s: float = Field(
        default=0, ge=0, description="Most commands per second, all workers together; 0 = no limit (R40)."
    )
    request_timeout_s: Seconds = Field(
        default=5,
        description="A batch that GoodWe's cluster has not taken by then counts as published and unknown, in seconds.",
    )
    result_linger_s: float = Field(
        default=1,
        ge=0,
        le=10,
        description="Results are gathered for so long before they go to their shards, in seconds.",
    )
    kafka: GoodweKafkaSettings = GoodweKafkaSettings()
    realtime: RealtimeSettings = RealtimeSettings()


class FleetSettings(Section):
    """Who may be dispatched."""

    consent_refresh_s: Seconds = Field(
        default=300, description="Between two readings of the authorized SNs, in seconds."
    )
    consent_max_age_s: Seconds = Field(
        default=3600, description="Consent that was read longer ago is stale and starts nothing new, in seconds (R16)."
    )
    telemetry_refresh_s: Seconds = Field(default=300, description="Between two readings of telemetry, in seconds.")
    telemetry_max_age_s: Seconds = Field(default=900, description="An older sample proves nothing, in seconds (R18).")
    telemetry_policy: Literal["require", "prefer", "ignore"] = Field(
        default="prefer",
        description="Missing telemetry: `require` skips the device, `prefer` does not, `ignore` reads none (R18).",
    )
    soc_floor_percent: float = Field(
        default=25, ge=0, le=100, description="No discharge starts at or below this state of charge, in percent (R18)."
    )

    @model_validator(mode="after")
    def _ages(self) -> Self:
        if self.consent_max_age_s <= self.consent_refresh_s:
            raise ValueError(
                f"CONSENT_MAX_AGE_S ({self.consent_max_age_s:g}) must be above CONSENT_REFRESH_S "
                f"({self.consent_refresh_s:g}), else consent is stale between two readings: raise the first."
            )
        return self


class DispatchSettings(Section):
    """Retries, defaults, deadlines."""

    settle_grace_s: Seconds = Field(
        default=600, description="An event closes so long after its end and ramp down, settled or not, in seconds."
    )
    retry_backoff_s: Seconds = Field(
        default=30,
        description="First wait before a setpoint is tried again, in seconds; doubles to ten times, with jitter (R25).",
    )
    release_retry_s: Seconds = Field(default=60, description="Between two attempts at a release, in seconds (R19).")
    defaults: tuple[Literal["registry", "query", "family"], ...] = Field(
        default=("registry", "query"),
        min_length=1,
        description="Where a default may come from, separated by commas: `registry`, `query`, `family` (R37).",
    )
    default_max_age_s: Seconds = Field(
        default=3600,
        description="A default that was read by a query longer ago is read again before the next event, in seconds.",
    )
    verify: Literal["none", "sample", "all"] = Field(
        default="sample",
        description="Which applied setpoints are read back: `none`, `sample`, `all` (R27). Releases always are, and "
        "all setpoints of a profile without echoed ids (R26).",
    )
    verify_sample: float = Field(
        default=0.05, gt=0, le=1, description="Share of the applied setpoints that `sample` reads back."
    )
    longest_event_s: Seconds = Field(
        default=86_400, description="Longest event; an open-ended one ends by itself after it, in seconds (R5)."
    )


class GuardSettings(Section):
    """Blast radius (R38). What is not built yet is refused, since a guard that does not guard is worse than none."""

    canary: int = Field(default=0, description="Devices that go first, and are waited for; 0 = off. Only 0 is built.")
    max_fleet_share: float = Field(
        default=1, description="Largest share of the fleet in one event; 1 = off. Only 1 is built."
    )
    max_w_per_minute: int = Field(
        default=0, description="Largest change per minute and area, in W; 0 = off. Only 0 is built."
    )
    min_interval_s: float = Field(
        default=0,
        ge=0,
        description="Smallest time between two setpoints of a device's actuator, in seconds, since settings are kept "
        "in flash (R21); releases never wait for it. 0 = off.",
    )
    dead_band_w: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="A device that was told a value and has acknowledged it keeps it when a value that differs by no "
        "more than this, in W, is wanted of it, since settings are kept in flash (R21). Limits are kept only where "
        "they are tighter than wanted; releases and power factors are always sent. 0 = off.",
    )

    @field_validator("canary", "max_fleet_share", "max_w_per_minute")
    @classmethod
    def _off(cls, value: float, info: Any) -> float:
        off = cls.model_fields[info.field_name].default
        if value != off:
            raise ValueError(
                f"this guard is not built yet, so {value:g} would protect nothing: leave it out, or set {off}."
            )
        return value


class HttpSettings(Section):
    """/metrics, /livez, /readyz."""

    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # probes come from outside the pod
    port: int = Field(
        default=8000, ge=0, le=65_535, description="Port to listen on; 0 = any free one, told in the log."
    )
    live_limit_s: Seconds = Field(
        default=60, description="/livez fails once this worker's own loop has made no progress for longer, in seconds."
    )


class LogSettings(Section):
    """Logs, on standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is written: debug, info, warning or error."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console`, or `auto`: JSON unless standard output is a terminal."
    )

    @field_validator("level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


class TracingSettings(Section):
    """Traces by OpenTelemetry: one span per unit of work, never per device."""

    endpoint: str = Field(
        default="", description="OTLP/HTTP address that spans are sent to, https://host:4318/v1/traces; absent = off."
    )
    sample_ratio: float = Field(
        default=1, ge=0, le=1, description="Share of the events that are traced, each wholly or not at all."
    )
    headers_file: Path | None = Field(
        default=None, description="File with headers for that address, one `name: value` per line."
    )
    ca_file: Path | None = Field(default=None, description="PEM file with its CA; absent = the public CAs.")

    _headers: dict[str, SecretStr] = PrivateAttr(default_factory=dict)

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        return http_address(value)

    @model_validator(mode="after")
    def _read_headers(self) -> Self:
        content = secret(self.headers_file, "headers")
        for number, line in enumerate(content.get_secret_value().splitlines() if content else [], 1):
            name, colon, value = line.partition(":")
            if line.strip() and not (name.strip() and colon and value.strip()):
                raise ValueError(f"line {number} of {self.headers_file} is no header: write `name: value`.")
            if line.strip():
                self._headers[name.strip().lower()] = SecretStr(value.strip())
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The headers, in the clear."""
        return {name: value.get_secret_value() for name, value in self._headers.items()}


class FaultSettings(Section):
    """A planted death."""

    point: str = Field(
        default="", description="name:n:SIGNAL, see `vpp_dispatch.faults`.", json_schema_extra={"hidden": True}
    )


class Settings(Section):
    """Everything an operator can set. Frozen; `Settings()` is all defaults."""

    data_dir: Path = Field(
        default=Path("/var/lib/vpp-dispatch"),
        description="Folder of this worker's break-glass files (R36).",
    )
    grants: dict[SourceName, Grant] = Field(
        default_factory=dict,
        description="Source -> what it may ask for (R9), a JSON object: `targets` (`all`, or `areas` and `groups`), "
        "`kinds`, `min_priority`, `max_w` (largest watts in one control). Without GRANTS every source may ask for "
        "everything; with it a source that is not named may ask for nothing.",
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    signals: SignalsSettings = SignalsSettings()
    responses: ResponsesSettings = ResponsesSettings()
    reports: ReportsSettings = ReportsSettings()
    goodwe: GoodweSettings = GoodweSettings()
    fleet: FleetSettings = FleetSettings()
    dispatch: DispatchSettings = DispatchSettings()
    guard: GuardSettings = GuardSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    fault: FaultSettings = FaultSettings()

    _origins: dict[configuration.SettingPath, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, config: Path | None, env: Mapping[str, str]) -> Settings:
        """Reads the settings: `env` over `config` (TOML) over defaults.

        Raises:
            ConfigurationError: one sentence per problem: where, what, what to do.
        """
        settings, origins = configuration.read(cls, config=config, env=env, ignore=frozenset({FAULTS_ALLOWED}))
        if settings.fault.point and env.get(FAULTS_ALLOWED) != "1":
            raise ConfigurationError(
                f"{configuration.variable(('fault', 'point'))} kills this worker on purpose and is for tests only: "
                f"remove it, or set {FAULTS_ALLOWED}=1 in the environment if this is a test."
            )
        settings._origins.update(origins)
        return settings

    def unmet(self) -> list[str]:
        """What has no possible default and is needed to run, one sentence each; empty = complete."""
        realtime = self.goodwe.realtime
        needed = {
            "base_url": (realtime.base_url, "consent cannot be read, so no device could be dispatched"),
            "account": (realtime.account, "the Real-Time Data API lets nobody in without"),
            "password_file": (realtime.password_file, "the Real-Time Data API lets nobody in without"),
        }
        return [
            f"{configuration.variable(('goodwe', 'realtime', name))} is not set: {why}. Set it."
            for name, (value, why) in needed.items()
            if not value
        ]

    def lines(self) -> list[str]:
        """Each setting as `NAME=value  # origin`; secrets are in files, of which only the paths are shown."""
        out = []
        for path, field in configuration.leaves(type(self)):
            origin = self._origins.get(path, "default")
            if origin == "default" and configuration.is_hidden(field):
                continue
            out.append(
                f"{configuration.variable(path)}={configuration.shown(configuration.value_of(self, path))}  # {origin}"
            )
        return out

    def responses_topic(self, source: str) -> str:
        """Where the responses of a source go."""
        return self.responses.topics.get(source, self.topics.responses)

    def reports_topic(self, source: str) -> str:
        """Where the reports of a source go."""
        return self.reports.topics.get(source, self.topics.reports)

    def grant_of(self, source: str) -> Grant | None:
        """What a source may ask for (R9); None = nothing."""
        return self.grants.get(source) if self.grants else Grant()

    @property
    def goodwe_bootstrap_servers(self) -> str:
        """Brokers of GoodWe's cluster, which may be ours."""
        return self.goodwe.kafka.bootstrap_servers or self.kafka.bootstrap_servers

    @property
    def goodwe_security(self) -> SecuritySettings:
        """Security of GoodWe's cluster; ours where the cluster is ours."""
        return self.kafka.security if self.goodwe.kafka.bootstrap_servers is None else self.goodwe.kafka.security

    @property
    def goodwe_group(self) -> str:
        """Consumer group on GoodWe's result topics."""
        return self.goodwe.kafka.group or f"{self.kafka.group}-goodwe"


_PAGE = """# Configuration

Written from `vpp_dispatch/settings.py` by `python -m vpp_dispatch.settings --write`: change it there.

A setting is an environment variable, or a key in the TOML file given by `--config`. `VPP_DISPATCH_KAFKA__GROUP` is
`group` under `[kafka]` there: two underscores stand for a section. The environment wins over the file, the file over
the default; an empty variable is not set. Maps are JSON objects in the environment and tables in the file, and are
replaced whole; lists are separated by commas in the environment. Secrets are never values: a `..._FILE` names the file
that holds one. A name that is no setting is refused, so that a misspelling never becomes a default. Settings are read
once, at start. `vpp-dispatch config check` tells whether they fit, `vpp-dispatch config show` what is in force and why.

"""

_SECTIONS = {"": "In the file these stand above all tables."} | {
    section: (model.__doc__ or "").splitlines()[0]
    for section, field in Settings.model_fields.items()
    if isinstance(model := field.annotation, type) and issubclass(model, BaseModel)
}


def page() -> str:
    """The content of docs/configuration.md."""
    return _PAGE + configuration.reference(Settings, _SECTIONS)


def main(arguments: list[str]) -> int:
    """Writes or checks docs/configuration.md of the checkout that this file is in."""
    file = Path(__file__).parents[1] / "docs" / "configuration.md"
    if arguments == ["--write"]:
        file.write_text(page(), encoding="utf-8")
        return 0
    if arguments != ["--check"]:
        print("Usage: python -m vpp_dispatch.settings --write | --check", file=sys.stderr)
        return 2
    if file.is_file() and file.read_text(encoding="utf-8") == page():
        return 0
    print(f"{file.name} differs from settings.py: run `python -m vpp_dispatch.settings --write`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
