"""A reranker over HTTP: judged by its own head, in every form of the request; other work is refused in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.daemon.sources import Sources
from localllm.store.details import describe
from localllm.store.entry import Entry
from tests.daemon.toy import ToyLibrary
from tests.oracles.pair_models import DOCUMENTS, QUERY, bert_folder, expected_logits
from tests.server.world import World, daemon

NAME = "judge:tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("judge") / "bert")


@pytest.fixture(scope="module")
def logits(folder: Path) -> NDArray[np.float32]:
    return expected_logits(folder)


@pytest.fixture(scope="module")
def world(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    entry = describe(Entry(name=NAME, path=str(folder), source="path", digest="judge"))
    assert entry.capabilities == ("rerank",)
    with daemon(tmp_path_factory.mktemp("home"), sources=Sources(ToyLibrary(entry)), backend="cpu") as world:
        yield world


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def post(world: World, path: str, **fields: Any) -> Any:
    answer = world.client.post(path, json={"model": NAME} | fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-localllm-method") == (None if path.endswith("score") else "cross-encoder")
    return answer.json()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/reranking"])
def test_documents_come_best_first_with_what_the_head_says(
    world: World, logits: NDArray[np.float32], path: str
) -> None:
    body = post(world, path, query=QUERY, documents=DOCUMENTS, top_n=3, return_documents=True)
    best = np.argsort(-logits)[:3]
    assert body["method"] == "cross-encoder" and [each["index"] for each in body["results"]] == best.tolist()
    found = [each["relevance_score"] for each in body["results"]]
    np.testing.assert_allclose(found, sigmoid(logits)[best], atol=2e-3)
    assert body["results"][0]["document"] == {"text": DOCUMENTS[best[0]]} and body["usage"]["prompt_tokens"] > 30


def test_raw_scores_are_logits_in_tei_s_form_too(world: World, logits: NDArray[np.float32]) -> None:
    body = post(world, "/rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True)
    np.testing.assert_allclose([each["score"] for each in body], np.sort(logits)[::-1], atol=5e-3)


def test_pairs_are_scored_one_to_many(world: World, logits: NDArray[np.float32]) -> None:
    body = post(world, "/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    assert body["method"] == "cross-encoder"
    np.testing.assert_allclose([each["score"] for each in body["data"]], sigmoid(logits), atol=2e-3)


def test_a_pair_that_is_too_long_is_refused_or_cut_and_told(world: World) -> None:
    fields = {"model": NAME, "query": QUERY, "texts": ["the cat sat " * 300]}
    refused = world.client.post("/rerank", json=fields)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "texts"
    assert post(world, "/rerank", query=QUERY, texts=fields["texts"], truncate=True)[0]["index"] == 0
    body = post(world, "/v1/rerank", query=QUERY, documents=["the cat sat " * 10], truncate_prompt_tokens=24)
    assert body["usage"]["prompt_tokens"] == 24 and "was cut to 24" in body["warnings"][0]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": "the cat"}),
        ("/api/embed", {"input": "the cat"}),
        ("/v1/completions", {"prompt": "the cat", "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2}),
    ],
)
def test_a_reranker_refuses_other_work_in_a_sentence(world: World, path: str, fields: dict[str, Any]) -> None:
    answer = world.client.post(path, json={"model": NAME} | fields)
    assert answer.status_code == 400 and "this model is a reranker" in answer.text
