"""Refusals in Ollama's words, row by row; errors in the middle of a stream; nothing a client sends is our failure."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from localllm.daemon.journal import Event, Record
from localllm.errors import Cancelled
from tests.daemon.toy import ToyLibrary, expected_text, toy_entry
from tests.server.world import World, daemon

TOYS = (
    toy_entry("toy:1b"),
    toy_entry("toy:slow", "toy:slow"),
    toy_entry("toy:sick", "toy:sick"),
    toy_entry("toy:broken", "toy:broken"),
    toy_entry("toy:plain", capabilities=("completion",)),
    toy_entry("toy:vectors", capabilities=("embedding",)),
)
USER = [{"role": "user", "content": "x"}]
AT_ONCE = {"stream": False}
"""A stream for a model that takes long to load has its status before anybody knows how it ends."""
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPEN_CHAT = {"model": "toy:1b", "messages": USER}
OPEN_GENERATE = {"model": "toy:1b", "prompt": "x"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), ToyLibrary(*TOYS)) as world:
        yield world


ROWS: list[tuple[str, dict[str, Any], int, str]] = [
    ("chat", {"messages": USER}, 400, "model is required"),
    ("generate", {"prompt": "x"}, 400, "model is required"),
    ("generate", {}, 400, "model is required"),
    ("embed", {"input": "x"}, 400, "model is required"),
    ("show", {}, 400, "model is required"),
    ("pull", {}, 400, "model is required"),
    ("create", {"from": "x"}, 400, "model is required"),
    ("chat", OPEN_CHAT | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("generate", OPEN_GENERATE | {"top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
    *(
        ("generate", OPEN_GENERATE | {"raw": True, name: value}, 400,
         "raw mode does not support template, system, or context")
        for name, value in (("template", "{{ x }}"), ("system", "x"), ("context", [1]))
    ),
    ("embed", {"model": "toy:1b", "input": 5}, 400, "invalid input type"),
    ("embed", {"model": "toy:1b", "input": [5]}, 400, "invalid input type"),
    ("embed", {"model": "toy:1b"}, 400, "invalid input type"),
    ("chat", {"model": "toy:plain", "messages": USER, "think": True}, 400, '"toy:plain" does not support thinking'),
    ("chat", {"model": "toy:plain", "messages": USER, "tools": [TOOL]}, 400, '"toy:plain" does not support tools'),
    ("chat", {"model": "toy:vectors", "messages": USER}, 400, '"toy:vectors" does not support chat'),
    ("generate", {"model": "toy:vectors", "prompt": "x"}, 400, '"toy:vectors" does not support generate'),
    ("copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
    ("copy", {"source": "x", "destination": "a b"}, 400, 'destination "a b" is invalid'),
    ("pull", {"model": "a b"}, 400, 'name "a b" is invalid'),
    ("create", {"model": "a b", "from": "x"}, 400, 'name "a b" is invalid'),
    ("embed", {"model": "toy:1b", "input": "x" * 900, "truncate": False}, 400,
     "the input length exceeds the context length"),
    ("generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    ("chat", {"model": "nope", "messages": USER}, 404, "model 'nope' not found"),
    ("show", {"model": "nope"}, 404, "model 'nope' not found"),
    ("embed", {"model": "nope", "input": "x"}, 404, "model 'nope' not found"),
    ("embeddings", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
    *((route, {"model": "/etc/passwd", "prompt": "x", "messages": USER, "input": "x"}, 404,
       "model '/etc/passwd' not found") for route in ("chat", "generate", "embed", "embeddings", "show")),
    ("copy", {"source": "/etc/passwd", "destination": "x"}, 404, 'model "/etc/passwd" not found'),
    ("chat", OPEN_CHAT | {"options": {"top_k": "x"}}, 400, 'option "top_k" must be of type integer'),
    ("chat", OPEN_CHAT | {"options": {"stop": [1]}}, 400, 'option "stop" must be of type array of strings'),
    ("chat", OPEN_CHAT | {"format": "xml"}, 400,
     'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
    ("chat", OPEN_CHAT | {"think": "hard"}, 400,
     'invalid think value: "hard" (must be "low", "medium", "high", "max", true, or false)'),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "status", "text"), ROWS)
def test_refusals_have_ollamas_words(world: World, route: str, body: dict[str, Any], status: int, text: str) -> None:
    answer = world.client.post(f"/api/{route}", json=AT_ONCE | body)
    told = answer.json()["error"].removesuffix(")").partition(" (")[0] if status == 400 else answer.json()["error"]
    assert answer.status_code == status and (told == text or answer.json()["error"] == text), answer.text


NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("chat", OPEN_CHAT | {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
    ("generate", OPEN_GENERATE | {"images": ["aGk="]}, "images"),
    ("chat", OPEN_CHAT | {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ("chat", OPEN_CHAT | {"messages": "x"}, "messages"),
    ("chat", OPEN_CHAT | {"messages": USER * 16_385}, "messages"),
    ("chat", OPEN_CHAT | {"stream": "yes"}, "stream"),
    ("chat", OPEN_CHAT | {"keep_alive": "soon"}, "keep_alive"),
    ("generate", {"model": "toy:1b", "keep_alive": "soon"}, "keep_alive"),
    ("chat", OPEN_CHAT | {"options": 5}, "options"),
    ("chat", OPEN_CHAT | {"options": {"temperature": -1}}, "options.temperature"),
    ("chat", OPEN_CHAT | {"options": {"repeat_penalty": -1}}, "options.repeat_penalty"),
    ("chat", OPEN_CHAT | {"options": {"num_predict": -7}}, "num_predict"),
    ("chat", OPEN_CHAT | {"options": {"num_ctx": 0}}, "num_ctx"),
    ("chat", OPEN_CHAT | {"options": {"stop": ["x"] * 99}}, "stop"),
    ("chat", OPEN_CHAT | {"tools": [{"type": "wand"}]}, "tools"),
    ("chat", OPEN_CHAT | {"tools": [TOOL] * 200}, "tools"),
    ("generate", OPEN_GENERATE | {"context": [-1]}, "context"),
    ("generate", OPEN_GENERATE | {"context": [10**9]}, "context"),
    ("generate", OPEN_GENERATE | {"context": [2**80]}, "context"),
    ("generate", OPEN_GENERATE | {"template": "{{ .Prompt }}"}, "template"),
    ("generate", OPEN_GENERATE | {"raw": True, "think": True}, "think"),
    ("generate", OPEN_GENERATE | {"suffix": "y"}, "suffix"),
    ("embed", {"model": "toy:1b", "input": [], "options": {"top_p": -0.1}}, "options.top_p"),
    ("generate", {"model": "toy:1b", "options": {"presence_penalty": 1e308}}, "options.presence_penalty"),
    ("embed", {"model": "toy:1b", "input": "x", "dimensions": 9999}, "dimensions"),
    ("embed", {"model": "toy:1b", "input": "x", "dimensions": 0}, "dimensions"),
    ("push", {"model": "toy:1b"}, "push"),
]


@pytest.mark.parametrize(("route", "body", "named"), NAMED)
def test_what_cannot_be_is_refused_by_name(world: World, route: str, body: dict[str, Any], named: str) -> None:
    answer = world.client.post(f"/api/{route}", json=AT_ONCE | body)
    assert answer.status_code == 400 and named in answer.json()["error"], answer.text


def test_errors_of_the_guard_and_of_the_body_are_in_this_form_too(world: World) -> None:
    post, ok = world.client.post, {"content-type": "application/json"}
    answers = {
        400: post("/api/chat", content=b"", headers=ok),
        403: post("/api/chat", json=OPEN_CHAT, headers={"host": "evil.example"}),
        404: world.client.get("/api/nothing"),
        405: world.client.get("/api/chat"),
        415: post("/api/chat", content=b"x", headers={"content-type": "text/plain", "origin": "http://localhost"}),
    }
    for status, answer in answers.items():
        assert answer.status_code == status and isinstance(answer.json()["error"], str) and len(answer.json()) == 1
    assert answers[400].json() == {"error": "missing request body"}
    assert "not valid JSON" in post("/api/chat", content=b"{", headers=ok).json()["error"]


def test_with_keys_managing_needs_a_key_for_it(tmp_path: Path) -> None:
    with daemon(tmp_path, api_keys="secret") as world:
        assert world.client.get("/api/version").status_code == 200
        refused = world.client.get("/api/tags")
        assert refused.status_code == 401 and isinstance(refused.json()["error"], str)
        operations = {(each.method, each.path): each.scope for each in world.daemon.directory.operations}
    managing = {"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}"}
    assert {
        path for (_, path), scope in operations.items() if path.startswith("/api/") and scope == "manage"
    } == managing


def test_a_client_that_sends_no_content_type_is_served(world: World) -> None:
    sent = json.dumps(OPEN_CHAT | {"stream": False, "options": {"num_predict": 1}}).encode()
    request = world.client.build_request("POST", "/api/chat", content=sent)
    request.headers.pop("content-type", None)
    assert world.client.send(request).status_code == 200


# ---- in the middle


def cancel_all(world: World) -> None:
    for reply in list(world.daemon.desk.replies):
        reply.abort(Cancelled("the request was cancelled"))


LONG = next(
    text for text in map(str, range(1000)) if len(expected_text(b"<user>%b\n<assistant>" % text.encode(), 400)) > 300
)
"""What the toy has a lot to say to."""


def test_an_error_in_the_middle_is_the_last_line(world: World) -> None:
    body = {"model": "toy:slow", "messages": [{"role": "user", "content": LONG}], "options": {"temperature": 0}}
    lines: list[Any] = []
    with world.client.stream("POST", "/api/chat", json=body) as answer:
        for line in answer.iter_lines():
            lines.append(json.loads(line))
            if len(lines) == 2:
                world.on_loop(lambda: cancel_all(world))
    assert answer.status_code == 200
    assert lines[-1] == {"error": "request canceled"} and not any(line.get("done") for line in lines[:-1])


def test_a_cancelled_request_without_a_stream_is_a_499(world: World) -> None:
    def cancelling(record: Record, event: Event) -> None:
        if event.name == "first_token":
            record.cancel()

    unwatch = world.daemon.journal.watch(cancelling)
    try:
        body = {"model": "toy:slow", "prompt": LONG, "stream": False, "options": {"temperature": 0}}
        answer = world.client.post("/api/generate", json=body)
    finally:
        unwatch()
    assert (answer.status_code, answer.json()) == (499, {"error": "request canceled"})


def test_a_model_that_cannot_be_loaded_says_why(world: World) -> None:
    answer = world.client.post("/api/chat", json={"model": "toy:broken", "messages": USER, "stream": False})
    assert answer.status_code == 422 and "the toy is broken" in answer.json()["error"]


def test_a_full_queue_is_said_in_ollamas_words(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(*TOYS), max_sequences=1, max_queue=0) as world:
        body = {"model": "toy:slow", "messages": [{"role": "user", "content": LONG}], "options": {"temperature": 0}}
        with world.client.stream("POST", "/api/chat", json=body) as first:
            lines = first.iter_lines()  # held: let go of, it hangs up
            next(lines)
            busy = world.client.post("/api/chat", json=body)
        assert first.status_code == 200, "it is in nobody's way"
        assert busy.status_code == 503 and int(busy.headers["retry-after"]) > 0
        assert busy.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


# ---- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "input", "options", "format", "keep_alive", "think", "tools", "context", "template", "raw",
     "suffix", "images", "logprobs", "top_logprobs", "truncate", "stream", "system", "files", "from", "parameters",
     "source", "destination", "verbose", "name", "dimensions"]
)  # fmt: skip
ROUTES = ("chat", "generate", "embed", "embeddings", "show", "pull", "push", "create", "copy")


@hypothesis_settings(max_examples=150)
@given(route=st.sampled_from(ROUTES), fields=st.dictionaries(FIELDS, JSON, max_size=3))
def test_nothing_that_is_sent_is_our_failure(world: World, route: str, fields: dict[str, Any]) -> None:
    body = {"model": "toy:1b", "options": {"num_predict": 1}} | fields
    answer = world.client.post(f"/api/{route}", json=body)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["error"], str) and "\n" not in answer.json()["error"]
