"""Requests that are refused before anything is made of them: quickly, and as the long way would have said it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.server.desk import ORDER_BYTES
from localllm.server.door import _read
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

ASKING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate",
    "/v1/embeddings", "/embeddings", "/api/embed", "/api/embeddings", "/v1/rerank", "/rerank", "/v1/score",
)  # fmt: skip
BODY = b'{"model": "toy:1b", "prompt": "' + b"a" * ORDER_BYTES + b'"}'


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon in which there is room for nobody."""
    home = tmp_path_factory.mktemp("home")
    with daemon(home, ToyLibrary(toy_entry("toy:1b")), max_sequences=1, max_queue=1) as world:
        world.on_loop(lambda: [world.daemon.desk.admission.enter("others") for _ in range(2)])
        yield world


def request(path: str = "/v1/completions", **headers: str) -> bytes:
    """As bytes; `headers` take the place of the usual ones, empty ones leave them out."""
    usual = {"host": "localhost", "content_type": "application/json", "content_length": str(len(BODY))}
    told = {name: value for name, value in {**usual, "x_request_id": "mine", **headers}.items() if value}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items()]
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + BODY


def answer_to(world: World, asked: bytes) -> dict[str, Any]:
    """Status, headers and body of the answer."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    with socket.create_connection(("127.0.0.1", world.port), timeout=5) as client:
        client.sendall(asked)
        found: dict[str, Any] = {"body": b""}
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(client.recv(2**16))
            elif isinstance(event, h11.Response):
                found |= {"status": event.status_code, "headers": sorted(event.headers)}
            elif isinstance(event, h11.Data):
                found["body"] += bytes(event.data)
        return found


def num_quick(world: World) -> int:
    """How many were refused at the door."""
    count: int = world.on_loop(lambda: world.daemon.door.num_refused)
    return count


def without_what_changes(answer: dict[str, Any]) -> dict[str, Any]:
    """The server of these tests adds its name and the date."""
    return {**answer, "headers": [pair for pair in answer["headers"] if pair[0] not in (b"date", b"server")]}


@pytest.mark.parametrize("path", ASKING)
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_the_quick_refusal_is_that_of_the_long_way(full: World, path: str, connection: str) -> None:
    before = num_quick(full)
    quick = answer_to(full, request(path, connection=connection))
    assert num_quick(full) == before + 1
    long = answer_to(full, request(path, connection=connection, te="trailers"))
    assert num_quick(full) == before + 1
    assert quick["status"] in (503, 529) and quick["body"]
    assert without_what_changes(quick) == without_what_changes(long)


def test_a_connection_that_is_kept_is_used_again(full: World) -> None:
    with socket.create_connection(("127.0.0.1", full.port), timeout=5) as client:
        for _ in range(3):
            client.sendall(request())
            assert client.recv(2**16).endswith(b"}}")
        client.sendall(request("/v1/none"))  # the long way, behind refusals
        said = b""
        while not said.endswith(b"}}"):
            said += client.recv(2**16)
        assert said.startswith(b"HTTP/1.1 404")
        client.sendall(request(connection="close"))
        said = b"".join(iter(lambda: client.recv(2**16), b""))
        assert said.startswith(b"HTTP/1.1 503") and b"connection: close" in said


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_body_that_comes_late_is_read_and_dropped(full: World, connection: str) -> None:
    before = num_quick(full)
    asked = request(connection=connection)
    with socket.create_connection(("127.0.0.1", full.port), timeout=5) as client:
        client.sendall(asked[: -len(BODY)])
        assert client.recv(2**16).startswith(b"HTTP/1.1 503")
        client.sendall(BODY[:10])
        if connection == "close":
            client.sendall(BODY[10:])
            assert client.recv(2**16) == b""
        else:
            client.sendall(BODY[10:] + request(connection="close"))
            assert b"".join(iter(lambda: client.recv(2**16), b"")).startswith(b"HTTP/1.1 503")
    assert num_quick(full) == before + (1 if connection == "close" else 2)


def test_two_requests_in_one_piece_get_two_answers(full: World) -> None:
    with socket.create_connection(("127.0.0.1", full.port), timeout=5) as client:
        client.sendall(request() + request(connection="close"))
        said = b"".join(iter(lambda: client.recv(2**16), b""))
    assert said.count(b"HTTP/1.1 503") == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": ""}, 400),
        ({"origin": "https://evil.example"}, 403),
        ({"content_type": "text/plain", "cookie": "a=b"}, 415),
        ({"content_encoding": "gzip"}, 415),
    ],
)
def test_what_the_guard_refuses_is_refused_first(full: World, headers: dict[str, str], status: int) -> None:
    assert answer_to(full, request(**headers))["status"] == status


def test_without_a_key_one_learns_nothing_about_the_room(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("toy:1b"))
    with daemon(tmp_path, library, max_sequences=1, max_queue=1, api_keys="sesame") as world:
        world.on_loop(lambda: [world.daemon.desk.admission.enter("others") for _ in range(2)])
        assert answer_to(world, request())["status"] == 401
        assert answer_to(world, request(authorization="Bearer sesame"))["status"] == 503
        assert num_quick(world) == 1


def test_an_allowed_page_may_read_its_refusal(full: World) -> None:
    answer = answer_to(full, request(origin="http://localhost:3000"))
    assert answer["status"] == 503 and (b"access-control-allow-origin", b"http://localhost:3000") in answer["headers"]


def test_refusals_at_the_door_are_counted(full: World) -> None:
    def counted() -> tuple[int, int]:
        told = full.daemon.answered
        return told.by_route["/v1/completions", "POST", 503], told.refusals["rate_limit_exceeded"]

    before = full.on_loop(counted)
    answer_to(full, request())
    assert full.on_loop(counted) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    "asked",
    [
        request(transfer_encoding="chunked"),
        request(expect="100-continue"),
        request(upgrade="websocket"),
        request(connection="keep-alive, upgrade"),
        request(content_length="1"),
        request(content_length="+9"),
        request(content_length=""),
        request(content_length=str(len(BODY)), Content_Length=str(len(BODY))),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request().replace(b"\r\nhost", b"\r\n host"),
        request().replace(b"host:", b"host :"),
        request().replace(b"\r\n\r\n", b"\n\n", 1),
        request(x_note="a\x00b"),
        request(x_note="a" * 9000),
        request(content_length=str(2**21)),
        request() + b"x",
        b"",
    ],
)
def test_what_could_be_misread_goes_the_long_way(asked: bytes) -> None:
    assert _read(asked) is None


NAMES = st.sampled_from(["host", "Host", "x-a", "connection", "content-length", "transfer-encoding", "x b", "", ":"])
VALUES = st.one_of(st.sampled_from(["close", "keep-alive", "0", "3", " 3\t", "chunked"]), st.text(max_size=8))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from([b"", b"abc", b"abcd"]))
def test_what_the_door_understands_h11_understands_alike(headers: list[tuple[str, str]], body: bytes) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in headers)
    data = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode() + body
    asked = _read(data)
    if asked is not None:
        server = h11.Connection(h11.SERVER)
        server.receive_data(data + b"d" * asked.num_missing)
        event = server.next_event()
        assert isinstance(event, h11.Request) and asked.headers == [
            (name.lower(), value) for name, value in event.headers
        ]
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data) and len(event.data) == asked.num_bytes
        assert server.trailing_data == (b"", False) and asked.is_last == (server.their_state is h11.MUST_CLOSE)
