"""The image's health check: exit code 0 if this container's worker answers /livez with 200, else 1 and a sentence.

Another path may be given as its argument: /readyz, or the simulator's /sim/health. Standard library only, since it runs
with `-I -S`: without site-packages it is up in a few tens of milliseconds. It asks where the worker listens by the same
variables as the worker; a port that only a TOML file names it cannot know.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping

ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a server may listen on and a client cannot call, and what to call instead."""

TIMEOUT_S = 4.0
"""Less than the Dockerfile gives this whole check, so that it is us who say why."""


def check(env: Mapping[str, str], path: str) -> str | None:
    """Asks for a path once. Returns None if the answer is 200, else why not, in a sentence."""
    host = env.get("VPP_DISPATCH_HTTP__HOST", "")
    port = env.get("VPP_DISPATCH_HTTP__PORT") or "8000"
    if not port.isdigit() or port == "0":
        return f"VPP_DISPATCH_HTTP__PORT is {port!r}: in a container give it a fixed port, or leave it out for 8000."
    connection = http.client.HTTPConnection(ANYWHERE.get(host, host), int(port), timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{path} on port {port} does not answer: {error!r}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"{path} answers {answer.status}: {said}"


if __name__ == "__main__":
    if (why := check(os.environ, sys.argv[1] if len(sys.argv) > 1 else "/livez")) is not None:
        print(why)
        sys.exit(1)
