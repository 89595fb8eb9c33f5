"""Prompts are, byte for byte, what transformers makes of the same template; a template's refusal reaches the caller."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.tokens.chat import ALLOWED_VARIABLES, ChatTemplate, default_template
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import from_metadata, gguf_metadata, shared_data

TEMPLATES = (
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GLM-4.7-Flash",
    "HuggingFaceTB-SmolLM3-3B",
    "Kimi-K2-Instruct",
    "LFM2.5-8B-A1B",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-QwQ-32B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "Qwen3.5-4B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "google-gemma-2-2b-it",
    "google-gemma-4-31B-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "ibm-granite-granite-4.0",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
    "unsloth-mistral-Devstral-Small-2507",
)
WITHOUT_SYSTEM = ("google-gemma-2-2b-it",)
ONLY_WITH_TOOLS = ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use",)
WITH_TOOLS = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
)
SYSTEM: dict[str, Any] = {"role": "system", "content": "Answer <briefly> & in \"good\" German — 'gut'."}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello there,\n  what is 2 < 3 & 4?"},
    {"role": "assistant", "content": "It is {{ true }}. 猫 🐈\n"},
    {"role": "user", "content": "  And now?  "},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather at a place — "now".',
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where, e.g. Köln"}},
                "required": ["place"],
            },
        },
    }
]
ENDS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


@cache
def source_of(name: str) -> str:
    return (shared_data() / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tools_for(name: str) -> list[dict[str, Any]] | None:
    return TOOLS if name in ONLY_WITH_TOOLS else None


def theirs(source: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """transformers' own rendering."""
    from transformers.utils.chat_template_utils import render_jinja_template  # only here: it takes long to load

    given = {"add_generation_prompt": True, **ENDS, **variables}
    rendered: Any = render_jinja_template([[dict(message) for message in messages]], chat_template=source, **given)
    return str(rendered[0][0])


@pytest.fixture(scope="module")
def isolated() -> Iterator[ChatTemplate]:
    """One child for all: it takes whatever source it is given next."""
    template = ChatTemplate("", **ENDS)
    yield template
    template.close()


def ours(source: str, messages: Sequence[Mapping[str, Any]], isolated: ChatTemplate, **given: Any) -> str:
    """Our rendering; the child's and this process's must be the same."""
    isolated.source = source
    rendered = isolated.render(messages, **given)
    assert ChatTemplate(source, **ENDS, isolated=False).render(messages, **given) == rendered
    return rendered


# --- as transformers renders


def test_every_published_template_is_in_the_list() -> None:
    found = {file.stem for file in (shared_data() / "templates").glob("*.jinja")}
    assert found == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_reads_as_with_transformers(name: str, isolated: ChatTemplate) -> None:
    source = source_of(name)
    for messages in (TURNS[:1], TURNS):
        for add_generation_prompt in (True, False):
            given = {"add_generation_prompt": add_generation_prompt, "tools": tools_for(name)}
            expected = theirs(source, messages, **given)
            assert ours(source, messages, isolated, **given) == expected
            assert "what is 2 < 3 & 4?" in expected


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in WITHOUT_SYSTEM])
def test_a_system_message_reads_as_with_transformers(name: str, isolated: ChatTemplate) -> None:
    source, messages, tools = source_of(name), [SYSTEM, *TURNS], tools_for(name)
    assert ours(source, messages, isolated, tools=tools) == theirs(source, messages, tools=tools)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_read_as_with_transformers(name: str, isolated: ChatTemplate) -> None:
    source = source_of(name)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}
    messages: list[dict[str, Any]] = [
        SYSTEM,
        TURNS[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": '{"sky": "blue"}'},
    ]
    rendered = ours(source, messages, isolated, tools=TOOLS)
    assert rendered == theirs(source, messages, tools=TOOLS)
    assert "Where, e.g. Köln" in rendered
    assert "blue" in rendered


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "openai-gpt-oss-120b", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"])
def test_reasoning_is_found_under_any_of_its_names(name: str, field: str, isolated: ChatTemplate) -> None:
    source = source_of(name)
    messages = [TURNS[0], {"role": "assistant", "content": "yes", field: "because"}]
    given = {"add_generation_prompt": False}
    assert ours(source, messages, isolated, **given) == theirs(source, messages, **given)


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_thinking_can_be_switched(enable_thinking: bool, isolated: ChatTemplate) -> None:
    source = source_of("Qwen-Qwen3-0.6B")
    rendered = ours(source, TURNS, isolated, enable_thinking=enable_thinking)
    assert rendered == theirs(source, TURNS, enable_thinking=enable_thinking)
    assert ("<think>" in rendered) is not enable_thinking


SMALL = {
    "trimmed blocks": "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "tojson with options": "{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1, b='x') | tojson }}",
    "ends": "{{ bos_token }}{{ messages[-1]['content'].strip().split(' ')[0] }}{{ eos_token }}",
    "undefined": "[{{ nothing }}][{{ tools is none }}][{{ documents is defined }}][{{ messages[0].nothing }}]",
    "macro": "{% macro show(m, n=2) %}{{ m.role * n }}{% endmacro %}{{ show(messages[0]) ~ show(messages[1], n=1) }}",
    "map": "{{ messages | map(attribute='role') | join(',') }}",
    "select": "{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "text operations": "{{ 'a-b'.replace('-', '+') ~ 'x'.upper() ~ '%s!' % 'y' ~ '=' * 5 ~ '{:>4}'.format('z') }}",
}


