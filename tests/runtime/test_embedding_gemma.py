"""A decoder's layers that see both ways, and layers after pooling: EmbeddingGemma, from its folder and from GGUF."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import ContextExceeded, InvalidRequest
from localllm.runtime.convert import convert_model
from localllm.runtime.llm import LLM
from tests.contract.conftest import HOSTS, Host
from tests.oracles.pair_models import DOCUMENTS, QUERY, expected_vectors, gemma_folder

TEXTS = [QUERY, *DOCUMENTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_folder(tmp_path_factory.mktemp("embedding") / "gemma")


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.float32]:
    return expected_vectors(folder, [text.replace("<|im_end|>", "") for text in TEXTS])


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def path(request: pytest.FixtureRequest, folder: Path) -> Path:
    if request.param == "safetensors":
        return folder
    written = folder.with_suffix(".gguf")
    convert_model(folder, written, None, replaces=True)
    return written


@pytest.fixture(scope="module", params=HOSTS, ids=lambda host: host.name)
def llm(request: pytest.FixtureRequest, path: Path) -> Iterator[LLM]:
    host: Host = request.param
    if problem := host.problem():
        pytest.skip(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = LLM(path, backend=host.name, kv_type="f32")
    yield opened
    opened.close()


def test_vectors_are_those_of_its_layers(llm: LLM, expected: NDArray[np.float32]) -> None:
    texts = [text.replace("<|im_end|>", "") for text in TEXTS]
    together, alone = llm.embed(texts), np.concatenate([llm.embed(text) for text in texts])
    assert together.shape == (len(TEXTS), 64)
    assert np.abs(1 - (together * expected).sum(axis=1)).max() < 1e-4
    assert np.abs(1 - (alone * expected).sum(axis=1)).max() < 1e-4


def test_it_writes_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="makes vectors of texts and writes none"):
        llm.generate(["The cat"])


def test_its_folder_names_prompts_and_how_long_texts_may_be(folder: Path) -> None:
    with LLM(folder) as opened:
        asked = opened.embed(QUERY, prompt_name="query")
        assert np.array_equal(asked, opened.embed("task: search | query: " + QUERY))
        with pytest.raises(InvalidRequest, match="no prompt 'other'") as refused:
            opened.embed(QUERY, prompt_name="other")
        assert refused.value.hint == "it has query, document"
        with pytest.raises(ContextExceeded, match="128"):
            opened.embed("the cat " * 200)
