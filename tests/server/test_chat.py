"""`/v1/chat/completions` and `/v1/completions` from outside: what is in an answer, and in which order."""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.daemon.toy import ToyLibrary, expected_text, toy_entry
from tests.server.world import World, daemon

TALKER = toy_entry(
    "toy:talker",
    system="Be a toy",
    messages=({"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}),
    params={"temperature": 0, "num_predict": 5, "stop": ["zzz"]},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:1b"), TALKER)
    with daemon(tmp_path_factory.mktemp("home"), library, default_model="toy:1b") as world:
        yield world


def said(text: str, max_tokens: int = 16) -> str:
    return expected_text(f"<user>{text}\n<assistant>".encode(), max_tokens)


LONG_WINDED = next(f"tell me {number}" for number in range(99) if len(said(f"tell me {number}", 40).encode()) == 40)


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which must end as all streams end; comments tell of a model that is slow to start."""
    lines = [line for line in text.split("\n") if line and not line.startswith(": ")]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [msgspec.json.decode(line[6:]) for line in lines[:-1]]


# ---- chat


def test_an_answer_is_what_the_model_says(world: World) -> None:
    answer = world.chat("Hello")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": said("Hello"), "refusal": None}
    assert body["choices"][0]["finish_reason"] in ("stop", "length")
    assert body["object"] == "chat.completion" and body["model"] == "toy:1b"


def test_a_stream_has_role_then_text_then_reason_then_usage(world: World) -> None:
    events = events_of(world.chat(LONG_WINDED, stream=True, stream_options={"include_usage": True}).text)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-2])
    assert events[-2]["choices"][0]["delta"] == {} and events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 16
    assert all(event["usage"] is None for event in events[:-1])
    assert {(event["id"], event["created"]) for event in events} == {(events[0]["id"], events[0]["created"])}


def test_a_stream_says_byte_for_byte_what_a_whole_answer_says(world: World) -> None:
    for number in range(8):
        events = events_of(world.chat(f"é{number}", stream=True, max_tokens=40).text)
        streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert streamed == world.chat(f"é{number}", max_tokens=40).json()["choices"][0]["message"]["content"]
        assert streamed == said(f"é{number}", 40)


def test_without_usage_asked_for_no_chunk_has_any(world: World) -> None:
    assert not any("usage" in event for event in events_of(world.chat("x", stream=True).text))


def test_a_prompt_seen_before_counts_as_cached(world: World) -> None:
    prompt = "the same long beginning " * 4
    world.chat(prompt)
    usage = world.chat(prompt).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_timings_come_only_when_asked_for(world: World) -> None:
    assert "timings" not in world.chat("x").json()
    timings = world.chat("x", timings=True).json()["timings"]
    assert timings["predicted_n"] > 0 and timings["total_ms"] > 0
    events = events_of(world.chat("x", timings=True, stream=True).text)
    assert [event for event in events if "timings" in event] == [events[-1]]


def test_choices_of_a_seed_differ_and_the_first_is_what_it_is_alone(world: World) -> None:
    alone = world.chat("x", temperature=1.5, seed=5).json()["choices"]
    three = world.chat("x", temperature=1.5, seed=5, n=3).json()
    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert texts[0] == alone[0]["message"]["content"]
    assert len(set(texts)) > 1
    assert three["usage"]["prompt_tokens"] == world.chat("x").json()["usage"]["prompt_tokens"]


def test_streamed_choices_are_told_apart_by_index(world: World) -> None:
    events = events_of(world.chat("x", temperature=1.5, seed=5, n=2, stream=True).text)
    texts = ["", ""]
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    whole = world.chat("x", temperature=1.5, seed=5, n=2).json()["choices"]
    assert texts == [choice["message"]["content"] for choice in whole]


def test_a_models_own_system_prompt_messages_and_limits_hold(world: World) -> None:
    answer = world.client.post(
        "/v1/chat/completions", json={"model": "toy:talker", "messages": [{"role": "user", "content": "Three"}]}
    ).json()
    prompt = "<system>Be a toy\n<user>One\n<assistant>Two\n<user>Three\n<assistant>"
    assert answer["choices"][0]["message"]["content"] == expected_text(prompt.encode(), 5)


def test_a_system_prompt_of_the_request_takes_the_place_of_the_models(world: World) -> None:
    messages = [{"role": "developer", "content": "Be mine"}, {"role": "user", "content": "Three"}]
    body = {"model": "toy:talker", "messages": messages}
    answer = world.client.post("/v1/chat/completions", json=body).json()
    prompt = "<system>Be mine\n<user>One\n<assistant>Two\n<user>Three\n<assistant>"
    assert answer["choices"][0]["message"]["content"] == expected_text(prompt.encode(), 5)


def test_a_request_without_a_model_gets_the_default_one(world: World) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}
    assert world.client.post("/v1/chat/completions", json=body).json()["model"] == "toy:1b"


def test_curls_own_content_type_will_do(world: World) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert world.client.post("/v1/completions", content=body, headers=headers).status_code == 200


def test_chats_and_models_are_where_llama_server_has_them_too(world: World) -> None:
    body = {"model": "toy:1b", "messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 4}
    paths = ("/chat/completions", "/v1/chat/completions")
    said = [world.client.post(path, json=body).json()["choices"] for path in paths]
    assert said[0] == said[1]
    listed = [world.client.get(path).json() for path in ("/v1/models", "/models", "/v1/models/")]
    assert listed[0] == listed[1] == listed[2] and listed[0]["data"]


def test_token_ids_come_on_request(world: World) -> None:
    body = world.chat("x", return_token_ids=True).json()
    assert body["prompt_token_ids"] == list(b"<user>x\n<assistant>")
    assert bytes(body["choices"][0]["token_ids"]).decode() == body["choices"][0]["message"]["content"]
    events = events_of(world.chat("x", return_token_ids=True, stream=True).text)
    streamed = [token for event in events for token in event["choices"][0].get("token_ids", [])]
    assert streamed == body["choices"][0]["token_ids"]


def test_logprobs_are_the_same_streamed_and_whole(world: World) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 6}
    whole = world.chat("lo", **fields).json()["choices"][0]["logprobs"]["content"]
    events = events_of(world.chat("lo", stream=True, **fields).text)
    streamed = [entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole)
    assert whole[0]["top_logprobs"][0]["logprob"] == whole[0]["logprob"]


def test_prompt_logprobs_begin_with_null(world: World) -> None:
    body = world.chat("x", prompt_logprobs=1, max_tokens=1).json()
    assert body["prompt_logprobs"][0] is None
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


def test_the_stop_string_is_named_and_kept_only_on_request(world: World) -> None:
    whole = said(LONG_WINDED, 40)
    stop = whole[3:5]
    choice = world.chat(LONG_WINDED, stop=[stop, "never"], max_tokens=40).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
    kept = world.chat(LONG_WINDED, stop=stop, max_tokens=40, include_stop_str_in_output=True).json()["choices"][0]
    assert kept["message"]["content"] == whole[: whole.index(stop) + 2]


def test_stop_token_ids_end_the_answer(world: World) -> None:
    whole = said(LONG_WINDED, 40)
    choice = world.chat(LONG_WINDED, stop_token_ids=[ord("h")], max_tokens=40).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index("h")]
    assert choice["stop_reason"] == ord("h")


# ---- what goes with a stream


def test_a_prompts_progress_is_told_up_to_its_end(world: World) -> None:
    events = events_of(world.chat("progress " * 12, stream=True, return_progress=True, max_tokens=4).text)
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert told and all(set(each) == {"total", "cache", "processed", "time_ms"} for each in told)
    assert told[-1]["processed"] == told[-1]["total"] == len("<user>" + "progress " * 12 + "\n<assistant>")
    assert [each["processed"] for each in told] == sorted({each["processed"] for each in told})
    again = events_of(world.chat("progress " * 12, stream=True, return_progress=True, max_tokens=4).text)
    assert next(event["prompt_progress"]["cache"] for event in again if "prompt_progress" in event) > 0
    texts = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    assert "".join(texts) == said("progress " * 12, 4)


def test_counts_come_with_every_chunk_on_request(world: World) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    events = events_of(world.chat(LONG_WINDED, stream=True, stream_options=options, timings_per_token=True).text)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == 16
    assert all(event["timings"]["predicted_n"] == count for event, count in zip(events[:-1], counts[:-1], strict=True))
    assert all(event["timings"]["predicted_ms"] >= 0 for event in events[:-1])


def test_counts_alone_end_without_a_chunk_of_their_own(world: World) -> None:
    events = events_of(world.chat("x", stream=True, stream_options={"continuous_usage_stats": True}).text)
    assert all(event["choices"] and event["usage"]["prompt_tokens"] for event in events)


def test_an_answer_that_goes_on_can_begin_with_what_it_goes_on_with(world: World) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is "}]
    fields = {"messages": messages, "add_generation_prompt": False, "max_tokens": 4}
    alone = world.chat("", **fields).json()["choices"][0]["message"]["content"]
    assert world.chat("", echo=True, **fields).json()["choices"][0]["message"]["content"] == "It is " + alone
    events = events_of(world.chat("", echo=True, stream=True, **fields).text)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "It is " + alone
    assert world.chat("x", echo=True, max_tokens=4).json()["choices"][0]["message"]["content"] == said("x", 4)


def test_tokens_can_be_named_by_id_in_logprobs(world: World) -> None:
    fields = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True, "max_tokens": 2}
    content = world.chat("lo", **fields).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [f"token_id:{entry['bytes'][0]}" for entry in content]
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]


def test_a_prompt_is_cut_only_on_request_and_that_is_told(world: World) -> None:
    answer = world.chat("abcdef", truncate_prompt_tokens=5, return_token_ids=True, max_tokens=2)
    whole = b"<user>abcdef\n<assistant>"
    body = answer.json()
    assert bytes(body["prompt_token_ids"]) == whole[-5:]
    assert body["truncated"] is True and body["truncated_prompt_tokens"] == len(whole) - 5
    assert answer.headers["x-localllm-truncated"] == str(len(whole) - 5)
    assert "truncated" not in world.chat("abcdef", truncate_prompt_tokens=500, max_tokens=2).json()
    assert world.chat("abcdef", truncate_prompt_tokens=0).json()["error"]["param"] == "truncate_prompt_tokens"


def test_without_the_cache_nothing_is_cached(world: World) -> None:
    for _ in range(2):
        usage = world.chat("uncached " * 8, cache_prompt=False, max_tokens=1).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_fields_without_effect_are_accepted(world: World) -> None:
    idle = {
        "user": "ann", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "modalities": ["text"], "parallel_tool_calls": True,
        "response_format": {"type": "text"}, "tool_choice": "auto",
    }  # fmt: skip
    assert world.chat("Hello", **idle).json()["choices"][0]["message"]["content"] == said("Hello")


def test_a_request_has_the_name_that_it_gives_itself(world: World) -> None:
    answer = world.chat("x", request_id="my-own.1", max_tokens=1)
    assert answer.headers["x-request-id"] == "my-own.1"
    ids = {world.chat("x", max_tokens=1).json()["id"] for _ in range(3)}
    assert len(ids) == 3


# ---- plain completions


def test_an_echo_scores_the_prompt_and_the_first_token_has_no_score(world: World) -> None:
    body = world.complete([97, 98, 99], echo=True, logprobs=1, max_tokens=0).json()
    choice = body["choices"][0]
    assert choice["text"] == "abc" and choice["logprobs"]["tokens"] == ["a", "b", "c"]
    scores = choice["logprobs"]["token_logprobs"]
    assert scores[0] is None and all(score <= 0 for score in scores[1:])
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert choice["finish_reason"] == "length" and body["usage"]["completion_tokens"] == 0


def test_parts_of_a_character_are_told_apart_and_begin_where_it_begins(world: World) -> None:
    body = world.complete([97, 0xC3, 0xA9, 98], echo=True, logprobs=2, max_tokens=0).json()
    scores = body["choices"][0]["logprobs"]
    assert scores["tokens"] == ["a", r"bytes:\xc3", r"bytes:\xa9", "b"]
    assert scores["text_offset"] == [0, 1, 1, 2]
    assert all(token in top for token, top in zip(scores["tokens"][1:], scores["top_logprobs"][1:], strict=True))


def test_an_echo_goes_before_the_answer_streamed_and_whole(world: World) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 6}
    whole = world.complete("abc", **fields).json()["choices"][0]
    assert whole["text"] == "abc" + expected_text([256, 97, 98, 99], 6)
    events = events_of(world.complete("abc", stream=True, **fields).text)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        streamed = [value for event in events for value in (event["choices"][0]["logprobs"] or {name: []})[name]]
        assert streamed == whole["logprobs"][name]


def test_prompts_in_a_list_are_answered_in_order(world: World) -> None:
    body = world.complete(["ab", "cd"], n=2, max_tokens=4).json()
    expected = [expected_text([256, *prompt], 4) for prompt in (b"ab", b"ab", b"cd", b"cd")]
    assert [choice["text"] for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 6


def test_best_of_returns_the_likeliest(world: World) -> None:
    fields = {"temperature": 2.0, "seed": 3, "max_tokens": 8, "logprobs": 0, "ignore_eos": True}
    everything = world.complete("ab", n=6, **fields).json()["choices"]
    best = world.complete("ab", best_of=6, n=2, **fields).json()["choices"]
    ranked = sorted(everything, key=lambda choice: -math.fsum(choice["logprobs"]["token_logprobs"]))
    assert [choice["text"] for choice in best] == [choice["text"] for choice in ranked[:2]]


def test_min_tokens_and_ignore_eos_hold_the_end_back(world: World) -> None:
    ends = next(number for number in range(200) if len(expected_text([256, *str(number).encode()], 60).encode()) < 20)
    short = world.complete(str(ends), max_tokens=60).json()
    assert short["choices"][0]["finish_reason"] == "stop"
    longer = world.complete(str(ends), max_tokens=60, min_tokens=30).json()
    assert longer["usage"]["completion_tokens"] >= 30
    endless = world.complete(str(ends), max_tokens=60, ignore_eos=True).json()
    assert endless["usage"]["completion_tokens"] == 60


def test_while_draining_new_requests_are_turned_away(world: World) -> None:
    world.on_loop(lambda: setattr(world.daemon.desk, "is_draining", True))
    try:
        refused = world.chat("x")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert world.client.get("/health").json()["status"] == "draining"
    finally:
        world.on_loop(lambda: setattr(world.daemon.desk, "is_draining", False))
