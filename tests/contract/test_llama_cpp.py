"""The files that our converter writes, read by llama.cpp: its logits are those of transformers, family by family.

Runs where llama-cpp-python is installed, which CI does not do (it is built from source for ten minutes).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.quantize.convert import convert
from tests.contract.test_families import PROMPTS, difference
from tests.oracles.hf import FAMILIES, YARN, Family, as_folder, expected_logits, make_model

F32 = 0
TOLERANCE = 1e-3  # of the largest logit; llama.cpp rounds tables of some activations to float16
TOLERANCES = {
    "gemma 4, small": 2e-3,  # twice as many activations in a layer
    "gemma 3n": 6e-3,  # its deviation of a gate divides by one less than transformers does, the more the wider
}
NO_WINDOW = ("mistral", "phi3 with a window", "qwen2 with windows above", "starcoder2 with a window")
"""llama.cpp knows no window in files of these architectures: a prompt as long as the window is compared."""
TRUNCATED = {**YARN, "truncate": True}
"""llama.cpp rounds the bounds of yarn to whole dimensions, which gpt-oss does not."""

REFUSED = {
    "qwen3 moe with dense layers": "llama.cpp wants experts in every layer of qwen3moe",
    "qwen2 moe with dense layers": "llama.cpp wants experts in every layer of qwen2moe",
    "ernie 4.5 with biases": "llama.cpp has no biases in the feed-forwards of ernie4_5",
}
AS_LLAMA_CPP_KNOWS: dict[str, dict[str, Any]] = {
    "gpt-oss": {"rope_parameters": TRUNCATED},
    # it tells these by the number of their layers
    "command r plus": {"num_hidden_layers": 64, "attention_bias": False},
    "exaone 4 with windows": {"num_hidden_layers": 64},
    # of Gemma 3n it knows sizes, which gates are cut, and who shares, for published models
    "gemma 3n": {
        "num_hidden_layers": 30,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        "num_kv_shared_layers": 10,
        "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "final_logit_softcapping": 30.0,
        "intermediate_size": 1536,
    },
    "deepseek v2 lite": {"num_hidden_layers": 26},
    # it counts two experts of a group, DeepSeek-V2's authors one
    "deepseek v2": {"topk_method": "greedy"},
}
"""What is compared instead, where llama.cpp's arithmetic is for published models only, or is another."""


def logits_of_llama_cpp(path: Path, tokens: list[int], context: int) -> NDArray[np.float32]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    model: Any = llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_batch=64,
        n_threads=1,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        verbose=False,
    )
    model.eval(tokens)
    scores: NDArray[np.float32] = np.array(model.scores[: len(tokens)], np.float32)
    model.close()
    return scores


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_converted_file_gives_the_same_logits_in_llama_cpp(family: Family, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    if family.name in REFUSED:
        pytest.skip(REFUSED[family.name])
    family = replace(family, settings={**family.settings, **AS_LLAMA_CPP_KNOWS.get(family.name, {})})
    model = make_model(family)
    path = tmp_path / "model.gguf"
    convert(as_folder(model, tmp_path), path, BlockType.F32, {"tokenizer.ggml.model": "none"})
    prompt = PROMPTS[3] if family.name in NO_WINDOW else PROMPTS[1]
    ours = logits_of_llama_cpp(path, prompt, family.context or 256)
    assert difference([ours], expected_logits(model, prompt)) <= TOLERANCES.get(family.name, TOLERANCE)
