"""Ollama's native API with its official client: answers, options, thinking, tools, formats, loading, vectors."""

import asyncio
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import ollama
import pytest

from localllm.runtime.load import TextSide
from localllm.server import ollama_shapes as shapes
from localllm.server.ollama_formats import closed
from localllm.server.ollama_options import sampling_fields
from localllm.server.ollama_shapes import OllamaOptions
from localllm.store.entry import Entry
from localllm.tokens.chat import ChatTemplate
from tests.daemon.toy import ToyLibrary, ToyTokenizer, expected_text, toy_entry, toy_text
from tests.server.parrot import parrots
from tests.server.world import World, daemon

MODEL = "parrot:1b"
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look somewhere",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = 'say:I look.\\n<tool_call>{"name": "look", "arguments": {"place": "Bern"}}</tool_call>'
TWO_CALLS = CALL + '<tool_call>{"name": "look", "arguments": {"place": "Rome"}}</tool_call>'
THINK = "say:<think>Let me see.</think>It is fine."
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


class TemplatedTokenizer(ToyTokenizer):
    """Makes templates of its own, as real ones do."""

    def chat_template(self, *, source: str | None = None, isolated: bool = True) -> ChatTemplate:
        return ChatTemplate(source or "", isolated=isolated)


def templated(entry: Entry) -> TextSide:
    return replace(toy_text(entry, temperature=0.0), tokenizer=cast(Any, TemplatedTokenizer()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), sources=replace(parrots(), load_text=templated)) as world:
        yield world


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[ollama.Client]:
    with ollama.Client(host=world.url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    slow = toy_entry("toy:slow", "toy:slow")
    vectors = toy_entry("toy:vectors", capabilities=("embedding",))
    plain = toy_entry("toy:plain", capabilities=("completion",))
    own = toy_entry("toy:own", system="Be kind.", params={"num_predict": 3, "temperature": 0, "stop": ["c"]})
    with daemon(tmp_path_factory.mktemp("toys"), ToyLibrary(toy_entry("toy:1b"), slow, vectors, plain, own)) as world:
        yield world


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def chat(world: World, text: str = "say:yes", **fields: Any) -> Any:
    body = {"model": MODEL, "messages": user(text), "stream": False} | fields
    return world.client.post("/api/chat", json=body)


def lines_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# ---- answers


def test_a_stream_says_what_a_whole_answer_says(client: ollama.Client) -> None:
    whole = client.chat(MODEL, user("say:Good morning, é 🙂"))
    pieces = list(client.chat(MODEL, user("say:Good morning, é 🙂"), stream=True))
    assert whole.message.content == "".join(piece.message.content or "" for piece in pieces) == "Good morning, é 🙂"
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].message.content == "" and pieces[-1].done_reason == whole.done_reason == "stop"
    assert pieces[-1].eval_count == whole.eval_count


def test_what_an_answer_cost_is_told_in_counts_and_nanoseconds(client: ollama.Client) -> None:
    answer = client.chat(MODEL, user("say:1234"))
    assert answer.prompt_eval_count == len(b"<user>say:1234\n<assistant>")
    assert answer.eval_count == 4 and (answer.eval_duration or 0) > 1000
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) + (answer.prompt_eval_duration or 0)


def test_an_answer_at_its_limit_says_so(client: ollama.Client) -> None:
    answer = client.chat(MODEL, user("say:1234"), options={"num_predict": 2})
    assert (answer.message.content, answer.done_reason) == ("12", "length")


def test_num_ctx_caps_the_request_and_loads_nothing_again(world: World, client: ollama.Client) -> None:
    before = world.ps()[0]["pid"]
    prompt_tokens = len(b"<user>say:1234\n<assistant>")
    answer = client.chat(MODEL, user("say:1234"), options={"num_ctx": prompt_tokens + 3})
    assert (answer.message.content, answer.done_reason) == ("123", "length")
    refused = chat(world, "say:1234", options={"num_ctx": prompt_tokens})
    assert refused.status_code == 400 and f"{prompt_tokens} tokens" in refused.json()["error"]
    assert world.ps()[0]["pid"] == before


def test_stops_end_an_answer(client: ollama.Client) -> None:
    assert client.chat(MODEL, user("say:1234"), options={"stop": ["3"]}).message.content == "12"


