"""Who may talk to the daemon."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from localllm.errors import LocalLLMError, UsageError
from localllm.server.callers import Callers
from localllm.server.guard import Gate, Guard, Rules, callers_for, check_content_type, is_loopback
from localllm.server.http import Json
from localllm.server.operations import JSON, Directory, Operation
from localllm.settings import load_settings
from tests.server.world import daemon


async def answer(request: Request) -> Response:
    return Json({})


class Routes:
    """One route of each kind."""

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/health", answer, "Health", "daemon", scope="open"),
            Operation("GET", "/v1/models", answer, "Models", "openai"),
            Operation("POST", "/v1/load", answer, "Load", "localllm", scope="manage"),
        )


def guard(host: str = "127.0.0.1", keys: tuple[str, ...] = ("",), origins: tuple[str, ...] = ()) -> Guard:
    """Off loopback with keys; a bind without any is refused before there is a guard."""
    settings = load_settings(host=host, api_keys=",".join(keys))
    callers = Callers(settings, is_loopback=is_loopback(host))
    gate = Gate(Rules(host, origins, "workbench", 2**20), callers)
    return Guard(Json({"reached": True}), gate, Directory([Routes()]))


async def status(
    guard: Guard, path: str = "/v1/models", method: str = "GET", *, http_version: str = "1.1", **headers: str
) -> tuple[int, Headers]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    scope = {"type": "http", "http_version": http_version, "method": method, "path": path, "headers": raw}
    await guard(scope, receive, send)
    start = sent[0]
    assert isinstance(start["status"], int)
    return start["status"], Headers(raw=start["headers"])  # type: ignore[arg-type]  # a plain list of pairs


GOOD_HOSTS = [
    "localhost",
    "localhost:11435",
    "LOCALHOST",
    "localhost.",
    "app.localhost",
    "nas.local",
    "box.internal:80",
    "workbench:11435",
    "127.0.0.1",
    "127.9.9.9:1",
    "[::1]:11435",
    "0.0.0.0:11435",
    "192.168.1.5",
    "10.0.0.1:11435",
]
BAD_HOSTS = [
    "evil.com",
    "evil.com:11435",
    "localhost.evil.com",
    "127.0.0.1.nip.io",
    "8.8.8.8",
    "",
    "local",
    "a@localhost",
    "localhost/x",
    "localhost:x",
    "[::1",
    ".local.evil.com",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
async def test_our_own_names_are_answered(host: str) -> None:
    assert (await status(guard(), host=host))[0] == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
async def test_names_that_others_control_are_not_whatever_the_bind(host: str, bound: str) -> None:
    expected = 200 if host == "8.8.8.8" and bound == "0.0.0.0" else 403
    assert (await status(guard(bound, ("key",)), host=host, x_api_key="key"))[0] == expected


async def test_a_body_with_two_lengths_ends_the_connection() -> None:
    code, sent = await status(guard(), host="localhost", content_length="4", transfer_encoding="chunked")
    assert (code, sent["connection"]) == (400, "close")
    code, sent = await status(guard(), host="localhost", transfer_encoding="chunked")
    assert code == 200 and "connection" not in sent


async def test_http_1_0_had_no_host() -> None:
    assert (await status(guard(), http_version="1.0"))[0] == 200
    assert (await status(guard(), http_version="1.0", host="evil.com"))[0] == 403


async def test_a_missing_or_doubled_host_is_refused() -> None:
    assert (await status(guard()))[0] == 403
    raw = [(b"host", b"localhost"), (b"host", b"evil.com")]
    sent: list[dict[str, object]] = []

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    await guard()({"type": "http", "method": "GET", "path": "/", "headers": raw}, receive, send)
    assert sent[0]["status"] == 403


GOOD_ORIGINS = ["http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "app://obsidian.md", "file://"]
BAD_ORIGINS = ["null", "https://evil.com", "http://localhost.evil.com", "http://[", "chrome-extension://abc", ""]


@pytest.mark.parametrize("origin", GOOD_ORIGINS)
async def test_local_pages_may_use_us_and_are_told_so(origin: str) -> None:
    code, headers = await status(guard(), host="localhost", origin=origin)
    assert code == 200 and headers["access-control-allow-origin"] == origin and headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", BAD_ORIGINS)
async def test_other_pages_may_not(origin: str) -> None:
    code, headers = await status(guard(), host="localhost", origin=origin)
    assert code == 403 and "access-control-allow-origin" not in headers


async def test_origins_can_be_allowed() -> None:
    allowing = guard(origins=("https://mine.example", "chrome-extension://*"))
    assert (await status(allowing, host="localhost", origin="https://mine.example"))[0] == 200
    assert (await status(allowing, host="localhost", origin="chrome-extension://abc"))[0] == 200
    assert (await status(allowing, host="localhost", origin="https://mine.example.evil.com"))[0] == 403


async def test_a_preflight_is_answered_for_allowed_origins_only() -> None:
    code, headers = await status(guard(), method="OPTIONS", host="localhost", origin="http://localhost:3000")
    assert code == 204 and "authorization" in headers["access-control-allow-headers"]
    assert (await status(guard(), method="OPTIONS", host="localhost", origin="https://evil.com"))[0] == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic key-two"}, 401),
        ({"authorization": "Bearer key-two"}, 200),
        ({"authorization": "bearer key-one"}, 200),
        ({"x-api-key": "key-one"}, 200),
        ({"x-api-key": "kéy"}, 401),
    ],
)
async def test_keys_are_asked_for_where_some_are_set(headers: dict[str, str], expected: int) -> None:
    assert (await status(guard(keys=("key-one", "key-two")), host="localhost", **headers))[0] == expected


async def test_health_needs_no_key() -> None:
    assert (await status(guard(keys=("key",)), path="/health", host="localhost"))[0] == 200


async def test_any_key_will_do_where_none_is_set() -> None:
    assert (await status(guard(), host="localhost", authorization="Bearer whatever"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"content-type": "application/json"}, True),
        ({"content-type": "Application/JSON; charset=utf-8"}, True),
        ({"content-type": "application/vnd.api+json"}, True),
        ({"content-type": "application/x-www-form-urlencoded"}, True),
        ({"content-type": "application/octet-stream"}, True),
        ({"content-type": "application/octet-stream", "origin": "http://localhost"}, False),
        ({}, True),
        ({"content-type": "application/x-www-form-urlencoded", "origin": "http://localhost"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"content-type": "text/plain;charset=UTF-8", "sec-fetch-mode": "cors"}, True),  # of fetch in Node
        ({"content-type": "text/plain", "sec-fetch-site": "same-site"}, False),
        ({"content-type": "text/plain", "origin": "http://localhost"}, False),
        ({"content-type": "multipart/form-data; boundary=x"}, False),
        ({"content-type": "text/plain; application/json", "referer": "http://localhost"}, False),
    ],
)
def test_what_a_page_could_send_unasked_is_no_body(headers: dict[str, str], is_accepted: bool) -> None:
    try:
        check_content_type("POST", Headers(headers), JSON)
    except LocalLLMError as error:
        assert not is_accepted and error.http_status == 415
    else:
        assert is_accepted


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
def test_what_pages_always_ask_before_needs_no_media_type(method: str) -> None:
    check_content_type(method, Headers({"origin": "http://localhost:3000", "sec-fetch-mode": "cors"}), JSON)
    with pytest.raises(LocalLLMError):
        check_content_type(method, Headers({"content-type": "text/plain", "origin": "http://localhost:3000"}), JSON)


def test_without_a_key_only_loopback_is_bound(tmp_path: Path) -> None:
    env = {"LOCALLLM_HOME": str(tmp_path)}
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(UsageError, match="API key"):
            callers_for(load_settings(env, host=host))
        named = callers_for(load_settings(env, host=host, api_keys="a, b"))
        assert named.are_named and [named.who(key) is not None for key in ("a", "b", "c", " a")] == [1, 1, 0, 0]
    for host in ("127.0.0.1", "localhost", "::1"):
        assert not callers_for(load_settings(env, host=host)).are_named


def test_a_daemon_with_keys_hides_its_models_from_those_without(tmp_path: Path) -> None:
    with daemon(tmp_path, api_keys="secret") as world:
        assert world.client.get("/v1/models").status_code == 401
        assert world.client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert world.client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert "models" not in world.client.get("/health").json()
