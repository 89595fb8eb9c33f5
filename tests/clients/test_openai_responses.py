"""The official `openai` client, strict about what it gets: the Responses API."""

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.asking import CITY, QUESTION, SCHEMAS, TOOLS, fits

FLAT: Any = [{"type": "function", "strict": True, **tool["function"]} for tool in TOOLS]
FORMAT: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}


class Stay(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    nights: Literal[1, 2, 3]


def respond(client: openai.OpenAI, model: str, given: Any = QUESTION, **fields: Any) -> Any:
    return client.responses.create(
        **{"model": model, "input": given, "temperature": 0, "max_output_tokens": 16} | fields
    )


def test_a_response_is_a_message_and_says_what_it_cost(client: openai.OpenAI, model: str) -> None:
    answer = respond(client, model)
    assert answer.output_text and [item.type for item in answer.output] == ["message"]
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 16
    assert answer.usage.total_tokens == answer.usage.input_tokens + 16


def test_a_response_says_what_a_chat_says(client: openai.OpenAI, model: str) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
    answer = respond(client, model, instructions="Be brief.")
    assert answer.output_text == chat.choices[0].message.content
    assert chat.usage is not None and answer.usage.input_tokens == chat.usage.prompt_tokens


CALL: Any = {"tools": FLAT, "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 80}
ASKED: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "instructions": {"instructions": "Answer in one word."},
    "messages": {"given": [{"role": "user", "content": [{"type": "input_text", "text": "Say yes."}]}]},
    "a schema": {"text": FORMAT, "max_output_tokens": 60},
    "a call": CALL,
    "tools it may call": {"tools": FLAT},
    "log-probabilities": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "nothing kept": {"store": False},
    "extras": {"extra_body": {"seed": 4, "top_k": 5, "min_p": 0.1}, "temperature": 1.0},
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED.keys())
def test_a_stream_says_what_the_whole_response_says(client: openai.OpenAI, model: str, fields: dict[str, Any]) -> None:
    whole = respond(client, model, **fields)
    events = list(respond(client, model, **fields, stream=True))
    last = events[-1].response
    assert last.status == whole.status and last.output_text == whole.output_text
    assert [item.type for item in last.output] == [item.type for item in whole.output]
    assert calls_of(last) == calls_of(whole)
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == whole.output_text
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == "".join(given for _, given in calls_of(whole))
    assert last.usage.output_tokens == whole.usage.output_tokens


def calls_of(response: Any) -> list[tuple[str, str]]:
    """Names and arguments."""
    return [(item.name, item.arguments) for item in response.output if item.type == "function_call"]


def test_events_come_in_order_and_are_numbered(client: openai.OpenAI, model: str) -> None:
    events = list(respond(client, model, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert deltas > 1 and [event.sequence_number for event in events] == list(range(len(events)))


def test_events_of_a_call_come_in_order(client: openai.OpenAI, model: str) -> None:
    kinds = [event.type.removeprefix("response.") for event in respond(client, model, **CALL, stream=True)]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]


def test_a_call_keeps_to_its_schema_and_its_result_goes_back(client: openai.OpenAI, model: str) -> None:
    first = respond(client, model, **CALL)
    (call,) = first.output
    assert (call.type, call.name, first.status) == ("function_call", "weather", "completed")
    fits(call.arguments, SCHEMAS["weather"])
    result = [{"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 21}'}]
    second = respond(client, model, result, previous_response_id=first.id, tools=FLAT)
    assert second.output and second.usage.input_tokens > first.usage.input_tokens


def test_a_required_call_is_made(client: openai.OpenAI, model: str) -> None:
    answer = respond(client, model, tools=FLAT, tool_choice="required", parallel_tool_calls=False, max_output_tokens=80)
    (call,) = answer.output
    fits(call.arguments, SCHEMAS[call.name])


def test_text_keeps_to_its_schema(client: openai.OpenAI, model: str) -> None:
    answer = respond(client, model, text=FORMAT, max_output_tokens=60)
    assert answer.status == "completed"
    fits(answer.output_text, CITY)


def test_a_response_is_parsed_into_a_model_of_pydantic(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.parse(model=model, input=QUESTION, text_format=Stay, temperature=0, max_output_tokens=60)
    assert isinstance(answer.output_parsed, Stay)


def test_a_response_goes_on_from_another(client: openai.OpenAI, model: str) -> None:
    first = respond(client, model, "My name is Ada.")
    second = respond(client, model, "What is my name?", previous_response_id=first.id)
    spelled: Any = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    assert second.previous_response_id == first.id
    assert second.output_text == respond(client, model, spelled).output_text


def test_a_response_is_kept_until_it_is_deleted(client: openai.OpenAI, model: str) -> None:
    made = respond(client, model)
    assert client.responses.retrieve(made.id) == made
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_response_that_is_not_stored_is_gone(client: openai.OpenAI, model: str) -> None:
    made = respond(client, model, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as gone:
        respond(client, model, previous_response_id=made.id)
    assert gone.value.code == "previous_response_not_found"


def test_input_items_are_listed_page_by_page(client: openai.OpenAI, model: str) -> None:
    given: Any = [{"role": "user", "content": text} for text in ("One", "Two", "Three")]
    made = respond(client, model, given, max_output_tokens=1)
    listed: list[Any] = list(client.responses.input_items.list(made.id, limit=2, order="asc"))
    assert [item.content[0].text for item in listed] == ["One", "Two", "Three"]
    assert len({item.id for item in listed}) == 3


def test_input_tokens_are_counted_exactly(client: openai.OpenAI, model: str) -> None:
    fields: Any = {"instructions": "Be brief.", "tools": FLAT}
    counted = client.responses.input_tokens.count(model=model, input=QUESTION, **fields)
    assert counted.input_tokens == respond(client, model, **fields, max_output_tokens=1).usage.input_tokens


def test_the_streaming_helper_ends_with_what_was_parsed(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(
        model=model, input=QUESTION, text_format=Stay, temperature=0, max_output_tokens=60
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text and isinstance(final.output_parsed, Stay)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"previous_response_id": "resp_missing"}, "previous_response_id"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"given": [{"type": "image"}]}, "input[0]"),
        ({"extra_body": {"speed": 1}}, "speed"),
        ({"given": "word " * 9000}, "input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_a_bad_request_that_names_it(
    client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        respond(client, model, **fields)
    assert (refused.value.param or "").startswith(param)


def test_a_response_of_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm3:1b"):
        respond(client, "smollm3:1b")
