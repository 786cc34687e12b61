"""Runs the image's file system as a container would, on a machine where no engine runs, and says what holds.

    sudo .venv/bin/python deploy/image/verify.py "$(buildah mount "$(buildah from vpp-dispatch:dev)")"

Needs root, bubblewrap, and the development environment (`make unit` makes it) for the embedded Kafka and the simulator.
The worker is process 1 of its own process namespace, user 10001 without a capability and without the way to gain one,
on a read-only root; it shares the host's network. Exit code 0 if everything holds, 1 and what does not otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Stack, get_json

USER = "10001"
DATA = "/var/lib/vpp-dispatch"
PROGRAM = "/opt/vpp-dispatch/bin/vpp-dispatch"
HEALTH = ("/opt/vpp-dispatch/bin/python", "-I", "-S", "/opt/vpp-dispatch/healthcheck.py")
FLEET = 40
READY_S, STOP_S = 60.0, 45.0
"""A stop gives up its shards and ends the batch in hand; the service cuts itself off after 40 s."""

LOOK = """
import os
def writes(path):
    try:
        open(path + '/probe', 'w').close()
        os.unlink(path + '/probe')
        return True
    except OSError:
        return False
print(os.getpid(), os.getuid(), os.getgid(), [path for path in ('/', '/opt', '/etc', '/tmp', '/var/lib/vpp-dispatch')
      if writes(path)])
