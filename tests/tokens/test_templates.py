"""Prompts are, byte for byte, what transformers makes of the same template; a template's refusal reaches the caller."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.tokens.chat import ALLOWED_VARIABLES, ChatTemplate, default_template
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import from_metadata, gguf_metadata, shared_data
from tests.tokens.published import TEMPLATES, source_of

SYSTEM: dict[str, Any] = {"role": "system", "content": "Answer <briefly> & in \"good\" German — 'gut'."}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello there,\n  what is 2 < 3 & 4?"},
    {"role": "assistant", "content": "It is {{ true }}. 猫 🐈\n"},
    {"role": "user", "content": "  And now?  "},
]
ENDS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


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
    "tojson in ASCII": "{{ {'b': 'é<'} | tojson(ensure_ascii=true) }}{{ {'b': 'é<'} | tojson(ensure_ascii=False) }}",
    "tojson with an indent": "{{ messages | tojson(indent=4, separators=(', ', ' : '), ensure_ascii=true) }}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "generation with names": "{% set a = 1 %}{% for m in messages %}{%- generation -%}{% set a = 2 %}"
    "{{ a ~ loop.index }}{%- endgeneration -%}{% endfor %}{{ a }}",
    "dict": "{{ dict(a=1, b='x') | tojson }}",
    "dict from keys": "{{ dict.fromkeys(['a', 'b'], 1) | tojson }}",
    "items": "{% for name, value in messages[0] | items %}{{ name ~ '=' ~ value }}{% endfor %}",
    "dictsort": "{% for name, value in {'b': 1, 'A': 2} | dictsort %}{{ name ~ value }}{% endfor %}",
    "slices": "{{ messages[::-1][0].content[2:5] ~ messages[1:] | length }}",
    "neighbours": "{% for m in messages %}{{ loop.last ~ (loop.nextitem.role if loop.nextitem) }}{% endfor %}",
    "tests": "{{ tools is none }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ 'a' in 'cat' }}",
    "call block": "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}",
    "recursive loop": "{% for m in [[1, [2]]] recursive %}{{ loop(m) if m is sequence else m }}{% endfor %}",
    "raw": "{% raw %}{{ no }}{% endraw %}{# gone #}",
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
