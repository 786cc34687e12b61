"""Certificates for a test: an authority of its own and what it issues, as PEM files in a folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class Issued(NamedTuple):
    """A certificate's files. `both`: key and chain in one, as Kafka wants its keystore."""

    cert: Path
    key: Path
    both: Path


class Authority:
    """A CA that nobody else knows."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA(organization_name=name)
        self._folder = folder / name
        self._folder.mkdir()
        self.file = self._folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(
        self, name: str, *identities: str, expired: bool = False, password: str = "", to: Path | None = None
    ) -> Issued:
        """A certificate with `name` as its common name, for these host names or addresses; the key is PKCS #8.

        `expired`: for two days until yesterday. `password`: the key is locked with it. `to`: a folder of another name.
        """
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            *(identities or (f"{name}.example.org",)),  # Java refuses a certificate for no name at all
            common_name=name,
            not_before=now - timedelta(days=3) if expired else None,
            not_after=now - timedelta(days=1) if expired else now + timedelta(days=2),
        )
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM,
            PrivateFormat.PKCS8,
            BestAvailableEncryption(password.encode()) if password else NoEncryption(),
        )
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        folder = to or self._folder / (f"{name}-expired" if expired else name)
        folder.mkdir(exist_ok=True)
        issued = Issued(folder / "tls.crt", folder / "tls.key", folder / "both.pem")
        issued.cert.write_bytes(chain)
        issued.key.write_bytes(key)
        issued.both.write_bytes(key + chain)
        return issued
