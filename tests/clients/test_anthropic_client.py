"""The official `anthropic` client, strict about what it gets, with a real daemon and a real small model."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.clients.asking import CITY, MESSAGES, QUESTION, TIME, fits

GREEDY = {"temperature": 0}
"""The client itself has no word for it any more; the API still does."""
TOOLS: Any = [
    {"name": "weather", "description": "Weather of a city", "input_schema": CITY},
    {"name": "clock", "description": "Time in a zone", "input_schema": TIME},
]
SCHEMAS = {"weather": CITY, "clock": TIME}
RULES = "You answer questions about the sky. " + "Be brief, be kind, and never mention the weather forecast. " * 12
USE: Any = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome", "days": 2}}


@pytest.fixture(scope="session")
def client(daemon_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=daemon_url, api_key="any", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def patient(daemon_url: str) -> Any:
    async with anthropic.AsyncAnthropic(base_url=daemon_url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


Create = Callable[..., Any]


@pytest.fixture
def create(client: anthropic.Anthropic, model: str) -> Create:
    """A message; greedy and short where nothing else is said."""

    def create(messages: Any = MESSAGES, **fields: Any) -> Any:
        given: dict[str, Any] = {"model": model, "max_tokens": 12, "extra_body": GREEDY} | fields
        return client.messages.create(messages=messages, **given)

    return create


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def calls_of(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def read(message: Any) -> int:
    """Tokens of the prompt."""
    return int(message.usage.input_tokens + message.usage.cache_read_input_tokens)


# ---- answers


def test_a_message_with_its_usage_and_its_ids(create: Create, model: str) -> None:
    message = create()
    assert (message.type, message.role, message.model) == ("message", "assistant", model)
    assert [block.type for block in message.content] == ["text"] and text_of(message)
    assert (message.stop_reason, message.stop_sequence, message.usage.output_tokens) == ("max_tokens", None, 12)
    assert message.usage.cache_creation_input_tokens == 0 and read(message) > 20
    assert message.id.startswith("msg_") and message._request_id.startswith("req_") and create().id != message.id


def test_a_stream_says_what_the_whole_message_says(client: anthropic.Anthropic, create: Create, model: str) -> None:
    whole = create()
    with client.messages.stream(model=model, max_tokens=12, messages=MESSAGES, extra_body=GREEDY) as stream:
        parts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(parts) == text_of(whole) == text_of(final) and len(parts) > 3
    assert (final.stop_reason, final.usage.output_tokens, read(final)) == ("max_tokens", 12, read(whole))


def test_the_events_come_in_their_order(create: Create) -> None:
    kinds = [event.type for event in create(stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_the_first_event_tells_of_the_prompt_and_the_last_but_one_of_the_answer(create: Create) -> None:
    whole = create()
    events = list(create(stream=True))
    start, delta = events[0].message, events[-2]
    assert (start.content, start.stop_reason, start.usage.output_tokens) == ([], None, 0)
    assert read(start) == read(whole)
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("max_tokens", 12)


@pytest.mark.parametrize("limit", [1, 7])
def test_max_tokens_bounds_a_message(create: Create, limit: int) -> None:
    message = create(max_tokens=limit)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", limit)


def test_a_model_that_has_said_it_all_ends_its_turn(create: Create) -> None:
    asked = [{"role": "user", "content": "Say only: yes"}]
    message = create(asked, max_tokens=200)
    assert message.stop_reason == "end_turn" and message.usage.output_tokens < 200


def test_a_stop_sequence_ends_a_message_and_is_named(create: Create) -> None:
    text = text_of(create())
    stop = text[8:12]
    message = create(stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == text.partition(stop)[0]
    delta = next(event for event in create(stop_sequences=[stop], stream=True) if event.type == "message_delta")
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", stop)


def test_what_leaves_one_token_is_as_good_as_greedy(create: Create) -> None:
    assert text_of(create(extra_body={"temperature": 1.0, "top_k": 1})) == text_of(create())
    assert text_of(create(extra_body={"temperature": 1.0, "top_p": 1e-6})) == text_of(create())


def test_an_answer_that_was_begun_is_gone_on_with(create: Create) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "The three colours are red, orange and"}]
    assert text_of(create(begun)).lstrip().lower().startswith("yellow")


def test_blocks_of_text_are_the_text(create: Create) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert text_of(create(blocks)) == text_of(create()) and read(create(blocks)) == read(create())


# ---- the system's words, and what was read before


def test_the_system_is_read_as_text_or_as_blocks(create: Create) -> None:
    text = create(system="You are a pirate. Speak like one.")
    blocks = create(system=[{"type": "text", "text": "You are a pirate. Speak like one."}])
    assert text_of(text) == text_of(blocks) != text_of(create()) and read(text) == read(blocks)


def test_a_prompt_that_was_read_before_is_read_from_the_cache(create: Create) -> None:
    block = {"type": "text", "text": f"{RULES} {time.time_ns()}", "cache_control": {"type": "ephemeral"}}
    first, second = (create(system=[block]).usage for _ in range(2))
    other = create([{"role": "user", "content": "And at night?"}], system=[block]).usage
    assert first.cache_read_input_tokens < 16 + second.cache_read_input_tokens // 2
    assert second.cache_read_input_tokens > 100 and other.cache_read_input_tokens > 100
    total = first.input_tokens + first.cache_read_input_tokens
    assert second.input_tokens + second.cache_read_input_tokens == total > second.cache_read_input_tokens


# ---- tools


def test_any_is_some_call_that_fits_its_schema(create: Create) -> None:
    message = create(tools=TOOLS, tool_choice={"type": "any"}, max_tokens=80)
    (call,) = calls_of(message)
    assert message.stop_reason == "tool_use" and call.id
    assert fits(json.dumps(call.input), SCHEMAS[call.name])


@pytest.mark.parametrize("name", ["weather", "clock"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_the_tool_that_was_named_is_called(create: Create, name: str, temperature: int) -> None:
    choice = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
    message = create(tools=TOOLS, tool_choice=choice, max_tokens=80, extra_body={"temperature": temperature})
    (call,) = calls_of(message)
    assert call.name == name and fits(json.dumps(call.input), SCHEMAS[name])


def test_none_is_no_call_and_costs_no_words_about_tools(create: Create) -> None:
    message = create(tools=TOOLS, tool_choice={"type": "none"})
    assert not calls_of(message) and text_of(message)


def test_auto_is_text_or_a_call(create: Create) -> None:
    message = create(tools=TOOLS, tool_choice={"type": "auto"}, max_tokens=60)
    assert text_of(message) or calls_of(message)
    assert (message.stop_reason == "tool_use") == bool(calls_of(message))
    assert message.content == create(tools=TOOLS, max_tokens=60).content or calls_of(message)


def test_input_comes_in_parts_that_join_to_json(client: anthropic.Anthropic, model: str) -> None:
    choice: Any = {"type": "tool", "name": "weather"}
    with client.messages.stream(
        model=model, max_tokens=80, messages=MESSAGES, tools=TOOLS, tool_choice=choice, extra_body=GREEDY
    ) as stream:
        events = list(stream)
        final = stream.get_final_message()
    starts = [event.content_block for event in events if event.type == "content_block_start"]
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    parts = [delta.partial_json for delta in deltas if delta.type == "input_json_delta"]
    assert [(start.type, start.name, start.input) for start in starts] == [("tool_use", "weather", {})]  # type: ignore[union-attr]
    assert len(parts) == len(deltas) > 3
    assert fits("".join(parts), CITY) == calls_of(final)[0].input and final.stop_reason == "tool_use"
    snapshots = [event.snapshot for event in events if event.type == "input_json"]
    assert snapshots[-1] == calls_of(final)[0].input


def test_the_result_of_a_call_is_read(create: Create) -> None:
    def asked(result: Any, **more: Any) -> Any:
        block = {"type": "tool_result", "tool_use_id": "call_1", "content": result, **more}
        turns = [{"role": "assistant", "content": [USE]}, {"role": "user", "content": [block]}]
        return create([*MESSAGES, *turns], tools=TOOLS, tool_choice={"type": "none"}, max_tokens=16)

    sunny = asked("It is sunny in Rome, 31 degrees.")
    assert sunny.stop_reason in ("end_turn", "max_tokens") and text_of(sunny)
    assert text_of(asked([{"type": "text", "text": "It is sunny in Rome, 31 degrees."}])) == text_of(sunny)
    assert read(asked("no")) < read(sunny) and read(asked("no", is_error=True)) >= read(asked("no"))


def test_calls_go_back_as_they_came(create: Create) -> None:
    first = create(tools=TOOLS, tool_choice={"type": "any"}, max_tokens=80)
    (call,) = calls_of(first)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Nothing."}
    turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = create([*MESSAGES, *turns], tools=TOOLS, tool_choice={"type": "none"})
    assert text_of(second) and read(second) > read(create())


# ---- thinking, forms


def test_a_model_that_does_not_think_answers_at_once(create: Create) -> None:
    plain = create()
    for thinking in ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}):
        message = create(thinking=thinking)
        assert message.content == plain.content and message.usage.output_tokens_details.thinking_tokens == 0


def test_what_has_no_effect_is_named(client: anthropic.Anthropic, model: str) -> None:
    answer = client.messages.with_raw_response.create(
        model=model, max_tokens=4, messages=MESSAGES, thinking={"type": "enabled", "budget_tokens": 1024},
        extra_body={"novelty": 1},
    )  # fmt: skip
    assert set(answer.headers["x-localllm-ignored"].split(", ")) == {"novelty", "thinking"}


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_keeps_to_its_schema(client: anthropic.Anthropic, model: str, streams: bool) -> None:
    wanted: Any = {
        "model": model, "max_tokens": 80, "messages": MESSAGES, "extra_body": GREEDY,
        "output_config": {"format": {"type": "json_schema", "schema": CITY}},
    }  # fmt: skip
    if streams:
        with client.messages.stream(**wanted) as stream:
            text = "".join(stream.text_stream)
    else:
        text = text_of(client.messages.create(**wanted))
    assert fits(text, CITY)


# ---- counting


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "You are a pirate."},
        {"system": [{"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}}]},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "clock"}},
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
    ],
    ids=["plain", "system", "blocks", "tools", "none", "tool", "thinking"],
)
def test_as_many_tokens_are_counted_as_are_read(
    client: anthropic.Anthropic, create: Create, model: str, fields: dict[str, Any]
) -> None:
    counted = client.messages.count_tokens(model=model, messages=MESSAGES, **fields).input_tokens
    assert counted == read(create(**fields, max_tokens=2))


def test_metadata_names_whose_share_is_used(create: Create) -> None:
    for user in ("ada", "u" * 300, json.dumps({"device": "x", "account": ""})):
        assert text_of(create(metadata={"user_id": user})) == text_of(create())


# ---- errors, models


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_that_is_not_there_is_not_found(create: Create, daemon_url: str, streams: bool) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        create(model="nope", stream=streams)
    error, headers = caught.value, caught.value.response.headers
    assert isinstance(error.body, dict) and error.body["type"] == "error" and error.type == "not_found_error"
    assert error.body["error"]["type"] == "not_found_error" and "nope" in error.body["error"]["message"]
    assert error.request_id == error.body["request_id"] == f"req_{headers['x-request-id']}"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"extra_body": {"top_p": 2}}, "top_p"),
        ({"extra_body": {"top_k": -1}}, "top_k"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "hammer"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"system": "word " * 9000}, "8192"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "no"}}}}, "Invalid type: no"),
    ],
)
def test_what_is_wrong_is_named(create: Create, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(**fields)
    assert caught.value.type == "invalid_request_error" and named in caught.value.message


def test_every_answer_has_an_id_by_which_its_request_is_found(
    client: anthropic.Anthropic, model: str, daemon_url: str
) -> None:
    answer = client.messages.with_raw_response.create(
        model=model, max_tokens=2, messages=MESSAGES, extra_headers={"x-request-id": "mine-1"}
    )
    assert answer.headers["request-id"] == "req_mine-1" == answer.parse()._request_id
    found = httpx.get(f"{daemon_url}/v1/requests/mine-1", trust_env=False).json()
    assert found["route"] == "/v1/messages" and found["model"] == model


def test_models_are_listed_and_found(client: anthropic.Anthropic, model: str) -> None:
    (listed,) = (each for each in client.models.list() if each.id == model)
    assert listed.type == "model" and listed.display_name == model and listed.max_input_tokens == 8192
    assert client.models.retrieve(model) == listed


def test_a_model_that_is_looked_for_in_vain_is_an_error_of_this_dialect(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert isinstance(caught.value.body, dict) and caught.value.body["type"] == "error"
    assert caught.value.type == "not_found_error" and "nope" in caught.value.message


# ---- leaving, and many at once


def test_whoever_leaves_a_stream_ends_the_work_for_it(client: anthropic.Anthropic, model: str, daemon_url: str) -> None:
    asked: Any = [{"role": "user", "content": "Tell me a very long story."}]
    with client.messages.stream(
        model=model, max_tokens=4000, messages=asked, extra_headers={"x-request-id": "left-1"}
    ) as stream:
        next(iter(stream.text_stream))
    deadline = time.monotonic() + 10
    while (found := _request(daemon_url, "left-1"))["state"] == "running":
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    assert "client_gone" in json.dumps(found)


def _request(daemon_url: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{daemon_url}/v1/requests/{name}", trust_env=False).json()
    return found


async def test_many_at_once_each_get_their_own_answer(patient: anthropic.AsyncAnthropic, model: str) -> None:
    countries = ("France", "Italy", "Spain")

    async def ask(country: str) -> str:
        turns: Any = [
            {"role": "user", "content": f"What is the capital of {country}?"},
            {"role": "assistant", "content": f"The capital of {country} is"},
        ]
        return text_of(await patient.messages.create(model=model, max_tokens=4, messages=turns, extra_body=GREEDY))

    said = await asyncio.gather(*map(ask, countries))
    assert [name in text for name, text in zip(("Paris", "Rome", "Madrid"), said, strict=True)] == [True] * 3


async def test_the_asynchronous_client_streams_counts_and_fails(
    patient: anthropic.AsyncAnthropic, create: Create, model: str
) -> None:
    async with patient.messages.stream(model=model, max_tokens=12, messages=MESSAGES, extra_body=GREEDY) as stream:
        parts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(parts) == text_of(final) == text_of(create())
    counted = await patient.messages.count_tokens(model=model, messages=MESSAGES)
    assert counted.input_tokens == read(final)
    with pytest.raises(anthropic.NotFoundError):
        await patient.messages.create(model="nope", max_tokens=1, messages=MESSAGES)
