"""Falcon-H1's multipliers, taken into the weights that they stand beside, as its GGUF files have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode, encode
from localllm.models.config import ModelConfig, StateSpaceSpec
from localllm.models.source import WeightInfo, WeightSource
from localllm.models.state_space_facts import state_space_of

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_FLOATS = (BlockType.F32, BlockType.F16, BlockType.BF16)


class ScaledSource:
    """A WeightSource over another one; rows of some weights are multiplied. What was in blocks becomes float32."""

    def __init__(self, source: WeightSource, factor_of: Callable[[str], Floats | None]) -> None:
        self._source, self._factor_of = source, factor_of

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        info = self._source.info(name)
        if info is None or info.type in _FLOATS or self._factor_of(name) is None:
            return info
        return replace(info, type=BlockType.F32)

    def raw(self, name: str) -> Bytes:
        before, after, factor = self._source.info(name), self.info(name), self._factor_of(name)
        raw = self._source.raw(name)
        if before is None or after is None or factor is None:
            return raw
        values = decode(before.type, raw, before.shape)
        values = values * factor.reshape(-1, *(1,) * (values.ndim - 1))
        return encode(after.type, np.ascontiguousarray(values, np.float32)).reshape(-1)

    def release(self, name: str) -> None:
        self._source.release(name)


def multipliers_of(config: Mapping[str, Any]) -> Multipliers | None:
    """Those of a config.json; None: its family has none that are not numbers of the model."""
    return Multipliers(config) if config.get("model_type") == "falcon_h1" else None


class Multipliers:
    """What config.json multiplies by, weight by weight. BadModelFile names a multiplier that is none."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        names = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
        one = {name: _number(config, f"{name}_multiplier") for name in names}
        gate, down = _numbers(config, "mlp_multipliers", 2)
        self._parts = _numbers(config, "ssm_multipliers", 5)
        self._ssm_in = one["ssm_in"]
        self._whole = {
            "token_embd.weight": one["embedding"],
            "output.weight": one["lm_head"],
            "attn_q.weight": one["attention_in"],
            "attn_k.weight": one["attention_in"] * one["key"],
            "attn_k.bias": one["key"],
            "attn_v.weight": one["attention_in"],
            "attn_output.weight": one["attention_out"],
            "attn_output.bias": one["attention_out"],
            "ssm_out.weight": one["ssm_out"],
            "ssm_out.bias": one["ssm_out"],
            "ffn_gate.weight": gate,
            "ffn_gate.bias": gate,
            "ffn_down.weight": down,
            "ffn_down.bias": down,
        }

    @property
    def unties(self) -> bool:
        """Embedding and output differ, whatever the checkpoint keeps of them."""
        return self._whole["token_embd.weight"] != self._whole["output.weight"]

    def factor_of(self, model: ModelConfig, name: str) -> Floats | None:
        """Of a canonical weight: one factor, or one per row; None: 1."""
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        spec = state_space_of(name, model)
        if spec is not None and kind.partition(".")[0] in ("ssm_gate", "ssm_in", "ssm_step"):
            return self._of_input(spec, *kind.split("."))
        factor = self._whole.get(kind, 1.0)
        return None if factor == 1.0 else np.array([factor], np.float32)

    def _of_input(self, spec: StateSpaceSpec, module: str, kind: str) -> Floats | None:
        width = spec.num_groups * spec.state_dim
        counts = {"ssm_gate": (spec.inner,), "ssm_in": (spec.inner, width, width), "ssm_step": (spec.num_heads,)}
        first = {"ssm_gate": 0, "ssm_in": 1, "ssm_step": 4}[module]
        parts = self._parts[first : first + len(counts[module])]
        rows = np.repeat(np.array(parts, np.float32), counts[module])
        rows = rows * np.float32(self._ssm_in if kind == "weight" else 1.0)
        return None if (rows == 1.0).all() else rows


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadModelFile(f"{name} must be a number, not {value!r:.60}")
    return float(value)


def _numbers(config: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    value = config.get(name, [1.0] * count)
    if not isinstance(value, list) or len(value) != count:
        raise BadModelFile(f"{name} must be {count} numbers, not {value!r:.60}")
    return tuple(_number({name: item}, name) for item in value)
