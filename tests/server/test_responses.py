"""`/v1/responses` with the official client, strict about what it gets."""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from pydantic import BaseModel

from localllm.daemon.keys import KeyFile
from localllm.errors import ModelNotFound
from localllm.server import responses_shapes as shapes
from localllm.server.response_store import ResponseStore
from localllm.server.responses import _early_failure
from tests.daemon.toy import ToyLibrary, expected_text, toy_entry
from tests.server.golden_streams import assert_golden, events_of
from tests.server.parrot import BARE_CALL, CALL, THINK, parrots
from tests.server.world import World, daemon

LOOK: Any = {
    "type": "function",
    "name": "look",
    "description": "Look somewhere",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "n": {"type": "integer"}}},
    "strict": False,
}


def client_of(world: World, **fields: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{world.url}/v1", api_key="any", _strict_response_validation=True, max_retries=0, **fields
    )


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    with client_of(world) as client:
        yield client


def create(client: openai.OpenAI, given: Any, **fields: Any) -> Any:
    return client.responses.create(model="parrot:1b", input=given, **fields)


def refused(client: openai.OpenAI, given: Any = "x", **fields: Any) -> Any:
    """The body of the 400."""
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, given, extra_body=fields)
    return caught.value.body


# ---- answers


def test_an_answer_is_a_message_and_says_what_it_cost(toys: World) -> None:
    with client_of(toys) as client:
        answer = client.responses.create(model="toy:1b", input="Hello", temperature=0, max_output_tokens=24)
    assert answer.output_text == expected_text(b"<user>Hello\n<assistant>", 24)
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None and answer.usage.output_tokens == 24
    assert answer.usage.total_tokens == answer.usage.input_tokens + 24
    assert answer.temperature == 0 and answer.max_output_tokens == 24


def test_a_finished_answer_is_completed(client: openai.OpenAI) -> None:
    answer = create(client, "say:Good morning")
    assert answer.output_text == "Good morning" and answer.status == "completed" and answer.error is None
    assert answer.completed_at is not None and answer.completed_at >= answer.created_at
    assert [item.type for item in answer.output] == ["message"] and answer.output[0].status == "completed"


def test_an_answer_without_words_has_an_empty_message(client: openai.OpenAI) -> None:
    answer = create(client, "say:")
    assert answer.output_text == "" and len(answer.output) == 1


def test_reasoning_is_an_item_of_its_own_and_counted(client: openai.OpenAI) -> None:
    answer = create(client, THINK)
    thought, message = answer.output
    assert thought.type == "reasoning" and thought.content[0].text == "Let me see." and thought.summary == []
    assert message.content[0].text == "It is fine."
    assert 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens


def test_reasoning_is_the_summary_where_one_is_wanted(client: openai.OpenAI) -> None:
    answer = create(client, THINK, reasoning={"summary": "auto"})
    assert answer.output[0].summary[0].text == "Let me see." and answer.output[0].content is None
    assert answer.reasoning.summary == "auto"


def test_packed_reasoning_comes_back_to_the_model(client: openai.OpenAI, world: World) -> None:
    answer = create(client, THINK, include=["reasoning.encrypted_content"], store=False)
    packed = answer.output[0].encrypted_content
    item: Any = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": packed}
    assert create(client, [item, {"role": "user", "content": "say:ok"}]).output_text == "ok"


def test_log_probabilities_of_what_was_said(client: openai.OpenAI) -> None:
    answer = create(client, "say:abc", top_logprobs=2, include=["message.output_text.logprobs"])
    logprobs = answer.output[0].content[0].logprobs
    assert [entry.token for entry in logprobs][:3] == ["a", "b", "c"]
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs) and answer.top_logprobs == 2


