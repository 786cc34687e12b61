"""The project's promises about itself: what its locks hold and what its files never name."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpp_dispatch.demo import jars

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock"]
ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; [^\\]+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
# Written in two parts, so that this file does not name them either.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "repo.maven" + ".apache",
    "repo1.maven" + ".org",
    "docker" + ".io/",
]


def tracked_files() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            yield ROOT / name


def pins(lock: str) -> dict[str, set[str]]:
    """Package to the versions that the lock has of it: more than one where Python versions differ."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if entry := ENTRY.match(line):
            found.setdefault(entry["name"], set()).add(entry["version"])
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_python_lock_is_nothing_but_versions_and_hashes(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not (ENTRY.match(line) or HASH.match(line))] == []
    hashed = [HASH.match(after) is not None for line, after in itertools.pairwise(lines) if ENTRY.match(line)]
    assert len(hashed) > 20
    assert all(hashed)


def test_the_locks_agree_and_hold_the_exact_pins() -> None:
    runtime, everything = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: everything.get(name) for name in runtime} == runtime
    exact = {"faust-streaming": {"0.15.3"}, "mode-streaming": {"0.7.1"}, "aiokafka": {"0.14.0"}}
    assert {name: runtime[name] for name in exact} == exact


def test_the_locks_cover_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]

    def names(needs: list[str]) -> set[str]:
        return {re.split(r"[<>=\[~! ]", need, maxsplit=1)[0] for need in needs} - {project["name"]}

    assert names(project["dependencies"]) - pins("requirements.lock").keys() == set()
    assert names(extras) - pins("requirements-dev.lock").keys() == set()


def test_the_jar_lock_is_nothing_but_coordinates_and_hashes() -> None:
    locked = jars.locked()
    assert jars.KAFKA in locked
    assert jars.LOGGER in locked
    coordinate = re.compile(r"^[\w.-]+:[\w.-]+:[\w.-]+$")
    assert [
        name
        for name, sha256 in locked.items()
        if not (coordinate.match(name) and re.fullmatch(r"[0-9a-f]{64}", sha256))
    ] == []
    assert "://" not in jars.LOCK.read_text()


def test_no_file_names_a_registry_host() -> None:
    naming = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert naming == []


def test_ci_calls_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    steps = re.findall(r"^step (\w+)$", script.read_text(), re.MULTILINE)
    assert steps == ["check", "test"]
    assert "make test" in (ROOT / "README.md").read_text()
