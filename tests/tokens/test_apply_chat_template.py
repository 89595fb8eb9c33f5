"""`Tokenizer.apply_chat_template` and `render_template`: which template, which variables, what is refused."""

from typing import Any

import pytest

from localllm.errors import InvalidRequest, TemplateError, TemplateLimit, TemplateRefused
from localllm.tokens.chat import render_text
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.conversations import DOCUMENTS, HELLO, TOOLS, TURNS
from tests.tokens.material import from_metadata, gguf_metadata

NAMED = {
    "tokenizer.chat_template": "{{ bos_token }}plain{{ eos_token }}",
    "tokenizer.chat_template.tool_use": "{{ tools | length }} tools",
    "tokenizer.chat_template.rag": "{{ documents | map(attribute='title') | join('+') }}",
}


def named(**changes: Any) -> Tokenizer:
    metadata = gguf_metadata("tiny") | NAMED | changes
    return Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None})


def test_the_default_template_is_taken_and_tool_use_for_tools() -> None:
    tokenizer = named()
    assert tokenizer.apply_chat_template(TURNS) == "<s>plain</s>"
    assert tokenizer.apply_chat_template(TURNS, tools=TOOLS) == "2 tools"
    assert tokenizer.apply_chat_template(TURNS, tools=TOOLS, chat_template="default") == "<s>plain</s>"
    assert tokenizer.apply_chat_template(TURNS, documents=DOCUMENTS, chat_template="rag") == "Cats+Hunde"


def test_a_template_may_be_given_in_full() -> None:
    assert named().apply_chat_template(TURNS, chat_template="{{ messages | length }}{{ eos_token }}") == "3</s>"


def test_a_name_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(InvalidRequest, match="default, rag, tool_use") as caught:
        named().apply_chat_template(TURNS, chat_template="thinking")
    assert caught.value.param == "chat_template"


def test_several_templates_without_a_default_want_a_name() -> None:
    tokenizer = named(**{"tokenizer.chat_template": None})
    with pytest.raises(InvalidRequest, match="rag, tool_use"):
        tokenizer.apply_chat_template(TURNS)
    assert tokenizer.apply_chat_template(TURNS, tools=TOOLS) == "2 tools"


def test_a_model_without_a_template_gets_the_made_up_one() -> None:
    prompt = from_metadata("tiny").apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert prompt == "<s>user: Hi\nassistant:"


def test_no_prompt_for_an_answer_is_added_unasked() -> None:
    text = "{{ messages[0].role }}{% if add_generation_prompt %}?{% endif %}"
    assert named().apply_chat_template([HELLO], chat_template=text) == "user"
    assert named().apply_chat_template([HELLO], chat_template=text, add_generation_prompt=True) == "user?"


def test_variables_pass_by_name_or_as_a_mapping_if_they_are_on_the_list() -> None:
    text, tokenizer = "{{ enable_thinking }}", named()
    assert tokenizer.apply_chat_template(TURNS, chat_template=text, enable_thinking=False) == "False"
    given = {"enable_thinking": True}
    assert tokenizer.apply_chat_template(TURNS, chat_template=text, chat_template_kwargs=given) == "True"
    with pytest.raises(InvalidRequest, match="'bos_token'") as caught:
        tokenizer.apply_chat_template(TURNS, chat_template_kwargs={"bos_token": "<x>"})
    assert caught.value.param == "chat_template_kwargs"


def test_any_template_renders_without_a_model() -> None:
    source = "{{ bos_token }}{{ messages[-1].content }}{{ tools | length }}{{ mood }}{{ documents[0].title }}"
    rendered = Tokenizer.render_template(
        source, TURNS[:1], TOOLS, {"bos_token": "<s>"}, mood="!", documents=DOCUMENTS
    )  # fmt: skip
    assert rendered == f"<s>{HELLO['content']}2!Cats"


@pytest.mark.parametrize("isolated", [True, False])
def test_the_last_message_is_left_open(isolated: bool) -> None:
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert Tokenizer.render_template(source, TURNS[:2], isolated=isolated, continue_final_message=True) == (
        f"[{HELLO['content']}][{TURNS[1]['content']}"
    )


def test_an_authors_refusal_is_told_from_a_fault_and_from_a_limit() -> None:
    with pytest.raises(TemplateRefused, match="Only cats!") as refused:
        Tokenizer.render_template("{{ raise_exception('Only cats!') }}", TURNS)
    with pytest.raises(TemplateError, match="UndefinedError") as failed:
        Tokenizer.render_template("{{ nothing.at.all }}", TURNS)
    with pytest.raises(TemplateLimit) as limited:
        Tokenizer.render_template("{{ 'a' * 10**9 }}", TURNS)
    codes = [caught.value.code for caught in (refused, failed, limited)]
    assert codes == ["template_refused", "template_error", "template_limit"]
    assert {caught.value.http_status for caught in (refused, failed, limited)} == {400}


@pytest.mark.parametrize("name", ["raise_exception", "strftime_now", "messages", "_x", "namespace"])
def test_names_of_the_templates_own_are_not_given_away(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        render_text("ok", TURNS, variables={name: 1})


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"messages": TURNS, "tools": [len]}, "tools"),
        ({"messages": TURNS, "documents": ["a text"]}, "documents"),
        ({"messages": TURNS, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": [{"role": "user"}], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": 5}], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": [{}]}], "continue_final_message": True}, "continue_final_message"),
        ({"messages": TURNS, "continue_final_message": "content"}, "continue_final_message"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Tokenizer.render_template("no message is read", **given)
    assert caught.value.param == param


def test_a_template_that_changes_the_last_message_cannot_leave_it_open() -> None:
    with pytest.raises(InvalidRequest, match="changes the last message"):
        Tokenizer.render_template("{{ messages[-1].content | upper }}", TURNS, continue_final_message=True)


def test_the_clock_reads_as_the_template_wishes_and_no_wider() -> None:
    assert len(Tokenizer.render_template("{{ strftime_now('%Y-%m-%d') }}", TURNS)) == len("2024-02-29")
    for pattern in ("'%999999Y'", "'%Y' * 1000"):
        with pytest.raises(TemplateLimit):
            Tokenizer.render_template(f"{{{{ strftime_now({pattern}) }}}}", TURNS)
