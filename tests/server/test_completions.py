"""Plain completions: prompts in four forms, echoes, gaps to fill, choices, and the same text streamed and whole."""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from localllm.daemon.sources import Sources
from localllm.runtime.load import TextSide
from localllm.store.entry import Entry
from localllm.tokens.specials import FillIn, fill_in_of
from tests.daemon.toy import BOS, WORKER_COMMAND, ToyLibrary, ToyTokenizer, expected_text, toy_entry, toy_text
from tests.server.world import World, daemon

GAP = FillIn(1, 2, 3)


class FillingTokenizer(ToyTokenizer):
    add_bos, bos_id = True, BOS


def filling_text(entry: Entry) -> TextSide:
    """Of `toy:fills` only: it has tokens for a gap."""
    text = toy_text(entry)
    if entry.name != "toy:fills":
        return text
    return dataclasses.replace(text, tokenizer=cast(Any, FillingTokenizer()), fill_in=GAP)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    sources = Sources(
        library=ToyLibrary(toy_entry("toy:1b"), toy_entry("toy:fills")),
        load_text=filling_text,
        worker_command=WORKER_COMMAND,
        backend_problem=lambda backend: "",
    )
    with daemon(tmp_path_factory.mktemp("home"), sources=sources) as world:
        yield world


def complete(world: World, prompt: Any, **fields: Any) -> dict[str, Any]:
    answer = world.complete(prompt, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def streamed(world: World, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "toy:1b", "prompt": prompt, "temperature": 0, "max_tokens": 16, "stream": True} | fields
    with world.client.stream("POST", "/v1/completions", json=body) as stream:
        assert stream.status_code == 200
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [msgspec.json.decode(line) for line in lines[:-1]]


def ids_of(text: str) -> list[int]:
    return [BOS, *text.encode()]


# ---- gaps


def test_a_suffix_is_what_is_behind_the_gap(world: World) -> None:
    body = complete(world, "def f(", model="toy:fills", suffix="): pass", return_token_ids=True)
    prompt = [BOS, 1, *b"def f(", 2, *b"): pass", 3]
    (choice,) = body["choices"]
    assert choice["prompt_token_ids"] == prompt
    assert choice["text"] == expected_text(prompt, 16)
    assert body["usage"]["prompt_tokens"] == len(prompt)


def test_each_of_many_prompts_and_token_ids_are_before_the_gap(world: World) -> None:
    for prompts in (["ab", "cd"], [[97, 98], [99, 100]]):
        body = complete(world, prompts, model="toy:fills", suffix="x", return_token_ids=True, add_special_tokens=False)
        shown = [choice["prompt_token_ids"] for choice in body["choices"]]
        assert shown == [[1, *b"ab", 2, *b"x", 3], [1, *b"cd", 2, *b"x", 3]]


@pytest.mark.parametrize("suffix", [None, ""])
def test_an_empty_suffix_is_none(world: World, suffix: str | None) -> None:
    assert complete(world, "ab", suffix=suffix)["choices"][0]["text"] == expected_text(ids_of("ab"), 16)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"suffix": "x", "echo": True, "model": "toy:fills"}, "echo"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"truncate_prompt_tokens": 0}, "prompt"),
    ],
)
def test_what_cannot_be_completed_is_refused_by_name(world: World, fields: dict[str, Any], param: str) -> None:
    answer = world.complete("ab", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_gaps_are_known_by_metadata_or_by_the_usual_names() -> None:
    texts = {"<|fim_prefix|>": 5, "<|fim_suffix|>": 6, "<|fim_middle|>": 7}
    assert fill_in_of({}, texts, 10) == FillIn(5, 6, 7)
    said = {f"tokenizer.ggml.fim_{name}_token_id": number for number, name in enumerate(("pre", "suf", "mid"))}
    assert fill_in_of(said, texts, 10) == FillIn(0, 1, 2)
    assert fill_in_of({"tokenizer.ggml.prefix_token_id": 9}, texts, 10) == FillIn(9, 6, 7)
    assert fill_in_of({}, {"<|fim_prefix|>": 5}, 10) is None


# ---- echoes, scores, choices


def test_an_echo_begins_with_the_prompt_and_its_first_token_has_no_score(world: World) -> None:
    (choice,) = complete(world, "abc", echo=True, logprobs=1, max_tokens=4)["choices"]
    assert choice["text"] == "abc" + expected_text(ids_of("abc"), 4)
    scores = choice["logprobs"]
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    assert None not in scores["token_logprobs"][1:]
    assert len(scores["tokens"]) == len(ids_of("abc")) + 4
    assert scores["text_offset"] == sorted(scores["text_offset"])


def test_an_echo_alone_generates_nothing(world: World) -> None:
    (choice,) = complete(world, "abc", echo=True, logprobs=0, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert len(choice["logprobs"]["tokens"]) == len(ids_of("abc"))


@pytest.mark.parametrize(
    "fields",
    [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 0}, {"n": 3, "temperature": 1.0, "seed": 5}],
    ids=str,
)
@pytest.mark.parametrize("prompt", ["abc", ["abc", "def"], [97, 98], [[97], [98, 99]]], ids=str)
def test_a_stream_says_what_the_whole_answer_says(world: World, prompt: Any, fields: dict[str, Any]) -> None:
    whole = complete(world, prompt, **fields)
    texts: dict[int, str] = {}
    tokens: dict[int, list[str]] = {}
    for chunk in streamed(world, prompt, **fields):
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            tokens.setdefault(choice["index"], []).extend((choice["logprobs"] or {}).get("tokens", []))
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}
    if "logprobs" in fields:
        assert tokens == {choice["index"]: choice["logprobs"]["tokens"] for choice in whole["choices"]}


