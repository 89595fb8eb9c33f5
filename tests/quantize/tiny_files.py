"""Tiny GGUF files of the kinds that recipes tell apart, and llama.cpp's quantizer for who has it."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.formats.blocks import BlockType
from localllm.formats.blocks import encode as plain_encode
from localllm.formats.gguf_write import write_gguf


@dataclass(frozen=True)
class Tiny:
    """Matrices have two rows: recipes look at columns only."""

    name: str
    architecture: str = "llama"
    layers: int = 16
    heads: Any = 8
    kv_heads: Any = 2
    experts: int = 0
    columns: int = 256
    is_tied: bool = False
    attention: tuple[str, ...] = ("attn_q", "attn_k", "attn_v", "attn_output")
    feed_forward: tuple[str, ...] = ("ffn_gate", "ffn_up", "ffn_down")
    extra: Mapping[str, Any] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        matrix = (2, self.columns)
        found = {"token_embd.weight": matrix, "output_norm.weight": (self.columns,)}
        if not self.is_tied:
            found["output.weight"] = matrix
        for layer in range(self.layers):
            found[f"blk.{layer}.attn_norm.weight"] = (self.columns,)
            found[f"blk.{layer}.attn_q_norm.weight"] = matrix
            for module in (*self.attention, *self.feed_forward):
                stacked = module.endswith("_exps")
                found[f"blk.{layer}.{module}.weight"] = (self.experts, *matrix) if stacked else matrix
            if self.experts:
                found[f"blk.{layer}.ffn_gate_inp.weight"] = matrix
        return found

    def metadata(self) -> dict[str, Any]:
        numbers = {
            "block_count": self.layers,
            "context_length": 64,
            "embedding_length": self.columns,
            "feed_forward_length": self.columns,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.dimension_count": self.columns // 8,
            "vocab_size": 2,
            **({"expert_count": self.experts, "expert_used_count": 2} if self.experts else {}),
            **self.extra,
        }
        return {"general.architecture": self.architecture} | {
            f"{self.architecture}.{key}": value for key, value in numbers.items()
        }

    def write(self, path: Path, kind: BlockType = BlockType.F32) -> Path:
        rng = np.random.default_rng(7)
        tensors = []
        for name, shape in self.shapes().items():
            of = BlockType.F32 if len(shape) == 1 else kind
            values = rng.standard_normal(shape).astype(np.float32)
            tensors.append((name, shape, of, plain_encode(of, values).reshape(-1)))
        write_gguf(path, {**self.metadata(), "tokenizer.ggml.model": "none"}, tensors)
        return path


EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
MODELS = (
    Tiny("grouped queries"),
    Tiny("grouped queries, tied", is_tied=True, layers=10),
    Tiny("no groups", kv_heads=8, layers=9),
    Tiny("rows of 288", columns=288, layers=8),
    Tiny("rows of 80", columns=80, layers=8, is_tied=True),
    Tiny("mixtral", experts=8, feed_forward=EXPERTS),
    Tiny("mixtral of 32 layers", experts=8, feed_forward=EXPERTS, layers=32),
    Tiny(
        "qwen2moe",
        "qwen2moe",
        experts=16,
        feed_forward=(*EXPERTS, "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
        layers=17,
        extra={"expert_feed_forward_length": 256, "expert_shared_feed_forward_length": 256},
    ),
    Tiny("70B", layers=80),
    Tiny("65B", layers=80, kv_heads=8),
    Tiny("qwen2 of 80 layers", "qwen2", layers=80, kv_heads=8),
    Tiny("fused queries, keys and values", "phi3", attention=("attn_qkv", "attn_output"), kv_heads=8),
    Tiny(
        "first layer without attention",
        "granitehybrid",
        kv_heads=[0, 2, 0, 0, 2, 2, 2, 0] * 2,
        extra={
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 512,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 1,
        },
    ),
)


def llama_cpp_quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    pure: bool = False,
    keep: Any = (),
    imatrix: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """`keep` (pattern, type number); `imatrix` arrays by name. Skips the test where llama-cpp-python is missing."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.pure = file_type, threads, pure
    alive: list[Any] = []
    if keep:

        class Override(ctypes.Structure):
            _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]

        overrides = (Override * (len(keep) + 1))(*((pattern.encode(), kind) for pattern, kind in keep), (None, 0))
        alive.append(overrides)
        parameters.tt_overrides = as_field(parameters, "tt_overrides", overrides)
    if imatrix is not None:

        class Data(ctypes.Structure):
            _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]

        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in imatrix.items()}
        rows = [
            (name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
            for name, values in arrays.items()
        ]
        data = (Data * (len(rows) + 1))(*rows)
        alive += [arrays, data]
        parameters.imatrix = as_field(parameters, "imatrix", data)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0, "llama.cpp did not quantize the file"


def as_field(structure: Any, name: str, array: Any) -> Any:
    """A pointer of the type that the field has."""
    return ctypes.cast(array, dict(structure._fields_)[name])
