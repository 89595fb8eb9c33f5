"""The official `openai` client, strict about what it gets: chat."""

import json
import re
import time
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.clients.asking import CITY, FORMAT, MESSAGES, SCHEMAS, TOOLS, Said, fits, said_in_parts, said_whole

DIGITS = "[0-9]{3}-[0-9]{2}"
GBNF = 'root ::= "the " ("red" | "blue") " one"'


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 16} | fields
    )


def extra(**fields: Any) -> dict[str, Any]:
    return {"extra_body": fields}


ASKED: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "one token": {"max_tokens": 1},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 7},
    "two choices": {"n": 2},
    "two choices with a seed": {"n": 2, "seed": 3, "temperature": 1.2},
    "a seed": {"seed": 11, "temperature": 1.0, "top_p": 0.9},
    "a stop": {"stop": ","},
    "stops": {"stop": ["\n", "2", "blue"]},
    "a bias": {"logit_bias": {"28": -100, "0": -100}},
    "penalties": {"presence_penalty": 0.6, "frequency_penalty": 0.4},
    "log-probabilities": {"logprobs": True, "top_logprobs": 3},
    "log-probabilities without others": {"logprobs": True, "max_tokens": 4},
    "a system message": {"messages": [{"role": "system", "content": "Answer in one word."}, *MESSAGES]},
    "a developer message": {"messages": [{"role": "developer", "content": "Answer in one word."}, *MESSAGES]},
    "parts of text": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say yes."}]}]},
    "an earlier answer": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "Red"}, {"role": "user", "content": "More?"}]
    },
    "no reasoning": {"reasoning_effort": "none"},
    "a user and metadata": {"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    "a JSON object": {"response_format": {"type": "json_object"}, "max_tokens": 24},
    "a schema": {"response_format": FORMAT, "max_tokens": 40},
    "text as a format": {"response_format": {"type": "text"}},
    "tools it may call": {"tools": TOOLS},
    "a tool it must call": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60},
    "a tool by name": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "clock"}},
        "max_tokens": 60,
    },
    "tools it may not call": {"tools": TOOLS, "tool_choice": "none"},
    "top_k": extra(top_k=1, temperature=1.0),
    "min_p": extra(min_p=0.2, seed=5, temperature=1.0),
    "repetition_penalty": extra(repetition_penalty=1.3),
    "min_tokens": extra(min_tokens=10, stop_token_ids=[28]),
    "ignore_eos": extra(ignore_eos=True),
    "a choice": extra(guided_choice=["perhaps", "certainly"]),
    "a regular expression": extra(guided_regex=DIGITS),
    "a guided schema": {"max_tokens": 40, **extra(guided_json=CITY)},
    "a grammar": extra(grammar=GBNF),
    "structured_outputs": extra(structured_outputs={"choice": ["left", "right"]}),
    "a salt": extra(cache_salt="pepper"),
    "a priority and a deadline": extra(priority=-1, timeout_s=50),
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED.keys())
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str, fields: dict[str, Any]) -> None:
    whole = ask(client, model, **fields)
    chunks = list(ask(client, model, **fields, stream=True, stream_options={"include_usage": True}))
    assert said_in_parts(chunks) == said_whole(whole)
    assert len(whole.choices) == fields.get("n", 1)
    assert all(choice.finish_reason in ("stop", "length", "tool_calls") for choice in whole.choices)
    counted = chunks[-1].usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1) and not chunks[-1].choices
    for usage in (whole.usage, counted):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (counted.prompt_tokens, counted.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert len({chunk.id for chunk in chunks}) == 1


def one(client: openai.OpenAI, model: str, **fields: Any) -> Said:
    """The only choice of an answer."""
    return said_whole(ask(client, model, **fields))[0]


# ---- how an answer ends


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_limit(client: openai.OpenAI, model: str, name: str) -> None:
    answer = ask(client, model, **{"max_tokens": None, name: 5})
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)


