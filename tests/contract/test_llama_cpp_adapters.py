"""Adapters in llama.cpp's own form: it computes with the file what peft computes with the original, and so do we.

Runs where llama-cpp-python is installed, which CI does not do (it is built from source for ten minutes).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.quantize.convert import convert
from tests.contract.test_families import PROMPTS, difference
from tests.oracles.hf import BY_NAME, as_folder, make_model
from tests.oracles.lora import as_gguf, make_adapter

F32 = 0
TOLERANCE = 1e-3
PROMPT = PROMPTS[1]


def logits_of_llama_cpp(path: Path, lora: Path, tokens: list[int], scale: float = 1.0) -> NDArray[np.float32]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    model: Any = llama_cpp.Llama(
        str(path), lora_path=str(lora), lora_scale=scale, n_ctx=256, n_batch=64, n_threads=1, logits_all=True,
        type_k=F32, type_v=F32, verbose=False,
    )  # fmt: skip
    model.eval(tokens)
    scores: NDArray[np.float32] = np.array(model.scores[: len(tokens)], np.float32)
    model.close()
    return scores


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi4"])
def test_llama_cpp_reads_the_adapters_that_the_tests_write(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    family = BY_NAME[name]
    model = make_model(family)
    convert(as_folder(model, tmp_path), tmp_path / "model.gguf", BlockType.F32, {"tokenizer.ggml.model": "none"})
    expected = make_adapter(model, tmp_path / "adapter", 3, PROMPT)
    heads = (4, 2) if name == "llama" else (0, 0)
    as_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf", family.architecture, heads)
    theirs = logits_of_llama_cpp(tmp_path / "model.gguf", tmp_path / "adapter.gguf", PROMPT)
    assert difference([theirs], expected) <= TOLERANCE
