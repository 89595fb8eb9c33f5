"""The official `openai` client: plain completions.

Streams and echoes with scores are read by the client that is not strict: its types want a finish reason in every chunk
and a log-probability for a text's first token, and OpenAI itself sends null there.
"""

from typing import Any

import httpx
import openai
import pytest

PROMPT = "The capital of France is"


def complete(client: openai.OpenAI, model: str, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(**{"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 6} | fields)


@pytest.fixture(scope="module")
def ids(daemon_url: str, model: str) -> list[int]:
    """The tokens of the prompt."""
    told = httpx.post(f"{daemon_url}/tokenize", json={"model": model, "content": PROMPT, "add_special": False})
    numbers: list[int] = told.json()["tokens"]
    return numbers


def test_a_text_goes_on(client: openai.OpenAI, model: str) -> None:
    answer = complete(client, model)
    assert "Paris" in answer.choices[0].text and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


ASKED: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "two choices": {"n": 2, "temperature": 1.0, "seed": 5},
    "a stop": {"stop": "."},
    "an echo": {"echo": True},
    "an echo with scores": {"echo": True, "logprobs": 2},
    "scores": {"logprobs": 1},
    "several prompts": {"prompt": [PROMPT, "One, two,"]},
    "a bias": {"logit_bias": {"28": -100}},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 1.0, "max_tokens": 12},
    "a regular expression": {"extra_body": {"guided_regex": " [A-Z][a-z]{2,5}\\."}, "max_tokens": 12},
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED.keys())
def test_a_stream_says_what_the_whole_answer_says(
    lax_client: openai.OpenAI, model: str, fields: dict[str, Any]
) -> None:
    whole = complete(lax_client, model, **fields)
    chunks = list(complete(lax_client, model, **fields, stream=True, stream_options={"include_usage": True}))
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    for choice in whole.choices:
        own = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [piece.finish_reason for piece in own if piece.finish_reason] == [choice.finish_reason]
        if choice.logprobs:
            scores = [score for piece in own if piece.logprobs for score in piece.logprobs.token_logprobs]
            assert scores == pytest.approx(choice.logprobs.token_logprobs, abs=1e-3)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_an_echo_scores_every_token_but_the_first(lax_client: openai.OpenAI, model: str, ids: list[int]) -> None:
    (choice,) = complete(lax_client, model, echo=True, logprobs=1, max_tokens=2).choices
    scores = choice.logprobs
    assert choice.text.startswith(PROMPT) and "".join(scores.tokens) == choice.text
    assert scores.token_logprobs[0] is None and all(value < 0 for value in scores.token_logprobs[1:])
    assert len(scores.tokens) == len(ids) + 2
    places = zip(scores.text_offset, scores.tokens, strict=True)
    assert [choice.text[place:][: len(token)] for place, token in places] == scores.tokens


def test_an_echo_without_an_answer_is_the_prompt(client: openai.OpenAI, model: str) -> None:
    answer = complete(client, model, echo=True, max_tokens=0)
    assert answer.choices[0].text == PROMPT and answer.usage.completion_tokens == 0


def test_token_ids_are_the_same_prompt(client: openai.OpenAI, model: str, ids: list[int]) -> None:
    by_ids, by_text = complete(client, model, ids), complete(client, model)
    assert by_ids.choices == by_text.choices and by_ids.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("kind", ["texts", "token ids"])
def test_several_prompts_are_answered_in_their_order(
    client: openai.OpenAI, model: str, ids: list[int], kind: str
) -> None:
    prompts: Any = [PROMPT, "One, two, three,"] if kind == "texts" else [ids, ids[:-1]]
    answer = complete(client, model, prompts, n=2)
    alone = [complete(client, model, prompt).choices[0].text for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]


def test_the_best_of_several_is_the_likeliest(client: openai.OpenAI, model: str) -> None:
    fields: Any = {"temperature": 1.4, "seed": 3, "logprobs": 0, "max_tokens": 4}
    likelihood = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)  # noqa: E731
    every = complete(client, model, **fields, n=4).choices
    best = complete(client, model, **fields, best_of=4)
    assert len(best.choices) == 1
    assert likelihood(best.choices[0]) == pytest.approx(max(map(likelihood, every)), abs=1e-3)
    assert best.usage.completion_tokens == 16


def test_token_ids_are_returned(client: openai.OpenAI, model: str, ids: list[int]) -> None:
    (choice,) = complete(client, model, extra_body={"return_token_ids": True}).choices
    assert choice.model_extra["prompt_token_ids"] == ids and len(choice.model_extra["token_ids"]) == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": " and so on"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 99}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [9_999_999]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": {"n_predict": 5}}, "n_predict"),
    ],
)
def test_what_cannot_be_completed_is_a_bad_request_that_names_it(
    client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, model, **fields)
    assert refused.value.param == param


def test_a_prompt_beyond_the_context_is_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="8192") as refused:
        complete(client, model, "word " * 9000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_a_prompt_is_cut_on_wish_and_the_answer_says_so(client: openai.OpenAI, model: str) -> None:
    raw = client.completions.with_raw_response.create(
        model=model, prompt="word " * 500, max_tokens=1, extra_body={"truncate_prompt_tokens": 20}
    )
    usage = raw.parse().usage
    assert usage is not None and usage.prompt_tokens == 20
    assert int(raw.headers["x-localllm-truncated"]) > 400


def test_a_special_token_is_a_stop_string_though_it_is_not_shown(client: openai.OpenAI, model: str) -> None:
    """Modelfiles and clients name turns so; the token never becomes text that a string could be met in."""
    says_it = {"logit_bias": {"1": 100}, "extra_body": {"ignore_eos": True}}
    (choice,) = complete(client, model, stop=["\n\n", "<|im_start|>"], **says_it).choices
    assert (choice.text, choice.finish_reason) == ("", "stop")
    assert choice.model_extra is not None and choice.model_extra["stop_reason"] == "<|im_start|>"