def test_an_answer_ends_before_its_stop(client: openai.OpenAI, model: str) -> None:
    free = one(client, model)
    stop = free.text[4:7]
    stopped = one(client, model, stop=[stop])
    assert (stopped.finish, stopped.text) == ("stop", free.text[: free.text.index(stop)])


def test_an_answer_that_says_all_ends_by_itself(client: openai.OpenAI, model: str) -> None:
    said = one(client, model, extra_body={"guided_choice": ["yes"]})
    assert (said.finish, said.text) == ("stop", "yes")


# ---- sampling


def test_a_seed_gives_the_same_again_and_another_one_another(client: openai.OpenAI, model: str) -> None:
    first, again, other = (one(client, model, seed=seed, temperature=1.5) for seed in (1, 1, 2))
    assert first == again and first.text != other.text


def test_choices_of_one_seed_differ(client: openai.OpenAI, model: str) -> None:
    said = said_whole(ask(client, model, n=3, seed=9, temperature=1.5))
    assert list(said) == [0, 1, 2] and len({each.text for each in said.values()}) == 3


def test_choices_add_up_in_the_usage(client: openai.OpenAI, model: str) -> None:
    alone, both = ask(client, model, max_tokens=4), ask(client, model, max_tokens=4, n=2)
    assert both.usage.completion_tokens == 8
    assert both.usage.prompt_tokens == alone.usage.prompt_tokens


def test_a_bias_bans_and_demands_tokens(client: openai.OpenAI, model: str) -> None:
    free = ask(client, model, max_tokens=1, **extra(return_token_ids=True)).choices[0]
    (token_id,) = free.model_extra["token_ids"]
    banned = one(client, model, max_tokens=1, logit_bias={str(token_id): -100})
    demanded = one(client, model, max_tokens=3, logit_bias={str(token_id): 100})
    assert banned.text != free.message.content
    assert demanded.text == free.message.content * 3


def test_a_penalty_breaks_a_repetition(client: openai.OpenAI, model: str) -> None:
    repeated = {"logit_bias": {"28": 12}, "max_tokens": 12}  # the comma
    free = one(client, model, **repeated)
    penalized = one(client, model, **repeated, frequency_penalty=2.0, presence_penalty=2.0)
    assert penalized.text.count(",") < free.text.count(",")


def test_top_k_of_one_is_greedy_at_any_temperature(client: openai.OpenAI, model: str) -> None:
    assert one(client, model, temperature=2, **extra(top_k=1)) == one(client, model)


def test_min_p_of_one_is_greedy_at_any_temperature(client: openai.OpenAI, model: str) -> None:
    assert one(client, model, temperature=2, **extra(min_p=1.0)) == one(client, model)


# ---- log-probabilities


@pytest.mark.parametrize("count", [0, 1, 5])
def test_log_probabilities_are_of_the_tokens_that_were_said(client: openai.OpenAI, model: str, count: int) -> None:
    answer = ask(client, model, logprobs=True, top_logprobs=count, max_tokens=6)
    (choice,) = answer.choices
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        ranked = [each.logprob for each in entry.top_logprobs]
        assert len(ranked) == count and ranked == sorted(ranked, reverse=True)
        assert entry.logprob <= 0 and (not ranked or entry.logprob == ranked[0])  # greedy


