"""Whatever JSON stands in whatever field of the Responses and Messages APIs: an answer, or one sentence about it."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy  # noqa: F401  # hypothesis looks at it while the daemon's thread would still be importing it
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.server.anthropic_shapes import AnthropicError, Counted, MessagesRequest
from localllm.server.responses_shapes import CountRequest, ResponseRequest
from localllm.server.shapes import ErrorBody
from tests.server.parrot import parrots
from tests.server.test_any_json import values
from tests.server.world import World, daemon

RESPONSE: dict[str, Any] = {"model": "parrot:1b", "input": "x", "max_output_tokens": 2}
MESSAGE: dict[str, Any] = {"model": "parrot:1b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}

ITEM_TYPES = ("message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "item_reference")
ITEM_FIELDS = (
    "role",
    "content",
    "summary",
    "encrypted_content",
    "call_id",
    "name",
    "arguments",
    "output",
    "id",
    "input",
)
TOOL_TYPES = ("function", "custom", "namespace", "web_search")
TOOL_FIELDS = ("name", "parameters", "description", "strict", "format", "tools")
BLOCK_TYPES = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "search_result", "image")
BLOCK_FIELDS = ("text", "id", "name", "input", "tool_use_id", "content", "is_error", "thinking", "signature", "source")
# whether the model stays loaded is another test's affair
RESPONSE_FIELDS = tuple(name for name in ResponseRequest.__struct_fields__ if name != "keep_alive")
ROLES = ("user", "assistant", "system")
CLIENT_TOOL_FIELDS = ("name", "input_schema", "description", "strict", "type", "cache_control", "defer_loading")

texts = st.sampled_from(("", "x", "{}", "{", "[1]", "\ud7ff"))
likely = texts | values


def objects(types: tuple[str, ...], fields: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that are nearly right: a known type, and some fields, most of them strings."""
    return st.builds(
        lambda kind, inner: {"type": kind} | inner,
        st.sampled_from(types),
        st.dictionaries(st.sampled_from(fields), likely, max_size=5),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), sources=parrots()) as world:
        yield world
        assert world.client.post("/v1/responses", json=RESPONSE).status_code == 200


def sound(world: World, path: str, body: dict[str, Any], shape: type[AnthropicError] | type[ErrorBody]) -> None:
    answer = world.client.post(path, content=msgspec.json.encode(body))
    if answer.status_code == 200:
        return
    error = msgspec.convert(answer.json(), shape).error
    assert 400 <= answer.status_code < 500, (body, error)
    assert error.message and "\n" not in error.message and "Traceback" not in error.message
    assert not any(word in error.message for word in ("Error(", "inside", "object at 0x", "<class")), error.message


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(RESPONSE_FIELDS), values, min_size=1, max_size=2))
def test_any_value_in_any_field_of_a_response(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/responses", RESPONSE | fields, ErrorBody)


@settings(max_examples=100)
@given(st.lists(objects(ITEM_TYPES, ITEM_FIELDS), min_size=1, max_size=3), st.sampled_from(("", "/input_tokens")))
def test_any_items(world: World, items: list[Any], path: str) -> None:
    limit = {} if path else {"max_output_tokens": 2}
    sound(world, f"/v1/responses{path}", {"model": "parrot:1b", "input": items} | limit, ErrorBody)


@settings(max_examples=80)
@given(st.lists(objects(TOOL_TYPES, TOOL_FIELDS), min_size=1, max_size=2), st.just("auto") | values)
def test_any_tools_of_a_response(world: World, tools: list[Any], choice: Any) -> None:
    sound(world, "/v1/responses", RESPONSE | {"tools": tools, "tool_choice": choice}, ErrorBody)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(CountRequest.__struct_fields__), values, min_size=1, max_size=2))
def test_any_value_in_what_is_counted(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/responses/input_tokens", {"model": "parrot:1b", "input": "x"} | fields, ErrorBody)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(MessagesRequest.__struct_fields__), values, min_size=1, max_size=2))
def test_any_value_in_any_field_of_a_message(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/messages", MESSAGE | fields, AnthropicError)


@settings(max_examples=120)
@given(st.lists(objects(BLOCK_TYPES, BLOCK_FIELDS), min_size=1, max_size=3), st.sampled_from(ROLES))
def test_any_blocks(world: World, blocks: list[Any], role: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": role, "content": blocks}, {"role": "user", "content": "y"}]
    sound(world, "/v1/messages", MESSAGE | {"messages": messages}, AnthropicError)


@settings(max_examples=60)
@given(st.lists(objects(("custom", "bash_20250124"), CLIENT_TOOL_FIELDS), min_size=1, max_size=2), values)
def test_any_tools_of_a_message(world: World, tools: list[Any], choice: Any) -> None:
    sound(world, "/v1/messages", MESSAGE | {"tools": tools, "tool_choice": choice}, AnthropicError)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(Counted.__struct_fields__), values, min_size=1, max_size=2))
def test_any_value_in_messages_that_are_counted(world: World, fields: dict[str, Any]) -> None:
    body = {name: value for name, value in MESSAGE.items() if name != "max_tokens"}
    sound(world, "/v1/messages/count_tokens", body | fields, AnthropicError)
