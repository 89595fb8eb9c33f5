"""The application in a browser: textual-serve on loopback, closed to other sites' pages.

A page from elsewhere may open a WebSocket to this machine; whoever can do that could type into the application. So
the Host must be ours, and a WebSocket's Origin, too.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from textual_serve.server import Server

HOST = "127.0.0.1"


class LoopbackServer(Server):
    """Runs `command` for each page that is opened at http://127.0.0.1:PORT."""

    def __init__(self, command: str, port: int, say: Callable[[str], None]) -> None:
        super().__init__(command, host=HOST, port=port, title="localllm")
        self._say = say

    def initialize_logging(self) -> None:
        """Nothing is logged: what is typed would be in it."""

    async def on_startup(self, app: web.Application) -> None:
        self._say(f"Serving at {self.public_url}; Ctrl-C ends it.")

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(guard(self.port))
        return app


def guard(port: int) -> Middleware:
    """403 for names that are not this server's, and for WebSockets from other pages."""
    names = {f"{HOST}:{port}", f"localhost:{port}"}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin", "")
        is_socket = request.path == "/ws"
        if request.host not in names or ((origin or is_socket) and origin.removeprefix("http://") not in names):
            return web.Response(status=403, text="this server answers to its own pages only\n")
        response = await handler(request)
        if not response.prepared:
            response.headers["X-Frame-Options"] = "DENY"
        return response

    return check
