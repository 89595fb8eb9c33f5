"""The official `openai` client, strict about what it gets: embeddings."""

import base64
import math
import struct
from operator import mul
from typing import Any

import httpx
import openai
import pytest

TEXTS = ["a cat sat on the mat", "a dog sat on the mat", "corporate tax law reform"]


def embed(client: openai.OpenAI, model: str, given: Any, **fields: Any) -> list[list[float]]:
    answer = client.embeddings.create(**{"model": model, "input": given, "encoding_format": "float"} | fields)
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
    return [each.embedding for each in answer.data]


def cosine(one: list[float], other: list[float]) -> float:
    """Of vectors of length 1."""
    return sum(map(mul, one, other))


def test_what_is_alike_is_near(client: openai.OpenAI, model: str) -> None:
    cat, dog, tax = embed(client, model, TEXTS)
    assert cosine(cat, dog) > cosine(cat, tax)


def test_a_vector_has_length_one(client: openai.OpenAI, model: str) -> None:
    (vector,) = embed(client, model, TEXTS[0])
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5) and len(vector) > 100


def test_the_encoding_that_the_client_likes_best_is_of_the_same_numbers(lax_client: openai.OpenAI, model: str) -> None:
    """It asks for base64 and unpacks that itself, which its own strict mode does not know."""
    answer = lax_client.embeddings.create(model=model, input=TEXTS)
    for unpacked, plain in zip(answer.data, embed(lax_client, model, TEXTS), strict=True):
        assert unpacked.embedding == pytest.approx(plain, abs=1e-6)


def test_base64_is_of_the_same_numbers(lax_client: openai.OpenAI, model: str) -> None:
    answer: Any = lax_client.embeddings.create(model=model, input=TEXTS[0], encoding_format="base64")
    raw = base64.b64decode(answer.data[0].embedding)
    (vector,) = embed(lax_client, model, TEXTS[0], encoding_format="float")
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vector, abs=1e-5)


def test_fewer_dimensions_are_the_first_ones(client: openai.OpenAI, model: str) -> None:
    (full,), (cut,) = embed(client, model, TEXTS[0]), embed(client, model, TEXTS[0], dimensions=32)
    assert len(cut) == 32 and math.hypot(*cut) == pytest.approx(1, abs=1e-5)
    assert cosine(cut, full[:32]) == pytest.approx(math.hypot(*full[:32]), abs=1e-4)


@pytest.mark.parametrize("is_list", [False, True], ids=["ids", "lists of ids"])
def test_token_ids_are_the_same_text(client: openai.OpenAI, daemon_url: str, model: str, is_list: bool) -> None:
    ids = httpx.post(f"{daemon_url}/tokenize", json={"model": model, "content": TEXTS[0]}).json()["tokens"]
    (by_ids,) = embed(client, model, [ids] if is_list else ids)
    (by_text,) = embed(client, model, TEXTS[0])
    assert cosine(by_ids, by_text) == pytest.approx(1, abs=1e-4)


def test_a_batch_gives_what_each_gives_alone(client: openai.OpenAI, model: str) -> None:
    for vector, text in zip(embed(client, model, TEXTS), TEXTS, strict=True):
        (alone,) = embed(client, model, text)
        assert vector == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [9_999_999]}, "input"),
        ({"input": "word " * 9000}, "input"),
        ({"dimensions": 100_000}, "dimensions"),
        ({"dimensions": 5000}, "dimensions"),
        ({"extra_body": {"speed": 1}}, "speed"),
    ],
    ids=["no input", "empty", "no token", "too long", "too many", "more than there are", "unknown"],
)
def test_what_cannot_be_embedded_is_a_bad_request_that_names_it(
    client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        embed(client, model, **{"given": fields.pop("input", "x"), **fields})
    assert refused.value.param == param


def test_an_unknown_model_embeds_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        embed(client, "smollm3:1b", "x")
