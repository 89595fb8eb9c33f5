"""Tools and forms in `/v1/chat/completions`: calls whole and in parts, calls that are required, JSON that is."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import jsonschema
import openai
import pytest

from localllm.runtime.load import TextSide
from localllm.store.entry import Entry
from tests.daemon.toy import ToyLibrary, ToyTemplate, toy_entry, toy_text
from tests.server.parrot import parrots
from tests.server.test_chat import events_of
from tests.server.world import World, daemon

if TYPE_CHECKING:
    from localllm.tokens.chat import ChatTemplate

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look something up",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "maxLength": 8}, "times": {"type": "integer"}},
            "required": ["word"],
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}
CALL = '<tool_call>\\n{"name": "look", "arguments": {"word": "sky", "times": 2}}\\n</tool_call>'
SMALL = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "boolean"}},
    "required": ["a", "n"],
    "additionalProperties": False,
}


class Quiet(ToyTemplate):
    """Of a model that does not think and knows no tools."""

    source = ""


def quiet_text(entry: Entry) -> TextSide:
    text = toy_text(entry, temperature=0.0)
    return text if entry.name == "parrot:1b" else replace(text, template=cast("ChatTemplate", Quiet()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    library = ToyLibrary(toy_entry("quiet:1b", "parrot:"), toy_entry("parrot:1b", "parrot:"))
    sources = replace(parrots(), library=library, load_text=quiet_text)
    with daemon(tmp_path_factory.mktemp("home"), sources=sources, default_model="quiet:1b") as world:
        yield world


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{world.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def ask(world: World, text: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 400}
    answer = world.client.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def streamed(world: World, text: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 400, "stream": True}
    events = events_of(world.client.post("/v1/chat/completions", json=body | fields).text)
    return [event["choices"][0] for event in events]


def calls_of(choice: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


# ---- calls


def test_a_call_is_told_from_words(world: World) -> None:
    choice = ask(world, f"say:Let me look.\\n{CALL}", tools=[LOOK])
    assert choice["message"]["content"] == "Let me look."
    assert calls_of(choice) == [("look", {"word": "sky", "times": 2})]
    assert choice["finish_reason"] == "tool_calls"
    assert re.fullmatch("call_[0-9a-f]{24}", choice["message"]["tool_calls"][0]["id"])


def test_a_streamed_call_comes_in_parts_that_make_the_whole(world: World) -> None:
    choices = streamed(world, f"say:{CALL}\\n{CALL}", tools=[LOOK])
    parts = [part for choice in choices for part in choice["delta"].get("tool_calls", [])]
    assert choices[-1]["finish_reason"] == "tool_calls"
    for index in (0, 1):
        own = [part for part in parts if part["index"] == index]
        assert own[0]["id"] and own[0]["type"] == "function" and own[0]["function"]["name"] == "look"
        assert all("id" not in part and "name" not in part["function"] for part in own[1:])
        arguments = "".join(part["function"]["arguments"] for part in own)
        assert arguments == ask(world, f"say:{CALL}", tools=[LOOK])["message"]["tool_calls"][0]["function"]["arguments"]
    assert len({part["id"] for part in parts if "id" in part}) == 2


def test_what_only_looks_like_a_call_is_words(world: World) -> None:
    text = "<tool_call>not one</tool_call>"
    assert ask(world, f"say:{text}", tools=[LOOK])["message"]["content"] == text
    assert (
        "".join(choice["delta"].get("content", "") for choice in streamed(world, f"say:{text}", tools=[LOOK])) == text
    )


def test_without_tools_or_with_choice_none_a_call_is_words(world: World) -> None:
    said = CALL.replace("\\n", "\n")
    assert ask(world, f"say:{CALL}")["message"]["content"] == said
    assert ask(world, f"say:{CALL}", tools=[LOOK], tool_choice="none")["message"]["content"] == said


def test_without_parallel_calls_there_is_one(world: World) -> None:
    for choice in ("auto", "required"):
        fields = {"tools": [LOOK], "parallel_tool_calls": False, "tool_choice": choice}
        whole = ask(world, f"say:{CALL}\\n{CALL}", **fields)
        assert len(calls_of(whole)) == 1
        assert whole["finish_reason"] == "tool_calls" and whole["stop_reason"] is None
        parts = streamed(world, f"say:{CALL}\\n{CALL}", **fields)
        assert {part["index"] for choice in parts for part in choice["delta"].get("tool_calls", [])} == {0}


def test_a_required_call_is_made_whatever_the_model_would_have_said(world: World) -> None:
    choice = ask(world, "say:I would rather not", tools=[LOOK], tool_choice="required", parallel_tool_calls=False)
    ((name, arguments),) = calls_of(choice)
    assert name == "look" and choice["message"]["content"] is None
    jsonschema.validate(arguments, LOOK["function"]["parameters"])  # type: ignore[index]


def test_a_named_function_is_called_and_no_other(world: World) -> None:
    named = {"type": "function", "function": {"name": "stop"}}
    assert calls_of(ask(world, f"say:{CALL}", tools=[LOOK, STOP], tool_choice=named)) == [("stop", {})]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert calls_of(ask(world, f"say:{CALL}", tools=[LOOK, STOP], tool_choice=allowed))[0] == ("stop", {})


def test_arguments_of_a_strict_function_fit_wherever_it_is_called(world: World) -> None:
    strict = {"type": "function", "function": {**LOOK["function"], "strict": True}}  # type: ignore[dict-item]
    bad = 'say:Hm.\\n<tool_call>\\n{"name": "look", "arguments": {"wrong": 1}}\\n</tool_call>'
    choice = ask(world, bad, tools=[strict])
    ((name, arguments),) = calls_of(choice)
    assert name == "look" and choice["message"]["content"] == "Hm."
    jsonschema.validate(arguments, LOOK["function"]["parameters"])  # type: ignore[index]
    assert calls_of(ask(world, bad, tools=[LOOK])) == [("look", {"wrong": 1})]
    assert ask(world, "say:Just words", tools=[strict])["message"]["content"] == "Just words"


def test_a_model_without_tools_of_its_own_is_told_of_them_and_of_what_was_called(world: World) -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"word":"x"}'}}]
    messages = [
        {"role": "user", "content": "hm"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "blue"}]},
        {"role": "tool", "tool_call_id": "b", "content": "grey"},
    ]
    body = {"messages": messages, "tools": [LOOK], "return_token_ids": True, "max_tokens": 1}
    ids = world.client.post("/v1/chat/completions", json=body).json()["prompt_token_ids"]
    prompt = bytes(ids).decode()
    assert prompt.startswith("<system>") and '"description":"Look something up"' in prompt
    assert '<tool_call>\n{"name":"look","arguments":{"word":"x"}}\n</tool_call>' in prompt
    results = "<tool_response>\nblue\n</tool_response>\n<tool_response>\ngrey\n</tool_response>"
    assert f"<user>{results}\n<assistant>" in prompt


def test_the_official_client_puts_the_parts_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="quiet:1b",
        messages=[{"role": "user", "content": f"say:{CALL}"}],
        tools=[LOOK],
        temperature=0,  # type: ignore[list-item]
    ) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in names and "tool_calls.function.arguments.done" in names
    (call,) = final.choices[0].message.tool_calls or []
    assert call.type == "function" and json.loads(call.function.arguments) == {"word": "sky", "times": 2}


# ---- forms


FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "small", "strict": True, "schema": SMALL}}},
    {"response_format": {"type": "json_object", "schema": SMALL}},
    {"response_format": {"type": "json_object", "value": SMALL}},  # so huggingface_hub sends a json_schema
    {"structured_outputs": {"json": SMALL}},
    {"structured_outputs": {"json": json.dumps(SMALL)}},
    {"guided_json": SMALL},
    {"json_schema": SMALL},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_answer_fits_its_schema(world: World, form: dict[str, Any]) -> None:
    choice = ask(world, "say:no JSON at all", **form)
    jsonschema.validate(json.loads(choice["message"]["content"]), SMALL)
    assert choice["finish_reason"] == "stop"


def test_any_object_will_do_where_no_schema_is_given(world: World) -> None:
    said = ask(world, 'say:{"sky": ["blue"]}', response_format={"type": "json_object"})
    assert json.loads(said["message"]["content"]) == {"sky": ["blue"]}
    forced = ask(world, "say:words", response_format={"type": "json_object"}, max_tokens=3)
    assert forced["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-x/y"}, "[0-9]{3}-x/y"),
        ({"structured_outputs": {"regex": "(yes|no)!"}}, "(yes|no)!"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"structured_outputs": {"choice": ["a\nb"]}}, "a\nb"),
        ({"grammar": 'root ::= "<" [ab]{2} ">"'}, "<[ab]{2}>"),
        ({"guided_grammar": 'start: "x" /[0-9]/ "y"'}, "x[0-9]y"),
        ({"structured_outputs": {"grammar": 'root ::= "ok" | "ko"'}}, "ok|ko"),
    ],
)
def test_other_forms_hold_as_well(world: World, form: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(world, "say:something else", **form)["message"]["content"])
    texts = [choice["delta"].get("content", "") for choice in streamed(world, "say:something else", **form)]
    assert re.fullmatch(pattern, "".join(texts))


def test_guidance_sends_its_grammar_by_both_of_the_names_that_vllm_has_had(world: World) -> None:
    text = '%llguidance {}\n\nstart: "I say " a\na[capture]: A\nA: /[a-z]{3}/\n'
    form = {"guided_decoding_backend": "guidance", "guided_grammar": text, "structured_outputs": {"grammar": text}}
    assert re.fullmatch("I say [a-z]{3}", ask(world, "say:something else", **form)["message"]["content"])


def test_with_tools_an_answer_is_a_call_or_has_its_form(world: World) -> None:
    fields = {"tools": [LOOK], "guided_json": SMALL}
    assert calls_of(ask(world, f"say:{CALL}", **fields)) == [("look", {"word": "sky", "times": 2})]
    assert json.loads(ask(world, 'say:{"a":"y","n":true}', **fields)["message"]["content"]) == {"a": "y", "n": True}


def test_a_form_holds_behind_the_thoughts(world: World) -> None:
    choice = ask(world, 'say:<think>{ hm }</think>\\n{"a":"x","n":false}', model="parrot:1b", guided_json=SMALL)
    assert choice["message"]["reasoning"] == "{ hm }"
    assert json.loads(choice["message"]["content"]) == {"a": "x", "n": False}


def test_the_official_client_parses_what_comes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="quiet:1b",
        messages=[{"role": "user", "content": "say:words"}],
        response_format={"type": "json_schema", "json_schema": {"name": "small", "schema": SMALL}},
        n=2,
    )
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), SMALL)
