"""What the documents promise about the repository is true: rules are complete, tests and files they name exist."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from vpp_dispatch import configuration
from vpp_dispatch.dispatch.intake import FOREIGN_SOURCE
from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.answer import STATUS, EventState, Refused
from vpp_dispatch.domain.event import objections
from vpp_dispatch.domain.setpoint import REASON_OF_CODE
from vpp_dispatch.domain.signal import Action, Control, Form, Kind, Signal, Targets
from vpp_dispatch.goodwe.profile import Meaning
from vpp_dispatch.goodwe.realtime import INTERFACES
from vpp_dispatch.observability.metrics import CATALOGUE
from vpp_dispatch.settings import Grant, Settings

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (R\d+) \|(.*)\|(.*)\|(.*)\|(.*)\|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(rule, state, where, tests) of the rules' tables."""
    for rule, _, state, where, tests in ROW.findall((ROOT / "docs" / "semantics.md").read_text()):
        yield rule, state.strip(), where, tests


def test_every_rule_has_one_row() -> None:
    assert sorted(int(rule[1:]) for rule, *_ in rows()) == list(range(1, 42))


def test_the_modules_of_what_is_built_exist() -> None:
    for rule, state, where, _ in rows():
        modules = re.findall(r"`([^`]+)`", where)
        assert modules or state.startswith("not built"), rule
        assert [name for name in modules if not (ROOT / "vpp_dispatch" / name).is_file()] == [], rule


def test_the_tests_that_are_named_exist() -> None:
    missing = []
    for rule, _, _, named in rows():
        for name in re.findall(r"`([^`]+)`", named):
            path, *_, test = [*name.split("::"), ""] if "::" not in name else name.split("::")
            wanted = rf"def {test}\(" if test else rf"def test_\w*_?r{int(rule[1:]):02}_\w*\("
            file = ROOT / "tests" / path
            if not file.is_file() or not re.search(wanted, file.read_text()):
                missing.append(f"{rule}: {name}")
    assert missing == []


def test_every_rule_that_is_built_names_a_test() -> None:
    untested = [rule for rule, state, _, named in rows() if not state.startswith("not built") and "`" not in named]
    assert untested == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    assert [path.name for path in sorted(folder.glob("0*.md")) if f"({path.name})" not in index] == []


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


ANCHOR = re.compile(r"\]\(((?!https?:)[^)#\s]*)#([^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_a_page_lead_to_a_heading(document: Path) -> None:
    for path, anchor in ANCHOR.findall(document.read_text()):
        target = (document.parent / path) if path else document
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{path}#{anchor}"


# ---------------------------------------------------------------------------------------------- the guides

GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "operators-guide", "tour")}
PACKAGE = ROOT / "vpp_dispatch"
CODE = re.compile(r"`([^`\n]+)`")


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    """The words in the first column of the tables."""
    return {word for line in text.splitlines() if line.startswith("| ") for word in CODE.findall(line.split(" | ")[0])}


def test_every_state_and_reason_is_in_the_operators_guide() -> None:
    guide = GUIDES["operators-guide"]
    assert {state.name.lower() for state in State} == first_cells(section(guide, "Device states"))
    assert {reason.word for reason in Reason if reason.word} == first_cells(section(guide, "Reasons"))
    assert set(get_args(EventState)) == first_cells(section(guide, "Event states"))


def test_each_reason_stands_with_the_state_that_it_is_of() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section(GUIDES["operators-guide"], "Reasons"), re.MULTILINE))
    by_goodwe = {Reason(int(number)).word for number in REASON_OF_CODE if number}
    gate = re.findall(r"refuse\(.+Reason\.(\w+)\)", (PACKAGE / "domain" / "roster.py").read_text())
    early = re.findall(r"State\.REJECTED, Reason\.(\w+)\)", (PACKAGE / "domain" / "book.py").read_text())
    assert len(by_goodwe) > 6 and len(gate) > 8 and len(early) > 1
    assert {told[word] for word in by_goodwe if word} == {"rejected"}
    assert {told[name.lower()] for name in gate} == {"skipped"}
    assert {told[name.lower()] for name in early} == {"rejected"}


def test_every_response_code_and_its_status_is_in_the_operators_guide() -> None:
    text = section(GUIDES["operators-guide"], "Response codes")
    found = {int(code): status for code, status in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)}
    assert found == {code: status.value for code, status in STATUS.items()}


