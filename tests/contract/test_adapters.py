"""Low-rank adapters on every backend: what peft computes with them merged in, alone and many in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.engine.step import Backend, Row, Want
from localllm.errors import InvalidRequest
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.open_adapter import open_adapter
from localllm.models.source import WeightSource
from localllm.quantize.convert import convert
from tests.contract.conftest import HOSTS, Host
from tests.contract.walk import Walk
from tests.oracles.hf import FAMILIES, Family, as_folder, expected_logits, make_model
from tests.oracles.lora import make_adapter

ALL = Want(logits="all")
PROMPT = np.random.default_rng(4).integers(3, 80, 19).tolist()
TOLERANCE = 2e-4
NUM_ADAPTERS = 8

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MIXED = {
    "use_rslora": True,
    "rank_pattern": {"layers.1.mlp.up_proj": 2},
    "alpha_pattern": {"down_proj": 3, "o_proj": 5},
}
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]
TARGETS: dict[str, dict[str, Any]] = {
    "llama": MIXED,
    "qwen2": {},
    "gemma2": {"use_rslora": True},
    "phi4": {},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "falcon 40b": {},
    "command r": {},
    "lfm2": {"target_modules": [*ATTENTION[:3], "out_proj", "in_proj", "w1", "w2", "w3"]},
    "qwen2 moe": {"target_modules": [*ATTENTION, *(f"shared_expert.{part}_proj" for part in ("gate", "up", "down"))]},
    "deepseek v2": {"target_modules": LATENT},
    "qwen3 next": {"target_modules": [*ATTENTION, "in_proj_qkvz", "in_proj_ba", "out_proj"]},
    "qwen3.5": {},
    "granite 4 h": {},
    "nemotron h": {"target_modules": [*ATTENTION, "in_proj", "up_proj", "down_proj"]},
    "gemma 3n": {"target_modules": [*ATTENTION, "gate_proj", "per_layer_projection", "linear_left"]},
}
"""Families whose rows are cut, ordered or fused in ways of their own, and what of them is adapted."""


@dataclass(frozen=True)
class World:
    """A model from one kind of file, an adapter of it, and the logits of PROMPT without and with it."""

    config: ModelConfig
    source: WeightSource
    adapter: Adapter
    plain: NDArray[np.float32]
    adapted: NDArray[np.float32]


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family.name in TARGETS], ids=lambda f: f.name)
def worlds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    family: Family = request.param
    model, folder = make_model(family), tmp_path_factory.mktemp("family")
    checkpoint = as_folder(model, folder)
    convert(checkpoint, folder / "model.gguf", BlockType.F32, {})
    adapted = make_adapter(model, folder / "adapter", 1, PROMPT, **TARGETS[family.name])
    plain, made = expected_logits(model, PROMPT), {}
    for kind, (config, source) in (
        ("safetensors", hf_model(checkpoint)),
        ("gguf", gguf_model(GGUFFile.open(folder / "model.gguf"))),
    ):
        config = replace(config, context_length=family.context or config.context_length)
        made[kind] = World(config, source, open_adapter(folder / "adapter", config, source.info), plain, adapted)
    return made


def adapted_row(walk: Walk, seq: int, tokens: Sequence[int], adapter: int, scale: float = 1.0) -> Row:
    return replace(walk.row(seq, tokens, ALL), adapter=adapter, adapter_scale=scale)


def difference(ours: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> float:
    assert ours is not None and ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_model_with_an_adapter_says_what_peft_says_with_it_merged_in(
    host: Host, worlds: dict[str, World], kind: str
) -> None:
    world = worlds[kind]
    assert difference(world.adapted, world.plain) > 0.1, "an adapter that changes nothing"
    backend = host.open(world.config, world.source, "f32")
    walk, number = Walk(backend), backend.add_adapter(world.adapter)
    together = walk.run((walk.row(1, PROMPT, ALL), adapted_row(walk, 2, PROMPT, number)))
    assert difference(together[0].logits, world.plain) <= TOLERANCE
    assert difference(together[1].logits, world.adapted) <= TOLERANCE
    seen = []
    for first, end in ((0, 1), (1, 8), (8, 9), (9, 19)):
        (result,) = walk.run((adapted_row(walk, 3, PROMPT[first:end], number),))
        assert result.logits is not None
        seen.append(result.logits)
    assert difference(np.concatenate(seen), world.adapted) <= TOLERANCE
    backend.close()


@dataclass(frozen=True)
class Many:
    """A model and many adapters of several ranks and targets, with the logits of each."""

    config: ModelConfig
    source: WeightSource
    adapters: list[Adapter]
    plain: NDArray[np.float32]
    adapted: list[NDArray[np.float32]]
    checkpoint: SafetensorsFolder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Many:
    family = next(family for family in FAMILIES if family.name == "llama")
    model, folder = make_model(family), tmp_path_factory.mktemp("many")
    checkpoint = as_folder(model, folder)
    config, source = hf_model(checkpoint)
    adapted, adapters = [], []
    for index in range(NUM_ADAPTERS):
        targets = ["all-linear", ATTENTION, ["gate_proj"], ["up_proj", "v_proj"]][index % 4]
        path = folder / f"adapter-{index}"
        rank = 1 + 3 * index
        settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
        adapted.append(make_adapter(model, path, index, PROMPT, **settings))
        adapters.append(open_adapter(path, config, source.info))
    return Many(config, source, adapters, expected_logits(model, PROMPT), adapted, checkpoint)


def opened(host: Host, many: Many) -> tuple[Backend, Walk, list[int]]:
    backend = host.open(many.config, many.source, "f32")
    return backend, Walk(backend), [backend.add_adapter(adapter) for adapter in many.adapters]


def test_eight_adapters_and_none_in_one_batch_are_each_what_they_are_alone(host: Host, many: Many) -> None:
    backend, walk, numbers = opened(host, many)
    prompt = PROMPT[:10]
    wanted = [0, *numbers]
    alone = [walk.run((adapted_row(walk, 100 + number, prompt, number),))[0].logits for number in wanted]
    together = walk.run(tuple(adapted_row(walk, 200 + number, prompt, number) for number in wanted))
    for one, many_at_once, expected in zip(alone, together, [many.plain, *many.adapted], strict=True):
        assert one is not None and many_at_once.logits is not None
        assert difference(many_at_once.logits, expected[:10]) <= TOLERANCE
        if backend.info.same_in_any_step:
            assert np.array_equal(one, many_at_once.logits)
        assert difference(many_at_once.logits, one) <= TOLERANCE
    for step in range(10, 14):  # a token each
        tokens = PROMPT[step : step + 1]
        each = [walk.run((adapted_row(walk, 100 + number, tokens, number),))[0].logits for number in wanted]
        results = walk.run(tuple(adapted_row(walk, 200 + number, tokens, number) for number in wanted))
        for one, many_at_once, expected in zip(each, results, [many.plain, *many.adapted], strict=True):
            assert difference(many_at_once.logits, expected[step : step + 1]) <= TOLERANCE
            if backend.info.same_in_any_step:
                assert np.array_equal(one, many_at_once.logits)
    backend.close()


def test_half_of_an_adapter_is_between_all_and_nothing_of_it(host: Host, many: Many) -> None:
    backend, walk, numbers = opened(host, many)
    nothing, half, whole = walk.run(
        tuple(adapted_row(walk, seq, PROMPT, numbers[1], scale) for seq, scale in enumerate((0.0, 0.5, 1.0)))
    )
    assert difference(nothing.logits, many.plain) <= TOLERANCE
    assert difference(whole.logits, many.adapted[1]) <= TOLERANCE
    assert difference(half.logits, many.plain) > 0.02
    assert difference(half.logits, many.adapted[1]) > 0.02
    backend.close()


def test_a_dropped_adapter_is_refused_and_its_number_never_comes_again(host: Host, many: Many) -> None:
    backend, walk, numbers = opened(host, many)
    backend.drop_adapter(numbers[0])
    again = backend.add_adapter(many.adapters[0])
    assert again not in numbers
    with pytest.raises(InvalidRequest, match="not loaded"):
        walk.run((adapted_row(walk, 1, PROMPT, numbers[0]),))
    walk.step_id += 1
    (result,) = walk.run((adapted_row(walk, 2, PROMPT, again),))
    assert difference(result.logits, many.adapted[0]) <= TOLERANCE
    backend.close()


@pytest.mark.parametrize("kind", [BlockType.Q4_0, BlockType.Q8_0, BlockType.F16])
def test_adapters_add_to_quantized_weights(host: Host, many: Many, kind: BlockType, tmp_path: Path) -> None:
    """Held to the reference with the same blocks: an adapter is not rounded with its base."""
    backend, judge = (one.open(many.config, rounded(many, kind, tmp_path), "f32") for one in (host, HOSTS[0]))
    seen = []
    for each in (backend, judge):
        walk = Walk(each)
        numbers = [each.add_adapter(adapter) for adapter in many.adapters]
        rows = [adapted_row(walk, 10 + number, PROMPT[:12], number) for number in (0, *numbers)]
        together = [result.logits for result in walk.run(tuple(rows))]
        alone = [walk.run((adapted_row(walk, 50 + number, PROMPT[:12], number),))[0].logits for number in (0, *numbers)]
        for one, other in zip(together, alone, strict=True):
            assert one is not None and other is not None
            if each.info.same_in_any_step:
                assert np.array_equal(one, other)
        seen.append(together)
        each.close()
    is_float = kind == BlockType.F16
    for ours, theirs in zip(*seen, strict=True):
        assert theirs is not None
        assert difference(ours, theirs) <= (host.tolerance if is_float else 1.5 * host.quantized)


def rounded(many: Many, kind: BlockType, folder: Path) -> WeightSource:
    convert(many.checkpoint, folder / f"{kind.name}.gguf", kind, {})
    return gguf_model(GGUFFile.open(folder / f"{kind.name}.gguf"))[1]
