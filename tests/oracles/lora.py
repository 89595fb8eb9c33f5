"""Random LoRA adapters of tiny models, as peft saves them and computes with them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.formats.gguf_write import write_gguf
from localllm.formats.safetensors import SafetensorsFolder
from tests.oracles.hf import expected_logits, neighbours_from_halves, torch_and_transformers

ALL_LINEAR = "all-linear"
GGUF_NAMES = {
    **{f"{part}_proj": f"attn_{part}" for part in "qkv"},
    "o_proj": "attn_output",
    "qkv_proj": "attn_qkv",
    **{f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "gate_up_proj": "ffn_up",
}


def make_adapter(model: Any, folder: Path, seed: int, tokens: list[int], **settings: Any) -> NDArray[np.float32]:
    """Save an adapter to `folder`; the logits (tokens, vocab) of the model with it merged in."""
    torch, _ = torch_and_transformers()
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, **settings})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about what transformers calls old
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_" in name:  # small enough for a tiny model to stay one, large enough to matter
                    parameter.normal_(0.0, 0.5 * parameter.shape[-1] ** -0.5)
        adapted.save_pretrained(folder)
        merged = adapted.merge_and_unload()
    return expected_logits(merged, tokens)


def as_gguf(folder: Path, path: Path, architecture: str, heads: tuple[int, int], **metadata: Any) -> None:
    """The adapter in `folder` as llama.cpp's converter writes it, for a model whose file pairs neighbours where `heads`
    (of queries, of keys) are not 0."""
    said = json.loads((folder / "adapter_config.json").read_text())
    tensors = []
    with SafetensorsFolder.open(folder / "adapter_model.safetensors") as file:
        for name in file.tensors:
            match = re.fullmatch(r".*layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight", name)
            assert match is not None, name
            values = file.as_float32(name)
            count = {"q_proj": heads[0], "k_proj": heads[1]}.get(match[2], 0)
            if match[3] == "B" and count:
                values = neighbours_from_halves(values, count)
            tensor = f"blk.{match[1]}.{GGUF_NAMES[match[2]]}.weight.lora_{match[3].lower()}"
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            tensors.append((tensor, values.shape, BlockType.F32, raw))
    write_gguf(
        path,
        {
            "general.type": "adapter",
            "general.architecture": architecture,
            "adapter.type": "lora",
            "adapter.lora.alpha": float(said["lora_alpha"]),
            **metadata,
        },
        tensors,
    )
