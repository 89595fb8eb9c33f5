"""The application in a browser answers to its own pages only."""

import asyncio

import pytest

pytest.importorskip("textual_serve")

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from localllm.tui.serving import LoopbackServer


@pytest.fixture
async def server() -> TestServer:
    server = LoopbackServer("true", 0, lambda text: None)
    port = _free_port()
    server.port = port
    server.public_url = f"http://127.0.0.1:{port}"
    app: web.Application = await server._make_app()
    test_server = TestServer(app, port=port)
    await test_server.start_server()
    return test_server


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_only_our_own_pages_may_connect(server: TestServer) -> None:
    page, socket = server.make_url("/"), server.make_url("/ws")
    own = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(page) as answer:
            assert answer.status == 200 and answer.headers["X-Frame-Options"] == "DENY"
            assert "localllm" in await answer.text()
        for headers in (
            {"Host": "evil.example"},
            {"Host": f"evil.example:{server.port}"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
        ):
            async with session.get(page, headers=headers) as answer:
                assert answer.status == 403, headers
        for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": f"https://127.0.0.1:{server.port}"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(socket, headers=origin)
            assert refused.value.status == 403
        async with session.ws_connect(socket, headers={"Origin": own}) as connection:
            assert not connection.closed
    await server.close()
    await asyncio.sleep(0)
