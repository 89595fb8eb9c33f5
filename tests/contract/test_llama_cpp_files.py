"""Files of every recipe that llama.cpp's quantizer has for types we read: we are as near to the weights as it is.

Runs where llama-cpp-python is installed, which CI does not do (it is built from source for ten minutes).
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.cpu.library import native_problem
from localllm.backends.select import BackendOptions, open_backend
from localllm.engine.step import StepPlan, Want, plain_row, run_step
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.models.mapping import gguf_model
from localllm.quantize.convert import convert
from tests.contract.test_llama_cpp import logits_of_llama_cpp
from tests.oracles.hf import Family, as_folder, make_model

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python writes the files")
pytestmark = pytest.mark.skipif(bool(native_problem()), reason="the native kernels have not been built")

RECIPES = {
    "ALL_F32": BlockType.F32,
    "MOSTLY_F16": BlockType.F16,
    "MOSTLY_BF16": BlockType.BF16,
    "MOSTLY_Q4_0": BlockType.Q4_0,
    "MOSTLY_Q4_1": BlockType.Q4_1,
    "MOSTLY_Q5_0": BlockType.Q5_0,
    "MOSTLY_Q5_1": BlockType.Q5_1,
    "MOSTLY_Q8_0": BlockType.Q8_0,
    "MOSTLY_Q2_K": BlockType.Q2_K,
    "MOSTLY_Q3_K_M": BlockType.Q3_K,
    "MOSTLY_Q4_K_M": BlockType.Q4_K,
    "MOSTLY_Q5_K_M": BlockType.Q5_K,
    "MOSTLY_Q6_K": BlockType.Q6_K,
    "MOSTLY_IQ4_NL": BlockType.IQ4_NL,
    "MOSTLY_IQ4_XS": BlockType.IQ4_XS,
    "MOSTLY_MXFP4_MOE": BlockType.MXFP4,
    "MOSTLY_IQ3_S": BlockType.IQ3_S,
    "MOSTLY_IQ3_XXS": BlockType.IQ3_XXS,
    "MOSTLY_IQ2_S": BlockType.IQ2_XS,
    "MOSTLY_IQ2_M": BlockType.IQ2_S,
    "MOSTLY_IQ2_XS": BlockType.IQ2_XS,
    "MOSTLY_IQ2_XXS": BlockType.IQ2_XXS,
    "MOSTLY_IQ1_M": BlockType.IQ1_M,
    "MOSTLY_IQ1_S": BlockType.IQ1_S,
    "MOSTLY_TQ1_0": BlockType.TQ1_0,
    "MOSTLY_TQ2_0": BlockType.TQ2_0,
    "MOSTLY_Q1_0": BlockType.Q1_0,
}
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "tie_word_embeddings": True}
PROMPT = [int(token) for token in np.random.default_rng(0).integers(0, 80, 48)]
EXACT = 1e-4
"""Off by that much is float arithmetic in another order; more is rounded activations."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "f16.gguf"
    model = make_model(Family("llama", "LlamaConfig", "llama", SIZES))
    convert(as_folder(model, folder), path, BlockType.F16, {"tokenizer.ggml.model": "none"})
    return path


def quantized(original: Path, recipe: str, path: Path, *, pure: bool) -> Path:
    """`pure`: every matrix in the type of the recipe's name, instead of better ones for some."""
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_{recipe}"), pure, 1
    if recipe.startswith(("MOSTLY_IQ1", "MOSTLY_IQ2", "MOSTLY_IQ3")):
        params.imatrix = even_importance(original)
    assert llama_cpp.llama_model_quantize(str(original).encode(), str(path).encode(), params) == 0
    return path


def even_importance(original: Path) -> Any:
    """Of every column of every matrix the same: the small types insist on being told."""
    with GGUFFile.open(original) as file:
        widths = {name: tensor.shape[-1] for name, tensor in file.tensors.items() if len(tensor.shape) > 1}
    told = [(name.encode(), (ctypes.c_float * width)(*[1.0] * width), width) for name, width in widths.items()]
    return (llama_cpp.llama_model_imatrix_data * (len(told) + 1))(*told)


def our_logits(path: Path, backend_name: str) -> NDArray[np.float32]:
    with GGUFFile.open(path) as file:
        config, source = gguf_model(file)
        backend = open_backend(backend_name, config, source, BackendOptions(threads=1, kv_type="f32"))
        backend.allocate(4, 0)
        step = StepPlan(0, (plain_row(0, PROMPT, 0, range(4), Want(logits="all")),))
        logits = run_step(backend, step).rows[0].logits
        backend.close()
    assert logits is not None
    return logits


def off_by(found: NDArray[np.float32], judge: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(found - judge).mean() / np.square(judge).mean()))


@pytest.mark.parametrize("pure", [True, False], ids=["pure", "mixed"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_its_files_are_read_and_computed_as_well_as_by_llama_cpp(
    original: Path, recipe: str, pure: bool, tmp_path: Path
) -> None:
    path = quantized(original, recipe, tmp_path / "model.gguf", pure=pure)
    if pure:
        with GGUFFile.open(path) as file:
            assert {info.type for info in file.tensors.values() if len(info.shape) > 1} == {RECIPES[recipe]}
    judge = our_logits(path, "reference")
    theirs = off_by(logits_of_llama_cpp(path, PROMPT, 64), judge)
    assert theirs < 0.1, "the judge and llama.cpp do not read the same weights"
    assert off_by(our_logits(path, "cpu"), judge) <= max(EXACT, 1.05 * theirs)
