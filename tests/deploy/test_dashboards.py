"""The dashboards: JSON as the source makes it, queries that a real Prometheus takes, no metric that nobody looks at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.grafana.boards import WORKER_REGEX
from deploy.grafana.generate import differing, loaded, main
from deploy.grafana.picture import Answer, Run, draw, fill, save
from deploy.grafana.queries import of
from deploy.grafana.units import axis, told
from tests.prometheus import Prometheus, QueryRefused
from vpp_dispatch.observability.metrics import CATALOGUE, Metric

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "deploy" / "prometheus"
METRICS: Final[dict[str, Metric]] = {entry.full_name: entry for entries in CATALOGUE.values() for entry in entries}
TARGET: Final = {"job", "instance", "pod"}
"""Labels that Prometheus puts on every series of a worker."""
NOT_OURS: Final = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
"""What prometheus_client's own collector shows; tests/integration/test_dashboards.py has seen them."""
NOT_LOOKED_AT: Final[dict[str, str]] = {}
"""Metrics of the catalogue that neither a panel nor a rule uses, with the reason."""
VALUES: Final = {
    "job": "vpp-dispatch",
    "worker": ".*",
    "consent_max_age_s": "3600",
    "telemetry_max_age_s": "900",
    "__interval": "60s",
    "__rate_interval": "60s",
    "__range": "3600s",
}
UNITS: Final = {"short", "none", "watt", "s", "percentunit", "ops", "Bps", "bytes"}
_WORDS: Final = {"or", "and", "unless", "offset", "Inf", "bool"}

BOARDS: Final = loaded()


def panels() -> list[tuple[str, dict[str, Any]]]:
    """(uid, panel) of everything that is not a row."""
    return [(board["uid"], panel) for board in BOARDS for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, dict[str, Any]]]:
    """(where, target) of every query of every panel."""
    return [
        (f"{uid}: {panel['title']} {target['refId']}", target) for uid, panel in panels() for target in panel["targets"]
    ]


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    with Prometheus() as started:
        yield started


# ------------------------------------------------------------------------------------------------------- round trip


def test_the_files_are_what_the_source_makes() -> None:
    assert differing() == []
    assert main(["--check"]) == 0
    assert len(BOARDS) == 5 and len(queries()) > 100


def test_a_changed_a_missing_and_a_foreign_file_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploy.grafana.generate.FOLDER", tmp_path)
    assert main(["--write"]) == 0 and main(["--check"]) == 0
    (tmp_path / "vpp-dispatch-live.json").write_text("{}")
    (tmp_path / "vpp-dispatch-slo.json").unlink()
    (tmp_path / "mine.json").write_text("{}")
    assert main(["--check"]) == 1
    said = capsys.readouterr().err
    for name in ("vpp-dispatch-live.json", "vpp-dispatch-slo.json", "mine.json", "--write"):
        assert name in said
    assert main([]) == 2


# ------------------------------------------------------------------------------------------------------- queries


def test_prometheus_takes_every_query(prometheus: Prometheus) -> None:
    refused = []
    for where, target in queries():
        try:
            prometheus.query(fill(target["expr"], VALUES))
        except QueryRefused as refusal:
            refused.append(f"{where}: {refusal}")
    assert not refused, "\n".join(refused)
    with pytest.raises(QueryRefused, match="parse error"):
        prometheus.query("sum by (")


def test_no_query_says_0_where_no_worker_answers(prometheus: Prometheus) -> None:
    """Nothing is scraped here: only the limits, which are settings, may be drawn."""
    answered = {where for where, target in queries() if prometheus.query(fill(target["expr"], VALUES))}
    assert answered == {"vpp-dispatch-fleet: Age of consent C", "vpp-dispatch-fleet: Age of telemetry C"}


def recorded() -> dict[str, set[str]]:
    """Names that the rule files record; each has the label `slo` or what its expression keeps."""
    text = "".join(path.read_text(encoding="utf-8") for path in RULES.glob("*.rules.yaml"))
    return {name: {"slo"} for name in re.findall(r"record:\s*(\S+)", text)}


def labels_of(name: str) -> set[str] | None:
    """Labels that the series of this name have; None = there is no such metric."""
    if name in METRICS:
        return {label for label, _ in METRICS[name].labels} | TARGET
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base in METRICS and METRICS[base].kind == "histogram" and base != name:
        return TARGET | ({"le"} if name.endswith("_bucket") else set())
    if name in NOT_OURS:
        return TARGET
    return recorded().get(name)