def test_options_without_effect_and_unknown_fields_are_named(world: World) -> None:
    answer = chat(
        world, options={"num_gpu": 1, "mirostat": 2, "typical_p": 1, "wings": 2}, novelty={"a": 1}, shift=True
    )
    assert answer.status_code == 200
    named = answer.headers["x-localllm-ignored"].split(", ")
    assert sorted(named) == ["novelty", "options.mirostat", "options.num_gpu", "options.wings", "shift"]


def test_log_probabilities_of_others_without_any_are_named(world: World) -> None:
    assert chat(world, top_logprobs=2).headers["x-localllm-ignored"] == "top_logprobs"
    assert "x-localllm-ignored" not in chat(world, top_logprobs=0).headers
    assert "x-localllm-ignored" not in chat(world, top_logprobs=2, logprobs=True).headers


def test_every_option_that_the_engine_has_reaches_it(world: World) -> None:
    assert sampling_fields(OllamaOptions(typical_p=0.5)) == {"typical_p": 0.5}
    answer = chat(world, options={"typical_p": 0.5})
    assert answer.status_code == 200 and "x-localllm-ignored" not in answer.headers
    refused = chat(world, options={"typical_p": 1.5})
    assert refused.status_code == 400 and "options.typical_p" in refused.json()["error"]


def test_a_models_own_parameters_hold_until_options_say_otherwise(toys: World) -> None:
    def said(**options: Any) -> Any:
        body = {"model": "toy:own", "messages": user("x"), "stream": False, "options": options}
        return toys.client.post("/api/chat", json=body).json()

    prompt = b"<system>Be kind.\n<user>x\n<assistant>"
    assert said()["message"]["content"] == expected_text(prompt, 3).partition("c")[0]
    assert said(num_predict=5, stop=[])["message"]["content"] == expected_text(prompt, 5)


def test_a_seed_makes_answers_equal(toys: World) -> None:
    body = {"model": "toy:1b", "messages": user("x"), "stream": False, "options": {"num_predict": 9, "seed": 4}}
    assert len({toys.client.post("/api/chat", json=body).json()["message"]["content"] for _ in range(3)}) == 1


# ---- thinking


def test_thoughts_come_apart_from_the_answer(client: ollama.Client) -> None:
    answer = client.chat(MODEL, user(THINK), think=True)
    assert (answer.message.thinking, answer.message.content) == ("Let me see.", "It is fine.")
    pieces = list(client.chat(MODEL, user(THINK), think="high", stream=True))
    assert "".join(piece.message.thinking or "" for piece in pieces) == "Let me see."
    generated = client.generate(MODEL, THINK, think=True)
    assert (generated.thinking, generated.response) == ("Let me see.", "It is fine.")


def test_a_model_that_does_not_think_is_not_asked_to(toys: World) -> None:
    body = {"model": "toy:plain", "messages": user("x"), "think": True}
    refused = toys.client.post("/api/chat", json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, '"toy:plain" does not support thinking')
    assert toys.client.post("/api/chat", json=body | {"think": False, "options": {"num_predict": 1}}).status_code == 200


# ---- tools


def test_a_call_has_an_object_and_a_short_id(world: World, client: ollama.Client) -> None:
    answer = client.chat(MODEL, user(CALL), tools=[TOOL])
    (call,) = answer.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("look", {"place": "Bern"})
    (raw,) = chat(world, CALL, tools=[TOOL]).json()["message"]["tool_calls"]
    assert len(raw["id"]) == len("call_") + 8 and raw["id"][5:].isalnum() and raw["function"]["index"] == 0


def test_calls_are_streamed_whole_and_in_order(client: ollama.Client) -> None:
    pieces = list(client.chat(MODEL, user(TWO_CALLS), tools=[TOOL], stream=True))
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert [call.function.arguments for call in calls] == [{"place": "Bern"}, {"place": "Rome"}]
    assert "".join(piece.message.content or "" for piece in pieces).strip() == "I look."


def test_the_result_of_a_tool_goes_back(client: ollama.Client) -> None:
    messages = [
        *user("where?"),
        {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"place": "Bern"}}}]},
        {"role": "tool", "tool_name": "look", "content": "say:It rains."},
    ]
    assert client.chat(MODEL, messages, tools=[TOOL]).message.content == "It rains."


