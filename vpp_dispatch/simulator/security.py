"""How the simulator proves itself to a Kafka cluster: a TOML file with the keys of the service's `[kafka.security]`.

protocol = "SASL_SSL"               # or SSL, SASL_PLAINTEXT, PLAINTEXT
mechanism = "SCRAM-SHA-512"         # or SCRAM-SHA-256, PLAIN
username = "goodwe-simulator"
password_file = "/run/secrets/kafka/password"
ca_file = "/run/secrets/kafka/ca.pem"           # absent = the system's CAs
cert_file = "/run/secrets/kafka/tls.crt"        # a client certificate and its key
key_file = "/run/secrets/kafka/tls.key"
"""

from __future__ import annotations

import ssl
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

KEYS: Final = ("protocol", "mechanism", "username", "password_file", "ca_file", "cert_file", "key_file")

IN_THE_CLEAR: Final[Mapping[str, Any]] = MappingProxyType({})
"""No security: what aiokafka does when it is told nothing."""


class SecurityError(ValueError):
    """A security file that cannot be used."""


def read_security(file: Path | None) -> Mapping[str, Any]:
    """The security arguments of an aiokafka client; of no file: none, so in the clear.

    Raises:
        SecurityError: the file, or one that it names, cannot be read, or it says something that does not go together.
    """
    if file is None:
        return IN_THE_CLEAR
    try:
        said: dict[str, str] = tomllib.loads(file.read_text(encoding="utf-8"))
        if unknown := sorted(set(said) - set(KEYS)):
            raise SecurityError(f"{file} says {', '.join(unknown)}, which is none of {', '.join(KEYS)}")
        protocol = said.get("protocol", "PLAINTEXT")
        if protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
            raise SecurityError(f"{file}: protocol is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, not {protocol!r}")
        arguments: dict[str, Any] = {"security_protocol": protocol}
        if protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=said.get("ca_file"))
            if "cert_file" in said:
                context.load_cert_chain(said["cert_file"], said["key_file"])
            arguments["ssl_context"] = context
        if protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = said.get("mechanism", "SCRAM-SHA-512")
            arguments["sasl_plain_username"] = said["username"]
            arguments["sasl_plain_password"] = Path(said["password_file"]).read_text(encoding="utf-8").strip()
    except KeyError as error:
        raise SecurityError(f"{file} lacks {error}, which goes with what it says") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SecurityError(f"{file}, or a file that it names, cannot be used: {error}") from None
    return arguments