@pytest.mark.parametrize("case", SMALL)
def test_the_dialect_is_transformers(case: str, isolated: ChatTemplate) -> None:
    assert ours(SMALL[case], TURNS, isolated) == theirs(SMALL[case], TURNS)


# --- refusals


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_template_that_refuses_is_quoted(is_isolated: bool) -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('Only users may begin!') }}{% endif %}ok"
    template = ChatTemplate(source, isolated=is_isolated)
    with pytest.raises(InvalidRequest, match="Only users may begin!") as caught:
        template.render([SYSTEM])
    assert caught.value.param == "messages"
    assert template.render(TURNS) == "ok"
    template.close()


def test_a_published_template_refuses_in_its_own_words(isolated: ChatTemplate) -> None:
    isolated.source = source_of("google-gemma-2-2b-it")
    with pytest.raises(InvalidRequest, match="System role not supported"):
        isolated.render([SYSTEM, *TURNS])


@pytest.mark.parametrize(
    "source", ["{% for m in messages %}", "{{ 1 + }}", "{% nonsense %}", "{{ messages | nosuch }}"]
)
@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_template_that_does_not_parse_says_so(source: str, is_isolated: bool) -> None:
    template = ChatTemplate(source, isolated=is_isolated)
    with pytest.raises(InvalidRequest, match="does not parse"):
        template.render(TURNS)
    template.close()


@pytest.mark.parametrize("name", ["bos_token", "raise_exception", "__class__", "loop", "tools_"])
def test_a_request_sets_only_the_variables_on_the_list(name: str) -> None:
    template = ChatTemplate("{{ enable_thinking }}", isolated=False)
    assert name not in ALLOWED_VARIABLES
    variables: dict[str, Any] = {name: 1}
    with pytest.raises(InvalidRequest, match=name) as caught:
        template.render(TURNS, **variables)
    assert caught.value.param == "chat_template_kwargs"
    assert template.render(TURNS, enable_thinking=False) == "False"


@pytest.mark.parametrize("is_isolated", [True, False])
def test_what_json_cannot_hold_is_refused_and_the_next_rendering_works(is_isolated: bool) -> None:
    template = ChatTemplate("{{ messages[0].content }}", isolated=is_isolated)
    with pytest.raises(InvalidRequest, match="cannot be given"):
        template.render([{"role": "user", "content": threading.Lock()}])
    assert template.render([{"role": "user", "content": "a\ud800\x00é"}]) == "a\ud800\x00é"
    template.close()


def test_threads_take_turns() -> None:
    template = ChatTemplate("{{ messages[0].content * 3 }}")
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda n: template.render([{"role": "user", "content": f"{n},"}]), range(40)))
    assert got == [f"{n}," * 3 for n in range(40)]
    template.close()


# --- models without a template


def test_without_a_template_chatml_is_used_where_the_vocabulary_has_its_marks() -> None:
    template = default_template(["a", "<|im_start|>", "<|im_end|>"], bos_token="<s>", isolated=False)
    assert template.render(TURNS[:2]) == (
        "<|im_start|>user\nHello there,\n  what is 2 < 3 & 4?<|im_end|>\n"
        "<|im_start|>assistant\nIt is {{ true }}. 猫 🐈\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "ChatML" in template.note


def test_without_a_template_and_marks_plain_lines_are_used() -> None:
    template = default_template(["a"], bos_token="<s>", isolated=False)
    assert template.render([SYSTEM | {"content": None}, {"role": "user", "content": "Hi"}]) == (
        "<s>system: \nuser: Hi\nassistant:"
    )
    assert template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=False) == "<s>user: Hi\n"
    assert "plain" in template.note


def test_a_tokenizer_gives_its_models_template_by_name() -> None:
    bare = from_metadata("tiny").chat_template(isolated=False)
    assert bare.note
    assert bare.render([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant:"
    metadata = gguf_metadata("tiny") | {
        "tokenizer.chat_template": "{{ bos_token }}plain{{ eos_token }}",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.broken": 7,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    shown = {name: tokenizer.chat_template(name, isolated=False) for name in ("default", "tool_use", "other", "broken")}
    assert {name: template.render(TURNS) for name, template in shown.items()} == {
        "default": "<s>plain</s>",
        "tool_use": "tools",
        "other": "<s>plain</s>",
        "broken": "<s>plain</s>",
    }
    assert not any(template.note for template in shown.values())