def test_a_python_function_can_be_a_tool(client: ollama.Client) -> None:
    def look(place: str) -> str:
        """Look somewhere.

        Args:
          place: where
        """
        return place

    assert client.chat(MODEL, user(CALL), tools=[look]).message.tool_calls


# ---- formats


@pytest.mark.parametrize("wanted", ["json", SCHEMA])
def test_a_format_is_kept(client: ollama.Client, wanted: Any) -> None:
    answer = client.chat(MODEL, user('say:{"a": 7} and more'), format=wanted)
    assert json.loads(answer.message.content or "")["a"] == 7
    generated = client.generate(MODEL, 'say:{"a": 7} and more', format=wanted)
    assert json.loads(generated.response or "")["a"] == 7


def test_objects_are_closed_where_the_schema_does_not_open_them() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {"a": inner, "b": {"type": "array", "items": inner}, "c": {"anyOf": [inner, {"type": "null"}]}},
        "$defs": {"d": inner, "open": inner | {"additionalProperties": True}, "all": inner | {"allOf": [inner]}},
    }
    shut = inner | {"additionalProperties": False}
    assert closed(schema) == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": shut, "b": {"type": "array", "items": shut}, "c": {"anyOf": [shut, {"type": "null"}]}},
        "$defs": {"d": shut, "open": inner | {"additionalProperties": True}, "all": inner | {"allOf": [inner]}},
    }


def test_an_answer_has_no_properties_that_nobody_asked_for(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = client.chat(MODEL, user('say:{"a": 7, "b": 8}'), format=schema)
    assert json.loads(answer.message.content or "") == {"a": 7}


def test_a_raw_prompt_has_formats_too(client: ollama.Client) -> None:
    generated = client.generate(MODEL, 'say:{"a": 7} and more<assistant>', raw=True, format=SCHEMA)
    assert json.loads(generated.response or "") == {"a": 7}


def test_a_schema_that_is_none_is_refused(world: World) -> None:
    refused = chat(world, format={"type": "wizard"})
    assert refused.status_code == 400 and "wizard" in refused.json()["error"]


# ---- generating


def test_a_system_message_and_a_template_can_be_given(client: ollama.Client) -> None:
    template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}say:{{ messages|length }}<assistant>"
    assert client.generate(MODEL, "x", system="Be brief.", template=template).response == "2"


def test_a_hostile_template_is_kept_in_its_box(world: World) -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    body = {"model": MODEL, "prompt": "x", "template": attack, "stream": False}
    assert world.client.post("/api/generate", json=body).status_code == 400
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    assert world.client.post("/api/generate", json=body | {"template": endless}).status_code == 400


def test_a_context_goes_on_where_it_ended(client: ollama.Client) -> None:
    first = client.generate(MODEL, "say:one")
    context = list(first.context or ())
    assert bytes(token for token in context if token < 256) == b"<user>say:one\n<assistant>one"
    second = client.generate(MODEL, "say:two", context=context)
    assert second.response == "two" and list(second.context or ())[: len(context)] == context


def test_raw_prompts_go_in_as_they_are(client: ollama.Client) -> None:
    answer = client.generate(MODEL, "say:this<assistant>", raw=True)
    assert answer.response == "this" and answer.context is None


def test_logprobs_are_told_token_by_token(client: ollama.Client) -> None:
    for answer in (
        client.chat(MODEL, user("say:ab"), logprobs=True, top_logprobs=2),
        client.generate(MODEL, "say:ab", logprobs=True, top_logprobs=2),
        client.generate(MODEL, "say:ab<assistant>", raw=True, logprobs=True, top_logprobs=2),
    ):
        shown = answer.logprobs or ()
        assert [each.token for each in shown][:2] == ["a", "b"]
        assert all(len(each.top_logprobs or ()) == 2 for each in shown)
    pieces = list(client.chat(MODEL, user("say:ab"), logprobs=True, stream=True))
    assert "".join(each.token for piece in pieces for each in piece.logprobs or ()) == "ab"


# ---- nothing is cut in silence