def test_every_reason_of_a_response_is_in_the_operators_guide() -> None:
    event = (PACKAGE / "domain" / "event.py").read_text()
    words = set(re.findall(r'\("([a-z_]+)",\)|append\("(not_[a-z_]+)"\)', event))
    told = {a or b for a, b in words}
    assert {"expired", "finished", "not_granted", "duplicate_identifier"} <= told  # the pattern still finds them
    explained = set(CODE.findall(GUIDES["operators-guide"]))
    assert sorted((told | {word.value for word in Refused}) - explained) == []


def test_every_reason_of_a_dead_letter_is_in_the_operators_guide() -> None:
    told = {FOREIGN_SOURCE, *(word.value for word in Refused)}
    for file, pattern in (
        ("goodwe/codec.py", r'Refusal\(reason="([a-z_]+)"'),
        ("dispatch/shards.py", r'reason, detail = "([a-z_]+)"'),
        ("dispatch/app.py", r'reason="(fault)"'),
    ):
        found = set(re.findall(pattern, (PACKAGE / file).read_text()))
        assert found, file
        told |= found
    assert sorted(told - set(CODE.findall(GUIDES["operators-guide"]))) == []


def test_what_the_operators_guide_calls_never_given_is_given_nowhere() -> None:
    """Whoever builds one of them strikes it from `Limits of this version`."""
    limits = section(GUIDES["operators-guide"], "Limits of this version")
    sentence = re.search(r"Never given yet:(.+?)\. ", limits)
    never = set(CODE.findall(sentence[1])) if sentence else set()
    code = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.name != "account.py" and path.parts[len(PACKAGE.parts)] not in ("demo", "simulator", "operators")
    )
    absent = {r.word for r in Reason if r.word and not re.search(rf"\bReason\.{r.name}\b", code)}
    if "State.VERIFIED" not in (PACKAGE / "domain" / "setpoint.py").read_text():  # where states come from
        absent.add("verified")
    assert never == absent


def a_signal(action: Action = Action.DISPATCH, *, ramp_up_s: int = 0, ramp_down_s: int = 0, **control: Any) -> Signal:
    dispatch = {"targets": Targets(all=True), "end_at": 100.0, "controls": (Control(**control),)} if control else {}
    return Signal(
        event_id="e",
        source="s",
        revision=1,
        action=action,
        created_at=0.0,
        expires_at=100.0,
        ramp_up_s=ramp_up_s,
        ramp_down_s=ramp_down_s,
        **dispatch,  # type: ignore[arg-type]
    )


PLAIN: dict[str, Any] = {"kind": Kind.CHARGE, "form": Form.EACH_W, "each_w": 1000}
WIDE = {
    "release": a_signal(Action.RELEASE),
    "ramp_up_s": a_signal(ramp_up_s=60, **PLAIN),
    "ramp_down_s": a_signal(Action.CANCEL, ramp_down_s=60),
    "generation_limit": a_signal(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=50.0),
    "power_factor": a_signal(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=0.95, excitation="over"),
    "by_target_w": a_signal(kind=Kind.EXPORT_LIMIT, form=Form.BY_TARGET_W, sites_w={"a": 1000}),
    "total_w": a_signal(kind=Kind.DISCHARGE, form=Form.TOTAL_W, total_w=1000),
}


@pytest.mark.parametrize("word", WIDE)
def test_what_the_operators_guide_calls_refused_is_refused(word: str) -> None:
    """And nothing else is: whoever builds one of them strikes its row."""
    limits = section(GUIDES["operators-guide"], "Limits of this version")
    refused = "not_supported" in objections(WIDE[word], Grant())
    assert (word in first_cells(limits)) == refused


def test_the_metrics_that_the_guides_name_exist() -> None:
    known = {metric.full_name for part in CATALOGUE.values() for metric in part}
    named = {name for text in GUIDES.values() for name in re.findall(r"vpp_dispatch_[a-z_]+", text)}
    assert len(named) > 10 and sorted(named - known) == []


def test_the_settings_that_the_guides_name_exist() -> None:
    known = {"__".join(path).upper() for path, _ in configuration.leaves(Settings)}
    texts = "\n".join([*GUIDES.values(), PROFILE_GUIDE])
    named = set(re.findall(r"`(?:VPP_DISPATCH_)?([A-Z_]+__[A-Z_]+[A-Z])`", texts)) | {"GRANTS"}
    assert len(named) > 10 and sorted(named - known) == []


