"""Every body, header, depth and count has a limit, and what is beyond it is refused in the dialect that was spoken.

CVE-2025-48956 (a giant header), CVE-2026-34756 (n = a million), CVE-2026-21869 (a negative number), CVE-2025-0312 and
its kin (unbounded allocation), gzip bombs.
"""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from localllm.server import http, outlet
from localllm.server.json_text import MAX_DEPTH, MAX_VALUES, BadJson, decoded_object
from tests.server.world import World, daemon

CHAT: dict[str, Any] = {"model": "toy:1b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "toy:1b", "prompt": "x", "max_tokens": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), max_body_mb=1) as world:
        yield world
        assert world.chat("still there").status_code == 200


def posted(world: World, content: bytes, path: str = "/v1/chat/completions", **headers: str) -> Any:
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return world.client.post(path, content=content, headers=sent)


def exchanged(world: World, data: bytes) -> bytes:
    """What comes back for raw bytes until the daemon hangs up."""
    with socket.create_connection(("127.0.0.1", world.port), timeout=20) as connection:
        connection.sendall(data)
        try:
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionResetError:
            return b""


# ---- bodies


def test_a_body_beyond_the_setting_is_refused_whether_or_not_its_length_was_declared(world: World) -> None:
    large = json.dumps(CHAT | {"user": "x" * 2**20}).encode()
    assert posted(world, large).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield from (large[at : at + 65536] for at in range(0, len(large), 65536))

    chunked = world.client.post("/v1/chat/completions", content=pieces(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413 and chunked.json()["error"]["hint"] == "see the setting max_body_mb"
    assert posted(world, json.dumps(CHAT | {"user": "x" * 200}).encode()).status_code == 200


def test_a_packed_body_is_refused_before_it_is_read(world: World) -> None:
    bomb = gzip.compress(b" " * 2**20)
    for packing in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x"):
        answer = posted(world, bomb, content_encoding=packing)
        assert answer.status_code == 415 and "packed" in answer.json()["error"]["message"]
    assert posted(world, json.dumps(CHAT).encode(), content_encoding="identity").status_code == 200


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "no body"),
        (b"\xef\xbb\xbf", "no body"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"b": 1, "a": 1e999}', "'a' has a number that no float"),
        (b'{"b": 1, "a": [{"c": -1e999}]}', "'a' has a number that no float"),
        (b"[1e999]", "not valid JSON"),
        (b'{"a": 1e999, "b"}', "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": 1} {"a": 1}', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "has 'a' twice"),
        (b'{"a": 1, "\\u0061": 2}', "has 'a' twice"),
        (b'{"m": [{"x": {"b": 1, "c": 2, "b": 3}}]}', "has 'b' twice"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "deeper than 64"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
        (b'{"a":' + b"[" * 400_000, "recursion"),
        (b'{"a":[' + b"0," * (MAX_VALUES + 1) + b"0]}", "more than 1000000 values"),
        (b'{"a":[' + b'"\\",:",' * MAX_VALUES + b"0]}", "more than 1000000 values"),
    ],
)
def test_json_that_is_none_or_is_beyond_reason_is_refused_in_a_sentence_and_soon(body: bytes, word: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadJson, match=word):
        decoded_object(body)
    assert time.monotonic() - started < 1.0


def test_honest_json_passes() -> None:
    assert decoded_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}, "PowerShell's files begin so"
    deep = b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1)
    for text in (b"{}", deep, b'{"a": "\\"b\\": 1, \\\\", "b": {"a": 1}, "c": [{"a": ","}, {"a": ":"}]}', b' {"":0} '):
        assert decoded_object(text) == json.loads(text)
    assert len(decoded_object(b'{"prompt":[' + b"1," * 900_000 + b"1]}")["prompt"]) == 900_001


# ---- numbers and counts

