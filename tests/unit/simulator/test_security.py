"""The simulator's own reading of how it proves itself to a cluster."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.certificates import Authority
from vpp_dispatch.simulator.security import SecurityError, read_security


def test_without_a_file_nothing_is_secured() -> None:
    assert dict(read_security(None)) == {}


def test_scram_over_tls_with_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("cloud")
    password = tmp_path / "password"
    password.write_text("a-word\n")
    file = tmp_path / "security.toml"
    file.write_text(
        f'protocol = "SASL_SSL"\nusername = "cloud"\npassword_file = "{password}"\nca_file = "{authority.file}"\n'
        f'cert_file = "{issued.cert}"\nkey_file = "{issued.key}"\n'
    )
    arguments = dict(read_security(file))
    context = arguments.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext) and context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert arguments == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "cloud",
        "sasl_plain_password": "a-word",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('protocol = "TLS"', "protocol is PLAINTEXT, SSL"),
        ('protocol = "SASL_SSL"', "lacks 'username'"),
        ('password = "a-word"', "says password, which is none of"),
        ('protocol = "SSL"\nca_file = "/nowhere/ca.pem"', "cannot be used"),
        ("no TOML at all", "cannot be used"),
    ],
)
def test_what_does_not_fit_is_said(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "security.toml"
    file.write_text(text)
    with pytest.raises(SecurityError, match=says) as refusal:
        read_security(file)
    assert "a-word" not in str(refusal.value)
