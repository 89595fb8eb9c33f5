"""The official `openai` client, asynchronous, and strict about what it gets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.clients.asking import MESSAGES, TOOLS, said_in_parts, said_whole


@pytest.fixture
async def client(daemon_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{daemon_url}/v1", api_key="any", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, model: str, **fields: Any) -> Any:
    return await client.chat.completions.create(
        **{"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 12} | fields
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}],
    ids=["text", "choices", "calls"],
)
async def test_a_stream_says_what_the_whole_answer_says(
    client: openai.AsyncOpenAI, model: str, fields: dict[str, Any]
) -> None:
    whole = await ask(client, model, **fields)
    chunks = [chunk async for chunk in await ask(client, model, **fields, stream=True)]
    assert said_in_parts(chunks) == said_whole(whole)


async def test_many_at_once_get_what_each_gets_alone(client: openai.AsyncOpenAI, model: str) -> None:
    asked = [[{"role": "user", "content": f"Count on from {number}."}] for number in range(8)]
    together = await asyncio.gather(*(ask(client, model, messages=messages) for messages in asked))
    for messages, answer in zip(asked, together, strict=True):
        alone = await ask(client, model, messages=messages)
        assert alone.choices[0].message.content == answer.choices[0].message.content


async def test_a_cancelled_task_leaves_the_others_alone(client: openai.AsyncOpenAI, model: str) -> None:
    endless = asyncio.create_task(ask(client, model, max_tokens=4000, extra_body={"ignore_eos": True}))
    answer = await ask(client, model)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert said_whole(await ask(client, model)) == said_whole(answer)


async def test_a_client_that_waits_too_shortly_hears_so(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        await ask(client, model, max_tokens=4000, extra_body={"ignore_eos": True}, timeout=0.2)


async def test_vectors_completions_and_responses_are_there_too(client: openai.AsyncOpenAI, model: str) -> None:
    vectors = await client.embeddings.create(model=model, input=["a", "b"], encoding_format="float")
    completion = await client.completions.create(model=model, prompt="One, two,", max_tokens=3)
    response = await client.responses.create(model=model, input="Hello", max_output_tokens=3)
    assert len(vectors.data) == 2 and completion.choices[0].text and response.output_text


async def test_errors_are_the_clients_own(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await ask(client, "smollm3:1b")
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, model, temperature=-1)
    assert refused.value.param == "temperature"
