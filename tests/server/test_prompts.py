"""Conversations as the templates of models write them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.runtime.load import TextSide
from localllm.server.prompts import chat_prompt
from localllm.tokens.chat import ChatTemplate
from tests.daemon.toy import toy_entry, toy_text

CUT = '{"city": "Ro'
CONVERSATION: Sequence[Mapping[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": CUT}}]},
    {"role": "tool", "tool_call_id": "c", "content": "the arguments are no JSON"},
]
ASKS = "{%- if tools %}{{ tools }}{% endif %}"
CALLS = "{%- for m in messages %}{% for c in m.tool_calls or () %}{{ WRITTEN }}{% endfor %}{{ m.content }};{% endfor %}"


@pytest.fixture
def text() -> Iterator[TextSide]:
    text = toy_text(toy_entry("toy:1b"))
    yield text
    text.template.close()


def prompt(text: TextSide, source: str) -> str:
    template = ChatTemplate(source, isolated=False)
    return chat_prompt(CONVERSATION, None, toy_entry("toy:1b"), replace(text, template=template))


def test_a_call_that_was_cut_is_told_as_the_model_said_it(text: TextSide) -> None:
    as_text = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% endif %}"
    assert prompt(text, ASKS + CALLS.replace("{{ WRITTEN }}", as_text)).startswith(f"weather?;{CUT};the")
    as_json = "{{ c.function.arguments | tojson }}"
    assert prompt(text, ASKS + CALLS.replace("{{ WRITTEN }}", as_json)).startswith(f"weather?;{json.dumps(CUT)};the")


def test_a_template_that_knows_no_tools_has_it_in_words(text: TextSide) -> None:
    shown = prompt(text, "{% for m in messages %}{{ m.content }};{% endfor %}")
    assert json.dumps(CUT) in shown and "<tool_response>" in shown


def test_a_template_that_can_write_objects_only_refuses_it_by_name(text: TextSide) -> None:
    parts = "{% for name, value in c.function.arguments.items() %}{{ name }}{% endfor %}"
    with pytest.raises(InvalidRequest) as refused:
        prompt(text, ASKS + CALLS.replace("{{ WRITTEN }}", parts))
    assert refused.value.param == "messages[1].tool_calls[0].function.arguments"