# ---- tools


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ["weather", "clock"])
def test_a_named_tool_is_called_as_its_schema_says(client: openai.OpenAI, model: str, name: str, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = ask(client, model, tools=TOOLS, tool_choice=choice, max_tokens=80, stream=stream)
    said = said_in_parts(answer)[0] if stream else said_whole(answer)[0]
    ((called, arguments),) = said.calls
    assert (said.text, said.finish, called) == ("", "tool_calls", name)
    fits(arguments, SCHEMAS[name])


def test_required_tools_are_called(client: openai.OpenAI, model: str) -> None:
    said = one(client, model, tools=TOOLS, tool_choice="required", max_tokens=160)
    assert said.calls and not said.text
    for name, arguments in said.calls if said.finish == "tool_calls" else said.calls[:-1]:
        fits(arguments, SCHEMAS[name])


def test_only_one_call_without_parallel_calls(client: openai.OpenAI, model: str) -> None:
    said = one(client, model, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=80)
    ((name, arguments),) = said.calls
    fits(arguments, SCHEMAS[name])


def test_tools_that_may_not_be_called_are_not(client: openai.OpenAI, model: str) -> None:
    assert one(client, model, tools=TOOLS, tool_choice="none") == one(client, model)


def test_arguments_are_streamed_in_parts(client: openai.OpenAI, model: str) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    chunks = list(ask(client, model, tools=TOOLS, tool_choice=choice, max_tokens=80, stream=True))
    parts = [part for chunk in chunks for each in chunk.choices for part in each.delta.tool_calls or ()]
    assert len(parts) > 2 and {part.index for part in parts} == {0}
    assert parts[0].function.name == "weather" and parts[0].id
    assert all(part.id is None and part.function.name is None for part in parts[1:])


def test_the_result_of_a_call_goes_back_to_the_model(client: openai.OpenAI, model: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    first = ask(client, model, tools=TOOLS, tool_choice=choice, max_tokens=80).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"degrees": 21}'}
    spoken = [*MESSAGES, first.model_dump(exclude_none=True), result]
    answer = ask(client, model, messages=spoken, tools=TOOLS, tool_choice="none")
    without = ask(client, model, messages=[*spoken[:2], {**result, "content": "{}"}], tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens


def test_the_streaming_helper_puts_calls_together(client: openai.OpenAI, model: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "clock"}}
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=80, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert "tool_calls.function.arguments.done" in kinds
    fits(call.function.arguments, SCHEMAS["clock"])


# ---- forms


class Stay(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    nights: Literal[1, 2, 3]


def test_an_answer_is_parsed_into_a_model_of_pydantic(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Stay, temperature=0, max_tokens=60
    )
    (choice,) = answer.choices
    assert isinstance(choice.message.parsed, Stay)
    assert choice.message.parsed.model_dump() == json.loads(choice.message.content or "")


def test_a_stream_is_parsed_into_a_model_of_pydantic(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, response_format=Stay, temperature=0, max_tokens=60
    ) as stream:
        stream.until_done()
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Stay)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize(
    "fields",
    [{"response_format": FORMAT}, extra(guided_json=CITY), extra(structured_outputs={"json": CITY})],
    ids=["response_format", "guided_json", "structured_outputs"],
)
def test_an_answer_keeps_to_its_schema(
    client: openai.OpenAI, model: str, fields: dict[str, Any], temperature: float
) -> None:
    said = one(client, model, **fields, temperature=temperature, seed=4, max_tokens=60)
    assert said.finish == "stop"
    fits(said.text, CITY)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (extra(guided_regex=DIGITS), DIGITS),
        (extra(guided_choice=["perhaps", "certainly"]), "perhaps|certainly"),
        (extra(grammar=GBNF), "the (red|blue) one"),
        (extra(guided_grammar=GBNF), "the (red|blue) one"),
        (extra(structured_outputs={"regex": DIGITS}), DIGITS),
    ],
    ids=["regex", "choice", "grammar", "guided_grammar", "structured regex"],
)
def test_an_answer_keeps_to_its_form(client: openai.OpenAI, model: str, fields: dict[str, Any], pattern: str) -> None:
    said = one(client, model, **fields, temperature=1.5, seed=4, max_tokens=24)
    assert said.finish == "stop" and re.fullmatch(pattern, said.text)


def test_a_json_object_is_one(client: openai.OpenAI, model: str) -> None:
    said = one(client, model, response_format={"type": "json_object"}, max_tokens=40)
    assert said.text.lstrip().startswith("{")
    if said.finish == "stop":
        assert isinstance(json.loads(said.text), dict)


