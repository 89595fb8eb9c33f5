"""A real GGUF file through mapping and reference backend: the answer everybody knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import SAMPLED_LAST, SampleWant, Want
from localllm.formats.gguf_read import GGUFFile
from localllm.models.mapping import gguf_model
from localllm.wire import SamplingParams
from tests.contract.walk import Walk

GREEDY = Want(sample=SampleWant(SamplingParams(temperature=0.0), 0, 0))


@pytest.fixture
def file(small_model_file: Path) -> Iterator[GGUFFile]:
    with GGUFFile.open(small_model_file) as opened:
        yield opened


def test_the_capital_of_france_is_paris(file: GGUFFile) -> None:
    config, source = gguf_model(file)
    walk = Walk(ReferenceBackend(config, source, page_size=16))
    vocabulary = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(vocabulary, list)
    # byte-level BPE writes a space as Ġ; these words are one token each
    prompt = [vocabulary.index(piece) for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    ids = list(walk.step((1, prompt, GREEDY))[0].sampled)
    for _ in range(7):
        ids += walk.step((1, [SAMPLED_LAST], GREEDY))[0].sampled
    assert "Paris" in "".join(vocabulary[token] for token in ids)
