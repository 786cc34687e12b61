"""How a client proves itself to a Kafka cluster, and the cluster to it: ours and GoodWe's have the same settings."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Literal, Self

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
        raise ValueError(
            f"the {what} cannot be read from {file} ({reason}): mount it there, or name another file."
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
    _key_password: SecretStr | None = PrivateAttr(None)

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
        self._key_password = secret(self.key_password_file, "key's password")
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
        """A new context, or None without TLS.

        Raises:
            ConfigurationError: a PEM file is not usable.
        """
        if not self.uses_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
            if self.cert_file is not None and self.key_file is not None:
                password = self._key_password.get_secret_value() if self._key_password else None
                context.load_cert_chain(str(self.cert_file), str(self.key_file), password)
        except (ssl.SSLError, OSError) as error:
            files = ", ".join(str(f) for f in (self.ca_file, self.cert_file, self.key_file) if f)
            raise ConfigurationError(
                f"TLS cannot be set up from {files} ({error}): give PEM files that fit."
            ) from error
        return context

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