# ---- extras


def test_token_ids_are_returned_and_belong_to_the_text(client: openai.OpenAI, daemon_url: str, model: str) -> None:
    answer = ask(client, model, **extra(return_token_ids=True))
    (choice,) = answer.choices
    ids = choice.model_extra["token_ids"]
    assert len(ids) == answer.usage.completion_tokens
    told = httpx.post(f"{daemon_url}/detokenize", json={"model": model, "tokens": ids}).json()
    assert told.get("content", told.get("prompt")).startswith(choice.message.content)


def test_progress_is_told_while_a_prompt_is_computed(client: openai.OpenAI, model: str) -> None:
    long: Any = [{"role": "user", "content": "Count the words of this. " * 120}]
    fields = extra(return_progress=True, cache_salt="new")
    chunks = list(ask(client, model, messages=long, max_tokens=2, stream=True, **fields))
    told = [chunk.model_extra["prompt_progress"] for chunk in chunks if "prompt_progress" in (chunk.model_extra or {})]
    assert told and [each["processed"] for each in told] == sorted(each["processed"] for each in told)
    assert all(each["processed"] <= each["total"] and each["total"] > 600 for each in told)


def test_a_prompt_is_cached_among_those_of_its_salt(client: openai.OpenAI, model: str) -> None:
    long: Any = [{"role": "user", "content": "The river runs past the old mill. " * 12}]
    cached = [
        ask(client, model, messages=long, max_tokens=1, **extra(cache_salt=salt)).usage.prompt_tokens_details
        for salt in ("a", "a", "b")
    ]
    assert [each.cached_tokens > 0 for each in cached] == [False, True, False]


def test_every_answer_has_an_id_that_a_client_may_choose(client: openai.OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, max_tokens=1, extra_headers={"x-request-id": "my-own-1"}
    )
    assert raw.headers["x-request-id"] == "my-own-1"
    assert raw.parse()._request_id == "my-own-1"


def test_a_stream_may_be_left(client: openai.OpenAI, daemon_url: str, model: str) -> None:
    fields = {"max_tokens": 4000, **extra(ignore_eos=True, request_id="left-early")}
    with ask(client, model, stream=True, **fields) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    assert one(client, model, max_tokens=2).text  # nobody waits for the one that left
    deadline = time.monotonic() + 10
    while rows := [row for row in running(daemon_url) if row]:
        assert time.monotonic() < deadline, rows
        time.sleep(0.02)


def running(daemon_url: str) -> list[int]:
    """How many sequences each open model has under way."""
    rows = httpx.get(f"{daemon_url}/localllm/v1/ps").json()["models"]
    return [row["running"] + row["waiting"] for row in rows]


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (extra(speed="fast"), "speed"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 99}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        (extra(guided_regex="("), "guided_regex"),
        (extra(grammar="root ::= missing"), "grammar"),
        (extra(guided_regex="a", guided_choice=["b"]), "guided_choice"),
        (extra(backend="abacus"), "backend"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_a_bad_request_that_names_it(
    client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, model, **fields)
    assert (refused.value.param or "").startswith(param) and refused.value.code
    assert len(str(refused.value.message)) > 20


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match="8192") as refused:
        ask(client, model, messages=[{"role": "user", "content": "word " * 9000}], stream=stream)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_unknown_model_is_not_found(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm3:1b") as missing:
        ask(client, "smollm3:1b", stream=stream)
    assert missing.value.code == "model_not_found"


def test_a_deadline_that_passes_is_told(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as late:
        ask(client, model, max_tokens=4000, **extra(ignore_eos=True, timeout_s=0.05))
    assert late.value.status_code == 408


def test_an_unsupported_field_is_passed_over_on_wish(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, model, max_tokens=1, extra_headers={"Prefer": "handling=lenient"}, extra_body={"speed": 9})
    (warning,) = answer.model_extra["warnings"]
    assert "speed" in warning
