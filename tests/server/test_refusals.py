"""Bad input: one clear sentence, the right status, the field by name; and the daemon goes on."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.world import World, daemon


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world
        assert world.chat("still there").status_code == 200


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHAT_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_completion_tokens": 4, "max_tokens": 5}, "max_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": None, "max_completion_tokens": 4}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1_000_000}, "n"),
    ({"n": True}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"top_k": -5}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repeat_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [260]}, "stop_token_ids"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"a": False}}, "logit_bias"),
    ({"metadata": {"a": [10**20]}}, "metadata"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"260": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"what": 1}}, "stream_options.what"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"keep_alive": "soon"}, "keep_alive"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wat"}}}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "guided_regex"),
    ({"guided_regex": "a", "guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "no grammar"}, "guided_grammar"),
    ({"grammar": "root ::= missing"}, "grammar"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    ({"json_schema": {"type": "object", "properties": {"a": {"pattern": "("}}}}, "json_schema"),
    ({"response_format": {"type": "json_object", "mood": 1}}, "response_format.mood"),
    ({"response_format": {"type": "json_object", "value": {"type": "wat"}}}, "response_format"),
    ({"response_format": {"type": "json_object", "schema": {}, "value": {"type": "null"}}}, "response_format.value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "shape": 1}}},
        "response_format.json_schema.shape",
    ),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}, "mood": 1}, "tools": [TOOL]}, "tool_choice.mood"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}, "tools": [TOOL]}, "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning"),
    ({"reasoning": {"depth": 3}}, "reasoning.depth"),
    ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ({"thinking_token_budget": 5, "reasoning_budget": 6}, "reasoning_budget"),
    ({"return_progress": True}, "return_progress"),
    ({"timings_per_token": True}, "timings_per_token"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"bad_words": [""]}, "bad_words"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"user": "x" * 257}, "user"),
    ({"mirostat": 2}, "mirostat"),
    ({"function_call": "auto"}, "function_call"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [{}] * 129}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
    ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools"),
    ({"functions": []}, "functions"),
    ({"audio": {}}, "audio"),
    ({"temprature": 1}, "temprature"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"priority": 2**40}, "priority"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"model": 5}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x"}] * 16_385}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), CHAT_REFUSALS, ids=lambda value: str(value)[:60])
def test_a_bad_chat_field_is_named(world: World, fields: dict[str, Any], param: str) -> None:
    answer = world.chat("x", **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"] and "Traceback" not in error["message"]


def test_two_names_of_one_thing_may_say_the_same(world: World) -> None:
    assert world.chat("x", max_tokens=3, max_completion_tokens=3, min_tokens=3).status_code == 200
    penalties = {"repetition_penalty": 1.1, "repeat_penalty": 1.1}
    assert world.complete("x", **penalties).status_code == 200


COMPLETION_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [1, 260]}, "prompt"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a"] * 513}, "prompt"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 17}, "best_of"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 3, "stream": True}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), COMPLETION_REFUSALS, ids=lambda value: str(value)[:60])
def test_a_bad_completion_field_is_named(world: World, fields: dict[str, Any], param: str) -> None:
    answer = world.complete(**{"prompt": "x"} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_number_beyond_all_floats_is_named(world: World) -> None:
    body = b'{"model": "toy:1b", "prompt": "x", "temperature": 1e999}'
    answer = world.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "temperature"


def test_a_missing_field_is_named(world: World) -> None:
    answer = world.client.post("/v1/completions", json={"model": "toy:1b"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"
    assert answer.json()["error"]["message"] == "prompt is required"


def test_a_path_that_is_not_there_is_not_repeated_at_length(world: World) -> None:
    answer = world.client.get("/" + "a" * 5000)
    assert answer.status_code == 404 and len(answer.content) < 500


def test_a_prompt_that_is_too_long_comes_with_both_numbers(world: World) -> None:
    error = world.complete([97] * 600).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (600, 512)
    assert "600" in error["message"] and "512" in error["message"]


def test_an_unknown_model_comes_with_a_suggestion(world: World) -> None:
    answer = world.chat("x", model="toy")
    error = answer.json()["error"]
    assert answer.status_code == 404 and error["type"] == "not_found_error" and error["code"] == "model_not_found"
    assert "toy:1b" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}'])
def test_a_body_that_is_no_json_object_is_a_400(world: World, body: bytes) -> None:
    answer = world.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_16_mib_is_a_413(world: World) -> None:
    body = b'{"prompt": "' + b"x" * 2**24 + b'"}'
    answer = world.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_declared_length_over_16_mib_is_refused_before_it_is_read(world: World) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", world.port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_unknown_routes_and_methods_are_said_in_json(world: World) -> None:
    assert world.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    answer = world.client.get("/v1/chat/completions")
    assert answer.status_code == 405 and "GET" in answer.json()["error"]["message"]


def test_a_lenient_client_gets_warnings_instead(world: World) -> None:
    body = {"model": "toy:1b", "prompt": "x", "max_tokens": 1, "mood": "good"}
    answer = world.client.post("/v1/completions", json=body, headers={"prefer": "handling=lenient"})
    assert answer.status_code == 200
    assert answer.json()["warnings"] == ["'mood' is not supported and was ignored"]
