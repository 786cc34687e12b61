"""Alerts, objectives, runbooks and routing: valid, tested, and true to what the service really shows and takes."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.deploy.command_lines import among, lines, names_one, parsed
from vpp_dispatch.dispatch.publisher import SKEW_STOPS_S
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.observability.metrics import CATALOGUE, PUBLISH_BUCKETS_S, Metrics
from vpp_dispatch.settings import Settings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.example.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
RULE_FILES = sorted(PROMETHEUS.glob("*.rules.yaml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yaml"))
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Afterwards"]
ALWAYS = "VppDispatchWatchdog"
PLACEHOLDERS = ("worker-1/", "worker-2/", "fleet.csv")
TARGET_LABELS = {"job", "instance", "pod"}

Rule = dict[str, Any]


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool or amtool. Small tests by the dozen: collecting garbage less often halves what promtool takes."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not there: run `make tools`"
    command, environment = [found, *map(str, arguments)], os.environ | {"GOGC": "800"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@cache
def rules() -> tuple[Rule, ...]:
    return tuple(
        rule for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    )


def alerts() -> list[Rule]:
    return [rule for rule in rules() if "alert" in rule]


NAMES = sorted({rule["alert"] for rule in alerts()})


def expression(name: str) -> str:
    """All that an alert, or a recorded series, is computed by."""
    return "\n".join(rule["expr"] for rule in rules() if name in (rule.get("alert"), rule.get("record")))


@cache
def example() -> dict[str, Any]:
    """Alertmanager's configuration."""
    found: dict[str, Any] = yaml.safe_load(ALERTMANAGER.read_text())
    return found


