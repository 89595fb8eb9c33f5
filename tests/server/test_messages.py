"""Messages as clients send them: every form that says something to a text model, and no other."""

from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.server.messages import place_of_texts, plain_messages

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"role": "user", "content": "x"}, {"role": "user", "content": "x"}),
    ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
    ({"role": "user", "content": "x", "name": "Ann"}, {"role": "user", "content": "x", "name": "Ann"}),
    ({"role": "user", "content": []}, {"role": "user", "content": ""}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "a"},
    ),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "no"},
    ),
    ({"role": "assistant"}, {"role": "assistant", "content": ""}),
    (
        {"role": "assistant", "content": None, "tool_calls": [CALL], "function_call": None, "audio": None},
        {"role": "assistant", "content": "",
         "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}]},
    ),
    ({"role": "assistant", "content": "x", "tool_calls": []}, {"role": "assistant", "content": "x"}),
    (
        {"role": "assistant", "content": "x", "reasoning_content": "hm", "reasoning": "hm", "id": "m1", "parsed": {}},
        {"role": "assistant", "content": "x", "reasoning_content": "hm"},
    ),
    (
        {"role": "tool", "tool_call_id": "c", "name": "f", "content": [{"type": "text", "text": "4"}]},
        {"role": "tool", "content": "4", "name": "f", "tool_call_id": "c"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "plain"), FORMS, ids=lambda value: str(value)[:60])
def test_a_message_in_any_form_becomes_plain(message: dict[str, Any], plain: dict[str, Any]) -> None:
    assert plain_messages([message]) == [plain]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
    ({"role": "user", "content": None}, "messages[0].content"),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        "messages[0].content[0].type",
    ),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
    ({"role": "user", "content": [{"type": "text", "text": "x", "mood": 1}]}, "messages[0].content[0].mood"),
    ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
    ({"role": "user", "content": "x", "name": 5}, "messages[0].name"),
    ({"role": "user", "content": "x", "refusal": 5}, "messages[0].refusal"),
    ({"role": "assistant", "reasoning": 0}, "messages[0].reasoning"),
    ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls"),
    ({"role": "assistant", "tool_calls": [{**CALL, "id": 5}]}, "messages[0].tool_calls[0].id"),
    ({"role": "assistant", "tool_calls": [{**CALL, "index": False}]}, "messages[0].tool_calls[0].index"),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 0}}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls[0].type"),
]


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [(None, {}), ("", {}), ("null", {}), (" {}", {}), ('{"a": 1}', {"a": 1}), ('{"a": ', '{"a": '), ("[1]", "[1]")],
)
def test_arguments_that_are_no_object_stay_the_text_that_the_model_said(arguments: Any, plain: Any) -> None:
    said = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    messages = plain_messages([{"role": "user", "content": "x"}, said])
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == plain
    place = "messages[1].tool_calls[0].function.arguments" if isinstance(plain, str) else None
    assert place_of_texts(messages) == place


@pytest.mark.parametrize(("message", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_a_text_model_cannot_read_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plain_messages([message])
    assert refused.value.param == param
