"""`continue_token_ids`: an answer goes on behind tokens that were said before, as if nothing had come between."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.daemon.toy import EOS
from tests.server.parrot import BARE_CALL, parrots
from tests.server.test_chat import events_of
from tests.server.world import World, daemon

THINK = "say:<think>one two three</think>\\nSo it is."
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {
    "a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}}}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("speaking"), sources=parrots(), default_model="parrot:1b") as world:
        yield world


def post(world: World, text: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 200, "model": "toy:1b"}
    name = next(iter(world.daemon.residency._sources.library.entries())).name  # toy or parrot
    return world.client.post("/v1/chat/completions", json=body | {"model": name} | fields)


def ask(world: World, text: str = "tell me", **fields: Any) -> dict[str, Any]:
    answer = post(world, text, **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(world: World, text: str, **fields: Any) -> list[int]:
    """The ids of the whole answer."""
    ids: list[int] = ask(world, text, return_token_ids=True, **fields)["choices"][0]["token_ids"]
    return ids


def test_only_what_is_new_is_said_and_the_rest_comes_from_the_cache(world: World) -> None:
    whole = ask(world, "x" * 40, max_tokens=60, ignore_eos=True, return_token_ids=True)
    ids, text = whole["choices"][0]["token_ids"], whole["choices"][0]["message"]["content"]
    rest = ask(world, "x" * 40, max_tokens=20, ignore_eos=True, continue_token_ids=ids[:40], return_token_ids=True)
    assert rest["choices"][0]["token_ids"] == ids[40:60]
    assert rest["prompt_token_ids"] == whole["prompt_token_ids"] + ids[:40]
    before = bytes(token for token in ids[:40] if token < 256).decode(errors="ignore")
    assert before + rest["choices"][0]["message"]["content"] == text
    usage = rest["usage"]
    assert usage["prompt_tokens"] == len(rest["prompt_token_ids"]) and usage["completion_tokens"] == 20
    assert usage["prompt_tokens_details"]["continued_tokens"] == 40
    assert usage["prompt_tokens_details"]["cached_tokens"] >= len(rest["prompt_token_ids"]) // 16 * 16 - 16


def test_a_branch_computes_only_the_page_of_its_new_token(world: World) -> None:
    whole = ask(world, "branching " * 8, max_tokens=50, ignore_eos=True, return_token_ids=True)
    ids, num_prompt = whole["choices"][0]["token_ids"], len(whole["prompt_token_ids"])
    other = [*ids[:30], ord("z")]
    branch = ask(world, "branching " * 8, max_tokens=4, continue_token_ids=other)
    cached = branch["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == (num_prompt + 30) // 16 * 16


def test_half_a_character_that_was_given_is_finished(world: World) -> None:
    answer = ask(world, "x", max_tokens=1, continue_token_ids=[0xC3])
    assert answer["choices"][0]["message"]["content"] == "é"


def test_every_cut_of_an_answer_with_thoughts_goes_on_alike(speaking: World) -> None:
    ids = said(speaking, THINK)
    for cut in range(1, len(ids)):
        message = ask(speaking, THINK, continue_token_ids=ids[:cut], echo=True)["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("one two three", "So it is."), cut


def test_thoughts_that_were_given_are_not_said_again(speaking: World) -> None:
    ids = said(speaking, THINK)
    cut = len(b"<think>one two")
    body = ask(speaking, THINK, continue_token_ids=ids[:cut])
    message = body["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (" three", "So it is.")
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(" three</think>")
    after = ask(speaking, THINK, continue_token_ids=ids[: len(b"<think>one two three</think>\nSo ")])
    assert after["choices"][0]["message"]["content"] == "it is." and "reasoning" not in after["choices"][0]["message"]


def test_a_bound_on_thoughts_counts_those_that_were_given(speaking: World) -> None:
    ids = said(speaking, THINK)
    cut = len(b"<think>one ")
    body = ask(speaking, THINK, continue_token_ids=ids[:cut], thinking_token_budget=7, echo=True)
    assert body["choices"][0]["message"]["reasoning"] == "one two"


def test_a_call_that_was_begun_is_called(speaking: World) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    ids = said(speaking, BARE_CALL, tools=tools)
    body = ask(speaking, BARE_CALL, tools=tools, continue_token_ids=ids[:40], echo=True)
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "look" and "Bern" in call["function"]["arguments"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"


def test_a_form_holds_over_what_was_given(speaking: World) -> None:
    text = 'say:{"a": 12}'
    body = ask(speaking, text, response_format=FORMAT, continue_token_ids=list(b'{"a": 1'))
    assert body["choices"][0]["message"]["content"] == "2}"
    wrong = post(speaking, text, response_format=FORMAT, continue_token_ids=list(b'{"b'))
    assert wrong.status_code == 400 and "continue_token_ids" in wrong.json()["error"]["message"]
    whole = post(speaking, text, response_format=FORMAT, continue_token_ids=list(b'{"a": 12}'))
    assert whole.status_code in (200, 400)
    if whole.status_code == 200:
        assert whole.json()["choices"][0]["message"]["content"] == ""


def test_several_choices_go_on_from_the_same_place_with_log_probabilities(world: World) -> None:
    body = ask(
        world, "x", n=2, max_tokens=5, logprobs=True, top_logprobs=3, continue_token_ids=[97, 98], ignore_eos=True
    )
    assert len(body["choices"]) == 2 and body["usage"]["prompt_tokens_details"]["continued_tokens"] == 2
    for choice in body["choices"]:
        assert len(choice["logprobs"]["content"]) == 5


def test_a_stream_sends_only_what_is_new_or_all_with_echo(speaking: World) -> None:
    ids = said(speaking, THINK)[: len(b"<think>one two three</think>\nSo ")]
    for echo, expected in ((False, "it is."), (True, "So it is.")):
        answer = post(
            speaking, THINK, stream=True, stream_options={"include_usage": True}, continue_token_ids=ids, echo=echo
        )
        events = events_of(answer.text)
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == expected
        assert "".join(delta.get("reasoning", "") for delta in deltas) == ("one two three" if echo else "")
        assert events[-1]["usage"]["prompt_tokens_details"]["continued_tokens"] == len(ids)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"continue_token_ids": []}, "1 to 65536"),
        ({"continue_token_ids": [260]}, "260"),
        ({"continue_token_ids": [-1]}, "-1"),
        ({"continue_token_ids": [97] * 65_537}, "65536"),
        ({"continue_token_ids": [97, EOS]}, "ends an answer"),
        ({"continue_token_ids": [97], "continue_final_message": True}, "continue_final_message"),
        ({"continue_token_ids": [97], "add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_token_ids": [97], "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"continue_token_ids": [97], "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"continue_token_ids": list(b"ab stop "), "stop": ["stop"]}, "stop string"),
        ({"continue_token_ids": ["a"]}, "int"),
        ({"continue_token_ids": 5}, "array"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_by_name(world: World, fields: dict[str, Any], word: str) -> None:
    answer = post(world, "x", **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and word in error["message"]
    assert error["param"].startswith("continue_token_ids")


def test_too_much_for_the_context_says_so(world: World) -> None:
    answer = post(world, "x", continue_token_ids=[97] * 600)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_reader_catches_up_with_a_long_answer_beside_other_work(speaking: World) -> None:
    started = time.monotonic()
    answer = post(speaking, "say:x", continue_token_ids=[97] * 6000, n=4, max_tokens=1, echo=True)
    assert answer.status_code == 200 and time.monotonic() - started < 5
    assert all(choice["message"]["content"].startswith("a" * 6000) for choice in answer.json()["choices"])


# ---- what comes with each token


def test_every_streamed_token_comes_with_all_that_an_inspector_shows(speaking: World) -> None:
    prompt = ask(speaking, THINK, max_tokens=0, return_token_ids=True)["prompt_token_ids"]
    answer = post(speaking, THINK, stream=True, logprobs=True, top_logprobs=4, return_token_ids=True)
    events = events_of(answer.text)
    choices = [choice for event in events for choice in event["choices"]]
    ids = [token_id for choice in choices for token_id in choice.get("token_ids", [])]
    entries = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert (
        [entry["token_id"] for entry in entries]
        == ids
        == list(THINK.removeprefix("say:").replace("\\n", "\n").encode())
    )
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == bytes(ids)
    assert all(len(entry["top_logprobs"]) == 4 and entry["entropy"] >= 0 for entry in entries)
    assert all(
        best["bytes"] == [best["token_id"]] for e in entries for best in e["top_logprobs"] if best["token_id"] < 256
    )
    thought = "".join(chr(entry["token_id"]) for entry in entries if entry["reasoning"])
    assert thought.endswith("one two three</think>") and "So it" not in thought
    assert [event["prompt_token_ids"] for event in events if "prompt_token_ids" in event] == [prompt]


def test_without_the_ids_log_probabilities_are_as_openai_writes_them(world: World) -> None:
    body = ask(world, "x", logprobs=True, top_logprobs=1, max_tokens=2)
    entry = body["choices"][0]["logprobs"]["content"][0]
    assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
