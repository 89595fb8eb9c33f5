"""Files of every recipe that we write: llama.cpp loads them, and finds in them the very values that we do.

Its own quantizer turns a file back into floats, so nothing but its decoders stands between the file and the comparison:
perplexities of quantized files differ by how both round activations, see docs/benchmarks.md.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.errors import LocalLLMError
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.quantize.convert import convert
from localllm.quantize.recipes import RECIPES
from localllm.runtime.quantize import Order, quantize_model
from tests.contract.test_llama_cpp import logits_of_llama_cpp
from tests.oracles.hf import Family, as_folder, make_model

llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
PROMPT = [int(token) for token in np.random.default_rng(0).integers(0, 80, 24)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = make_model(Family("llama", "LlamaConfig", "llama", SIZES))
    convert(as_folder(model, folder), folder / "f32.gguf", BlockType.F32, {"tokenizer.ggml.model": "none"})
    return folder / "f32.gguf"


def as_floats(path: Path, target: Path) -> Path:
    """What llama.cpp reads in a file, as float32."""
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), params) == 0
    return target


@pytest.mark.parametrize("recipe", RECIPES)
def test_llama_cpp_finds_the_values_that_we_meant(original: Path, recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    try:
        quantize_model(original, path, Order(recipe))
    except LocalLLMError as error:
        pytest.fail(error.message)
    with GGUFFile.open(path) as ours, GGUFFile.open(as_floats(path, tmp_path / "floats.gguf")) as theirs:
        assert set(ours.tensors) == set(theirs.tensors)
        for name, tensor in ours.tensors.items():
            mine = decode(tensor.type, ours.raw(name), tensor.shape)
            found = theirs.tensors[name]
            assert np.array_equal(mine, decode(found.type, theirs.raw(name), found.shape)), name


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_llama_cpp_computes_with_a_file_what_it_computes_with_its_values(
    original: Path, recipe: str, tmp_path: Path
) -> None:
    path = tmp_path / "small.gguf"
    quantize_model(original, path, Order(recipe))
    small = logits_of_llama_cpp(path, PROMPT, 64)
    floats = logits_of_llama_cpp(as_floats(path, tmp_path / "floats.gguf"), PROMPT, 64)
    spread = float(floats.std())
    assert math.isfinite(spread) and float(np.abs(small - floats).max()) < 0.25 * spread  # activations of 8 bits
