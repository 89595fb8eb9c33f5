"""Every model that judges pairs on every backend: tiny random ones as transformers saves them, held to its logits."""

from dataclasses import dataclass

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.models.config import ModelConfig
from localllm.models.heads import read_head
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.source import WeightSource
from localllm.quantize.convert import convert
from localllm.wire import Submit
from tests.contract.conftest import PAGE_SIZE, Host, in_groups
from tests.oracles.hf import Family, as_folder
from tests.oracles.judges import JUDGES, expected_logit, make_judge

RNG = np.random.default_rng(4)
PAIRS = [(RNG.integers(3, 80, size).tolist(), size // 3) for size in (30, 21, 9, 3, 17)]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Judge:
    """A model as we open it, and what transformers says of each pair."""

    config: ModelConfig
    source: WeightSource
    logits: list[float]


@pytest.fixture(scope="module", params=in_groups(JUDGES), ids=lambda family: family.name)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judge]:
    family: Family = request.param
    model, folder = make_judge(family), tmp_path_factory.mktemp("judge")
    logits = [expected_logit(model, *pair) for pair in PAIRS]
    assert np.std(logits) > 0.01, "a head that says the same of every pair proves nothing"
    checkpoint = as_folder(model, folder)
    judges = {"safetensors": Judge(*hf_model(checkpoint), logits)}
    try:
        convert(checkpoint, folder / "model.gguf", BlockType.F32, {})
    except UnsupportedModel:
        return judges
    return {**judges, "gguf": Judge(*gguf_model(GGUFFile.open(folder / "model.gguf")), logits)}


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def judge(opened: dict[str, Judge], request: pytest.FixtureRequest) -> Judge:
    if request.param not in opened:
        pytest.skip("GGUF files of this architecture cannot say what this model is")
    return opened[request.param]


def engine_of(host: Host, judge: Judge) -> Engine:
    backend = host.open(judge.config, judge.source, "f32")
    return Engine(
        backend,
        context_length=62,
        num_pages=128,
        page_size=PAGE_SIZE,
        is_encoder=judge.config.is_encoder,
        head=read_head(judge.config, judge.source),
    )


def test_judgements_are_those_of_transformers_alone_and_together(host: Host, judge: Judge) -> None:
    engine = engine_of(host, judge)
    prompts, seconds = [ids for ids, _ in PAIRS], [second for _, second in PAIRS]
    together = engine.pool(prompts, "rank", seconds)
    alone = [engine.pool([ids], "rank", [second])[0] for ids, second in PAIRS]
    assert together.shape == (len(PAIRS), 1)
    assert np.abs(together[:, 0] - judge.logits).max() <= TOLERANCE * max(1.0, np.abs(judge.logits).max())
    assert np.abs(np.array(alone)[:, 0] - judge.logits).max() <= TOLERANCE * max(1.0, np.abs(judge.logits).max())
    engine.check()
    engine.close()


def test_a_judge_neither_writes_nor_makes_vectors(host: Host, judge: Judge) -> None:
    engine = engine_of(host, judge)
    with pytest.raises(InvalidRequest, match="this model is a reranker"):
        engine.pool([[3, 4]], "mean")
    with pytest.raises(InvalidRequest, match="this model is a reranker"):
        engine.add(Submit(request_id="one", prompt=[3, 4], max_tokens=4))
    with pytest.raises(InvalidRequest, match="this model is a reranker"):
        engine.add(Submit(request_id="one", prompt=[3, 4], max_tokens=0, pooled="last"))
    engine.close()
