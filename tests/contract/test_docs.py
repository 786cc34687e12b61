"""What the documents promise about the repository is true: rules are complete, tests and files they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

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
