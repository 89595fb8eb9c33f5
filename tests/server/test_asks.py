"""From a request to sequences: who decides about sampling, and what becomes of messages."""

from typing import Any

import pytest

from localllm import wire
from localllm.errors import InvalidRequest
from localllm.server.asks import max_new_tokens, sampling_of
from localllm.server.fields import ChatRequest, parse
from localllm.server.messages import plain_messages
from localllm.settings import load_settings


def request(**fields: Any) -> ChatRequest:
    return parse({"messages": [{"role": "user", "content": "x"}], **fields}, ChatRequest)


def test_the_request_decides_then_the_model_then_the_file_then_1() -> None:
    params, file_defaults = {"temperature": 0.5, "repeat_penalty": 1.1}, {"temperature": 0.7, "top_p": 0.9}
    chosen = sampling_of(request(temperature=0.2), params, file_defaults)
    assert (chosen.temperature, chosen.top_p, chosen.repetition_penalty) == (0.2, 0.9, 1.1)
    assert sampling_of(request(), params, file_defaults).temperature == 0.5
    assert sampling_of(request(), {}, file_defaults).temperature == 0.7
    assert sampling_of(request(), {}, {}) == wire.SamplingParams()


def test_a_zero_in_the_request_is_a_choice() -> None:
    assert sampling_of(request(temperature=0), {"temperature": 0.5}, {}).temperature == 0


@pytest.mark.parametrize(
    ("fields", "params", "setting", "expected"),
    [
        ({"max_completion_tokens": 3, "max_tokens": 3}, {"num_predict": 5}, 6, 3),
        ({"max_tokens": 4}, {"num_predict": 5}, 6, 4),
        ({"max_tokens": 0}, {"num_predict": 5}, 6, 0),
        ({}, {"num_predict": 5}, 6, 5),
        ({}, {"num_predict": -1}, 6, None),
        ({}, {}, 6, 6),
        ({}, {}, 0, None),
    ],
)
def test_the_limit_on_new_tokens(
    fields: dict[str, Any], params: dict[str, Any], setting: int, expected: int | None
) -> None:
    settings = load_settings({"LOCALLLM_HOME": "/nowhere"}, max_tokens=setting)
    assert max_new_tokens(request(**fields), params, settings) == expected


def test_a_bad_parameter_of_the_model_is_said() -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        sampling_of(request(), {"temperature": -3}, {})
    with pytest.raises(InvalidRequest, match=r"wrong type.*temperature"):
        sampling_of(request(), {"temperature": "hot"}, {})


def test_messages_become_plain() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    plain = plain_messages(
        [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "audio": None},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
            {"role": "assistant", "content": "x", "reasoning": "hm"},
        ]
    )
    assert plain[0] == {"role": "system", "content": "ab"}
    assert plain[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert plain[2] == {"role": "tool", "content": "42", "tool_call_id": "c"}
    assert plain[3]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    "calls", ["x", [1], [{"function": 1}], [{"function": {"name": 1}}], [{"function": {"name": "f", "arguments": 3}}]]
)
def test_tool_calls_that_are_none_are_refused(calls: Any) -> None:
    with pytest.raises(InvalidRequest, match="tool_calls"):
        plain_messages([{"role": "assistant", "tool_calls": calls}])
