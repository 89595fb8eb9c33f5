"""`/v1/messages` with the official client, strict about what it gets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import pytest
from anthropic.types import ToolParam

from localllm.server import anthropic_shapes as shapes
from localllm.server.anthropic_asking import translated
from localllm.server.notes import Notes
from localllm.server.passing import headers_of
from tests.daemon.toy import expected_text
from tests.server.golden_streams import assert_golden
from tests.server.parrot import BARE_CALL, CALL, THINK, parrots
from tests.server.world import World, daemon

LOOK: ToolParam = {
    "name": "look",
    "description": "Look somewhere",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}, "n": {"type": "integer"}}},
}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


def client_of(world: World, **fields: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=world.url, api_key="any", _strict_response_validation=True, max_retries=0, **fields
    )


@pytest.fixture
def client(world: World) -> Iterator[anthropic.Anthropic]:
    with client_of(world) as client:
        yield client


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def create(client: anthropic.Anthropic, *messages: Any, **fields: Any) -> Any:
    said = [user(message) if isinstance(message, str) else message for message in messages]
    return client.messages.create(model="parrot:1b", messages=said, **{"max_tokens": 500, **fields})


def text_of(answer: Any) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


# ---- answers


def test_an_answer_is_a_text_and_says_what_it_cost(toys: World) -> None:
    with client_of(toys) as client:
        answer = client.messages.create(
            model="toy:1b",
            messages=[user("Hello")],
            max_tokens=24,
            thinking={"type": "adaptive"},
            extra_body={"temperature": 0},
        )
    assert text_of(answer) == expected_text(b"<user>Hello\n<assistant>", 24)
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 24


def test_an_answer_that_ends_by_itself(client: anthropic.Anthropic) -> None:
    answer = create(client, "say:Good morning")
    assert (text_of(answer), answer.stop_reason, answer.stop_sequence) == ("Good morning", "end_turn", None)
    assert answer.id.startswith("msg_") and answer.model == "parrot:1b" and answer._request_id.startswith("req_")


def test_the_sequence_that_stopped_it(client: anthropic.Anthropic) -> None:
    answer = create(client, "say:one two three", stop_sequences=["four", "two"])
    assert (text_of(answer), answer.stop_reason, answer.stop_sequence) == ("one ", "stop_sequence", "two")


def test_what_was_read_from_the_cache_is_told_apart(client: anthropic.Anthropic) -> None:
    long = "a long beginning " * 10
    first, second = (create(client, long + "say:x") for _ in range(2))
    assert second.usage.cache_read_input_tokens > 100 and second.usage.cache_creation_input_tokens == 0
    total = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.input_tokens + second.usage.cache_read_input_tokens == total
    assert client.messages.count_tokens(model="parrot:1b", messages=[user(long + "say:x")]).input_tokens == total


def test_thinking_is_a_block_of_its_own(client: anthropic.Anthropic) -> None:
    answer = create(client, THINK, thinking=THINKING)
    thought, text = answer.content
    assert (thought.type, thought.thinking, text.text) == ("thinking", "Let me see.", "It is fine.")
    assert thought.signature and 0 < answer.usage.output_tokens_details.thinking_tokens < answer.usage.output_tokens
    assert text_of(create(client, THINK, {"role": "assistant", "content": answer.content}, "say:on")) == "on"


def test_thinking_that_is_not_to_be_shown_travels_in_its_signature(client: anthropic.Anthropic) -> None:
    answer = create(client, THINK, thinking={**THINKING, "display": "omitted"})
    assert answer.content[0].thinking == "" and answer.content[0].signature
    again = [user(THINK), {"role": "assistant", "content": [block.model_dump() for block in answer.content]}]
    assert text_of(create(client, *again, "say:on")) == "on"


@pytest.mark.parametrize("fields", [
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "adaptive"}},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
    {"output_config": {"effort": "low"}},
    {"metadata": {"user_id": "u" * 300}},
    {"cache_control": {"type": "ephemeral"}},
    {"service_tier": "auto"},
    {"extra_body": {"temperature": 0.0, "top_p": 0.5, "top_k": 3}},
])  # fmt: skip
def test_fields_that_are_taken(client: anthropic.Anthropic, fields: dict[str, Any]) -> None:
    assert text_of(create(client, "say:taken", **fields)).endswith("taken")


def test_json_that_a_schema_asks_for(client: anthropic.Anthropic) -> None:
    form: Any = {"type": "json_schema", "schema": {"type": "object", "properties": {"sky": {"type": "string"}}}}
    answer = create(client, 'say:{"sky":"blue"}', output_config={"format": form})
    assert json.loads(text_of(answer)) == {"sky": "blue"}


def test_an_answer_that_goes_on(client: anthropic.Anthropic) -> None:
    answer = create(client, "say:Good morning", {"role": "assistant", "content": "Good"})
    assert answer.content  # the parrot's template has no way to leave a turn open


def test_blocks_of_every_kind_that_can_be_read(client: anthropic.Anthropic) -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}
    parts = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}
    found = {"type": "search_result", "title": "S", "source": "s", "content": [{"type": "text", "text": "x"}]}
    blocks = [document, parts, found, {"type": "text", "text": "say:read", "cache_control": {"type": "ephemeral"}}]
    assert text_of(create(client, user(blocks), system=[{"type": "text", "text": "Be brief"}])) == "read"


# ---- tools


def test_a_call_of_a_tool_and_its_result(client: anthropic.Anthropic) -> None:
    first = create(client, CALL, tools=[LOOK])
    text, call = first.content
    assert (text.text, call.name, call.input, first.stop_reason) == (
        "I look.", "look", {"place": "Bern", "n": 3}, "tool_use",
    )  # fmt: skip
    for content in ("say:coat", [{"type": "text", "text": "say:coat"}]):
        result = {"type": "tool_result", "tool_use_id": call.id, "content": content}
        said = [user(CALL), {"role": "assistant", "content": first.content}, user([result])]
        assert text_of(create(client, *said, tools=[LOOK])) == "coat"


def test_a_result_that_is_an_error_says_so(client: anthropic.Anthropic) -> None:
    call: Any = {"type": "tool_use", "id": "call_1", "name": "look", "input": {}}
    said: Any = [user("x"), {"role": "assistant", "content": [call]}]
    good, bad = (
        client.messages.count_tokens(
            model="parrot:1b",
            tools=[LOOK],
            messages=[
                *said,
                user([{"type": "tool_result", "tool_use_id": "call_1", "content": "no", "is_error": is_error}]),
            ],
        ).input_tokens
        for is_error in (False, True)
    )  # fmt: skip
    assert bad - good == len("Error: ")


@pytest.mark.parametrize(
    "choice", [{"type": "auto"}, {"type": "none"}, {"type": "auto", "disable_parallel_tool_use": True}]
)
def test_choices_that_leave_it_to_the_model(client: anthropic.Anthropic, choice: Any) -> None:
    assert text_of(create(client, "say:no tools", tools=[LOOK], tool_choice=choice)) == "no tools"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_tool_that_has_to_be_called_is(client: anthropic.Anthropic, choice: Any) -> None:
    answer = create(client, BARE_CALL, tools=[LOOK], tool_choice=choice, max_tokens=200)
    assert {block.type for block in answer.content} == {"tool_use"} and answer.content[0].name == "look"


# ---- streams


def streamed(world: World, *messages: Any, **fields: Any) -> str:
    body = {"model": "parrot:1b", "max_tokens": 500, "messages": [user(each) for each in messages], "stream": True}
    answer = world.client.post("/v1/messages", json=body | fields)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return answer.text


@pytest.mark.parametrize(
    ("name", "said", "fields"),
    [
        ("messages_text", "say:Good morning", {}),
        ("messages_cut", "say:Good morning", {"max_tokens": 4}),
        ("messages_stopped", "say:Good morning", {"stop_sequences": ["morn"]}),
        ("messages_thinking", THINK, {"thinking": THINKING}),
        ("messages_hidden_thinking", THINK, {"thinking": {**THINKING, "display": "omitted"}}),
        ("messages_call", CALL, {"tools": [LOOK]}),
    ],
)
def test_a_stream_is_as_it_was(world: World, name: str, said: str, fields: dict[str, Any]) -> None:
    assert_golden(name, streamed(world, said, **fields))


def test_what_is_streamed_is_what_is_answered_at_once(client: anthropic.Anthropic) -> None:
    for said in (THINK, CALL, "say:Grüße, 世界", "say:"):
        whole = create(client, said, tools=[LOOK], thinking=THINKING)
        with client.messages.stream(
            model="parrot:1b", max_tokens=500, messages=[user(said)], tools=[LOOK], thinking=THINKING
        ) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == text_of(whole) and final.stop_reason == whole.stop_reason
        ours, theirs = ([block.model_dump(exclude={"id"}) for block in each.content] for each in (whole, final))
        assert [{k: v for k, v in each.items() if k != "parsed_output"} for each in theirs] == ours


def test_a_failure_in_the_middle_is_an_error_event(tmp_path: Path) -> None:
    import os
    import signal

    from tests.daemon.toy import ToyLibrary, toy_entry

    with daemon(tmp_path, ToyLibrary(toy_entry("toy:slow", "toy:slow"))) as world, client_of(world) as client:
        with (
            pytest.raises(anthropic.APIStatusError) as caught,
            client.messages.stream(
                model="toy:slow", max_tokens=400, messages=[user("Hello")], thinking={"type": "adaptive"}
            ) as stream,
        ):
            for _ in stream.text_stream:
                os.kill(world.ps()[0]["pid"], signal.SIGKILL)
        body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "overloaded_error"
    assert body["request_id"] == f"req_{caught.value.response.headers['x-request-id']}"


# ---- the description


def test_bodies_have_the_described_shapes(world: World) -> None:
    body = {"model": "parrot:1b", "max_tokens": 300, "messages": [user(CALL)], "tools": [LOOK], "thinking": THINKING}
    for path, sent, shape in (
        ("/v1/messages", body, shapes.MessageAnswer),
        ("/v1/messages", body | {"max_tokens": 3}, shapes.MessageAnswer),
        ("/v1/messages/count_tokens", body, shapes.CountedTokens),
        ("/v1/messages", body | {"max_tokens": 0}, shapes.AnthropicError),
    ):
        answer = world.client.post(path, json=sent).json()
        assert msgspec.to_builtins(msgspec.convert(answer, shape)) == answer
    models = world.client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
    assert msgspec.to_builtins(msgspec.convert(models, shapes.AnthropicModels)) == models


# ---- models


def test_models_in_their_form(client: anthropic.Anthropic, world: World) -> None:
    (model,) = list(client.models.list())
    assert (model.id, model.type) == ("parrot:1b", "model")
    assert client.models.retrieve("parrot:1b") == model
    assert world.client.get("/v1/models").json()["object"] == "list"


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
         "messages[0].content[0].source.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}]},
         "messages[0].content[0].input"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
         "tool_result"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "nobody"}, "tools": [LOOK]}, "tool_choice"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"stop_sequences": [""]}, "stop"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(world: World, fields: dict[str, Any], named: str) -> None:
    body = {"model": "parrot:1b", "max_tokens": 5, "messages": [user("x")]} | fields
    answer = world.client.post("/v1/messages", json={key: value for key, value in body.items() if value is not None})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert named in error["error"]["message"]
    assert error["request_id"] == answer.headers["request-id"] == f"req_{answer.headers['x-request-id']}"


def test_errors_are_those_that_the_client_knows(client: anthropic.Anthropic, world: World) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", max_tokens=5, messages=[user("x")])
    missing = world.client.get("/v1/messages/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
    wrong = world.client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert wrong.status_code == 400 and wrong.json()["error"]["type"] == "invalid_request_error"


def test_a_key_is_asked_for_in_their_words(tmp_path: Path) -> None:
    with daemon(tmp_path, sources=parrots(), api_keys="secret") as world:
        with client_of(world) as client, pytest.raises(anthropic.AuthenticationError) as caught:
            create(client, "x")
        assert caught.value.request_id == f"req_{caught.value.response.headers['x-request-id']}"
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
        assert world.client.get("/v1/models", headers=headers).status_code == 200


def test_a_body_that_is_too_long(world: World) -> None:
    body = b'{"model": "' + b"x" * (17 * 2**20) + b'"}'
    try:
        answer = world.client.post("/v1/messages", content=body, headers={"content-type": "application/json"})
    except httpx.TransportError:
        return  # hung up on before all of it was sent
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"


def test_a_daemon_that_shuts_down_is_overloaded(tmp_path: Path) -> None:
    with daemon(tmp_path, sources=parrots()) as world, client_of(world) as client:
        world.daemon.desk.is_draining = True
        with pytest.raises(anthropic.APIStatusError) as caught:
            create(client, "x")
        assert caught.value.status_code == 529 and caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        assert "retry-after" in caught.value.response.headers


def test_what_is_new_is_passed_over_and_named(world: World) -> None:
    body = {
        "model": "parrot:1b", "max_tokens": 50, "messages": [user("say:fine")], "shininess": 3,
        "tools": [{"type": "bash_20250124", "name": "bash"}, {**LOOK, "defer_loading": True}],
    }  # fmt: skip
    answer = world.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-localllm-ignored"] == "shininess, tools[0], tools[1].defer_loading"
    told = world.client.post("/v1/messages", json=body, headers={"prefer": "handling=lenient"}).json()
    assert "shininess" in told["warnings"][0]


def test_what_is_new_in_blocks_is_named(world: World) -> None:
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}, "a": 1}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x", "b": 1}], "c": 1}
    body = {
        "model": "parrot:1b", "max_tokens": 50, "tool_choice": {"type": "auto", "d": 1}, "tools": [LOOK],
        "messages": [
            user([{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "e": 1, "citations": None}]),
            {"role": "assistant", "content": [call]}, user([result, {"type": "text", "text": "say:fine"}]),
        ],
    }  # fmt: skip
    answer = world.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert sorted(answer.headers["x-localllm-ignored"].split(", ")) == [
        "messages[0].content[0].e", "messages[1].content[0].a", "messages[2].content[0].c",
        "messages[2].content[0].content[0].b", "tool_choice.d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"}}, "thinking"),
    ],
)
def test_a_wish_to_think_is_called_what_it_was_sent_as(fields: dict[str, Any], name: str) -> None:
    body = {"model": "m", "max_tokens": 2, "messages": [user("x")], **fields}
    done = translated(msgspec.convert(body, shapes.MessagesRequest), Notes())
    assert headers_of(Notes(ignored=["reasoning"]), done.names) == {"x-localllm-ignored": name}


def test_counting_is_exact(client: anthropic.Anthropic) -> None:
    fields: Any = {"system": "Be brief", "tools": [LOOK]}
    counted = client.messages.count_tokens(model="parrot:1b", messages=[user("say:x")], **fields)
    used = create(client, "say:x", **fields).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