def test_the_topics_of_the_architecture_are_those_of_the_settings() -> None:
    listed = {
        line.split("`")[1] for line in section(GUIDES["architecture"], "Flow").splitlines() if line.startswith("| `")
    }
    assert listed == {*Settings().topics.model_dump().values(), *Settings().signals.topics}


@pytest.mark.parametrize("document", [*GUIDES, "profile-guide"])
def test_the_files_and_functions_that_are_named_exist(document: str) -> None:
    text = (ROOT / "docs" / f"{document}.md").read_text()
    wrong = []
    for named in CODE.findall(text):
        path, _, name = named.partition("::")
        if not re.fullmatch(r"[a-z_/]+(\.py|/)", path):
            continue
        file = next((f for f in (PACKAGE / path, ROOT / path) if f.exists()), None)
        if file is None or (name and name not in definitions(file)):
            wrong.append(named)
    assert wrong == []


def definitions(file: Path) -> set[str]:
    """`function`, `Class` and `Class.method` of a module."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_every_package_is_in_the_map() -> None:
    named = set(CODE.findall(GUIDES["architecture"]))
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(folders - named) == []


# ---------------------------------------------------------------------------------------------- the profile guide

PROFILE_GUIDE = (ROOT / "docs" / "profile-guide.md").read_text()


def profile_keys() -> set[str]:
    """All keys of a profile as dotted paths, by its schema; a list of tables is written as one."""
    schema = json.loads((ROOT / "schemas" / "goodwe-profile.v1.json").read_text())

    def keys(node: dict[str, Any], under: str) -> Iterator[str]:
        for name, value in node["properties"].items():
            target = value.get("$ref") or value.get("items", {}).get("$ref")
            part = schema["$defs"][target.split("/")[-1]] if target else {}
            if "properties" in part:
                yield from keys(part, f"{under}{name}.")
            else:
                yield under + name

    return set(keys(schema, ""))


def test_every_key_of_a_profile_is_in_the_profile_guide() -> None:
    keys, named = profile_keys(), set(CODE.findall(PROFILE_GUIDE))
    assert len(keys) > 90
    assert sorted(keys - named) == []
    tops = {key.split(".")[0] for key in keys if "." in key}
    dotted = {word for word in named if word.split(".")[0] in tops and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word)}
    assert sorted(dotted - keys) == []


def test_the_fields_of_the_interfaces_are_those_of_the_code() -> None:
    for name, interface in INTERFACES.items():
        row = next(line for line in PROFILE_GUIDE.splitlines() if line.startswith(f"| `realtime.interfaces.{name}."))
        named = set(CODE.findall(row.rsplit(" | ", 1)[1]))
        fields = set(interface.row.model_fields)
        assert named in (fields, fields - {"time"} if name == "authorized" else fields), name


def test_every_meaning_of_a_code_is_in_the_profile_guide() -> None:
    assert {meaning.value for meaning in Meaning} <= set(CODE.findall(PROFILE_GUIDE))


def run(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A profile of a third party: the built-in one with other names, as the guide says to begin."""
    text = (PACKAGE / "goodwe" / "profiles" / "goodwe.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text.replace('correlation_id = "requestId"', 'correlation_id = "msgId"'))
    return file


@pytest.mark.exhaustive
def test_the_check_of_the_profile_guide_works(mine: Path) -> None:
    (command,) = re.findall(r"python -c '(.+)' mine\.toml", PROFILE_GUIDE)
    assert run(str(mine), code=command).stdout == "goodwe fits\n"
    mine.write_text(mine.read_text().replace('code_type = "string"', 'code_type = "text"'))
    failed = run(str(mine), code=command)
    assert failed.returncode == 1
    (complaint,) = re.findall(r"`(results\.code_type: [^`]+)`", PROFILE_GUIDE)
    assert complaint in failed.stderr


@pytest.mark.exhaustive
def test_the_bytes_of_the_profile_guide_are_shown(mine: Path) -> None:
    (block,) = re.findall(r"```python\n(.+?)```", PROFILE_GUIDE, re.DOTALL)
    shown = run(str(mine), code=textwrap.dedent(block))
    lines = shown.stdout.splitlines()
    assert shown.stderr == "" and lines[-1] == "refused: ()"
    sent = [json.loads(line.split(" ", 1)[1]) for line in lines[:-1]]
    assert len(sent) == 6 and all("msgId" in message for message in sent)
    assert sent[0]["parameters"] == [{"name": "EMS Power Mode", "value": 11}, {"name": "EMS Power Set", "value": 2000}]
