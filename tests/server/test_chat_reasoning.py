"""Reasoning in `/v1/chat/completions`: told from the answer, counted, bounded, hidden; efforts that templates know."""

from collections.abc import Iterator
from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.server.fields import ChatRequest, parse
from localllm.server.notes import Notes
from localllm.server.reasoning import Thinking, known_variables, thinking_of
from tests.server.parrot import parrots
from tests.server.test_chat import events_of
from tests.server.world import World, daemon
from tests.tokens.published import source_of

THOUGHTS = "say:<think>one two three</think>\\nSo it is."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), sources=parrots(), default_model="parrot:1b") as world:
        yield world


def ask(world: World, text: str = THOUGHTS, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 200}
    answer = world.client.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def request(**fields: Any) -> ChatRequest:
    return parse({"messages": [{"role": "user", "content": "x"}], **fields}, ChatRequest)


# ---- in answers


def test_thoughts_are_told_from_the_answer_and_counted(world: World) -> None:
    body = ask(world)
    message = body["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "one two three"
    assert message["content"] == "So it is."
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("one two three</think>")}


def test_thoughts_can_be_hidden_but_are_counted(world: World) -> None:
    for fields in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        body = ask(world, **fields)
        assert "reasoning" not in body["choices"][0]["message"]
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        events = events_of(
            world.client.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": THOUGHTS}], "stream": True, "temperature": 0} | fields,
            ).text
        )
        deltas = [event["choices"][0]["delta"] for event in events]
        assert not any("reasoning" in delta for delta in deltas)
        assert "".join(delta.get("content", "") for delta in deltas) == "So it is."


@pytest.mark.parametrize("field", ["thinking_token_budget", "reasoning_budget"])
def test_a_budget_ends_the_thoughts(world: World, field: str) -> None:
    body = ask(world, **{field: 4})
    message = body["choices"][0]["message"]
    assert message["reasoning"] == "one"
    assert ask(world, reasoning={"max_tokens": 4})["choices"][0]["message"]["reasoning"] == "one"
    assert ask(world, **{field: 100})["choices"][0]["message"]["reasoning"] == "one two three"


# ---- what templates know


EFFORTS: list[tuple[str, dict[str, Any], Thinking]] = [
    ("Qwen-Qwen3-0.6B", {}, Thinking({})),
    ("Qwen-Qwen3-0.6B", {"reasoning_effort": "none"}, Thinking({"enable_thinking": False}, 0)),
    ("Qwen-Qwen3-0.6B", {"reasoning_effort": "low"}, Thinking({"enable_thinking": True}, 1024)),
    ("Qwen-Qwen3-0.6B", {"reasoning_effort": "xhigh"}, Thinking({"enable_thinking": True})),
    ("Qwen-Qwen3-0.6B", {"thinking_token_budget": 0}, Thinking({"enable_thinking": False}, 0)),
    ("Qwen-Qwen3-0.6B", {"reasoning_budget": -1}, Thinking({})),
    (
        "Qwen-Qwen3-0.6B",
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        Thinking({"enable_thinking": False}, 1024),
    ),
    ("openai-gpt-oss-120b", {"reasoning_effort": "minimal"}, Thinking({"reasoning_effort": "low"})),
    ("openai-gpt-oss-120b", {"reasoning": {"effort": "max"}}, Thinking({"reasoning_effort": "high"})),
    ("openai-gpt-oss-120b", {"reasoning_effort": "none"}, Thinking({"reasoning_effort": "low"}, 0)),
    (
        "openai-gpt-oss-120b",
        {"reasoning_effort": "high", "reasoning_budget": 9},
        Thinking({"reasoning_effort": "high"}, 9),
    ),
    (
        "deepseek-ai-DeepSeek-V3.1",
        {"reasoning": {"enabled": True}},
        Thinking({"enable_thinking": True, "thinking": True}, 4096),
    ),
    (
        "deepseek-ai-DeepSeek-V3.1",
        {"reasoning": {"enabled": False}},
        Thinking({"enable_thinking": False, "thinking": False}, 0),
    ),
    ("LFM2.5-8B-A1B", {"reasoning_effort": "medium"}, Thinking({}, 4096)),
]


@pytest.mark.parametrize(("template", "fields", "expected"), EFFORTS, ids=lambda value: str(value)[:60])
def test_an_effort_is_the_templates_own_or_a_budget(template: str, fields: dict[str, Any], expected: Thinking) -> None:
    assert thinking_of(request(**fields), source_of(template), can_reason=True, notes=Notes()) == expected


def test_fields_of_messages_are_no_variables() -> None:
    assert known_variables("{% if message.thinking %}{{ message['thinking'] }}{% endif %}") == frozenset()
    assert known_variables("{% set thinking = 5 %}") == frozenset()
    assert known_variables("enable_thinking in words {% if x %}") == frozenset()
    assert known_variables("{%- if enable_thinking is defined and not enable_thinking %}") == {"enable_thinking"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ],
)
def test_a_model_that_does_not_reason_cannot_be_asked_to(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        thinking_of(request(**fields), "", can_reason=False, notes=Notes())
    assert refused.value.param == param
    lenient, agent = Notes(is_lenient=True), Notes(is_agent=True)
    thinking_of(request(**fields), "", can_reason=False, notes=lenient)
    thinking_of(request(**fields), "", can_reason=False, notes=agent)
    assert lenient.warnings == [f"{param!r} is not supported and was ignored"]
    assert agent.all_headers() == {"x-localllm-ignored": param}


def test_but_it_may_be_asked_not_to() -> None:
    for fields in ({"reasoning_effort": "none"}, {"reasoning_budget": 0}, {"reasoning_budget": -1}):
        assert thinking_of(request(**fields), "", can_reason=False, notes=Notes()) == Thinking({})


# ---- with calls that must come


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("field", [{"reasoning_effort": "none"}, {"thinking_token_budget": 3}])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_that_must_come_is_not_thought_about_for_ever(world: World, field: Any, choice: Any) -> None:
    for said in ("say:whatever", "say:<think>one two three four"):
        answer = ask(world, said, tools=[LOOK], tool_choice=choice, **field)["choices"][0]
        assert answer["finish_reason"] == "tool_calls", answer
        assert answer["message"]["tool_calls"][0]["function"]["name"] == "look"
        assert len(answer["message"].get("reasoning") or "") <= field.get("thinking_token_budget", 0)


def test_thoughts_within_the_budget_stay_before_a_call_that_must_come(world: World) -> None:
    call = '<tool_call>\\n{"name": "look", "arguments": {}}\\n</tool_call>'
    said = f"say:<think>one two</think>{call}"
    answer = ask(world, said, tools=[LOOK], tool_choice="required", thinking_token_budget=100)["choices"][0]
    assert answer["message"]["reasoning"] == "one two"
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "look"