def test_many_choices_count_their_prompt_once_and_say_what_one_says(world: World) -> None:
    prompt = "a prompt of some length, and more than one page of it"
    body = complete(world, prompt, n=8)
    assert body["usage"]["prompt_tokens"] == len(ids_of(prompt))
    assert {choice["text"] for choice in body["choices"]} == {expected_text(ids_of(prompt), 16)}


def test_the_best_of_many_is_the_likeliest(world: World) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 6, "logprobs": 0}
    every = complete(world, "ab", n=8, **fields)["choices"]
    scores = [choice["logprobs"]["token_logprobs"] for choice in every]
    means = [sum(each) / max(1, len(each)) for each in scores]
    (best,) = complete(world, "ab", best_of=8, **fields)["choices"]
    assert best["text"] == every[means.index(max(means))]["text"]
    counted = complete(world, "ab", best_of=8, **fields)["usage"]["completion_tokens"]
    assert counted == sum(map(len, scores)), "what was thrown away was computed, too"


def test_a_prompt_is_cut_where_that_is_asked_and_then_told(world: World) -> None:
    body = complete(world, "abcdef", truncate_prompt_tokens=3, echo=True, max_tokens=4)
    assert body["choices"][0]["text"] == "def" + expected_text([*b"def"], 4)
    assert body["truncated_prompt_tokens"] == len(ids_of("abcdef")) - 3


# ---- what may be said


def test_only_allowed_tokens_and_never_a_bad_word(world: World) -> None:
    only = complete(world, "ab", allowed_token_ids=[120, 121], max_tokens=8)["choices"][0]
    assert set(only["text"]) <= {"x", "y"} and len(only["text"]) == 8
    free = expected_text(ids_of("ab"), 16)
    for bad in (free[2:4], free[:1]):
        told = complete(world, "ab", bad_words=[bad], max_tokens=16)["choices"][0]["text"]
        assert bad not in told and told
    never = complete(world, "ab", logit_bias={str(ord(free[0])): False})["choices"][0]["text"]
    assert free[0] not in never


def test_the_samplers_of_other_servers_are_taken(world: World) -> None:
    fields = {"typical_p": 0.9, "top_n_sigma": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.05, "seed": 3}
    drys = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["\n", " "]}
    first, again = (complete(world, "ab", temperature=1.0, **fields, **drys)["choices"] for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"typical_p": 2}, "typical_p"),
        ({"xtc_probability": -1}, "xtc_probability"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
        ({"allowed_token_ids": [9999]}, "allowed_token_ids"),
        ({"logit_bias": {"9999": False}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"mirostat": 2}, "mirostat"),
    ],
)
def test_samplers_out_of_bounds_are_refused_by_name(world: World, fields: dict[str, Any], param: str) -> None:
    answer = world.complete("ab", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
