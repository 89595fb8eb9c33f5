"""Embeddings, rerank and score over HTTP: the engine's own vectors, whatever the form of input and answer."""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.backends.fake import FakeBackend
from localllm.engine.engine import Engine
from localllm.server import vector_shapes
from tests.daemon.toy import BOS, CONTEXT_LENGTH, PAGE_SIZE, VOCAB_SIZE, next_token
from tests.server.json_schema import complaints
from tests.server.test_any_json import sound, values
from tests.server.world import World, daemon

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


def expected(*prompts: list[int]) -> Vectors:
    """Unit vectors of the last tokens, from an engine of our own."""
    backend = FakeBackend(vocab_size=VOCAB_SIZE, page_size=PAGE_SIZE, answer=next_token)
    engine = Engine(backend, context_length=CONTEXT_LENGTH, num_pages=512, page_size=PAGE_SIZE, token_budget=512)
    vectors = engine.pool(prompts, "last")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids_of(text: str) -> list[int]:
    return [BOS, *text.encode()]


def embeddings(world: World, given: Any, **fields: Any) -> dict[str, Any]:
    answer = world.client.post("/v1/embeddings", json={"model": "toy:1b", "input": given} | fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert msgspec.to_builtins(msgspec.convert(body, vector_shapes.Embeddings)) == body
    return body


def vectors_in(body: dict[str, Any]) -> Vectors:
    assert [each["index"] for each in body["data"]] == list(range(len(body["data"])))
    return np.asarray([each["embedding"] for each in body["data"]], np.float32)


TEXTS = ["a text", "another", "a text", "the fourth of them"]


def test_texts_become_unit_vectors_in_their_order(world: World) -> None:
    body = embeddings(world, TEXTS)
    np.testing.assert_allclose(vectors_in(body), expected(*map(ids_of, TEXTS)), rtol=1e-5)
    count = sum(len(ids_of(text)) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count} and body["model"] == "toy:1b"


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("one text", [ids_of("one text")]),
        ([97, 98, 99], [[97, 98, 99]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_the_input_has_four_forms(world: World, given: Any, prompts: list[list[int]]) -> None:
    np.testing.assert_allclose(vectors_in(embeddings(world, given)), expected(*prompts), rtol=1e-5)


def test_many_inputs_are_one_batch_and_keep_their_order(world: World) -> None:
    texts = [f"text {number}" * (number % 7 + 1) for number in range(300)]
    np.testing.assert_allclose(vectors_in(embeddings(world, texts)), expected(*map(ids_of, texts)), rtol=1e-5)


def test_base64_holds_the_same_numbers(world: World) -> None:
    plain = vectors_in(embeddings(world, TEXTS))
    coded = embeddings(world, TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    np.testing.assert_array_equal(np.stack(decoded), plain)


def test_fewer_dimensions_are_the_first_ones_at_length_one(world: World) -> None:
    whole = vectors_in(embeddings(world, TEXTS))[:, :3]
    short = vectors_in(embeddings(world, TEXTS, dimensions=3))
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole, axis=1, keepdims=True), rtol=1e-5)


def test_a_long_input_is_refused_unless_it_may_be_cut_and_then_that_is_told(world: World) -> None:
    long = list(range(200)) * 3
    refused = world.client.post("/v1/embeddings", json={"model": "toy:1b", "input": long})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "input" and refused.json()["error"]["n_prompt_tokens"] == 600
    for limit, kept in ((-1, long[-CONTEXT_LENGTH:]), (100, long[-100:])):
        body = embeddings(world, long, truncate_prompt_tokens=limit)
        np.testing.assert_allclose(vectors_in(body), expected(kept), rtol=1e-5)
        assert body["usage"]["prompt_tokens"] == len(kept)
        assert body["warnings"] == [f"input 0 has 600 tokens and was cut to {len(kept)}"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [1 << 20]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "dimensions": 9}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "x", "input_type": "query"}, "input_type"),
        ({"input": "x", "backend": "abacus"}, "backend"),
        ({}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(world: World, fields: dict[str, Any], param: str) -> None:
    answer = world.client.post("/v1/embeddings", json={"model": "toy:1b"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_vectors_are_computed_beside_an_answer_that_goes_on(world: World) -> None:
    alone = world.complete("talk", max_tokens=60).json()["choices"][0]["text"]
    body = {"model": "toy:1b", "prompt": "talk", "temperature": 0, "max_tokens": 60, "stream": True}
    with world.client.stream("POST", "/v1/completions", json=body) as stream:
        np.testing.assert_allclose(vectors_in(embeddings(world, "x")), expected(ids_of("x")), rtol=1e-5)
        lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
    chunks = [msgspec.json.decode(line[6:]) for line in lines]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == alone


@pytest.mark.parametrize(("strict", "fields"), [(True, {"encoding_format": "float"}), (False, {})])
def test_the_official_client_reads_them(world: World, strict: bool, fields: dict[str, Any]) -> None:
    """By default it asks for base64, which its own types do not have: only the other form can be checked strictly."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(
        base_url=f"{world.url}/v1", api_key="none", _strict_response_validation=strict, max_retries=0
    ) as client:
        answer = client.embeddings.create(model="toy:1b", input=TEXTS, **fields)
        np.testing.assert_allclose([each.embedding for each in answer.data], expected(*map(ids_of, TEXTS)), rtol=1e-5)


# ---- rerank and score

QUERY, DOCUMENTS = "what is it", ["this", "what is it", "something else"]


def cosines() -> list[float]:
    query, *others = expected(*map(ids_of, [QUERY, *DOCUMENTS]))
    return [float(query @ other) for other in others]


def rerank(world: World, path: str = "/v1/rerank", **fields: Any) -> Any:
    answer = world.client.post(path, json={"model": "toy:1b", "query": QUERY} | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-localllm-method"] == "cosine"
    return answer.json()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"])
def test_documents_come_best_first_with_their_cosines(world: World, path: str) -> None:
    body = rerank(world, path, documents=DOCUMENTS)
    assert msgspec.to_builtins(msgspec.convert(body, vector_shapes.Ranking)) == body
    assert body["method"] == "cosine" and body["results"][0]["index"] == 1
    scores = [each["relevance_score"] for each in body["results"]]
    assert scores == sorted(scores, reverse=True)
    found = {each["index"]: each["relevance_score"] for each in body["results"]}
    np.testing.assert_allclose([found[index] for index in range(3)], cosines(), atol=1e-5)
    assert body["usage"]["total_tokens"] == sum(len(ids_of(text)) for text in [QUERY, *DOCUMENTS])


def test_only_the_best_with_their_texts_where_that_is_asked_for(world: World) -> None:
    documents = [{"text": DOCUMENTS[0]}, DOCUMENTS[1], {"text": DOCUMENTS[2]}]
    body = rerank(world, documents=documents, top_n=2, return_documents=True)
    assert len(body["results"]) == 2
    assert body["results"][0]["document"] == {"text": DOCUMENTS[1]}


def test_texts_are_answered_in_tei_s_form(world: World) -> None:
    body = rerank(world, "/rerank", texts=DOCUMENTS, return_text=True)
    assert body[0]["index"] == 1 and body[0]["text"] == DOCUMENTS[1]
    np.testing.assert_allclose([each["score"] for each in body], sorted(cosines(), reverse=True), atol=1e-5)
    assert rerank(world, texts=["x" * 900], truncate=True)[0].keys() == {"index", "score"}


def test_long_documents_are_refused_or_cut_and_told(world: World) -> None:
    asked = {"model": "toy:1b", "query": QUERY, "documents": ["x" * 900]}
    answer = world.client.post("/v1/rerank", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")
    body = rerank(world, documents=["x" * 900], truncate_prompt_tokens=-1)
    assert body["warnings"] == ["input 1 has 901 tokens and was cut to 512"]


@pytest.mark.parametrize(
    ("one", "many"), [("a", "b"), ("a", ["b", "c"]), (["a"], ["b", "c"]), (["a", "b"], ["c", "d"])]
)
def test_scores_are_cosines_of_pairs(world: World, one: Any, many: Any) -> None:
    answer = world.client.post("/v1/score", json={"model": "toy:1b", "text_1": one, "text_2": many})
    body = answer.json()
    assert msgspec.to_builtins(msgspec.convert(body, vector_shapes.Scores)) == body
    first, second = ([each] if isinstance(each, str) else each for each in (one, many))
    first = first * len(second) if len(first) == 1 else first
    left, right = (expected(*map(ids_of, texts)) for texts in (first, second))
    np.testing.assert_allclose([each["score"] for each in body["data"]], (left * right).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/rerank", {"query": "x"}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents"),
        ("/v1/rerank", {"documents": ["x"]}, "query"),
        ("/v1/rerank", {"query": "x", "documents": ["x"], "texts": ["x"]}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": [{"body": "x"}]}, "documents[0].body"),
        ("/v1/rerank", {"query": "x", "documents": ["x"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "x", "documents": ["x"], "return_text": True}, "return_text"),
        ("/rerank", {"query": "x", "texts": ["x"], "top_n": 1}, "top_n"),
        ("/rerank", {"query": "x", "texts": [1]}, "texts[0]"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "", "documents": ["x"], "add_special_tokens": False}, "query"),
        ("/v1/rerank", {"query": "x", "documents": [""], "add_special_tokens": False}, "documents"),
        ("/v1/rerank", {"query": "x" * 900, "documents": ["x"]}, "query"),
        ("/v1/score", {"text_1": "", "text_2": "x", "add_special_tokens": False}, "text_1"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(world: World, path: str, fields: dict[str, Any], param: str) -> None:
    answer = world.client.post(path, json={"model": "toy:1b"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/embeddings", {"input": [[1, 2], [3]], "encoding_format": "base64"}),
        ("/v1/rerank", {"query": "x", "documents": ["x", {"text": "y"}], "return_documents": True}),
        ("/rerank", {"query": "x", "texts": ["x"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ],
)
def test_requests_and_answers_are_as_described(world: World, path: str, fields: dict[str, Any]) -> None:
    document = world.client.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert complaints({"model": "toy:1b"} | fields, asked, document) == []
    answer = world.client.post(path, json={"model": "toy:1b"} | fields)
    assert answer.status_code == 200 and complaints(answer.json(), answered, document) == []
    assert complaints({"model": 5}, asked, document) and complaints({}, answered, document)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["x"]},
    "/rerank": {"query": "x", "texts": ["x"]},
    "/v1/score": {"text_1": "x", "text_2": "y"},
}
REQUESTS: dict[str, type[msgspec.Struct]] = {
    "/v1/embeddings": vector_shapes.EmbeddingRequest,
    "/v1/rerank": vector_shapes.RerankRequest,
    "/rerank": vector_shapes.RerankRequest,
    "/v1/score": vector_shapes.ScoreRequest,
}


@settings(max_examples=120)
@given(st.sampled_from(sorted(BODIES)), st.data())
def test_any_value_in_any_field_is_answered_or_refused(world: World, path: str, data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(REQUESTS[path].__struct_fields__), values, max_size=2))
    sound(world, path, {"model": "toy:1b"} | BODIES[path] | fields)
