"""The Real-Time Data API over TLS: only its own name is believed, and what is secret goes to no other host."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.certificates import Authority
from vpp_dispatch.errors import ExternalFault, NotReachable
from vpp_dispatch.goodwe import realtime
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.goodwe.realtime import RealTimeApi


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "BACKOFF_S", 0.005)


def api_at(url: str, tmp_path: Path, ca: Path | None = None) -> RealTimeApi:
    password = tmp_path / "password"
    password.write_text("a-word\n")
    return RealTimeApi(
        profile=load_profile("goodwe"), base_url=url, account="supplier", password_file=password, max_calls_per_s=0,
        ca_file=ca,
    )  # fmt: skip


class Api:
    """An API that lists nobody, or sends everybody elsewhere; what it was asked."""

    def __init__(self, *, elsewhere: str = "", status: int = 307) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._elsewhere, self._status = elsewhere, status

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, await request.text()))
        token = request.path == "/v1/token"
        if self._elsewhere and not (token and self._status == 302):
            return web.Response(status=self._status, headers={"Location": self._elsewhere + request.path})
        data: Any = {"token": "a-token", "expiresIn": 3600} if token else {"total": 0, "list": []}
        return web.json_response({"code": "0", "msg": "ok", "data": data})


@pytest.mark.parametrize(("valid_for", "believed"), [("127.0.0.1", True), ("api.example.org", False)])
async def test_the_name_in_the_certificate_is_checked(valid_for: str, believed: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("api", valid_for)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.cert, issued.key)
    theirs = Api()
    server = TestServer(theirs.app(), scheme="https")
    await server.start_server(ssl=context)
    api = api_at(f"https://127.0.0.1:{server.port}", tmp_path, authority.file)
    try:
        if believed:
            assert await api.authorized() == []
        else:
            with pytest.raises(NotReachable, match="no connection"):
                await api.authorized()
    finally:
        await api.aclose()
        await server.close()
    assert bool(theirs.asked) is believed  # not even the password has left


@pytest.mark.parametrize("status", [307, 308, 302])
async def test_no_redirect_takes_password_or_token_elsewhere(status: int, tmp_path: Path) -> None:
    """307 and 308 at the log-in, whose body is the password; 302 at what comes after it, under the token."""
    stranger = Api()
    async with TestServer(stranger.app()) as other:
        sends = Api(elsewhere=str(other.make_url("")).rstrip("/"), status=status)
        async with TestServer(sends.app()) as server:
            api = api_at(str(server.make_url("")), tmp_path)
            try:
                with pytest.raises(ExternalFault, match=f"HTTP {status}"):
                    await api.authorized()
            finally:
                await api.aclose()
    assert len(sends.asked) == (2 if status == 302 else 1)
    assert stranger.asked == []
