"""How a client proves itself to a Kafka cluster, and the cluster to it: ours and GoodWe's have the same settings.

Certificates are read again when their files have changed, at each new connection; passwords are read once, at start
(docs/decisions/0013-certificates-renew-themselves.md).
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Self

import structlog
from pydantic import Field, PrivateAttr, SecretStr, model_validator

from vpp_dispatch.configuration import Section
from vpp_dispatch.errors import ConfigurationError


def secret(file: Path | None, what: str) -> SecretStr | None:
    """The content of a secret's file without the white space around it."""
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        # What is no path may be the secret itself, put where its file's name belongs.
        named = file if file.is_absolute() else "the file that is named"
        raise ValueError(
            f"the {what} cannot be read from {named} ({reason}): mount it there, or name another file, by its full "
            "path."
        ) from None
    if not text:
        raise ValueError(f"the {what}'s file {file} is empty: write the {what} into it.")
    return SecretStr(text)


class SecuritySettings(Section):
    """How a client proves itself to a cluster, and the cluster to it."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Transport: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; used by SASL_*."
    )
    username: str = Field(default="", description="SASL user name; needed by SASL_*.")
    password_file: Path | None = Field(default=None, description="File with the SASL password; needed by SASL_*.")
    ca_file: Path | None = Field(default=None, description="PEM file with the cluster's CA; absent = the system's CAs.")
    cert_file: Path | None = Field(default=None, description="PEM file with the client's certificate (mutual TLS).")
    key_file: Path | None = Field(default=None, description="PEM file with the client's private key (mutual TLS).")
    key_password_file: Path | None = Field(default=None, description="File with the password of the private key.")

    _password: SecretStr | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL") and not (self.username and self.password_file):
            raise ValueError(f"{self.protocol} needs a user name and a password: set USERNAME and PASSWORD_FILE here.")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError(
                "a client certificate needs its key and the key its certificate: set CERT_FILE and KEY_FILE."
            )
        if not self.uses_tls and (self.ca_file or self.cert_file):
            raise ValueError(
                f"{self.protocol} is without TLS but certificates are given: set PROTOCOL to SSL or SASL_SSL."
            )
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None and not os.access(file, os.R_OK):
                raise ValueError(f"{file} cannot be read: mount it there, or name another file.")
        self._password = secret(self.password_file, "password")
        secret(self.key_password_file, "key's password")
        return self

    @property
    def uses_tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.protocol.startswith("SASL")

    @property
    def password(self) -> SecretStr | None:
        """The SASL password, as read from its file at start."""
        return self._password

    def ssl_context(self) -> ssl.SSLContext | None:
        """A new context, or None without TLS: at least TLS 1.2, the server's certificate and its name are checked.

        Raises:
            ConfigurationError: a PEM file is not usable.
        """
        if not self.uses_tls:
            return None
        try:
            return RenewedContext.of(self._load, [f for f in (self.ca_file, self.cert_file, self.key_file) if f])
        except (ssl.SSLError, OSError) as error:
            files = ", ".join(str(f) for f in (self.ca_file, self.cert_file, self.key_file) if f)
            raise ConfigurationError(
                f"TLS cannot be set up from {files} ({error}): give PEM files that fit."
            ) from error

    def _load(self, context: ssl.SSLContext) -> None:
        """Reads the files into a context. Raises: OSError, of which ssl.SSLError is one."""
        if self.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=str(self.ca_file))
        if self.cert_file is not None and self.key_file is not None:
            try:
                unlocking = secret(self.key_password_file, "key's password")
            except ValueError as error:
                raise OSError(str(error)) from None
            # With a function OpenSSL never asks at the terminal for the password of a locked key.
            password = unlocking.get_secret_value() if unlocking else ""
            context.load_cert_chain(str(self.cert_file), str(self.key_file), lambda: password)

    def aiokafka(self) -> dict[str, Any]:
        """The security arguments of an aiokafka client. Holds the password in the clear: pass it on, never keep it.

        Raises:
            ConfigurationError: a PEM file is not usable.
        """
        out: dict[str, Any] = {"security_protocol": self.protocol}
        if (context := self.ssl_context()) is not None:
            out["ssl_context"] = context
        if self.uses_sasl and self._password is not None:
            out["sasl_mechanism"] = self.mechanism
            out["sasl_plain_username"] = self.username
            out["sasl_plain_password"] = self._password.get_secret_value()
        return out


class RenewedContext(ssl.SSLContext):
    """A client's context that reads its files again, when they have changed, at the next connection.

    Certificates that an issuer renews every few days so need no restart. Files that do not fit together, because only
    one of them is new yet, change nothing, and are looked at again at the connection after. A CA that is taken out of
    its file is believed until the restart: OpenSSL can only add.
    """

    @classmethod
    def of(cls, load: Callable[[ssl.SSLContext], None], files: list[Path]) -> RenewedContext:
        """A context into which `load` has read the files. Raises: what `load` raises."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)  # which verifies the certificate and its name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context._load, context._files = load, files
        context._lock = threading.Lock()  # Faust's consumer has a thread of its own
        context._seen = context._state()
        load(context)
        return context

    _load: Callable[[ssl.SSLContext], None]
    _files: list[Path]
    _lock: threading.Lock
    _seen: list[tuple[int, int, int]]

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """As the standard library's, which asyncio and uvloop call for each connection."""
        with self._lock:
            self._renew()
            return super().wrap_bio(*args, **options)

    def _state(self) -> list[tuple[int, int, int]]:
        """Of each file what changes when it is written, or replaced as Kubernetes does it. Raises: OSError."""
        return [(at.st_mtime_ns, at.st_ino, at.st_size) for at in (file.stat() for file in self._files)]

    def _renew(self) -> None:
        log = structlog.get_logger("vpp_dispatch.security")
        files = [str(file) for file in self._files]
        try:
            state = self._state()
            if state == self._seen:
                return
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # a certificate without its key would spoil this one
            self._load(self)
        except OSError as error:
            log.warning("tls.not_renewed", files=files, detail=str(error))
        else:
            self._seen = state
            log.info("tls.renewed", files=files)


