"""Whatever JSON stands in whatever field: an answer or one sentence about it, never a failure of ours."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy  # noqa: F401  # hypothesis looks at it while the daemon's thread would still be importing it
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.server import shapes
from localllm.server.fields import ChatRequest, CompletionRequest
from tests.server.world import World, daemon

CHAT: dict[str, Any] = {"model": "toy:1b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "toy:1b", "prompt": "x", "max_tokens": 2}
SUSPECTS = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, -1e-320,
    "", "x", "toy:1b", "\x00", "\ud7ff\U0010ffff", "5m", "-1", "9" * 400,
    [], [[]], [None], ["", "x"], [1, 2], [{}], [[1], [2]], {}, {"": None}, {"1": 1}, {"type": "text"}, {"a": {"b": []}},
)  # fmt: skip
OWN_FIELDS = ("model", "prompt", "messages", "keep_alive", "add_special_tokens")
values = st.one_of(
    st.sampled_from(SUSPECTS),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=5,
    ),
).filter(lambda value: value not in (float("inf"), float("-inf")))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world
        assert world.chat("still there").status_code == 200


def sound(world: World, path: str, body: dict[str, Any]) -> None:
    """An answer, or a refusal that says what is wrong in one sentence."""
    answer = world.client.post(path, content=msgspec.json.encode(body))
    if answer.status_code == 200:
        assert b'"error"' not in answer.content
        return
    error = msgspec.convert(answer.json(), shapes.ErrorBody).error
    assert 400 <= answer.status_code < 500, (body, error)
    assert error.message and "\n" not in error.message and "Traceback" not in error.message
    assert not any(word in error.message for word in ("Error(", "inside", "object at 0x", "<class")), error.message


@settings(max_examples=120)
@given(st.dictionaries(st.sampled_from(ChatRequest.__struct_fields__), values, min_size=1, max_size=2))
def test_any_value_in_any_field_of_a_chat(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/chat/completions", CHAT | fields)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(CompletionRequest.__struct_fields__), values, min_size=1, max_size=2))
def test_any_value_in_any_field_of_a_completion(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/completions", TEXT | fields)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(shapes.Message.__struct_fields__), values, min_size=1, max_size=3))
def test_any_value_in_any_field_of_a_message(world: World, fields: dict[str, Any]) -> None:
    sound(world, "/v1/chat/completions", CHAT | {"messages": [{"role": "assistant", "content": "x"} | fields]})


@settings(max_examples=40)
@given(st.sampled_from(("load", "stop", "tokenize")), st.dictionaries(st.sampled_from(OWN_FIELDS), values, max_size=2))
def test_any_value_in_any_field_of_our_own_routes(world: World, route: str, fields: dict[str, Any]) -> None:
    sound(world, f"/localllm/v1/{route}", {"model": "toy:1b"} | fields)
