"""Pages in a browser cannot reach the daemon by a name that somebody else controls, nor from a site of their own.

CVE-2024-28224: DNS rebinding; upstream's check is skipped off loopback, ours never is.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from localllm.server.callers import Callers
from localllm.server.guard import Gate, Guard, Rules, is_loopback
from localllm.server.http import Json
from localllm.server.operations import Directory, Operation
from localllm.settings import load_settings
from tests.server.world import World, daemon

BINDS = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.168.1.5")
HOSTS = (
    ("localhost:11435", True),
    ("127.0.0.1:11435", True),
    ("[::1]:11435", True),
    ("192.168.1.5:11435", True),
    ("evil.example", False),
    ("localhost.evil.example:11435", False),
    ("127.0.0.1.evil.example", False),
    ("localhost@evil.example", False),
    ("evil.example:11435#localhost", False),
    ("", False),
)
ORIGINS = (
    (None, True),
    ("http://localhost:3000", True),
    ("https://127.0.0.1", True),
    ("app://obsidian.md", True),
    ("tauri://localhost", True),
    ("vscode-webview://abc", True),
    ("https://evil.example", False),
    ("http://localhost.evil.example", False),
    ("http://evil.example#localhost", False),
    ("null", False),
    ("*", False),
    ("chrome-extension://abcdef", False),
    ("moz-extension://abcdef", False),
    ("https://localhost@evil.example", False),
)


async def answer(request: Request) -> Response:
    return Json({"reached": True})


class OneRoute:
    def operations(self) -> Sequence[Operation]:
        return (Operation("GET", "/v1/models", answer, "Models", "openai"),)


async def status(bind: str, headers: dict[str, str], method: str = "GET") -> tuple[int, dict[str, str]]:
    settings = load_settings(host=bind, api_keys="" if is_loopback(bind) else "key")
    callers = Callers(settings, is_loopback=is_loopback(bind))
    directory = Directory([OneRoute()])
    guard = Guard(Json({"reached": True}), Gate(Rules(bind, (), "workbench", 2**20), callers), directory)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in (headers | {"x-api-key": "key"}).items()]
    await guard({"type": "http", "method": method, "path": "/v1/models", "headers": pairs}, receive, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("bind", BINDS)
@pytest.mark.parametrize(("host", "is_ours"), HOSTS)
async def test_only_names_that_nobody_else_controls_are_answered(bind: str, host: str, is_ours: bool) -> None:
    assert (await status(bind, {"host": host}))[0] == (200 if is_ours else 403)


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(("origin", "may"), ORIGINS)
async def test_only_pages_of_this_machine_and_of_apps_are_answered(bind: str, origin: str | None, may: bool) -> None:
    headers = {"host": "localhost"} | ({"origin": origin} if origin is not None else {})
    code, answered = await status(bind, headers)
    assert code == (200 if may else 403)
    assert answered.get("access-control-allow-origin") == (origin if may else None), "the page's own origin, never *"
    asked = headers | {"access-control-request-method": "POST"}
    if origin is not None:
        assert (await status(bind, asked, "OPTIONS"))[0] == (204 if may else 403)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


def test_no_answer_of_any_route_is_open_to_all_pages(world: World) -> None:
    for operation in world.daemon.directory.operations:
        if operation.path in ("/localllm/v1/shutdown", "/live", "/localllm/v1/live") or operation.method != "GET":
            continue
        path = operation.route().path_format.replace("{name}", "toy:1b").replace("{id}", "x")
        with world.client.stream("GET", path, headers={"origin": "http://localhost:1"}) as answer:
            assert answer.headers["access-control-allow-origin"] == "http://localhost:1", path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_every_route_refuses_a_page_of_another_site_before_it_does_anything(world: World) -> None:
    for operation in world.daemon.directory.operations:
        path = operation.route().path_format.replace("{name}", "toy:1b")
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            answer = world.client.request(operation.method, path, headers=headers)
            assert answer.status_code == 403, (path, headers)


def test_a_form_or_a_script_cannot_send_a_body_that_is_taken(world: World) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        for sign in (
            {"origin": "http://localhost"},
            {"sec-fetch-site": "cross-site"},
            {"referer": "https://e.example"},
        ):
            body = json.dumps({"model": "toy:1b"})
            answer = world.client.post("/localllm/v1/stop", content=body, headers={"content-type": kind} | sign)
            assert answer.status_code == 415, (kind, sign)


def test_what_a_proxy_says_of_the_sender_is_not_believed(tmp_path: Path) -> None:
    with daemon(tmp_path, api_keys="secret") as world:
        claims = {
            "x-forwarded-for": "127.0.0.1", "x-forwarded-host": "localhost", "forwarded": "for=127.0.0.1",
            "x-real-ip": "127.0.0.1", "x-forwarded-proto": "https",
        }  # fmt: skip
        assert world.client.get("/v1/models", headers=claims).status_code == 401
        assert world.client.get("/v1/models", headers=claims | {"host": "evil.example"}).status_code == 403


def test_a_websocket_is_not_opened(world: World) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "x"}
    answer = httpx.get(world.url + "/v1/models", headers=headers, trust_env=False)
    assert answer.status_code == 200 and "upgrade" not in answer.headers