def test_a_prompt_that_does_not_fit_is_refused_whatever_the_default_of_others(world: World) -> None:
    refused = chat(world, "x" * 500, options={"num_ctx": 100})
    assert refused.status_code == 400 and "context length is 100 tokens" in refused.json()["error"]


def test_old_messages_are_dropped_only_where_that_is_asked_for_and_it_is_said(world: World) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *[{"role": role, "content": f"{number} " + "x" * 40} for number in range(6) for role in ("user", "assistant")],
        *user("say:done"),
    ]
    answer = chat(world, messages=messages, truncate=True, options={"num_ctx": 200})
    body = answer.json()
    assert body["message"]["content"] == "done" and body["truncated_messages"] == 10
    assert answer.headers["x-localllm-truncated"] == "10 messages"
    assert body["prompt_eval_count"] < 200
    assert chat(world, messages=messages, options={"num_ctx": 200}).status_code == 400
    assert "truncated_messages" not in chat(world, messages=messages[-2:], truncate=True).json()


def test_one_message_that_is_too_long_is_refused_in_any_case(world: World) -> None:
    assert chat(world, "x" * 300, truncate=True, options={"num_ctx": 100}).status_code == 400


# ---- loading


def test_without_a_prompt_a_model_is_loaded_and_unloaded(client: ollama.Client) -> None:
    assert client.generate(MODEL).done_reason == "load"
    assert [each.model for each in client.ps().models] == [MODEL]
    assert client.chat(MODEL, keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.generate(MODEL, keep_alive=0).done_reason == "unload", "one that is not loaded is not loaded for it"
    assert client.ps().models == []


@pytest.mark.parametrize(("keep_alive", "seconds"), [("10m", 600), (60, 60), ("1h30m", 5400)])
def test_a_model_is_kept_as_long_as_asked(client: ollama.Client, keep_alive: str | float, seconds: float) -> None:
    client.generate(MODEL, "say:x", keep_alive=keep_alive)
    (shown,) = client.ps().models
    assert shown.expires_at and math.isclose(shown.expires_at.timestamp() - time.time(), seconds, abs_tol=20)


def test_a_model_that_is_kept_for_ever_expires_in_centuries(client: ollama.Client) -> None:
    client.generate(MODEL, "say:x", keep_alive=-1)
    (shown,) = client.ps().models
    assert shown.expires_at and shown.expires_at.year > 2300 and shown.context_length
    client.generate(MODEL, "say:x", keep_alive="5m")


# ---- vectors


def test_texts_become_vectors_of_length_one(toys: World) -> None:
    with ollama.Client(host=toys.url, trust_env=False) as client:
        answer = client.embed("toy:vectors", ["one", "two"])
        assert [math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in answer.embeddings] == [True, True]
        assert answer.prompt_eval_count == 8 and (answer.total_duration or 0) > 0
        short = client.embed("toy:vectors", "one", dimensions=3).embeddings[0]
        assert len(short) == 3 and math.isclose(math.hypot(*short), 1, abs_tol=1e-5)
        assert list(client.embeddings("toy:vectors", "one").embedding) == list(answer.embeddings[0])
        assert client.embed("toy:vectors", []).embeddings == []


def test_a_text_that_does_not_fit_is_cut_only_where_that_is_asked_for(toys: World) -> None:
    body = {"model": "toy:vectors", "input": ["a", "b" * 900]}
    for cuts in ({}, {"truncate": False}):
        refused = toys.client.post("/api/embed", json=body | cuts)
        assert (refused.status_code, refused.json()["error"]) == (400, "the input length exceeds the context length")
    cut = toys.client.post("/api/embed", json=body | {"truncate": True})
    assert cut.json()["truncated_inputs"] == [1] and cut.headers["x-localllm-truncated"] == "1 inputs"


# ---- what was promised


def test_clients_that_look_for_ollama_find_it(world: World) -> None:
    for method in ("GET", "HEAD"):
        for path in ("/", "/api/version", "/api/tags"):
            assert world.client.request(method, path).status_code == 200
    assert "Ollama is running" in world.client.get("/").text
    assert tuple(map(int, world.client.get("/api/version").json()["version"].split("."))) >= (0, 12, 0)


@pytest.mark.parametrize(
    ("path", "fields", "shape"),
    [
        ("/api/chat", {"messages": user(TWO_CALLS), "tools": [TOOL]}, shapes.OllamaChatted),
        ("/api/chat", {"messages": user(THINK), "logprobs": True, "top_logprobs": 1}, shapes.OllamaChatted),
        ("/api/chat", {}, shapes.OllamaChatted),
        ("/api/generate", {"prompt": THINK}, shapes.OllamaGenerated),
        ("/api/generate", {}, shapes.OllamaGenerated),
        ("/api/embed", {"input": "x"}, shapes.OllamaEmbedded),
        ("/api/embeddings", {"prompt": "x"}, shapes.OllamaOldEmbedded),
        ("/api/chat", {"messages": 5}, shapes.OllamaError),
    ],
)
def test_answers_are_what_is_described(world: World, path: str, fields: dict[str, Any], shape: Any) -> None:
    body = world.client.post(path, json={"model": MODEL, "stream": False} | fields).json()
    assert msgspec.to_builtins(msgspec.convert(body, shape)) == body, "the answer has fields that are not described"


@pytest.mark.parametrize(("path", "shape"), [("/api/tags", shapes.OllamaTags), ("/api/ps", shapes.OllamaRunning)])
def test_lists_are_what_is_described(world: World, path: str, shape: Any) -> None:
    chat(world)
    body = world.client.get(path).json()
    assert body["models"] and msgspec.to_builtins(msgspec.convert(body, shape)) == body


def test_many_at_once_are_served_together(world: World) -> None:
    async def all_of_them() -> list[str]:
        async with ollama.AsyncClient(host=world.url, trust_env=False) as client:
            answers = await asyncio.gather(*(client.chat(MODEL, user(f"say:{number}")) for number in range(20)))
        return [answer.message.content or "" for answer in answers]

    assert asyncio.run(all_of_them()) == [str(number) for number in range(20)]


# ---- whole transcripts

GOLDEN = Path(__file__).parent / "golden"
_SET_TO_ZERO = ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def normal(text: str) -> str:
    """Without times and ids; neighbouring lines of one kind joined, as steps gather them differently."""
    shown: list[dict[str, Any]] = []
    for line in [part for whole in lines_of(text) for part in _parts(whole)]:
        for name in _SET_TO_ZERO:
            if name in line:
                line[name] = 0
        line.pop("prompt_eval_cached_count", None)
        for call in line.get("message", {}).get("tool_calls", ()):
            call["id"] = "call_"
        if not (shown and _joined(shown[-1], line)):
            shown.append(line)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in shown)


