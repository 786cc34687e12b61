"""What makes the embedded broker a guarded one: certificates, users, and an authorizer that refuses by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """How a broker proves itself, and whom it lets in.

    Two doors: SASL_SSL with SCRAM-SHA-512, and SSL with client certificates, whose common name is the user. Both lead
    to the same users, whom an ACL or `super_users` has to let do anything at all.

    Attributes:
        keystore: PEM file of the broker's private key (PKCS #8) and its chain. It has to be valid for 127.0.0.1, and
            its common name is `broker`: the node speaks to itself over TLS too.
        truststore: PEM file of the CA of the broker's and the clients' certificates.
        users: SCRAM user -> password.
        super_users: users whom no ACL binds.
    """

    keystore: Path
    truststore: Path
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    super_users: tuple[str, ...] = ("admin",)

    def properties(self, *, sasl: str, mtls: str, internal: str, controller: str) -> dict[str, str]:
        """Lines of `server.properties`; the arguments are the listeners' addresses, host:port."""
        guarded = {f"listener.name.{name}.ssl.client.auth": "required" for name in ("mtls", "internal", "controller")}
        return {
            "listeners": f"SASL://{sasl},MTLS://{mtls},INTERNAL://{internal},CONTROLLER://{controller}",
            "advertised.listeners": f"SASL://{sasl},MTLS://{mtls},INTERNAL://{internal}",
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": "SASL:SASL_SSL,MTLS:SSL,INTERNAL:SSL,CONTROLLER:SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.truststore),
            "ssl.enabled.protocols": "TLSv1.2,TLSv1.3",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": ";".join(f"User:{name}" for name in ("broker", *self.super_users)),
            **guarded,
        }

    def format_arguments(self) -> list[str]:
        """Arguments of `kafka-storage format` that make the users; they hold passwords."""
        made = [["--add-scram", f"SCRAM-SHA-512=[name={name},password={word}]"] for name, word in self.users.items()]
        return [argument for pair in made for argument in pair]
