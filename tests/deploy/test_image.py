"""The image's parts that can be judged without an engine: the linted Dockerfile, the list of contents, the scan."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

ROOT = Path(__file__).parents[2]
SCAN = ROOT / "deploy" / "image" / "scan.py"
APP = "opt/vpp-dispatch"


def tool(name: str) -> str:
    """A program of the virtual environment, or of the PATH."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"{name} is not there: run `make tools`"
    return found


# ---------------------------------------------------------------------------------------------- hadolint


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([tool("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text((ROOT / "Dockerfile").read_text().replace("USER 10001:10001", "USER root"))
    config = ["--config", str(ROOT / ".hadolint.yaml")]
    done = subprocess.run([tool("hadolint"), *config, str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "DL3002" in done.stdout


def test_a_rule_that_is_ignored_has_its_reason_beside_it() -> None:
    places = [(ROOT / ".hadolint.yaml").read_text(), (ROOT / "Dockerfile").read_text()]
    for line in "\n".join(places).splitlines():
        if re.search(r"\b(DL|SC)\d{4}\b", line):
            assert re.search(r"#.*\w+ \w+", line.split("hadolint ignore")[-1]), line


# ---------------------------------------------------------------------------------------------- build.sh


@pytest.mark.parametrize("base", ["python:3.11.14-slim-bookworm", None])
def test_a_release_is_refused_a_base_that_may_change(base: str | None) -> None:
    wish = {"REQUIRE_DIGEST": "1"} | ({"BASE": base} if base else {})
    env = {name: value for name, value in os.environ.items() if name != "BASE"} | wish
    script = ["sh", str(ROOT / "deploy" / "image" / "build.sh")]
    pinned = "@sha256:" in (ROOT / "Dockerfile").read_text().split("\nFROM")[0].split("ARG BASE=")[1]
    assert not pinned, "the base has its digest: drop the second case"
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1 and "python:3.11.14-slim-bookworm has no digest" in done.stderr and not done.stdout


# ---------------------------------------------------------------------------------------------- SBOM


def sbom_command() -> list[str]:
    """What the Dockerfile says, with this interpreter in the place of the image's."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    (line,) = [line for line in text.splitlines() if "cyclonedx-py" in line]
    words = line.split("&&")[-1].split()
    assert words[0] == "/opt/tools/bin/cyclonedx-py" and words[-1] == f"/{APP}/bin/python"
    return [tool("cyclonedx-py"), *words[1:-1], sys.executable]


def test_the_list_of_what_is_inside_is_valid_and_complete(tmp_path: Path) -> None:
    written = tmp_path / "sbom.cdx.json"
    command = [*sbom_command(), "--no-validate"]  # it would look at this whole environment, for 13 s
    command[command.index("--output-file") + 1] = str(written)
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(written.read_text())
    assert told["metadata"]["component"]["name"] == "vpp-dispatch"
    # What the image installs is a part of what is installed here; some lines of the lock are for other Pythons.
    shipped = pins(ROOT / "requirements.lock")
    names = {name for name, _ in shipped}
    told["components"] = [c for c in told["components"] if (normal(c["name"]), c["version"]) in shipped]
    assert len(told["components"]) > 20 and len(names) - len(told["components"]) <= 2  # Windows' only
    del told["dependencies"], told["components"][10:]  # each takes its schema a tenth of a second
    assert fault_in(told) is None
    del told["components"][0]["name"]
    assert fault_in(told) is not None


def fault_in(sbom: dict[str, Any]) -> Any:
    """What its own schema has against it; None = nothing."""
    version = SchemaVersion.from_version(sbom["specVersion"])
    return make_schemabased_validator(OutputFormat.JSON, version).validate_str(json.dumps(sbom))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: Path) -> set[tuple[str, str]]:
    """(name, version) of a lock's lines."""
    return {(normal(name), version) for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.!+-]+)", lock.read_text())}


def test_the_lister_is_the_one_of_the_development_environment() -> None:
    own = pins(ROOT / "deploy" / "image" / "sbom.lock")
    assert ("cyclonedx-bom" in dict(own)) and own <= pins(ROOT / "requirements-dev.lock"), "run `make lock`"


# ---------------------------------------------------------------------------------------------- scan


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The files of an image in which nothing is wrong."""
    root = tmp_path / "root"
    packages = root / APP / "lib" / "python3.11" / "site-packages"
    (packages / "some_thing-1.0.dist-info").mkdir(parents=True)
    (packages / "thing").mkdir()
    (packages / "thing" / "__init__.py").write_text('"""See http://user:pass@example.org/."""\n')
    (root / APP / "bin").mkdir()
    sbom = {"metadata": {"component": {"name": "Some.Thing", "version": "1.0"}}}
    (root / APP / "sbom.cdx.json").write_text(json.dumps(sbom))
    for folder in ("usr/bin", "etc", "tmp", "var/lib/apt/lists"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc" / "shadow").write_text("root:*:19000:0:99999:7:::\nvpp-dispatch:!:19000::::::\n")
    (root / "usr" / "bin" / "env").write_text("")
    return root


def scan(root: Path, *arguments: str) -> tuple[int, dict[str, int]]:
    """Exit code, and the number of findings of each question that has some."""
    done = subprocess.run(
        [sys.executable, str(SCAN), str(root), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == "" and done.stdout.endswith("MB.\n"), done.stdout + done.stderr
    asked = re.findall(r"(?m)^ *(none|\d+)  (\S.*)$", done.stdout)
    assert len(asked) >= 16
    found = {question: int(count) for count, question in asked if count != "none"}
    if os.getuid():  # then these files are somebody's, and not root's
        found.pop("of the program: not root's, or writable for others", None)
        return int(bool(found)), found
    return done.returncode, found


def test_a_clean_image_is_found_clean(image: Path) -> None:
    assert scan(image) == (0, {})


def put(path: str, content: str = "x", mode: int = 0o644) -> tuple[str, str, int]:
    return path, content, mode


KEY = "-----BEGIN PRIVATE" + " KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B" + "\n"


@pytest.mark.parametrize(
    ("sin", "question"),
    [
        (put("usr/bin/su", mode=0o4755), "setuid and setgid files"),
        (put("etc/open", mode=0o666), "writable for everybody (folders with a sticky bit left out)"),
        (put(f"{APP}/lib/ours.py", mode=0o664), "of the program: not root's, or writable for others"),
        (put("etc/shadow", "root:$6$salt$hash:1::::::\n"), "accounts with a password, or without any lock"),
        (put("etc/ssl/cert.pem", KEY), "private keys"),
        (put("usr/lib/libgnutls.so.30", "AKIA" + "ABCDEFGHIJKLMNOP" + KEY), "strings that look like credentials"),
        (put("etc/pip.conf"), "files named like secrets"),
        (put("etc/motd", "AKIA" + "ABCDEFGHIJKLMNOP"), "strings that look like credentials"),
        (put("etc/mirror", "https://jane:s3" + "cret@mirror.local/simple"), "strings that look like credentials"),
        (put("usr/bin/gcc-12", mode=0o755), "compilers, build tools, version control"),
        (put("usr/include/stdio.h"), "headers and static libraries"),
        (put("usr/bin/curl", mode=0o755), "programs that fetch, listen or look into others"),
        (put("usr/local/lib/python3.11/site-packages/pip/x.py"), "pip and what installs with it"),
        (put("usr/lib/python3.11/ensurepip/x.py"), "pip and what installs with it"),
        (put("var/lib/apt/lists/deb.example_Packages"), "caches, package lists, archives, what a build left"),
        (put("build/.git/HEAD"), "version control's files"),
        (put(f"{APP}/lib/python3.11/site-packages/thing/tests/x.py"), "tests of packages"),
        (put(f"{APP}/lib/thing/__pycache__/gone.cpython-311.pyc"), "bytecode without its source"),
        (
            put(f"{APP}/lib/python3.11/site-packages/other-2.dist-info/METADATA"),
            "differences between the SBOM and what is installed",
        ),
    ],
)
def test_each_sin_is_found(image: Path, sin: tuple[str, str, int], question: str) -> None:
    path, content, mode = sin
    file = image / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    if os.getuid() and question.startswith("of the program"):
        assert file.stat().st_mode & 0o020, "only root can tell these apart"
        return
    code, found = scan(image)
    assert code == 1 and question in found, found


def test_what_the_base_has_not_is_told(image: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "usr" / "bin").mkdir(parents=True)
    assert scan(image, "--base", str(base)) == (1, {"programs that the base has not": 1})
    (base / "usr" / "bin" / "env").write_text("")
    assert scan(image, "--base", str(base)) == (0, {})


def test_another_folder_is_not_taken_for_the_image(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCAN), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "it is not the image" in done.stderr