def _parts(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Thoughts, text and calls of one line apart, as it depends on the moment which of them share a line."""
    message = line.get("message")
    if message is None or line["done"]:
        yield line
        return
    empty = {"role": "assistant", "content": ""}
    for name in ("thinking", "content"):
        if message.get(name):
            yield line | {"message": empty | {name: message[name]}}
    for call in message.get("tool_calls", ()):
        yield line | {"message": empty | {"tool_calls": [call]}}


def _joined(last: dict[str, Any], line: dict[str, Any]) -> bool:
    a, b = last.get("message", last), line.get("message", line)
    name = next((key for key in ("thinking", "content", "response") if a.get(key) and b.get(key)), None)
    if last["done"] or line["done"] or name is None or "tool_calls" in a or "tool_calls" in b:
        return False
    a[name] += b[name]
    return True


@pytest.mark.parametrize(
    ("name", "path", "fields"),
    [
        ("text", "/api/chat", {"messages": user("say:Good morning")}),
        ("thinking", "/api/chat", {"messages": user(THINK), "think": True}),
        ("call", "/api/chat", {"messages": user(TWO_CALLS), "tools": [TOOL]}),
        ("cut", "/api/chat", {"messages": user("say:Good morning"), "options": {"num_predict": 4}}),
        ("generate", "/api/generate", {"prompt": "say:hi"}),
        ("raw", "/api/generate", {"prompt": "say:hi<assistant>", "raw": True}),
        ("load", "/api/chat", {"messages": []}),
    ],
)
def test_a_transcript_is_as_it_was(world: World, name: str, path: str, fields: dict[str, Any]) -> None:
    answer = world.client.post(path, json={"model": MODEL} | fields)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert normal(answer.text) == (GOLDEN / f"ollama_{name}.ndjson").read_text()
