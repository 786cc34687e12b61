"""What the image promises, read from the Dockerfile; docs/image.md tells what running it showed."""

from __future__ import annotations

import http.server
import os
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from vpp_dispatch.service import STOP_S
from vpp_dispatch.settings import Settings

ROOT = Path(__file__).parents[2]
HEALTHCHECK = ROOT / "deploy" / "image" / "healthcheck.py"
SECRET = re.compile(r"(?i)(password|passwd|token|secret_key|api_key)\s*=")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, argument) in order, continuation lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, FROM first."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def last(word: str) -> str:
    """The argument of an instruction that the last stage has once."""
    (argument,) = [rest for w, rest in stages()[-1] if w == word]
    return argument


def test_the_base_is_slim_and_pinned_by_its_full_version() -> None:
    (base,) = [rest for word, rest in instructions() if word == "ARG" and rest.startswith("BASE=")]  # the one place
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    minor = tuple(map(int, re.findall(r"\d+", base)[:2]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11" and minor >= (3, 11)
    froms = [stage[0][1].split()[0] for stage in stages()]
    assert len(froms) > 1 and set(froms) <= {"${BASE}", "dependencies", "package"}  # one interpreter


def test_it_installs_from_the_lock_by_hash_and_compiles_nothing() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and " install " in rest and "pip" in rest]
    assert len(installs) == 4
    for command in installs:
        by_hash = "--require-hashes" in command and "--only-binary :all:" in command
        ours = "--no-index" in command and "--no-deps" in command
        assert by_hash or ours, command
    assert "-r requirements.lock" in installs[0]
    assert not any("requirements-dev.lock" in rest for word, rest in stages()[-1])


def test_the_last_stage_has_no_build_tools() -> None:
    commands = " ".join(rest for word, rest in stages()[-1] if word == "RUN")
    kept = re.sub(r"rm -rf [^&]*", "", commands)  # what of the base is taken away has to be named
    assert not re.search(r"\b(pip|apt-get|apt|gcc|make|curl|wget|setuptools|venv)\b", kept)
    assert "/site-packages/pip " in commands and "/ensurepip" in commands and "-perm /6000" in commands
    copied = [rest for word, rest in stages()[-1] if word == "COPY"]
    assert not any("/opt/tools" in rest for rest in copied)
    # Without pip, or it would be shipped.
    assert any("venv --without-pip /opt/vpp-dispatch" in rest for word, rest in instructions() if word == "RUN")


def test_it_runs_as_a_user_by_number_who_owns_the_data_folder_alone() -> None:
    user = last("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    number = user.split(":")[0]
    data = str(Settings().data_dir)
    made = " ".join(rest for word, rest in stages()[-1] if word == "RUN")
    assert f"--uid {number}" in made and f"-o {number} -g {number} {data}" in made
    assert last("VOLUME") == data
    assert not any("--chown" in rest for word, rest in stages()[-1] if word == "COPY")  # the code is root's
    after = stages()[-1][[word for word, _ in stages()[-1]].index("USER") :]
    assert not {"RUN", "COPY", "ADD"} & {word for word, _ in after}


def test_nothing_is_written_at_run_time_but_data_and_tmp() -> None:
    assert "PYTHONDONTWRITEBYTECODE=1" in last("ENV")
    compiled = [rest for word, rest in instructions() if "compileall" in rest]
    assert len(compiled) == 2 and all("--invalidation-mode unchecked-hash" in rest for rest in compiled)


def test_it_starts_the_service_without_a_shell_between() -> None:
    assert last("ENTRYPOINT") == '["/opt/vpp-dispatch/bin/vpp-dispatch"]'
    assert last("CMD") == '["run"]'
    assert last("STOPSIGNAL") == "SIGTERM"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "vpp-dispatch" in project["scripts"]


def test_it_exposes_the_port_that_the_service_listens_on() -> None:
    assert last("EXPOSE") == str(Settings().http.port)


def test_it_carries_the_labels_and_the_version_of_the_project() -> None:
    labels = last("LABEL")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("title", "description", "licenses", "version", "revision", "created", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f'licenses="{project["license"]}"' in labels and project["description"] in labels
    arguments = [rest for word, rest in stages()[-1] if word == "ARG"]
    assert f"VERSION={project['version']}" in arguments and "BASE" in arguments  # above FROM is not below


def test_it_holds_no_secret() -> None:
    assert [rest for word, rest in instructions() if word in ("ARG", "ENV", "LABEL") and SECRET.search(rest)] == []
    assert not any("index-url" in rest or "INDEX_URL" in rest for _, rest in instructions())


def test_the_builder_is_sent_what_is_copied_and_nothing_else() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"  # everything is out that is not named
    kept = {line[1:] for line in patterns if line[0] == "!"}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in [part.removeprefix("./") for part in rest.split() if not part.startswith("--")][:-1]
    }
    assert kept == copied
    assert all((ROOT / name).exists() for name in kept)
    for name in (".git", ".venv", "tests", "docs", "benchmarks", ".env"):
        assert not any(fnmatch(name, pattern) for pattern in kept)
    assert {"**/__pycache__", "**/*.pyc"} <= set(patterns)


# ---------------------------------------------------------------------------------------------- the health check


def test_the_health_check_is_the_file_and_gives_up_in_time() -> None:
    check = last("HEALTHCHECK")
    times = {name: int(seconds) for name, seconds in re.findall(r"--([a-z-]+)=(\d+)s", check)}
    assert times["timeout"] > runpy.run_path(str(HEALTHCHECK))["TIMEOUT_S"]
    assert times["start-period"] > 0 and times["interval"] < Settings().http.live_limit_s
    assert STOP_S == 40.0, "docs/image.md tells how long a stop may take"
    assert check.split("CMD ")[1] == '["/opt/vpp-dispatch/bin/python", "-I", "-S", "/opt/vpp-dispatch/healthcheck.py"]'


@pytest.fixture
def livez() -> Iterator[Any]:
    """A worker's port; `answer` is the status of /livez."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(server.answer if self.path == "/livez" else 404)  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(b'{"live": false, "reasons": ["It stands still."]}\n')

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int | str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the health check as the image does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VPP_DISPATCH_")}
    return subprocess.run(
        [sys.executable, "-I", "-S", str(HEALTHCHECK), *arguments],
        env=clean | {"VPP_DISPATCH_HTTP__PORT": str(port)} | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_worker_that_lives_is_healthy(livez: Any) -> None:
    livez.answer = 200
    done = ask(livez.server_port, VPP_DISPATCH_HTTP__HOST="0.0.0.0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_that_stands_still_is_not(livez: Any) -> None:
    livez.answer = 503
    done = ask(livez.server_port)
    assert done.returncode == 1 and "503" in done.stdout and "It stands still." in done.stdout


def test_a_worker_that_is_not_there_is_not(livez: Any) -> None:
    port = livez.server_port
    livez.shutdown()
    livez.server_close()
    done = ask(port)
    assert done.returncode == 1 and f"port {port} does not answer" in done.stdout and done.stderr == ""


def test_another_path_is_asked_for_where_it_is_given(livez: Any) -> None:
    livez.answer = 200
    done = ask(livez.server_port, "/readyz")
    assert done.returncode == 1 and done.stdout.startswith("/readyz answers 404")


def test_a_port_that_cannot_be_known_is_said() -> None:
    done = ask(0)
    assert done.returncode == 1 and "VPP_DISPATCH_HTTP__PORT" in done.stdout