def test_log_probabilities_are_streamed_too(client: openai.OpenAI) -> None:
    events = list(create(client, "say:abc", stream=True, include=["message.output_text.logprobs"]))
    tokens = [entry.token for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert tokens[:3] == ["a", "b", "c"]


def test_json_that_a_schema_asks_for(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        sky: str

    answer = client.responses.parse(model="parrot:1b", input='say:{"sky":"blue"}', text_format=Weather)
    assert answer.output_parsed == Weather(sky="blue")
    assert create(client, 'say:{"a":1}', text={"format": {"type": "json_object"}}).output_text == '{"a":1}'


def test_what_was_asked_for_is_told_again(client: openai.OpenAI) -> None:
    answer = create(
        client, "say:x", instructions="Be brief", metadata={"a": "b"}, user="me", top_p=0.5, tools=[LOOK],
        tool_choice="none", parallel_tool_calls=False, max_tool_calls=3, truncation="disabled", service_tier="auto",
        safety_identifier="s", prompt_cache_key="k", extra_body={"seed": 3, "top_k": 5},
    )  # fmt: skip
    assert (answer.instructions, answer.metadata, answer.user, answer.top_p) == ("Be brief", {"a": "b"}, "me", 0.5)
    assert answer.tool_choice == "none" and answer.parallel_tool_calls is False and answer.max_tool_calls == 3
    assert answer.tools[0].name == "look" and answer.truncation == "disabled" and answer.service_tier == "default"


# ---- tools


def test_a_conversation_goes_on_behind_a_call_that_was_cut(client: openai.OpenAI) -> None:
    cut: Any = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": '}
    result: Any = {"type": "function_call_output", "call_id": "1", "output": "the arguments are no JSON"}
    assert create(client, [{"role": "user", "content": "x"}, cut, result], tools=[LOOK]).status == "completed"


def test_a_call_of_a_tool_and_its_result(client: openai.OpenAI) -> None:
    first = create(client, CALL, tools=[LOOK])
    message, call = first.output
    assert message.content[0].text == "I look."
    assert (call.type, call.name, call.arguments) == ("function_call", "look", '{"place":"Bern","n":3}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains. say:Take a coat"}
    assert create(client, [result], previous_response_id=first.id, tools=[LOOK]).output_text == "Take a coat"
    given: Any = [{"role": "user", "content": CALL}, message.model_dump(), call.model_dump(), result]
    assert create(client, given, tools=[LOOK]).output_text == "Take a coat"


def test_a_named_tool_is_called_with_valid_arguments(client: openai.OpenAI) -> None:
    answer = create(client, BARE_CALL, tools=[LOOK], tool_choice={"type": "function", "name": "look"},
                    max_output_tokens=200)  # fmt: skip
    assert {item.type for item in answer.output} == {"function_call"} and answer.output[0].name == "look"


def test_a_tool_that_takes_a_text(client: openai.OpenAI) -> None:
    patch: Any = {"type": "custom", "name": "patch", "description": "Change a file"}
    said = 'say:<tool_call>{"name": "patch", "arguments": {"input": "- a + b"}}</tool_call>'
    answer = create(client, said, tools=[patch])
    call = answer.output[0]
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", "- a + b")
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "say:patched"}
    assert create(client, [result], previous_response_id=answer.id, tools=[patch]).output_text == "patched"
    events = list(create(client, said, tools=[patch], stream=True))
    assert [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"] == ["- a + b"]


def test_tools_in_a_namespace_come_back_in_it(client: openai.OpenAI) -> None:
    space: Any = {"type": "namespace", "name": "maps", "description": "Maps", "tools": [LOOK]}
    said = 'say:<tool_call>{"name": "maps__look", "arguments": {}}</tool_call>'
    call = create(client, said, tools=[space]).output[0]
    assert (call.name, call.namespace) == ("look", "maps")


def test_only_allowed_tools_are_shown_to_the_model(client: openai.OpenAI) -> None:
    other = LOOK | {"name": "other"}
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}
    both = client.responses.input_tokens.count(model="parrot:1b", input="x", tools=[LOOK, other])
    some = client.responses.input_tokens.count(model="parrot:1b", input="x", tools=[LOOK, other], tool_choice=choice)
    one = client.responses.input_tokens.count(model="parrot:1b", input="x", tools=[LOOK])
    assert some.input_tokens == one.input_tokens < both.input_tokens


# ---- streams


def streamed(world: World, given: Any, **fields: Any) -> str:
    body = {"model": "parrot:1b", "input": given, "stream": True} | fields
    answer = world.client.post("/v1/responses", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return answer.text


@pytest.mark.parametrize(
    ("name", "given", "fields"),
    [
        ("responses_text", "say:Good morning", {}),
        ("responses_cut", "say:Good morning", {"max_output_tokens": 4}),
        ("responses_reasoning", THINK, {"include": ["reasoning.encrypted_content"]}),
        ("responses_summary", THINK, {"reasoning": {"summary": "detailed"}}),
        ("responses_call", CALL, {"tools": [LOOK]}),
    ],
)
def test_a_stream_is_as_it_was(world: World, name: str, given: str, fields: dict[str, Any]) -> None:
    stream = streamed(world, given, **fields)
    assert [event["sequence_number"] for event in events_of(stream)] == list(range(len(events_of(stream))))
    assert_golden(name, stream)


def test_what_is_streamed_is_what_is_answered_at_once(client: openai.OpenAI) -> None:
    for given in (THINK, CALL, "say:Grüße, 世界"):
        whole = create(client, given, tools=[LOOK])
        with client.responses.stream(model="parrot:1b", input=given, tools=[LOOK]) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        assert text == whole.output_text == final.output_text
        assert [item.type for item in final.output] == [item.type for item in whole.output]


def test_a_failure_in_the_middle_fails_the_response(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(toy_entry("toy:slow", "toy:slow"))) as world, client_of(world) as client:
        events: list[Any] = []
        for event in client.responses.create(model="toy:slow", input="Hello", temperature=0, stream=True):
            events.append(event)
            if len(events) == 5:
                os.kill(world.ps()[0]["pid"], signal.SIGKILL)
    last = events[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and last.sequence_number == len(events) - 1


def test_a_failure_before_there_is_a_response_is_an_error_event() -> None:
    (event,) = events_of(_early_failure(ModelNotFound("there is no model 'x'", hint="try y", param="model")).decode())
    assert event["type"] == "error" and event["sequence_number"] == 0
    assert (event["code"], event["param"]) == ("model_not_found", "model")
    assert event["message"] == "there is no model 'x' (try y)"


# ---- what is kept


def test_a_conversation_goes_on_and_its_prefix_is_cached(client: openai.OpenAI) -> None:
    first = create(client, "My name is Ada, and this is a rather long beginning. say:Hello Ada")
    second = create(client, "And now? say:Now this", previous_response_id=first.id)
    assert second.output_text == "Now this" and second.previous_response_id == first.id
    assert second.usage is not None and second.usage.input_tokens_details.cached_tokens > 32
    third = create(client, "Still? say:Still", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_instructions_are_not_carried_over(client: openai.OpenAI) -> None:
    first = create(client, "hello", instructions="say:by instruction")
    assert first.output_text == "fine, thank you" or first.output_text == "by instruction"
    count = client.responses.input_tokens.count
    with_them = count(model="parrot:1b", input="x", previous_response_id=first.id, instructions="abc")
    without = count(model="parrot:1b", input="x", previous_response_id=first.id)
    assert with_them.input_tokens == without.input_tokens + len("<system>abc\n")


def test_a_kept_response_is_the_one_that_was_answered(client: openai.OpenAI) -> None:
    answer = create(client, "say:keep me", metadata={"a": "b"})
    assert client.responses.retrieve(answer.id) == answer
    streamed_one = [event for event in create(client, "say:me too", stream=True)][-1].response
    assert client.responses.retrieve(streamed_one.id) == streamed_one


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    answer = create(client, "say:secret", store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    assert "previous_response_id" in str(refused(client, previous_response_id=answer.id))


def test_what_clients_keep_with_items_may_come_back(client: openai.OpenAI, world: World) -> None:
    answer = create(client, THINK)
    items = [item.model_dump() | {"created_by": "me", "of_tomorrow": None} for item in answer.output]
    assert create(client, [*items, {"role": "user", "content": "say:on"}]).output_text == "on"
    body = {"model": "parrot:1b", "input": [{"role": "user", "content": "say:x", "mood": 1}]}
    told = world.client.post("/v1/responses", json=body, headers={"prefer": "handling=lenient"}).json()
    assert told["warnings"] == ["'input[0].mood' is not supported and was ignored"]
    agent = world.client.post("/v1/responses", json=body, headers={"user-agent": "codex_cli_rs/1"})
    assert agent.headers["x-localllm-ignored"] == "input[0].mood"


def test_a_deleted_response_is_gone(client: openai.OpenAI, world: World) -> None:
    answer = create(client, "say:delete me")
    body = world.client.delete(f"/v1/responses/{answer.id}").json()
    assert body == {"id": answer.id, "object": "response", "deleted": True}
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(answer.id)


def test_the_input_of_a_response_in_pages(client: openai.OpenAI) -> None:
    given: Any = [{"role": "user", "content": f"number {number}"} for number in range(5)]
    answer = create(client, given)
    newest_first: list[Any] = list(client.responses.input_items.list(answer.id, limit=2))
    assert [item.content[0].text for item in newest_first] == [f"number {number}" for number in (4, 3, 2, 1, 0)]
    page = client.responses.input_items.list(answer.id, order="asc", limit=3)
    assert page.has_more and page.data[0].id == page.first_id and page.data[-1].id == page.last_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=nobody"])
def test_pages_that_make_no_sense(client: openai.OpenAI, world: World, query: str) -> None:
    answer = create(client, "say:x")
    refusal = world.client.get(f"/v1/responses/{answer.id}/input_items?{query}")
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == query.partition("=")[0]


def test_a_response_that_is_over_cannot_be_cancelled(client: openai.OpenAI) -> None:
    answer = create(client, "say:x")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(answer.id)


def test_one_caller_never_reads_what_another_has(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("keys")
    ada, bob = (KeyFile(home / "keys.json").create(name, ["inference"]) for name in ("ada", "bob"))
    with daemon(home, sources=parrots()) as world:

        def send(key: str, method: str, path: str = "", **fields: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            body = {"model": "parrot:1b", **fields} if fields else None
            return world.client.request(method, f"/v1/responses{path}", json=body, headers=headers)

        path = "/" + send(ada, "POST", input="say:mine").json()["id"]
        assert send(ada, "GET", path).status_code == 200
        for method, place in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
            assert send(bob, method, place).status_code == 404
        assert send(bob, "POST", input="x", previous_response_id=path[1:]).status_code == 400
        assert send(ada, "POST", input="x", previous_response_id=path[1:]).status_code == 200


def test_a_restart_keeps_what_was_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("again")
    with daemon(home, sources=parrots()) as world:
        first = world.client.post("/v1/responses", json={"model": "parrot:1b", "input": "say:one"}).json()
    with daemon(home, sources=parrots()) as world:
        assert world.client.get(f"/v1/responses/{first['id']}").json() == first
        assert (home / "responses.db").stat().st_mode & 0o077 == 0


def test_what_cannot_be_kept_is_said_to_be_before_it_is_answered(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "responses.db")) as newer:
        newer.execute("PRAGMA user_version = 999")
    with daemon(tmp_path, sources=parrots()) as world, client_of(world) as client:
        whole = create(client, "say:one")
        assert (whole.output_text, whole.store) == ("one", False) and "responses.db" in whole.warnings[0]
        *_, last = events = list(create(client, "say:two", stream=True))
        assert events[0].response.store is False and last.response.store is False
        assert last.type == "response.completed" and "is not kept" in last.response.warnings[0]
        with pytest.raises(openai.APIStatusError) as caught:
            create(client, "say:three", store=True)
        assert caught.value.body["param"] == "store"  # type: ignore[index]
        assert getattr(create(client, "say:four", store=False), "warnings", None) is None


def test_what_could_not_be_kept_in_the_end_is_an_answer_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with daemon(tmp_path, sources=parrots()) as world, client_of(world) as client:
        monkeypatch.setattr(ResponseStore, "_put", full)
        whole = create(client, "say:one")
        assert (whole.output_text, whole.store) == ("one", False) and "disk is full" in whole.warnings[0]


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "user", "content": "x", "mood": 1}]}, "input[0].mood"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "mood": 1}]}]},
            "input[0].content[0].mood",
        ),
        ({"tools": [{**LOOK, "mood": 1}]}, "tools[0].mood"),
        ({"text": {"format": {"type": "text", "mood": 1}}}, "text.format.mood"),
        ({"tool_choice": {"type": "function", "name": "look", "mood": 1}, "tools": [LOOK]}, "tool_choice.mood"),
        ({"truncation": "auto"}, "truncation"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"include": ["everything"]}, "include[0]"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 3}]}, "tools[0].parameters"),
        ({"tools": [LOOK, LOOK]}, "tools[1].name"),
        ({"tools": [{"type": "custom", "name": "p", "format": {"type": "grammar"}}]}, "tools[0].format"),
        ({"tool_choice": "perhaps", "tools": [LOOK]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "nobody"}, "tools": [LOOK]}, "tool_choice.name"),
        ({"tool_choice": {"type": "mcp"}, "tools": [LOOK]}, "tool_choice.type"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
        ({"moderation": {}}, "moderation"),
        ({"temprature": 1}, "temprature"),
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]"),
        ({"input": [{"id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": 3}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "encrypted_content": "gAAAAA"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "reasoning", "content": "a", "summary": False}]}, "input[0].summary"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    body = refused(client, **fields)
    assert body["param"] == param, body
    assert body["message"]