_EXPIRED: Final = 10
_OTHER_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH."""

_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": "our certificate has expired there: renew CERT_FILE and KEY_FILE (SECURITY__*)",
    "UNKNOWN_CA": "it does not know the CA of our certificate: have that CA added to the cluster's truststore, or set "
    "CERT_FILE and KEY_FILE (SECURITY__*) to a certificate of its CA",
    "CERTIFICATE_REQUIRED": "it wants a client certificate: set CERT_FILE and KEY_FILE (SECURITY__*)",
    # What Java says, so what Kafka does.
    "CERTIFICATE_UNKNOWN": "it refuses our certificate: that has expired, or is of a CA that it does not know. Look "
    "with `openssl x509 -noout -dates -issuer -in CERT_FILE`, and renew CERT_FILE and KEY_FILE (SECURITY__*)",
    "BAD_CERTIFICATE": "it cannot read our certificate: set CERT_FILE (SECURITY__*) to one that is for a name",
}
"""What a server says about our certificate, part of OpenSSL's name of its alert -> a sentence with its remedy."""


def complaint(error: BaseException, host: str) -> str | None:
    """What a fault of a TLS connection to `host` means and what to do about it; None if it is none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return f"the certificate of {host} has expired: renew it there, or set this machine's clock"
        if error.verify_code in _OTHER_NAME:
            return (
                f"the certificate of {host} is for another name: use the name that it is for in BOOTSTRAP_SERVERS, and "
                "what the brokers advertise, or have one issued for this name"
            )
        return (
            f"the certificate of {host} is of no CA that is believed here ({error.verify_message}): set CA_FILE "
            "(SECURITY__*) to the cluster's CA"
        )
    if not isinstance(error, ssl.SSLError):
        return None
    reason = error.reason or str(error)
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason:
        return f"{host} speaks no TLS at this port: set another port, or SECURITY__PROTOCOL"
    known = next((says for part, says in _ALERTS.items() if part in reason), None)
    return (
        known or f"TLS with {host} failed ({reason}): compare PROTOCOL, CA_FILE, CERT_FILE and KEY_FILE (SECURITY__*)"
    )
