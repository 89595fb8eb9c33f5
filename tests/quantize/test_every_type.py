"""A real model and a tiny one, their weights rounded to each block type, still say what they said."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.engine.engine import Engine
from localllm.engine.step import Backend
from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode
from localllm.formats.blocks import encode as plain_encode
from localllm.formats.gguf_read import GGUFFile
from localllm.lab.chunk_reader import ChunkReader
from localllm.models.config import AttentionSpec, LayerSpec, ModelConfig, RopeSpec
from localllm.models.mapping import gguf_model
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.encode import ENCODABLE
from localllm.quantize.source import QuantizedSource
from localllm.tokens.tokenizer import Tokenizer
from localllm.wire import SamplingParams, Submit
from tests.contract.conftest import HOSTS, PAGE_SIZE, Host
from tests.contract.worlds import MemorySource, draw
from tests.oracles.plain import Plain

NUM_NEW = 8
OF_32 = [kind for kind in sorted(ENCODABLE) if BLOCK_LAYOUTS[kind].values_per_block == 32]
OF_256 = [kind for kind in sorted(ENCODABLE) if BLOCK_LAYOUTS[kind].values_per_block == 256]
# how many times the perplexity of the float16 weights is still well; a model of 135M parameters takes Q4_0 hard (1.27
# on longer texts), and this is the second time that its weights are rounded
PERPLEXITIES = {BlockType.Q8_0: 1.03, BlockType.Q4_0: 1.6}
ENGLISH = """The water cycle describes how water moves above, on, and below the surface of the Earth. The sun heats
water in oceans and lakes, and some of it evaporates into the air as vapour. Rising air takes the vapour up, where lower
temperatures cause it to condense into clouds. Winds move the clouds around the globe, until the drops grow and fall
from the sky as rain or snow. Some of the snow builds up as ice caps and glaciers, which can store frozen water for
thousands of years. Most of the rain falls back into the oceans or onto land, where it flows over the ground and enters
rivers in valleys, which carry it back towards the sea."""
HIDDEN, VOCAB, CONTEXT = 256, 64, 64
ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, value_dim=64, scale=0.125, rope=RopeSpec(64, 1e4))
TINY = ModelConfig("tiny", HIDDEN, VOCAB, CONTEXT, (LayerSpec(ATTENTION), LayerSpec(ATTENTION)))
LAYER = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (2 * HIDDEN, HIDDEN),
    "ffn_up": (2 * HIDDEN, HIDDEN),
    "ffn_down": (HIDDEN, 2 * HIDDEN),
}


class Floats:
    """The first layers of a source, blocks decoded to float16: what they were before somebody rounded them."""

    def __init__(self, source: WeightSource, num_layers: int) -> None:
        self._source = source
        self._layers = {f"blk.{index}" for index in range(num_layers)}

    def names(self) -> Iterable[str]:
        return (name for name in self._source.names() if name[:4] != "blk." or self._layer(name) in self._layers)

    def _layer(self, name: str) -> str:
        return ".".join(name.split(".")[:2])

    def info(self, name: str) -> WeightInfo | None:
        info = self._source.info(name)
        return info if info is None or len(info.shape) == 1 else replace(info, type=BlockType.F16)

    def raw(self, name: str) -> NDArray[np.uint8]:
        info, raw = self._source.info(name), self._source.raw(name)
        if info is None or len(info.shape) == 1:
            return raw
        return plain_encode(BlockType.F16, decode(info.type, raw, info.shape)).reshape(-1)

    def release(self, name: str) -> None:
        self._source.release(name)


@pytest.fixture(params=[host for host in HOSTS if host.name in ("reference", "cpu")], ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    chosen: Host = request.param
    if problem := chosen.problem():
        pytest.skip(problem)
    return chosen


@dataclass(frozen=True)
class SmallModel:
    config: ModelConfig
    source: WeightSource
    vocabulary: list[str]
    tokenizer: Tokenizer

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, parse_special=False)

    @property
    def prompt(self) -> list[int]:
        return [self.vocabulary.index(piece) for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]

    def floats(self, num_layers: int = 0) -> tuple[ModelConfig, Floats]:
        """Its first layers, or all of them, in float16."""
        layers = self.config.layers[: num_layers or None]
        return replace(self.config, layers=layers), Floats(self.source, len(layers))


@pytest.fixture
def small_model(small_model_file: Path) -> Iterator[SmallModel]:
    with GGUFFile.open(small_model_file) as file:
        config, source = gguf_model(file)
        vocabulary = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(vocabulary, list)
        yield SmallModel(config, source, vocabulary, Tokenizer.from_gguf(file.metadata))


def opened(host: Host, config: ModelConfig, source: WeightSource) -> Backend:
    try:
        return host.open(config, source)
    except UnsupportedModel as error:
        if host.name == "reference":
            raise
        pytest.skip(f"{host.name} refuses this by name: {error}")


def greedy(backend: Backend, prompt: list[int]) -> list[int]:
    engine = Engine(
        backend, context_length=CONTEXT, num_pages=64, page_size=PAGE_SIZE, token_budget=64, max_sequences=1
    )
    engine.add(Submit(request_id="one", prompt=prompt, sampling=SamplingParams(temperature=0.0), max_tokens=NUM_NEW))
    text: list[int] = []
    while engine.has_work:
        for chunk in engine.step():
            assert not chunk.error
            text += chunk.ids
    assert len(text) == NUM_NEW
    return text


def test_the_whole_real_model_rounded_again_still_knows_english_and_in_q8_0_says_what_it_said(
    small_model: SmallModel,
) -> None:
    config, source = small_model.floats()
    backend = on_cpu(config, source)
    exact, ids = perplexity_of(backend, small_model.ids(ENGLISH)), greedy(backend, small_model.prompt)
    assert "Paris" in "".join(small_model.vocabulary[token] for token in ids)
    for kind, times in PERPLEXITIES.items():
        backend = on_cpu(config, QuantizedSource(source, kind))
        assert perplexity_of(backend, small_model.ids(ENGLISH)) < times * exact, kind.name
        assert kind is BlockType.Q4_0 or greedy(backend, small_model.prompt) == ids


def on_cpu(config: ModelConfig, source: WeightSource) -> Backend:
    host = next(host for host in HOSTS if host.name == "cpu")
    if problem := host.problem():
        pytest.skip(problem)
    return opened(host, config, source)


def perplexity_of(backend: Backend, ids: list[int]) -> float:
    """Of the second half."""
    return float(np.exp(np.mean(ChunkReader(backend, len(ids)).losses(ids))))


@pytest.mark.parametrize("kind", OF_32, ids=lambda kind: kind.name)
def test_two_layers_of_the_real_model_run_in_every_type_of_32_values(
    small_model: SmallModel, host: Host, kind: BlockType
) -> None:
    config, source = small_model.floats(num_layers=2)
    rounded = QuantizedSource(source, kind)
    assert rounded.info("blk.0.attn_q.weight") == WeightInfo("blk.0.attn_q.weight", (576, 576), kind)
    text = greedy(opened(host, config, rounded), small_model.prompt)
    if kind is BlockType.Q8_0:
        assert text == greedy(opened(host, config, source), small_model.prompt)


def tiny_weights() -> MemorySource:
    rng = np.random.default_rng(11)
    shapes = {f"blk.{index}.{name}.weight": shape for index in range(2) for name, shape in LAYER.items()}
    ends = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}
    return MemorySource({name: draw(rng, name, shape) for name, shape in (shapes | ends).items()})


def plain(source: WeightSource) -> Plain:
    infos = [info for name in source.names() if (info := source.info(name)) is not None]
    return Plain(TINY, {i.name: decode(i.type, source.raw(i.name), i.shape).astype(np.float64) for i in infos})


@pytest.mark.parametrize("kind", OF_256, ids=lambda kind: kind.name)
def test_a_tiny_model_runs_in_every_type_of_256_values(host: Host, kind: BlockType) -> None:
    rounded = QuantizedSource(tiny_weights(), kind)
    prompt = [3, 14, 15, 9, 26, 53]
    text = greedy(opened(host, TINY, rounded), prompt)
    logits = plain(rounded).logits(prompt + text[:-1])[len(prompt) - 1 :]
    behind = logits.max(axis=1) - logits[np.arange(NUM_NEW), text]
    # each token is as good as the best one, as far as the backend can tell
    assert behind.max() <= 2 * host.quantized * np.abs(logits).max()


@pytest.mark.parametrize("kind", [*OF_32, *OF_256], ids=lambda kind: kind.name)
def test_errors_of_weights_grow_to_errors_of_logits_as_independent_ones_do(kind: BlockType) -> None:
    """Eight matrices lie on the longest way through two layers and the output: each adds its part, in squares."""
    source, ids = tiny_weights(), np.random.default_rng(2).integers(0, VOCAB, 32).tolist()
    rounded = QuantizedSource(source, kind)
    of_logits = relative_error(plain(source).logits(ids), plain(rounded).logits(ids))
    of_weights = relative_error(weight(source), weight(rounded))
    assert of_weights < of_logits < 5 * of_weights


def weight(source: WeightSource, name: str = "blk.0.ffn_up.weight") -> NDArray[np.float32]:
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


def relative_error(exact: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
