"""Heads in the files that our converter writes, read by llama.cpp: it judges, and makes vectors, as transformers does.

Runs where llama-cpp-python is installed, which CI does not do.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.mapping import hf_model
from localllm.quantize.convert import convert
from localllm.runtime.open_model import head_of_folder
from tests.oracles.hf import Family, as_folder, torch_and_transformers
from tests.oracles.judges import JUDGES, expected_logit, make_judge
from tests.oracles.pair_models import QUERY, expected_vectors, gemma_folder, qwen3_folder

IDS = [5, 9, 33, 12, 70, 8, 41, 22, 3, 60, 17]
NOTHING: dict[str, Any] = {"tokenizer.ggml.model": "none"}
TOLERANCE = 2e-3
MEAN, RANK = 1, 4


def pooled_by_llama_cpp(path: Path, ids: list[int], pooling: int, size: int) -> NDArray[np.float32]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    model: Any = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        n_batch=64,
        n_ubatch=64,
        n_threads=1,
        embedding=True,
        pooling_type=pooling,
        type_k=0,
        type_v=0,
        verbose=False,
    )
    batch = model._batch
    batch.reset()
    batch.add_sequence(ids, 0, True)
    model._ctx.decode(batch)
    pointer = llama_cpp.llama_get_embeddings_seq(model._ctx.ctx, 0)
    vector = np.array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))[:size], np.float32)
    model.close()
    return vector


@pytest.mark.parametrize("family", JUDGES[:3], ids=lambda family: family.name)
def test_a_converted_judge_says_the_same_in_llama_cpp(family: Family, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    model, path = make_judge(family), tmp_path / "model.gguf"
    convert(as_folder(model, tmp_path), path, BlockType.F32, NOTHING)
    # llama.cpp knows no types of tokens: all are of the first text
    expected = expected_logit(model, IDS, len(IDS))
    assert abs(pooled_by_llama_cpp(path, IDS, RANK, 1)[0] - expected) <= TOLERANCE * max(1.0, abs(expected))


def test_a_converted_decoder_judges_by_two_words_in_llama_cpp(tmp_path: Path) -> None:
    """It takes the softmax of yes and no."""
    pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    torch, transformers = torch_and_transformers()
    folder, path = qwen3_folder(tmp_path / "qwen3"), tmp_path / "model.gguf"
    write(folder, path, NOTHING)
    words = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    with torch.no_grad():
        logits = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits[0, -1]
    expected = torch.softmax(logits[[words["true_token_id"], words["false_token_id"]]], 0)[0]
    assert abs(pooled_by_llama_cpp(path, IDS, RANK, 1)[0] - float(expected)) <= TOLERANCE


def write(folder: Path, path: Path, extra: dict[str, Any]) -> None:
    with SafetensorsFolder.open(folder) as opened:
        config, source = hf_model(opened)
        convert(opened, path, BlockType.F32, extra, head=head_of_folder(folder, opened.config, config, source))


def test_a_converted_embedding_gemma_makes_the_same_vector_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    folder, path = gemma_folder(tmp_path / "gemma"), tmp_path / "model.gguf"
    write(folder, path, NOTHING | {"gemma-embedding.pooling_type": MEAN})
    from tokenizers import Tokenizer as Core

    ids = Core.from_file(str(folder / "tokenizer.json")).encode(QUERY).ids
    found = pooled_by_llama_cpp(path, ids, MEAN, 64)
    assert 1 - float(found @ expected_vectors(folder, [QUERY])[0]) / np.linalg.norm(found) < 1e-4