"""


class Box:
    """The image's file system, and how to start something in it."""

    def __init__(self, root: Path, data: Path, shared: Path) -> None:
        """`data` becomes the data folder, owned by the user; `shared` is seen at its own path, read-only."""
        self.root, self.data, self.shared = root, data, shared

    def command(self, *arguments: str, env: Mapping[str, str], info: int | None = None) -> list[str]:
        """The whole command line; `info`: a descriptor that is told the process id outside."""
        values = {"PATH": "/opt/vpp-dispatch/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"} | dict(
            env
        )
        bind = [
            "--ro-bind",
            str(self.root),
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--perms",
            "1777",
            "--tmpfs",
            "/tmp",
        ]
        bind += ["--bind", str(self.data), DATA, "--perms", "0755", "--dir", str(self.shared.parent)]
        bind += ["--ro-bind", str(self.shared), str(self.shared), "--chdir", DATA]
        apart = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent", "--clearenv"]
        named = [word for name, value in values.items() for word in ("--setenv", name, value)]
        told = [] if info is None else ["--info-fd", str(info)]
        drop = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        return ["bwrap", *bind, *apart, *named, *told, "--", *drop, "--no-new-privs", "--", *arguments]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs something to its end."""
        return subprocess.run(
            self.command(*arguments, env=env or {}), capture_output=True, text=True, timeout=60, check=False
        )

    @contextmanager
    def worker(self, env: Mapping[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """A worker while the block runs: the process of bubblewrap, and the worker's process id outside."""
        read, write = os.pipe()
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(PROGRAM, "run", env=env, info=write),
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
            )
        os.close(write)
        with os.fdopen(read) as told:
            pid = int(json.load(told)["child-pid"])
        try:
            yield process, pid
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class Findings:
    """What was found, told as it is found."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, holds: bool, what: str) -> None:
        self.failed |= not holds
        print(f"{'holds ' if holds else 'FAILS '} {what}", flush=True)


def alone(box: Box, found: Findings) -> None:
    """What needs no Kafka."""
    looked = box.run(HEALTH[0], "-c", LOOK)
    expected = f"1 {USER} {USER} ['/tmp', '{DATA}']"
    found(
        looked.stdout.strip() == expected, f"process, user, group, writable: {looked.stdout.strip() or looked.stderr}"
    )
    started = time.monotonic()
    help_ = box.run(PROGRAM, "--help")
    found(help_.returncode == 0 and "Commands:" in help_.stdout, f"--help, in {time.monotonic() - started:.2f} s")
    checked = box.run(PROGRAM, "config", "check")
    found(checked.returncode == 2, f"config check without settings: {checked.stderr.strip().splitlines()[:1]}")
    sick = box.run(*HEALTH)
    found(sick.returncode == 1, f"health check without a worker: {sick.stdout.strip()}")
    traced = box.run(HEALTH[0], "-c", "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http")
    found(traced.returncode == 0, f"OpenTelemetry can be imported {traced.stderr.strip()[-200:]}")
    no_pip = box.run(HEALTH[0], "-c", "import pip")
    found("ModuleNotFoundError" in no_pip.stderr, "pip cannot be imported")
    packages = next((box.root / "opt/vpp-dispatch/lib").glob("python3*/site-packages"))
    sources = list(packages.rglob("*.py"))
    bare = [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    found(len(bare) < len(sources) / 100, f"bytecode of {len(sources) - len(bare)} of {len(sources)} modules is there")


async def running(box: Box, found: Findings, servers: str) -> None:
    """A worker against a real Kafka and the simulator: ready, healthy, one event, and a stop in time."""
    stack = Stack(bootstrap_servers=servers, prefix="", folder=box.shared)
    try:
        await stack.start(inverters=FLEET)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = stack.variables() | {"VPP_DISPATCH_HTTP__PORT": str(port), "VPP_DISPATCH_DATA_DIR": DATA}
        checked = await asyncio.to_thread(box.run, PROGRAM, "config", "check", env=env)
        found(checked.returncode == 0, f"config check: {checked.stdout.strip() or checked.stderr.strip()}")
        log = box.shared / "worker.log"
        started = time.monotonic()
        with box.worker(env, log) as (process, pid):

            def ready() -> bool:
                if process.poll() is not None:
                    raise SystemExit(f"The worker ended with {process.poll()}:\n{log.read_text()[-4000:]}")
                try:
                    return bool(get_json(f"http://127.0.0.1:{port}/readyz", 2)["ready"])
                except OSError:
                    return False

            await stack.until(ready, READY_S, "/readyz to say 200")
            found(True, f"/readyz says 200, {time.monotonic() - started:.1f} s after the start")
            asked = time.monotonic()
            well = await asyncio.to_thread(box.run, *HEALTH, env=env)
            found(well.returncode == 0, f"health check, in {time.monotonic() - asked:.2f} s {well.stdout.strip()}")
            able = await asyncio.to_thread(box.run, *HEALTH, "/readyz", env=env)
            found(able.returncode == 0, f"health check of /readyz {able.stdout.strip()}")
            status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
            facts = [
                line.replace("\t", " ") for line in status.splitlines() if line.startswith(("Uid", "CapEff", "NoNew"))
            ]
            found(f"Uid: {USER} {USER}" in facts[0] and facts[1].endswith(" " + "0" * 16), "; ".join(facts))

            def registered() -> bool:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    return f"vpp_dispatch_devices_authorized {FLEET}.0" in page.read().decode().splitlines()

            await stack.until(registered, READY_S, "registry and consents to be read")
            now = time.time()
            await stack.send(
                stack.signal(
                    "image-1",
                    end_at=now + 25,
                    targets={"all": True},
                    controls=[{"kind": "export_limit", "each_w": 1500}],
                )
            )
            report = await stack.until_closed("image-1", 90)
            release = report["release"]
            devices = report["devices"]
            set_ = devices["applied"] + devices["verified"]  # a sample of them is read back (R27)
            found(
                set_ == devices["targeted"] and release["due"] == release["confirmed"] > 0,
                f"an event for {devices['targeted']} inverters: {set_} set, {devices['verified']} of them read back; "
                f"{release['confirmed']} of {release['due']} releases confirmed",
            )
            asked = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            code = await asyncio.to_thread(process.wait, STOP_S)
            found(code == 0, f"SIGTERM to process 1: exit code {code} after {time.monotonic() - asked:.1f} s")
            traces = [line for line in log.read_text().splitlines() if "Traceback" in line or "Read-only" in line]
            found(not traces, f"no traceback and no failed write in the worker's log {traces[:1]}")
    finally:
        await stack.stop()


def main(arguments: list[str]) -> int:
    """See the module."""
    if len(arguments) != 1 or not (root := Path(arguments[0])).joinpath(PROGRAM[1:]).exists():
        print(f"Usage: {Path(__file__).name} FOLDER-WITH-THE-IMAGE'S-FILES", file=sys.stderr)
        return 2
    if os.getuid() != 0:
        print("Needs root, to become another user in a namespace of its own: use sudo.", file=sys.stderr)
        return 2
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="vpp-dispatch-image-") as folder:
        data, shared = Path(folder) / "data", Path(folder) / "run"
        for path in (data, shared):
            path.mkdir()
        Path(folder).chmod(0o755)
        os.chown(data, int(USER), int(USER))
        box = Box(root, data, shared)
        alone(box, found)
        with Broker() as broker:
            asyncio.run(running(box, found, broker.bootstrap_servers))
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
