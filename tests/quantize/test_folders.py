"""From a folder of safetensors straight to blocks: the file that the way over a float file gives, for every reader."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm import LLM
from localllm.backends.cpu.library import native_problem
from localllm.formats.blocks import BlockType, decode
from localllm.formats.blocks import encode as plain_encode
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.quantize import plan, quantize
from localllm.quantize.recipes import RECIPES
from localllm.runtime.convert import convert_model, open_weights
from tests.road.tiny_llama import make_tiny_llama

PROMPT = "Redistribution and use in source"
QUANTIZED = [name for name, recipe in RECIPES.items() if not recipe.is_plain]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 and 288 values: whole blocks for some types, not for others."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    return make_tiny_llama(path, hidden_size=256, intermediate_size=288)


def quantized(model: Path, target: Path, recipe: str) -> Path:
    with open_weights(model) as weights:
        quantize(weights, target, plan(weights, recipe))
    return target


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "BF16"])
def test_a_folder_gives_the_file_that_its_conversion_gives(folder: Path, tmp_path: Path, recipe: str) -> None:
    convert_model(folder, tmp_path / "tiny-llama.gguf", None)
    by_way = quantized(tmp_path / "tiny-llama.gguf", tmp_path / "by-way.gguf", recipe)
    straight = quantized(folder, tmp_path / "straight.gguf", recipe)
    assert straight.read_bytes() == by_way.read_bytes()
    with GGUFFile.open(straight) as file:
        assert file.metadata["general.file_type"] == RECIPES[recipe].file_type
        assert file.metadata["general.name"] == "tiny-llama"
        assert file.metadata["tokenizer.chat_template"]


@pytest.mark.skipif(bool(native_problem()), reason="the native kernels have not been built")
@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_1", "IQ4_XS", "MXFP4"])
def test_recipes_run_and_say_what_its_decoded_weights_say(folder: Path, tmp_path: Path, recipe: str) -> None:
    path = quantized(folder, tmp_path / "blocks.gguf", recipe)
    decoded = as_floats(path, tmp_path / "floats.gguf")
    assert score(path) == pytest.approx(score(decoded), abs=0.02)


def score(path: Path) -> float:
    """The log probability of the most probable first token."""
    with LLM(path, backend="cpu", threads=1, kv_pages=16, kv_type="f32") as llm:
        (answer,) = llm.generate(PROMPT, max_tokens=1, temperature=0, logprobs=1)
    return answer.logprobs[0].logprob


def as_floats(path: Path, target: Path) -> Path:
    """The same file, its blocks decoded."""
    with GGUFFile.open(path) as file:
        tensors = []
        for info in file.tensors.values():
            values = decode(info.type, file.raw(info.name), info.shape)
            tensors.append((info.name, info.shape, BlockType.F32, plain_encode(BlockType.F32, values).reshape(-1)))
        write_gguf(target, file.metadata.typed(), tensors)
    return target


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_llama_cpp_loads_every_recipe_and_reads_its_blocks_as_we_do(folder: Path, tmp_path: Path, recipe: str) -> None:
    path = quantized(folder, tmp_path / "blocks.gguf", recipe)
    ours, exact = logits_of_llama_cpp(path), logits_of_llama_cpp(as_floats(path, tmp_path / "floats.gguf"))
    assert np.abs(ours - exact).max() < 0.03 * np.abs(exact).max()


def logits_of_llama_cpp(path: Path) -> NDArray[np.float32]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    model = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(list(range(5, 25)))
    found: NDArray[np.float32] = np.array(model.scores[:20], np.float32)
    model.close()
    return found