@cache
def promtool_test(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def runbook(name: str) -> str:
    return (RUNBOOKS / f"{name}.md").read_text()


def blocks(text: str, language: str) -> str:
    """What stands in the fenced blocks of a language, joined."""
    return "\n".join(re.findall(rf"(?ms)^```{language}\n(.*?)^```", text))


def spans(text: str) -> list[str]:
    """Code within a line."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))


def seconds(text: str | int) -> int:
    """A time of promtool: 1h30m, 90s, 0."""
    return sum(
        int(n) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit] for n, unit in re.findall(r"(\d+)([dhms])", str(text))
    )


# ------------------------------------------------------------------------------------------------ rules and their tests


def test_promtool_reads_every_rule() -> None:
    done = tool("promtool", "check", "rules", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(n) for n in re.findall(r"SUCCESS: (\d+) rules found", done.stdout)]
    assert len(counts) == len(RULE_FILES) == 2
    assert sum(counts) == len(rules()) > len(NAMES) > 35


def test_promtool_tests_pass() -> None:
    """Two at a time: promtool itself uses one core."""
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda file: tool("promtool", "test", "rules", file), TEST_FILES))
    for file, done in zip(TEST_FILES, ends, strict=True):
        assert done.returncode == 0, f"{file.name}\n{done.stdout[:5000]}{done.stderr[:2000]}"
        assert "SUCCESS" in done.stdout
    assert len(TEST_FILES) >= 6


def test_a_test_that_expects_something_else_fails(tmp_path: Path) -> None:
    """That promtool looks at all: the watchdog, expected to be silent."""
    file = tmp_path / "wrong.yaml"
    wrong = {"eval_time": "1m", "alertname": ALWAYS, "exp_alerts": []}
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULE_FILES[0])], "tests": [{"interval": "1m", "alert_rule_test": [wrong]}]})
    )
    done = tool("promtool", "test", "rules", file)
    assert done.returncode == 1
    assert ALWAYS in done.stdout + done.stderr


@cache
def looks() -> dict[str, dict[str, list[tuple[int, bool]]]]:
    """Alert -> name of the test -> (second, whether it is expected to fire), in order of time."""
    found: dict[str, dict[str, list[tuple[int, bool]]]] = {}
    for file in TEST_FILES:
        for test in promtool_test(file)["tests"]:
            for look in test.get("alert_rule_test", ()):
                at = found.setdefault(look["alertname"], {}).setdefault(test["name"], [])
                at.append((seconds(look["eval_time"]), bool(look.get("exp_alerts"))))
    return {alert: {name: sorted(at) for name, at in tests.items()} for alert, tests in found.items()}


def test_the_tests_name_no_alert_that_is_none() -> None:
    assert sorted(looks()) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != ALWAYS])
def test_each_alert_is_silent_before_fires_and_is_silent_after(name: str) -> None:
    courses = [[fires for _, fires in at] for at in looks()[name].values()]
    assert any(fires[0] is False and fires[-1] is False and True in fires for fires in courses)


@pytest.mark.parametrize("name", [name for name in NAMES if name != ALWAYS])
def test_each_alert_has_a_situation_beside_it_in_which_it_is_silent(name: str) -> None:
    assert any(not any(fires for _, fires in at) for at in looks()[name].values())


def test_the_watchdog_fires_from_the_first_moment() -> None:
    assert looks()[ALWAYS] == {"the watchdog fires even where there is nothing at all": [(0, True), (600, True)]}


def test_groups_are_evaluated_in_their_order() -> None:
    """promtool takes them in any order otherwise, and then an alert sees what was recorded a step earlier."""
    for file in TEST_FILES:
        text = promtool_test(file)
        named = [PROMETHEUS / "tests" / each for each in text["rule_files"]]
        groups = [name for each in named for name in re.findall(r"(?m)^  - name: (.*)$", each.read_text())]
        assert text["group_eval_order"] == groups, file.name


# ------------------------------------------------------------------------------------------------ what a rule says


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"VppDispatch([A-Z][a-z]+)+", rule["alert"])
    assert set(rule["labels"]) == {"severity"} and rule["labels"]["severity"] in ("page", "ticket", "info")
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url", "dashboard"}
    assert told["runbook_url"] == f"docs/runbooks/{rule['alert']}.md" and (ROOT / told["runbook_url"]).is_file()
    boards = [json.loads(file.read_text())["uid"] for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    assert told["dashboard"] in boards
    assert len(told["summary"]) <= 70 and not told["summary"].endswith(".")
    assert told["description"][-1] in ".?" and len(told["description"]) <= 400


def test_thresholds_are_the_defaults_of_the_settings() -> None:
    settings = Settings()
    timeout_s, grace_s = settings.goodwe.result_timeout_s, settings.dispatch.settle_grace_s
    assert f"vpp_dispatch_consent_age_seconds > {settings.fleet.consent_max_age_s:g}" in expression(
        "VppDispatchConsentStale"
    )
    assert f"possible_seconds, {settings.fleet.telemetry_max_age_s:g})" in expression("VppDispatchTelemetryStale")
    assert f"vpp_dispatch_silence_seconds > {timeout_s:g}" in expression("VppDispatchGoodweSilent")
    assert f"> bool {timeout_s + grace_s:g})" in expression("vpp_dispatch:slo_bad:5m")
    assert f"< {SHARDS}" in expression("VppDispatchShardsWithoutOwner")
    assert f"> {SHARDS}" in expression("VppDispatchShardsOwnedTwice")
    assert f"skew_seconds > {SKEW_STOPS_S:g}" in expression("VppDispatchClockSkewReleasesOnly")
    assert 2.0 in PUBLISH_BUCKETS_S and b'latency_seconds_bucket{le="2.0"}' in Metrics().exposition()


def test_burn_rates_are_those_of_the_workbook() -> None:
    for slo in ("Results", "PublishLatency", "Release"):
        page, ticket = [rule["expr"] for rule in alerts() if rule["alert"] == f"VppDispatchSlo{slo}"]
        for text, wanted in (
            (page, [("1h", "5m", "14.4"), ("6h", "30m", "6")]),
            (ticket, [("1d", "2h", "3"), ("3d", "6h", "1")]),
        ):
            found = re.findall(r"ratio_rate(\w+)(?:\{[^}]*\})? > ([\d.]+) \* \(1 - vpp_dispatch:slo_objective\)", text)
            assert found == [pair for long, short, rate in wanted for pair in ((long, rate), (short, rate))]
            assert slo == "Release" or text.count(">= 30") == 2


# ------------------------------------------------------------------------------------------------ metrics there are


@cache
def known() -> dict[str, dict[str, set[str]]]:
    """Shown name -> label -> the values it may take; no values = any."""
    found: dict[str, dict[str, set[str]]] = {}
    for metric in (metric for metrics in CATALOGUE.values() for metric in metrics):
        labels = {}
        for label, told in metric.labels:
            words = [word.strip() for word in told.split(",")]
            labels[label] = set(words) if all(re.fullmatch(r"[a-z_]+", word) for word in words) else set()
        names = [metric.full_name]
        if metric.kind == "histogram":
            names = [f"{metric.full_name}_{part}" for part in ("bucket", "count", "sum")]
            labels["le"] = set()
        found.update(dict.fromkeys(names, labels))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    any_label: dict[str, set[str]] = {"slo": set(), "code": set(), "outcome": set(), "reason": set(), "state": set()}
    return (
        found
        | dict.fromkeys(recorded, any_label)
        | {"up": {}, "process_start_time_seconds": {}, "process_cpu_seconds_total": {}}
    )


def faults_in(text: str) -> Iterator[str]:
    """What a query names that the service does not show: metrics, labels, values of labels."""
    metrics = known()
    for name, matchers in re.findall(r"\b((?:vpp_dispatch|process)[\w:]*|up\b)(?:\{([^}]*)\})?", text):
        if name not in metrics:
            yield f"{name} is no metric"
            continue
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            values = metrics[name].get(label)
            if values is None and label not in TARGET_LABELS:
                yield f"{name} has no label {label}"
            if values:
                words = value.split("|") if "~" in operator else [value]
                yield from (f"{name}: {label} is never {word}" for word in words if word not in values)
    labels = {label for of in metrics.values() for label in of} | TARGET_LABELS
    for named in re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", text):
        yield from (f"no label {label}" for label in re.findall(r"\w+", named) if label not in labels)


def test_every_rule_reads_what_the_service_shows() -> None:
    assert [
        f"{rule.get('alert') or rule['record']}: {fault}" for rule in rules() for fault in faults_in(rule["expr"])
    ] == []


@pytest.mark.parametrize(
    "query",
    [
        "sum(vpp_dispatch_dept)",
        'vpp_dispatch_debts{sn="x"}',
        'vpp_dispatch_switches{switch="release_only"}',
        "sum by (sn) (up)",
    ],
)
def test_a_query_that_reads_nothing_would_be_found(query: str) -> None:
    assert list(faults_in(query))


def test_the_series_of_the_tests_are_those_that_the_service_shows() -> None:
    for file in TEST_FILES:
        for test in promtool_test(file)["tests"]:
            for series in test["input_series"]:
                assert list(faults_in(series["series"])) == [], file.name


# ------------------------------------------------------------------------------------------------ runbooks


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == sorted([*NAMES, "README"])


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_can_be_read_at_three_in_the_morning(name: str) -> None:
    text = runbook(name)
    of = [rule for rule in alerts() if rule["alert"] == name]
    severities = ", ".join(dict.fromkeys(rule["labels"]["severity"] for rule in of))
    assert text.startswith(f"# {name}\n\n{of[0]['annotations']['summary']}. Severity: {severities}.\n\n**First:** ")
    assert re.findall(r"(?m)^## (.*)$", text) == HEADINGS
    assert all(len(part.strip()) > 10 for part in re.split(r"(?m)^## .*$", text))
    assert len(text.splitlines()) <= 75
    assert f"| [{name}]({name}.md) | {severities} | {of[0]['annotations']['summary']} |" in runbook("README")


@pytest.mark.parametrize("name", NAMES)
def test_the_queries_of_a_runbook_read_what_the_service_shows(name: str) -> None:
    text = runbook(name)
    queries = blocks(text, "promql")
    assert queries
    assert list(faults_in(queries + "\n" + "\n".join(spans(text)))) == []


def test_the_queries_of_the_runbooks_are_promql(tmp_path: Path) -> None:
    pages = [runbook(name) for name in NAMES] + [(ROOT / "docs" / "slo.md").read_text()]
    queries = [line for text in pages for line in blocks(text, "promql").splitlines() if line]
    file = tmp_path / "queries.yaml"
    as_rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": as_rules}]}))
    done = tool("promtool", "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout and len(queries) > 80


@pytest.mark.parametrize("name", [*NAMES, "README"])
def test_the_commands_of_a_runbook_are_taken_by_the_command_line(name: str, tmp_path: Path) -> None:
    text = runbook(name)
    with among(tmp_path, *PLACEHOLDERS):
        for words in lines("\n".join([blocks(text, "sh"), *spans(text)]), "vpp-dispatch"):
            if not names_one(words):
                try:
                    parsed(words)
                except click.UsageError as fault:
                    pytest.fail(f"vpp-dispatch {' '.join(words)}: {fault.format_message()}")


def test_runbooks_name_commands_at_all() -> None:
    found = [words for name in NAMES for words in lines(blocks(runbook(name), "sh"), "vpp-dispatch")]
    assert len(found) > 30
    assert {"switch", "release", "signal", "preflight", "config", "fleet"} <= {words[0] for words in found}


@cache
def log_events() -> re.Pattern[str]:
    """What the service logs: the first argument of each call of a logger, holes of f-strings matching any word."""
    found = []
    for path in (ROOT / "vpp_dispatch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute | ast.Name):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                if called in ("debug", "info", "warning", "error", "exception", "line"):
                    found.append(_pattern(node.args[0]))
    return re.compile("|".join(filter(None, found)))


def _pattern(said: ast.expr) -> str:
    if isinstance(said, ast.Constant) and isinstance(said.value, str):
        return re.escape(said.value)
    if isinstance(said, ast.JoinedStr):
        return "".join(_pattern(part) if isinstance(part, ast.Constant) else "[a-z_.]+" for part in said.values)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_the_log_events_of_a_runbook_are_logged(name: str) -> None:
    files = re.compile(r".*\.(md|yaml|csv|jsonl|py)")
    named = [
        span
        for span in spans(runbook(name))
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span) and not files.fullmatch(span)
    ]
    assert [event for event in named if not log_events().fullmatch(event)] == []


def test_log_events_are_found_at_all() -> None:
    text = "\n".join(runbook(name) for name in NAMES)
    assert {"lease.lapsed", "batch.unknown", "realtime.circuit_open", "coordinator.retry"} <= set(spans(text))
    assert not log_events().fullmatch("lease.lost")


@pytest.mark.parametrize("path", [*(f"docs/runbooks/{name}.md" for name in [*NAMES, "README"]), "docs/slo.md"])
def test_settings_and_links_of_a_page_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text()
    settings = set(re.findall(r"`VPP_DISPATCH_([A-Z_]+)`", (ROOT / "docs/configuration.md").read_text()))
    for span in spans(text):
        for setting in re.findall(r"\b(?:VPP_DISPATCH_)?([A-Z]+(?:__[A-Z_]+)+|DATA_DIR)\b", span):
            assert setting in settings, span
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (ROOT / path).parent / file if file else ROOT / path
        assert target.is_file(), link
        headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link


# ------------------------------------------------------------------------------------------------ who hears of it


def test_amtool_takes_the_example() -> None:
    done = tool("amtool", "check-config", ALERTMANAGER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 receivers" in done.stdout


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("alertname=VppDispatchReleaseRefused severity=page actuator=ems", "dispatch-on-call"),
        (
            "alertname=VppDispatchGoodweUnreachable severity=page instance=10.0.1.7:8000 pod=vpp-dispatch-0",
            "dispatch-on-call",
        ),
        ("alertname=VppDispatchSloResults severity=page slo=results", "dispatch-on-call"),
        ("alertname=VppDispatchSloResults severity=ticket slo=results", "dispatch-tickets"),
        ("alertname=VppDispatchDeadLetters severity=ticket origin=signals reason=invalid", "dispatch-tickets"),
        ("alertname=VppDispatchWatchdog severity=info", "dispatch-dead-mans-switch"),
        ("alertname=VppDispatchSomethingNew severity=info", "dispatch-nobody"),
        ("alertname=VppDispatchSomethingNew severity=mistyped", "dispatch-tickets"),
        ("alertname=KubePodCrashLooping severity=critical", "dispatch-tickets"),
    ],
)
def test_who_hears_of_it(labels: str, receiver: str) -> None:
    done = tool("amtool", "config", "routes", "test", "--config.file", ALERTMANAGER, *labels.split())
    assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


def routed(name: str, severity: str) -> str:
    """The receiver of an alert, by the tree of the example: its routes are flat below the first."""
    (ours,) = example()["route"]["routes"]
    for route in ours["routes"]:
        if all(_matches(matcher, {"alertname": name, "severity": severity}) for matcher in route["matchers"]):
            return str(route["receiver"])
    return str(ours["receiver"])


def _matches(matcher: str, labels: dict[str, str]) -> bool:
    label, operator, value = re.fullmatch(r'(\w+)(=~|!~|!=|=)"(.*)"', matcher).groups()  # type: ignore[union-attr]
    same = bool(re.fullmatch(value, labels[label])) if "~" in operator else labels[label] == value
    return same is not operator.startswith("!")


def test_every_alert_goes_where_its_severity_says() -> None:
    wanted = {"page": "dispatch-on-call", "ticket": "dispatch-tickets", "info": "dispatch-dead-mans-switch"}
    for rule in alerts():
        assert routed(rule["alert"], rule["labels"]["severity"]) == wanted[rule["labels"]["severity"]]


@cache
def inhibited_by(source: str) -> frozenset[str]:
    """The alerts that one alert silences."""
    found = set()
    for rule in example()["inhibit_rules"]:
        if "alertname" in rule.get("equal", ()):  # the same alert of another severity
            continue
        if all(_matches(matcher, {"alertname": source, "severity": "page"}) for matcher in rule["source_matchers"]):
            for alert in alerts():
                labels = {"alertname": alert["alert"], "severity": alert["labels"]["severity"]}
                if alert["alert"] != source and all(_matches(each, labels) for each in rule["target_matchers"]):
                    found.add(alert["alert"])
    return frozenset(found)


def test_a_cause_silences_its_symptoms() -> None:
    gone = inhibited_by("VppDispatchGoodweUnreachable")
    assert {
        "VppDispatchUnconfirmed",
        "VppDispatchResultsFailing",
        "VppDispatchPublishSlow",
        "VppDispatchGoodweSilent",
    } <= gone
    assert "VppDispatchLeaseLost" in inhibited_by("VppDispatchWorkerDown")
    assert inhibited_by("VppDispatchAllWorkersDown") == set(NAMES) - {"VppDispatchAllWorkersDown", ALWAYS}


def test_what_says_that_inverters_stay_set_is_silenced_by_the_loss_of_all_workers_only() -> None:
    for name in ("VppDispatchReleaseRefused", "VppDispatchHeldPastWindow", "VppDispatchShardsWithoutOwner"):
        assert [source for source in NAMES if name in inhibited_by(source)] == ["VppDispatchAllWorkersDown"]
    assert not any(ALWAYS in inhibited_by(source) for source in NAMES)


def test_no_two_alerts_silence_each_other() -> None:
    assert [(a, b) for a in NAMES for b in inhibited_by(a) if a in inhibited_by(b)] == []


def test_inhibit_rules_name_alerts_that_there_are() -> None:
    text = ALERTMANAGER.read_text()
    groups = re.findall(r"VppDispatch\(([^)]*)\)", text)
    named = {f"VppDispatch{word}" for group in groups for word in group.split("|")}
    named |= set(re.findall(r'="(VppDispatch\w+)"', text))
    assert named and named <= set(NAMES)


def test_the_example_holds_no_secret() -> None:
    def keys(part: Any) -> Iterator[tuple[str, Any]]:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            yield str(key), value
            yield from keys(value)

    secret = [key for key, _ in keys(example()) if re.search("password|key|token|credential", key)]
    assert secret and all(key.endswith("_file") for key in secret)


def test_promtool_takes_the_scrape_example() -> None:
    file = PROMETHEUS / "prometheus.example.yaml"
    done = tool("promtool", "check", "config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULE_FILES)} rule files found" in done.stdout
    config = yaml.safe_load(file.read_text())
    (job,) = config["scrape_configs"]
    assert (job["job_name"], config["global"]["scrape_interval"]) == ("vpp-dispatch", "15s")
    used = {name for rule in rules() for name in re.findall(r'job="([^"]*)"', rule["expr"])}
    assert used == {"vpp-dispatch"}
