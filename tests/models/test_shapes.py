"""Tensors are checked against the config before any backend sees them."""

import numpy as np
import pytest

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.mapping import gguf_model
from localllm.models.shapes import check_tensors
from tests.contract.worlds import WORLDS, MemorySource, World, build, layer_shapes
from tests.models.test_mapping import LLAMA
from tests.oracles.hf import MemoryFile

SOUND = [world for world in WORLDS if "post" not in world.extras]
BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.parametrize("world", SOUND, ids=lambda world: world.name)
def test_a_sound_model_passes(world: World) -> None:
    check_tensors(*build(world))


def arrays_of(name: str) -> dict[str, np.ndarray]:
    return {key: value.astype(np.float32) for key, value in build(BY_NAME[name])[1].decoded().items()}


REQUIRED = ["token_embd.weight", "output_norm.weight"] + [
    f"blk.1.{name}" for name, _ in layer_shapes(build(BY_NAME["llama"])[0].layers[1], ()) if "gate" not in name
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_tensor_is_named(name: str) -> None:
    arrays = arrays_of("llama")
    del arrays[name]
    with pytest.raises(BadModelFile, match=f"lacks the tensor {name}"):
        check_tensors(build(BY_NAME["llama"])[0], MemorySource(arrays))


@pytest.mark.parametrize(
    "world", ["llama", "biases", "hybrid", "experts by sigmoid and bias", "norms per head", "sinks"]
)
def test_every_tensor_of_another_shape_is_named(world: str) -> None:
    config, arrays = build(BY_NAME[world])[0], arrays_of(world)
    for name, array in arrays.items():
        wrong = MemorySource({**arrays, name: np.zeros((array.shape[0] + 32, *array.shape[1:]), np.float32)})
        # the width of a feed-forward is whatever its matrices agree on, so that another of them may be named
        expected = "shape" if "ffn" in name or name == "token_embd.weight" else name
        with pytest.raises(BadModelFile, match=expected):
            check_tensors(config, wrong)


@pytest.mark.parametrize("name", ["blk.0.attn_magic.weight", "blk.2.attn_norm.weight", "head.weight"])
def test_a_tensor_that_nobody_reads_is_refused_by_name(name: str) -> None:
    arrays = {**arrays_of("llama"), name: np.zeros(64, np.float32)}
    with pytest.raises(UnsupportedModel, match=name):
        check_tensors(build(BY_NAME["llama"])[0], MemorySource(arrays))


@pytest.mark.parametrize(
    ("world", "name"),
    [
        ("biases", "blk.1.attn_q.bias"),
        ("norms per head", "blk.0.attn_k_norm.weight"),
        ("sinks", "blk.1.attn_sinks.weight"),
        ("llama", "blk.0.ffn_gate.weight"),
    ],
)
def test_what_one_layer_lacks_and_another_has_is_named(world: str, name: str) -> None:
    arrays = arrays_of(world)
    del arrays[name]
    with pytest.raises(BadModelFile, match=f"lacks the tensor {name}"):
        check_tensors(build(BY_NAME[world])[0], MemorySource(arrays))


def test_the_frequencies_of_rope_are_no_unknown_tensor() -> None:
    arrays = {**arrays_of("llama"), "rope_freqs.weight": np.ones(8, np.float32)}
    check_tensors(build(BY_NAME["llama"])[0], MemorySource(arrays))


def test_the_vocabulary_is_as_large_as_the_embedding() -> None:
    arrays = {name: array for name, array in arrays_of("llama").items() if not name.startswith("blk.1.")}
    metadata = {**LLAMA, "llama.block_count": 1, "llama.vocab_size": 32}
    assert gguf_model(MemoryFile(metadata, arrays))[0].vocab_size == 80
    with pytest.raises(BadModelFile, match=r"output\.weight has the shape \(80, 64\)"):
        gguf_model(MemoryFile(metadata, {**arrays, "token_embd.weight": np.zeros((32, 64), np.float32)}))
