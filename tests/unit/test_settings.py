"""Settings: the names and defaults of the contract, and a sentence for whatever does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from vpp_dispatch import configuration, settings
from vpp_dispatch.domain.signal import Kind
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.security import SecuritySettings
from vpp_dispatch.settings import Settings

# None = no default there.
CONTRACT: dict[str, Any] = {
    "KAFKA__BOOTSTRAP_SERVERS": None,
    "KAFKA__SECURITY__PROTOCOL": None,
    "KAFKA__SESSION_TIMEOUT_S": 15,
    "SIGNALS__TOPICS": None,
    "RESPONSES__TOPICS": None,
    "REPORTS__TOPICS": None,
    "DATA_DIR": None,
    "GOODWE__PROFILE": None,
    "GOODWE__KAFKA__BOOTSTRAP_SERVERS": None,
    "GOODWE__KAFKA__SECURITY__PROTOCOL": None,
    "GOODWE__RESULT_TIMEOUT_S": 300,
    "GOODWE__MAX_IN_FLIGHT": 20000,
    "GOODWE__MAX_PER_S": 0,
    "GOODWE__REALTIME__BASE_URL": None,
    "GOODWE__REALTIME__ACCOUNT": None,
    "GOODWE__REALTIME__PASSWORD_FILE": None,
    "GOODWE__REALTIME__MAX_CALLS_PER_S": 1,
    "FLEET__CONSENT_REFRESH_S": 300,
    "FLEET__CONSENT_MAX_AGE_S": 3600,
    "FLEET__TELEMETRY_REFRESH_S": 300,
    "FLEET__TELEMETRY_POLICY": "prefer",
    "DISPATCH__SETTLE_GRACE_S": 600,
    "DISPATCH__RETRY_BACKOFF_S": 30,
    "DISPATCH__RELEASE_RETRY_S": 60,
    "DISPATCH__DEFAULTS": ("registry", "query"),
    "DISPATCH__LONGEST_EVENT_S": 86400,
    "GUARD__CANARY": 0,
    "GUARD__MAX_FLEET_SHARE": 1,
    "GUARD__MAX_W_PER_MINUTE": 0,
    "GUARD__MIN_INTERVAL_S": 0,
    "HTTP__PORT": None,
}


def load(config: Path | None = None, /, **variables: str) -> Settings:
    return Settings.load(config, {configuration.PREFIX + name: value for name, value in variables.items()})


def refusal(config: Path | None = None, /, **variables: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(config, **variables)
    return str(caught.value)


def test_every_name_and_default_of_the_contract() -> None:
    paths = {configuration.variable(path): path for path, _ in configuration.leaves(Settings)}
    for name, default in CONTRACT.items():
        path = paths[configuration.PREFIX + name]
        if default is not None:
            assert configuration.value_of(load(), path) == default, name


def test_every_setting_has_a_meaning_and_seconds_say_so() -> None:
    for path, field in configuration.leaves(Settings):
        assert field.description, path
        if path[-1].endswith("_s") and "per" not in path[-1]:
            assert "in seconds" in field.description, path


def test_environment_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    file = tmp_path / "vpp.toml"
    file.write_text('[kafka]\ngroup = "file"\nsession_timeout_s = 6\n[signals.topics]\n"west.v1" = "gridco-west"\n')
    loaded = load(file, KAFKA__GROUP="env")
    assert (loaded.kafka.group, loaded.kafka.session_timeout_s) == ("env", 6)
    assert loaded.kafka.rebalance_timeout_s == 30
    assert loaded.signals.topics == {"west.v1": "gridco-west"}
    lines = loaded.lines()
    assert "VPP_DISPATCH_KAFKA__GROUP=env  # the environment" in lines
    assert f"VPP_DISPATCH_KAFKA__SESSION_TIMEOUT_S=6  # {file}" in lines
    assert "VPP_DISPATCH_KAFKA__REBALANCE_TIMEOUT_S=30  # default" in lines


def test_maps_are_json_lists_are_commas_empty_is_not_set() -> None:
    loaded = load(
        SIGNALS__TOPICS='{"a.v1": "west", "b.v1": "east"}',
        RESPONSES__TOPICS='{"west": "west-responses"}',
        DISPATCH__DEFAULTS="registry, family",
        KAFKA__GROUP="",
        GOODWE__KAFKA__BOOTSTRAP_SERVERS="",
    )
    assert loaded.signals.topics == {"a.v1": "west", "b.v1": "east"}
    assert loaded.dispatch.defaults == ("registry", "family")
    assert loaded.kafka.group == "vpp-dispatch"
    assert loaded.goodwe_bootstrap_servers == loaded.kafka.bootstrap_servers
    assert loaded.responses_topic("west") == "west-responses"
    assert loaded.responses_topic("east") == "dispatch.responses.v1"
    assert loaded.reports_topic("west") == "dispatch.reports.v1"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "KAFKA__SESSION_TIMEOUT_S",
            "soon",
            ["VPP_DISPATCH_KAFKA__SESSION_TIMEOUT_S", "environment", "soon", "seconds"],
        ),
        ("KAFKA__SESSION_TIMEOUT_S", "nan", ["VPP_DISPATCH_KAFKA__SESSION_TIMEOUT_S"]),
        ("SIGNALS__TOPICS", "west", ["VPP_DISPATCH_SIGNALS__TOPICS", "JSON object"]),
        ("SIGNALS__TOPICS", '["west"]', ["VPP_DISPATCH_SIGNALS__TOPICS", "JSON object"]),
        ("SIGNALS__TOPICS", "{}", ["VPP_DISPATCH_SIGNALS__TOPICS"]),
        ("KAFKA__SESION_TIMEOUT_S", "3", ["did you mean VPP_DISPATCH_KAFKA__SESSION_TIMEOUT_S?"]),
        ("MAX_IN_FLIGHT", "3", ["did you mean VPP_DISPATCH_GOODWE__MAX_IN_FLIGHT?"]),
        ("DISPATCH__DEFAULTS", "registry,guess", ["VPP_DISPATCH_DISPATCH__DEFAULTS[1]", "guess"]),
        ("FLEET__CONSENT_MAX_AGE_S", "10", ["CONSENT_MAX_AGE_S (10)", "CONSENT_REFRESH_S (300)"]),
        ("TOPICS__REPORTS", "dispatch.responses.v1", ["dispatch.responses.v1", "its own name"]),
        ("GOODWE__REALTIME__BASE_URL", "realtime", ["https://"]),
        ("TRACING__ENDPOINT", "collector:4318", ["VPP_DISPATCH_TRACING__ENDPOINT", "https://"]),
        ("TRACING__SAMPLE_RATIO", "5", ["VPP_DISPATCH_TRACING__SAMPLE_RATIO"]),
        ("KAFKA__SECURITY__PROTOCOL", "SASL_SSL", ["KAFKA__SECURITY", "PASSWORD_FILE"]),
        ("KAFKA__SECURITY__CA_FILE", "/nowhere/ca.pem", ["KAFKA__SECURITY"]),
        ("GOODWE__REALTIME__PASSWORD_FILE", "/nowhere/password", ["/nowhere/password", "cannot be read"]),
        ("GRANTS", '{"west": {"kinds": ["explode"]}}', ["VPP_DISPATCH_GRANTS[west]", "explode"]),
        ("GRANTS", '{"west": {"max_watt": 3}}', ["VPP_DISPATCH_GRANTS[west][max_watt]"]),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(name: str, value: str, said: list[str]) -> None:
    text = refusal(**{name: value})
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[kafka]\nsesion_timeout_s = 3\n", "did you mean kafka.session_timeout_s?"),
        ("kafka = 3\n", "[kafka]"),
        ("[kafka\n", "is not TOML"),
        ("[kafka]\nsession_timeout_s = 'soon'\n", "vpp.toml"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "vpp.toml"
    file.write_text(text)
    refused = refusal(file)
    assert said in refused
    assert str(file) in refused


def test_a_file_that_is_not_there() -> None:
    assert "/nowhere.toml cannot be read (No such file or directory)" in refusal(Path("/nowhere.toml"))


def test_all_problems_are_told_at_once() -> None:
    text = refusal(KAFKA__SESION="1", HTTP__PORT="70000", SIGNALS__TOPICS="x")
    assert "3 settings are refused" in text


@pytest.mark.parametrize(
    ("name", "on", "off"),
    [
        ("CANARY", "5", "0"),
        ("MAX_FLEET_SHARE", "0.5", "1"),
        ("MAX_W_PER_MINUTE", "1000", "0"),
    ],
)
def test_r38_a_guard_that_is_not_built_is_refused(name: str, on: str, off: str) -> None:
    assert "not built yet" in refusal(**{f"GUARD__{name}": on})
    load(**{f"GUARD__{name}": off})


def test_a_fault_needs_the_environment_to_say_that_it_is_a_test() -> None:
    assert "tests only" in refusal(FAULT__POINT="published:20:SIGKILL")
    assert load(FAULT__POINT="published:20:SIGKILL", FAULTS="1").fault.point == "published:20:SIGKILL"
    assert "FAULT__" not in settings.page()
    assert not any("FAULT__" in line for line in load().lines())


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hush-hush\n")
    loaded = load(
        KAFKA__SECURITY__PROTOCOL="SASL_PLAINTEXT",
        KAFKA__SECURITY__USERNAME="vpp",
        KAFKA__SECURITY__PASSWORD_FILE=str(file),
        GOODWE__REALTIME__PASSWORD_FILE=str(file),
    )
    assert loaded.goodwe.realtime.password is not None
    assert loaded.goodwe.realtime.password.get_secret_value() == "hush-hush"
    assert loaded.goodwe_security.aiokafka() == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "vpp",
        "sasl_plain_password": "hush-hush",
    }
    everything = [repr(loaded), str(loaded), json.dumps(loaded.model_dump(mode="json")), *loaded.lines()]
    assert not any("hush" in text for text in everything)


def test_headers_for_traces_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer hush-hush\n\nX-Scope-OrgID: vpp\n")
    loaded = load(TRACING__ENDPOINT="https://collector:4318/v1/traces", TRACING__HEADERS_FILE=str(file))
    assert loaded.tracing.headers == {"authorization": "Bearer hush-hush", "x-scope-orgid": "vpp"}
    everything = [repr(loaded), str(loaded), json.dumps(loaded.model_dump(mode="json")), *loaded.lines()]
    assert not any("hush" in text for text in everything)
    file.write_text("X-Scope-OrgID: vpp\nhush-hush\n")
    text = refusal(TRACING__HEADERS_FILE=str(file))
    assert "line 2" in text and "name: value" in text and "hush" not in text


def test_a_password_in_the_wrong_place_is_refused_without_being_shown() -> None:
    text = refusal(
        **{
            "GOODWE__REALTIME__PASSWORD": "hush-hush",
            "GOODWE__REALTIME__BASE_URL": "https://me:hush-hush@example.org",
        }
    )
    assert "did you mean VPP_DISPATCH_GOODWE__REALTIME__PASSWORD_FILE?" in text
    assert "hush" not in text


def test_goodwes_own_cluster_has_its_own_security() -> None:
    loaded = load(GOODWE__KAFKA__BOOTSTRAP_SERVERS="theirs:9092", GOODWE__KAFKA__SECURITY__PROTOCOL="SSL")
    assert loaded.goodwe_bootstrap_servers == "theirs:9092"
    assert loaded.goodwe_security.uses_tls
    assert not loaded.kafka.security.uses_tls
    assert loaded.goodwe_group == "vpp-dispatch-goodwe"


def test_tls_files_that_are_no_pem(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        SecuritySettings(protocol="SSL", ca_file=file).ssl_context()


def test_r09_grants() -> None:
    assert load().grant_of("anyone") == settings.Grant()
    granted = load(GRANTS='{"west": {"targets": {"areas": ["west"]}, "kinds": ["charge"], "max_w": 5000}}')
    assert granted.grant_of("east") is None
    west = granted.grant_of("west")
    assert west is not None
    assert west.targets == settings.GrantTargets(areas=("west",))
    assert (west.kinds, west.min_priority, west.max_w) == (("charge",), 0, 5000)


def test_kinds_are_the_domains() -> None:
    assert set(get_args(settings.Kind)) == {kind.value for kind in Kind}


def test_what_is_needed_to_run_is_told(tmp_path: Path) -> None:
    assert len(load().unmet()) == 3
    file = tmp_path / "password"
    file.write_text("x")
    assert not load(
        GOODWE__REALTIME__BASE_URL="http://127.0.0.1:1",
        GOODWE__REALTIME__ACCOUNT="a",
        GOODWE__REALTIME__PASSWORD_FILE=str(file),
    ).unmet()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().kafka.group = "other"


def test_the_document_is_up_to_date() -> None:
    assert settings.main(["--check"]) == 0, "run python -m vpp_dispatch.settings --write"
