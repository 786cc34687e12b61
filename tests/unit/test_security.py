"""TLS towards a cluster with real certificates: who is believed, what is said otherwise, and how files are renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.certificates import Authority, Issued
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.observability.logging import configure
from vpp_dispatch.security import SecuritySettings
from vpp_dispatch.topics import refuses, why_not

SECRET = "planted-Hush/7+word"


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@contextlib.asynccontextmanager
async def listening(issued: Issued | None, *, clients: Authority | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on loopback, without TLS if nothing was issued; its port, and the client certificates it saw."""
    context = None
    if issued is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.cert, issued.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.file)
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Any = writer.get_extra_info("peercert")
        if peer:
            seen.append(f"{peer['subject'][-1][0][1]} {peer['serialNumber']}")
        with contextlib.suppress(OSError):
            await reader.read(64)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


@contextlib.contextmanager
def alerting(issued: Issued, clients: Authority) -> Iterator[int]:
    """A server that wants client certificates and says by an alert what is wrong with one; its port. asyncio's own
    servers hang up without that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.cert, issued.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(clients.file)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # it was closed
                return
            with contextlib.suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as inside:
                inside.recv(64)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def tls(ca: Authority, client: Issued | None = None, **more: Any) -> SecuritySettings:
    mine: dict[str, Any] = {"cert_file": client.cert, "key_file": client.key} if client else {}
    return SecuritySettings(protocol="SSL", ca_file=ca.file, **mine, **more)


async def handshake(context: ssl.SSLContext | None, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"x")
    await reader.read(1)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_an_unknown_authority_is_told_with_its_remedy(ours: Authority, tmp_path: Path) -> None:
    theirs = Authority(tmp_path, "theirs")
    async with listening(theirs.issue("kafka", "127.0.0.1")) as (port, _):
        says = await why_not(f"127.0.0.1:{port}", tls(ours))
    assert says and "is of no CA that is believed here" in says and "set CA_FILE" in says


async def test_an_expired_certificate_is_told(ours: Authority) -> None:
    async with listening(ours.issue("kafka", "127.0.0.1", expired=True)) as (port, _):
        says = await why_not(f"127.0.0.1:{port}", tls(ours))
    assert says and "has expired: renew it there" in says


async def test_another_host_name_is_told(ours: Authority) -> None:
    async with listening(ours.issue("kafka", "kafka.example.org")) as (port, _):
        says = await why_not(f"127.0.0.1:{port}", tls(ours))
    assert says and "is for another name" in says


async def test_a_port_without_tls_is_told(ours: Authority) -> None:
    async with listening(None) as (port, _):
        says = await why_not(f"127.0.0.1:{port}", tls(ours))
    assert says and "speaks no TLS at this port" in says


async def test_what_our_own_certificate_is_refused_for_is_told(ours: Authority, tmp_path: Path) -> None:
    theirs = Authority(tmp_path, "theirs")
    with alerting(ours.issue("kafka", "127.0.0.1"), ours) as port:
        without = await why_not(f"127.0.0.1:{port}", tls(ours))
        foreign = await why_not(f"127.0.0.1:{port}", tls(ours, theirs.issue("vpp")))
        expired = await why_not(f"127.0.0.1:{port}", tls(ours, ours.issue("vpp", expired=True)))
    assert without and "it wants a client certificate: set CERT_FILE" in without
    assert foreign and "does not know the CA of our certificate" in foreign
    assert expired and "our certificate has expired there" in expired


async def test_nothing_there_and_no_such_name_are_told() -> None:
    async with listening(None) as (port, _):
        pass
    says = await why_not(f"127.0.0.1:{port}", SecuritySettings())
    assert says and f"nothing listens at 127.0.0.1:{port}" in says


async def test_a_broker_that_refuses_is_there_and_one_that_is_away_is_not(ours: Authority, tmp_path: Path) -> None:
    theirs = Authority(tmp_path, "theirs")
    async with listening(theirs.issue("kafka", "127.0.0.1")) as (port, _):
        assert await refuses(f"127.0.0.1:{port}", tls(ours))
    assert not await refuses(f"127.0.0.1:{port}", tls(ours))
    with alerting(ours.issue("kafka", "127.0.0.1"), ours) as port:
        assert await refuses(f"127.0.0.1:{port}", tls(ours))


async def test_a_renewed_certificate_is_used_at_the_next_connection(ours: Authority, tmp_path: Path) -> None:
    mine = ours.issue("first", to=tmp_path)
    context = tls(ours, mine).ssl_context()
    async with listening(ours.issue("kafka", "127.0.0.1"), clients=ours) as (port, seen):
        await handshake(context, port)
        await handshake(context, port)
        ours.issue("second", to=tmp_path)
        await handshake(context, port)
    assert [name.split()[0] for name in seen] == ["first", "first", "second"]


async def test_half_a_renewal_changes_nothing(ours: Authority, tmp_path: Path) -> None:
    mine = ours.issue("first", to=tmp_path)
    context = tls(ours, mine).ssl_context()
    second = ours.issue("second")
    async with listening(ours.issue("kafka", "127.0.0.1"), clients=ours) as (port, seen):
        mine.cert.write_bytes(second.cert.read_bytes())  # its key is still the first's
        await handshake(context, port)
        mine.key.unlink()
        await handshake(context, port)
        mine.key.write_bytes(second.key.read_bytes())
        await handshake(context, port)
    assert [name.split()[0] for name in seen] == ["first", "first", "second"]


async def test_a_new_authority_is_believed_without_a_restart(ours: Authority, tmp_path: Path) -> None:
    theirs = Authority(tmp_path, "theirs")
    believed = tmp_path / "believed.pem"
    believed.write_bytes(ours.file.read_bytes())
    context = SecuritySettings(protocol="SSL", ca_file=believed).ssl_context()
    async with listening(theirs.issue("kafka", "127.0.0.1")) as (port, _):
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(context, port)
        believed.write_bytes(ours.file.read_bytes() + theirs.file.read_bytes())
        await handshake(context, port)


def test_tls_is_at_least_1_2_and_names_are_checked(ours: Authority) -> None:
    context = tls(ours).ssl_context()
    assert context is not None
    assert (context.minimum_version, context.check_hostname) == (ssl.TLSVersion.TLSv1_2, True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert SecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=ours.file).ssl_context() is None


def test_a_locked_key_needs_its_password_and_never_asks_for_it(ours: Authority, tmp_path: Path) -> None:
    locked = ours.issue("vpp", password=SECRET)
    file = tmp_path / "key-password"
    file.write_text(SECRET + "\n")
    assert tls(ours, locked, key_password_file=file).ssl_context() is not None
    for wrong in ({}, {"key_password_file": ours.file}):
        with pytest.raises(ConfigurationError, match=r"tls\.key") as refusal:
            tls(ours, locked, **wrong).ssl_context()
        assert SECRET not in str(refusal.value)


def test_a_password_where_its_files_name_belongs_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="the password cannot be read from the file that is named") as refusal:
        SecuritySettings(protocol="SASL_SSL", username="u", password_file=Path("hunter-2"))
    assert "hunter" not in str(refusal.value).split("input_value")[0]


# ---------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log_of(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is written when a level and a form are set up and something is done."""

    def written(level: str, form: Any, work: Callable[[], None]) -> str:
        root, before = logging.getLogger(), list(logging.getLogger().handlers)
        configure(level, form)
        try:
            work()
        finally:
            root.handlers[:] = before
            structlog.reset_defaults()
        out, error = capfd.readouterr()
        return out + error

    return written


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_values(log_of: Callable[..., str], form: str) -> None:
    def fails() -> None:
        password = SECRET
        try:
            raise RuntimeError(f"a fault with a password of {len(password)}")
        except RuntimeError:
            structlog.get_logger("vpp_dispatch").error("it.failed", exc_info=True)

    said = log_of("debug", form, fails)
    assert "a fault with a password of" in said and "Traceback" in said
    assert SECRET not in said


def test_what_kafka_clients_send_is_in_no_log_however_fine(log_of: Callable[..., str]) -> None:
    def logs_in() -> None:  # as aiokafka.conn does it with each request; SASL PLAIN's holds the password
        logging.getLogger("aiokafka.conn").debug("Request to %s:%d %d: %s", "kafka", 9093, 3, f"\0u\0{SECRET}")
        logging.getLogger("aiokafka.producer.producer").debug(
            "Sending (key=%s value=%s) to %s", None, SECRET, "a topic"
        )
        logging.getLogger("faust.topics").debug("send: topic=%r k=%r v=%r", "a topic", None, SECRET)
        logging.getLogger("aiokafka.client").debug("Attempting to bootstrap")

    said = log_of("debug", "json", logs_in)
    assert "Attempting to bootstrap" in said
    assert SECRET not in said
