"""`LLM.rank`: pairs are put to a reranker as transformers puts them, from its folder and from GGUF."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import ContextExceeded, InvalidRequest
from localllm.runtime.convert import convert_model
from localllm.runtime.llm import LLM
from tests.oracles.pair_models import (
    DOCUMENTS,
    QUERY,
    bert_folder,
    expected_logits,
    expected_of_words,
    qwen3_folder,
    roberta_folder,
    xlm_folder,
)


@dataclass(frozen=True)
class Reranker:
    path: Path
    logits: NDArray[np.float32]


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], NDArray[np.float32]]]] = {
    "bert": (bert_folder, expected_logits),
    "xlm-roberta": (xlm_folder, expected_logits),
    "roberta": (roberta_folder, expected_logits),
    "qwen3": (qwen3_folder, expected_of_words),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    make, judge = KINDS[request.param]
    made = make(tmp_path_factory.mktemp("reranker") / request.param)
    return Reranker(made, judge(made))


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def reranker(request: pytest.FixtureRequest, folder: Reranker) -> Iterator[Reranker]:
    if request.param == "safetensors":
        yield folder
        return
    if folder.path.name == "xlm-roberta":
        pytest.skip("GGUF has no words for a tokenizer as small as this one")
    written = folder.path.with_suffix(".gguf")
    convert_model(folder.path, written, None, replaces=True)
    yield Reranker(written, folder.logits)


@pytest.fixture(scope="module")
def llm(reranker: Reranker) -> Iterator[LLM]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = LLM(reranker.path, kv_type="f32")
    yield opened
    opened.close()


def test_raw_scores_are_the_logits_of_transformers(llm: LLM, reranker: Reranker) -> None:
    found = llm.rank(QUERY, DOCUMENTS, raw_scores=True)
    assert np.std(reranker.logits) > 0.01
    assert np.abs(found - reranker.logits).max() < 2e-3 * max(1.0, np.abs(reranker.logits).max())


def test_scores_are_their_sigmoids(llm: LLM, reranker: Reranker) -> None:
    expected = 1 / (1 + np.exp(-reranker.logits))
    assert np.abs(llm.rank(QUERY, DOCUMENTS) - expected).max() < 2e-3
    assert np.abs(llm.rank(QUERY, DOCUMENTS[1]) - expected[1]).max() < 2e-3


def test_a_reranker_refuses_other_work(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="this model is a reranker"):
        llm.embed("the cat")
    with pytest.raises(InvalidRequest, match="this model is a reranker"):
        llm.generate(["the cat"])
    with pytest.raises(InvalidRequest, match="no document"):
        llm.rank(QUERY, [])


def test_a_pair_that_is_too_long_is_refused(llm: LLM) -> None:
    with pytest.raises(ContextExceeded):
        llm.rank(QUERY, ["the cat sat " * 200])


def test_a_document_is_cut_where_that_is_allowed(llm: LLM) -> None:
    form, long = llm.text.pair_form, "the cat sat " * 200
    assert form is not None
    whole = form.pair(llm.text.tokenizer, QUERY, "the cat", 10_000)
    longest = len(whole.ids) + 7
    cut = form.pair(llm.text.tokenizer, QUERY, long, longest, cuts=True)
    assert longest - 2 <= len(cut.ids) <= longest < cut.num_tokens
    assert cut.second_from == whole.second_from and cut.ids[-1] == whole.ids[-1]
    with pytest.raises(ContextExceeded):
        form.pair(llm.text.tokenizer, QUERY, long, 3, cuts=True)


def test_cross_encoders_of_sentence_transformers_say_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the oracle is sentence-transformers")
    made = bert_folder(tmp_path / "bert")
    theirs = library.CrossEncoder(str(made), device="cpu")
    plain = [text for text in DOCUMENTS if "[SEP]" not in text]
    expected = theirs.predict([(QUERY, text) for text in plain], show_progress_bar=False)
    with LLM(made, kv_type="f32") as opened:
        assert np.abs(opened.rank(QUERY, plain) - expected).max() < 1e-4