TOO_MUCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("n", {"n": 10**6}), ("n", {"n": -1}), ("n", {"n": 2**70}), ("n", {"n": 1e300}), ("n", {"n": 1.5}),
    ("max_tokens", {"max_tokens": -1}), ("max_tokens", {"max_tokens": 2**63}),
    ("temperature", {"temperature": 1e308}), ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 2}), ("top_k", {"top_k": -(2**40)}), ("seed", {"seed": 2**64}), ("seed", {"seed": 10**40}),
    ("stop", {"stop": ["x"] * 17}), ("stop", {"stop": "x" * 257}),
    ("logit_bias", {"logit_bias": {str(number): 1 for number in range(1025)}}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("messages", {"messages": [{"role": "user", "content": "x"}] * 16_385}), ("messages", {"messages": []}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 129}),
    ("stop_token_ids", {"stop_token_ids": list(range(65))}), ("cache_salt", {"cache_salt": "x" * 257}),
    ("min_tokens", {"min_tokens": -5}), ("repeat_last_n", {"repeat_last_n": 2**40}),
)  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), TOO_MUCH)
def test_more_than_a_field_may_hold_is_a_400_that_names_it(world: World, name: str, fields: dict[str, Any]) -> None:
    answer = world.client.post("/v1/chat/completions", json=CHAT | fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == name, error
    assert len(error["message"]) < 400, "a refusal does not repeat what was sent"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("best_of", {"best_of": 17}), ("best_of", {"best_of": 10**9}), ("prompt", {"prompt": ["x"] * 513}),
        ("prompt", {"prompt": [-1]}), ("prompt", {"prompt": [2**31]}), ("logprobs", {"logprobs": 21}),
    ],
)  # fmt: skip
def test_so_it_is_for_plain_completions(world: World, name: str, fields: dict[str, Any]) -> None:
    answer = world.client.post("/v1/completions", json=TEXT | fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == name


# ---- headers and connections


def test_headers_beyond_32_kilobytes_or_128_are_refused_however_they_arrive(world: World) -> None:
    assert world.client.get("/health", headers={"x-a": "x" * 31_000}).status_code == 200
    assert world.client.get("/health", headers={"x-a": "x" * 33_000}).status_code == 431
    assert world.client.get("/health", headers={f"x-{n}": "x" for n in range(200)}).status_code == 431
    endless = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"x" * 200_000
    assert exchanged(world, endless)[:12] in (b"HTTP/1.1 431", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n bad\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_json_that_says_so_and_the_connection_ends(world: World, data: bytes) -> None:
    head, _, body = exchanged(world, data + b"x" * 10 + b"\r\n\r\n").partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500 and b"application/json" in head
    assert json.JSONDecoder().raw_decode(body.decode())[0]["error"]["message"]


def test_five_hundred_half_open_connections_keep_nobody_out(world: World) -> None:
    idle = [socket.create_connection(("127.0.0.1", world.port), timeout=20) for _ in range(500)]
    try:
        for number, connection in enumerate(idle):
            connection.sendall((b"", b"POST /v1/chat/comp", b"GET / HTTP/1.1\r\nHost: loc")[number % 3])
        started = time.monotonic()
        assert world.chat("x").status_code == 200
        assert time.monotonic() - started < 5
    finally:
        for connection in idle:
            connection.close()


def test_half_a_head_is_not_waited_for_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "HEAD_TIMEOUT_S", 0.2)
    assert exchanged(world, b"GET /health HTTP/1.1\r\nHost: local") == b""
    assert exchanged(world, b"") == b""


def test_half_a_body_is_not_waited_for_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_TIMEOUT_S", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
    assert exchanged(world, head + b'{"model"').startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection(("127.0.0.1", world.port), timeout=20) as connection:
        connection.sendall(head + b'{"model"')
    assert world.client.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# ---- in whose words

DIALECTS = ("/v1/chat/completions", "/v1/messages", "/api/chat")


def is_in_dialect(path: str, body: Any) -> bool:
    if path.startswith("/api"):
        return isinstance(body["error"], str)
    if path.startswith("/v1/messages"):
        return body["type"] == "error" and bool(body["error"]["type"]) and bool(body["error"]["message"])
    return bool(body["error"]["message"]) and "param" in body["error"]


@pytest.mark.parametrize("path", DIALECTS)
def test_refusals_below_the_fields_are_in_the_dialect_of_the_path(world: World, path: str) -> None:
    asked = [
        (403, {"headers": {"host": "evil.example"}}),
        (403, {"headers": {"origin": "https://evil.example"}}),
        (415, {"headers": {"content-type": "text/csv"}, "content": b"{}"}),
        (415, {"headers": {"content-encoding": "gzip", "content-type": "application/json"}, "content": b"{}"}),
        (431, {"headers": {"x-a": "x" * 33_000}, "json": {}}),
    ]
    for status, options in asked:
        answer = world.client.post(path, **options)  # type: ignore[arg-type]  # of several types
        assert answer.status_code == status and is_in_dialect(path, answer.json()), answer.text
    missing = world.client.get(path + "/nothing/here")
    assert missing.status_code in (404, 405) and is_in_dialect(path, missing.json())
