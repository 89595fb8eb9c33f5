"""The official client, unmodified and strict about what it gets."""

from collections.abc import Iterator

import openai
import pytest

from tests.daemon.toy import expected_text
from tests.server.world import World, daemon


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{world.url}/v1", api_key="any", _strict_response_validation=True, max_retries=0
    ) as client:
        yield client


def said(text: str, max_tokens: int = 24) -> str:
    return expected_text(f"<user>{text}\n<assistant>".encode(), max_tokens)


def test_a_chat_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="toy:1b", messages=[{"role": "user", "content": "Hello"}], temperature=0, max_completion_tokens=24
    )
    assert answer.choices[0].message.content == said("Hello")
    assert answer.usage is not None and answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="toy:1b",
            messages=[{"role": "user", "content": "Hello"}],
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said("Hello")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert not chunks[-1].choices and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 24
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_chat_logprobs_and_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="toy:1b",
        messages=[
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ],
        n=3,
        seed=7,
        max_tokens=5,
        logprobs=True,
        top_logprobs=2,
        stop=["zz"],
        logit_bias={"97": -100},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)
        assert "a" not in (choice.message.content or "")


def test_completions_of_every_kind_of_prompt(client: openai.OpenAI) -> None:
    for prompt in ("ab", ["ab", "cd"], [97, 98], [[97, 98], [99]]):
        answer = client.completions.create(model="toy:1b", prompt=prompt, max_tokens=4, temperature=0)
        asked = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        assert len(answer.choices) == asked


def test_a_completion_stream(world: World) -> None:
    """Not strict: the client's own type wants a finish reason in every chunk, which OpenAI does not send either."""
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key="any", max_retries=0) as client:
        chunks = list(client.completions.create(model="toy:1b", prompt="ab", max_tokens=4, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected_text([256, 97, 98], 4)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy:1b"]
    assert client.models.retrieve("toy:1b").id == "toy:1b"


def test_errors_arrive_as_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="missing", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="toy:1b", prompt="x" * 600)
    assert too_long.value.code == "context_length_exceeded" and too_long.value.param == "prompt"