def selectors(expr: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(metric, [(label, value or pattern)]) of every selector of an expression."""
    found = re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expr)
    return [(name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', inside)) for name, inside in found]


def bare_words(expr: str) -> set[str]:
    """Identifiers outside of selectors, groupings, strings and windows that are neither functions nor operators."""
    rest = re.sub(r'[a-zA-Z_:][\w:]*\{[^}]*\}|"[^"]*"|\[[^]]*\]|\$\w+', " ", expr)
    rest = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", rest)
    return set(re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", rest)) - _WORDS


@pytest.mark.parametrize(("where", "target"), queries(), ids=[where for where, _ in queries()])
def test_a_query_names_what_there_is(where: str, target: dict[str, Any]) -> None:
    """Metrics, their labels and values of labels; what a legend names is a label that the query keeps."""
    expr = target["expr"]
    assert not bare_words(expr), "a metric without job and worker, or a word that is none of PromQL"
    kept = {label for group in re.findall(r"\bby \(([^)]*)\)", expr) for label in re.split(r",\s*", group)}
    possible: set[str] = set()
    for name, matchers in selectors(expr):
        labels = labels_of(name)
        assert labels is not None, f"there is no metric {name}"
        possible |= labels
        for label, pattern in matchers:
            assert label in labels, f"{name} has no label {label}"
            if name in METRICS and (words := dict(METRICS[name].labels).get(label)):
                for value in pattern.split("|"):
                    assert re.search(rf"\b{re.escape(value)}\b", words), f"{name}: {label} is never {value}"
        if ":" not in name:
            assert {"job", "instance"} <= {label for label, _ in matchers}, f"{name} of which workers?"
    assert kept <= possible, f"{kept - possible} is a label of none of its metrics"
    told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert told <= kept, f"the legend names {told - kept}, which the query does not keep"


@pytest.mark.parametrize(("where", "target"), queries(), ids=[where for where, _ in queries()])
def test_a_counter_is_read_through_rate_or_increase(where: str, target: dict[str, Any]) -> None:
    """The one exception: a series that was not there when the window began counts whole (queries.grown)."""
    whole = r"\(last_over_time\((\S+)\[(\S+)\]\) unless \1 offset \2\) or increase\(\1\[\2\]\)"
    rest = re.sub(whole, "", target["expr"])
    counters = re.findall(r"(\w*\(?)\b(vpp_dispatch_\w+(?:_total|_bucket)|process_cpu_seconds_total)\{", rest)
    odd = [name for before, name in counters if before not in ("rate(", "increase(")]
    assert not odd, f"{odd} as they are say nothing: a worker that starts anew begins at 0"


def test_a_metric_that_nobody_looks_at_is_found() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in RULES.glob("*.rules.yaml"))
    text += "".join(target["expr"] for _, target in queries())
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bvpp_dispatch_\w+", text)}
    unseen = METRICS.keys() - seen
    assert unseen == NOT_LOOKED_AT.keys(), "use it in a panel or a rule, or say here why not"


# ------------------------------------------------------------------------------------------------------- for people


@pytest.mark.parametrize(("uid", "panel"), panels(), ids=[f"{uid}: {panel['title']}" for uid, panel in panels()])
def test_a_panel_says_what_it_shows(uid: str, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"] and len(panel["description"]) > 40 and panel["description"].endswith(".")
    assert defaults["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert 1 <= len(panel["targets"]) <= 7
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"].strip() for target in panel["targets"])
    else:
        assert len(panel["targets"]) == 1


@pytest.mark.parametrize("board", BOARDS, ids=[board["uid"] for board in BOARDS])
def test_the_grid_has_no_overlap_and_no_gap(board: dict[str, Any]) -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies over {cells[x, y]}"
                cells[x, y] = panel["title"]
    assert len(cells) == 24 * (1 + max(y for _, y in cells)) and max(x for x, _ in cells) == 23
    assert len(board["panels"]) <= 30, "more than a person can read"


def test_names_are_stable_and_unique() -> None:
    assert [board["uid"] for board in BOARDS] == [
        f"vpp-dispatch-{name}" for name in ("live", "fleet", "commands", "workers", "slo")
    ]
    assert all(one["title"] != other["title"] for one, other in combinations(BOARDS, 2))
    for board in BOARDS:
        assert board["tags"] == ["vpp-dispatch"] and board["description"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        titles = [(panel["type"], panel["title"]) for panel in board["panels"]]
        assert len(set(titles)) == len(titles)
        assert re.fullmatch(r"\d+[smh]", board["refresh"]) and re.fullmatch(r"now-\d+[hd]", board["time"]["from"])


@pytest.mark.parametrize("board", BOARDS, ids=[board["uid"] for board in BOARDS])
def test_links_lead_somewhere(board: dict[str, Any]) -> None:
    others = {f"/d/{other['uid']}" for other in BOARDS if other is not board}
    assert {link["url"] for link in board["links"]} == others
    assert all(link["keepTime"] and link["includeVars"] for link in board["links"])
    runbooks = [link["url"] for panel in board["panels"] for link in panel.get("links", ())]
    assert runbooks
    missing = {url for url in runbooks if not (ROOT / url.replace("${runbooks}", "docs/runbooks", 1)).is_file()}
    assert not missing


@pytest.mark.parametrize("board", BOARDS, ids=[board["uid"] for board in BOARDS])
def test_every_variable_that_is_used_is_defined(board: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "job", "worker", "runbooks"} <= defined
    text = str([(panel.get("targets"), panel.get("links"), panel.get("datasource")) for panel in board["panels"]])
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used <= defined
    assert set(re.findall(r"\$(__\w+)", text)) <= VALUES.keys()


def test_a_worker_is_chosen_by_its_address_and_shown_by_its_pod() -> None:
    """As Grafana applies it: to the text of each series that `query_result` gives."""
    pattern = WORKER_REGEX.strip("/").replace("(?<", "(?P<")
    inside = re.search(pattern, '{instance="10.1.2.3:8000",job="vpp-dispatch",namespace="a",pod="vpp-dispatch-0"} 22 1')
    assert inside is not None and inside.groupdict() == {"value": "10.1.2.3:8000", "text": "vpp-dispatch-0"}
    outside = re.search(pattern, '{instance="worker-1:8000",job="vpp-dispatch"} 32 1')
    assert outside is not None and outside.groupdict() == {"value": "worker-1:8000", "text": None}
    assert 'instance=~"$worker"' in of("debts")


def test_provisioning_fits_where_the_files_are_mounted() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    provider = (folder / "dashboards" / "vpp-dispatch.yaml").read_text()
    source = (folder / "datasources" / "prometheus.yaml").read_text()
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    place = re.search(r"path: (\S+)", provider)
    assert place is not None and f"./grafana/dashboards:{place[1]}:ro" in compose
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert "type: prometheus" in source and "timeInterval: 15s" in source


# ------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "words"),
    [
        (0.0, "s", None, "0 s"),
        (0.0125, "s", None, "12.5 ms"),
        (90.0, "s", None, "90 s"),
        (1800.0, "s", None, "30 min"),
        (1_234_567.0, "watt", None, "1.23 MW"),
        (0.9876, "percentunit", 1, "98.8 %"),
        (2000.0, "short", None, "2,000"),
        (2.0**20, "bytes", None, "1 MiB"),
    ],
)
def test_a_picture_tells_values_as_people_do(value: float, unit: str, decimals: int | None, words: str) -> None:
    assert told(value, unit, decimals) == words


def test_an_axis_has_round_ticks_and_room() -> None:
    ticks, words, high = axis(0.0, 3_700.0, "watt")
    assert ticks == [0.0, 1000.0, 2000.0, 3000.0] and words[-1] == "3 kW" and high > 3_700
    assert axis(0.0, 0.0, "short")[2] > 0


def test_a_picture_is_drawn_from_answers(tmp_path: Path) -> None:
    """Without Prometheus: a rising line for every query; the file says the title and names of series as text."""

    def ask(expr: str, start: float, end: float, step_s: float) -> Answer:
        labels = {"kind": "measured", "le": "0.5", "state": "active"}
        return [(labels, [(start + n * step_s, float(n)) for n in range(int((end - start) / step_s) + 1)])]

    run = Run(start=1000.0, end=1060.0, scrape_s=2.0, note="no run at all", variables=VALUES)
    for board in BOARDS:
        file = tmp_path / f"{board['uid']}.svg"
        save(draw(board, ask, run), file)
        text = file.read_text(encoding="utf-8")
        assert board["title"] in text and "no run at all" in text and "No data" not in text
        for panel in board["panels"]:
            assert panel["title"].replace("'", "&apos;") in text or panel["title"] in text, panel["title"]
    assert "measured" in (tmp_path / "vpp-dispatch-live.svg").read_text(encoding="utf-8")