def test_an_input_is_needed(world: World) -> None:
    answer = world.client.post("/v1/responses", json={"model": "parrot:1b"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input"


def test_the_lenient_are_warned(world: World) -> None:
    body = {"model": "parrot:1b", "input": "say:x", "text": {"verbosity": "low"}, "shininess": 3}
    answer = world.client.post("/v1/responses", json=body, headers={"prefer": "handling=lenient"})
    assert answer.status_code == 200
    assert [warning.split("'")[1] for warning in answer.json()["warnings"]] == ["shininess", "text.verbosity"]


def test_bodies_have_the_described_shapes(world: World) -> None:
    body = {"model": "parrot:1b", "input": CALL, "tools": [LOOK]}
    for fields in ({}, {"max_output_tokens": 3}, {"reasoning": {"summary": "auto"}, "store": False}):
        answer = world.client.post("/v1/responses", json=body | fields).json()
        assert msgspec.to_builtins(msgspec.convert(answer, shapes.ResponseObject)) == answer
    kept = world.client.post("/v1/responses", json=body).json()["id"]
    for method, path, shape in (
        ("GET", f"/{kept}", shapes.ResponseObject),
        ("GET", f"/{kept}/input_items", shapes.InputItems),
        ("DELETE", f"/{kept}", shapes.DeletedResponse),
        ("POST", "/input_tokens", shapes.InputTokens),
    ):
        sent = {"json": body} if method == "POST" else {}
        answer = world.client.request(method, f"/v1/responses{path}", **sent).json()  # type: ignore[arg-type]
        assert msgspec.to_builtins(msgspec.convert(answer, shape)) == answer


def test_counting_is_exact(client: openai.OpenAI) -> None:
    fields: Any = {"instructions": "Be brief", "tools": [LOOK]}
    counted = client.responses.input_tokens.count(model="parrot:1b", input="say:x", **fields)
    answer = create(client, "say:x", **fields)
    assert answer.usage is not None and counted.input_tokens == answer.usage.input_tokens
