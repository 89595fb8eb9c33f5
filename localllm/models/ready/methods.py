"""How config.json says that weights are quantized: which method it is, or a sentence why it is not for us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localllm.errors import BadModelFile, UnsupportedModel

Config = Mapping[str, Any]
Kind = Literal["", "gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes", "mlx"]

_KINDS: Mapping[str, Kind] = {
    "gptq": "gptq",
    "awq": "awq",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
}
_OWN_WAY = ("mxfp4",)  # hf_source.py reads it
_TITLES = {"aqlm": "AQLM", "hqq": "HQQ", "exl2": "EXL2", "exl3": "EXL3", "quip": "QuIP#", "vptq": "VPTQ"}
_PACKINGS = ("", "dense", "pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
_HINT = "take the repository with the original weights, or a GGUF version"


@dataclass(frozen=True, slots=True)
class Method:
    """`kind` "": the weights are plain, or read in a way of their own. `said`: what config.json says of it.

    `bits` and `group` (values that share a scale) are 0 where it does not say.
    """

    kind: Kind = ""
    bits: int = 0
    group: int = 0
    said: Config = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As people name it: `GPTQ 4-bit`; empty for plain weights."""
        if self.kind == "bitsandbytes":
            return "bitsandbytes int8" if self.said.get("load_in_8bit") else f"bitsandbytes {_four_bits(self.said)}"
        if self.kind == "fp8" or self.said.get("format") == "float-quantized":
            return "FP8"
        bits = f" {self.bits}-bit" if self.bits else ""
        return {"compressed-tensors": "compressed-tensors", "mlx": "MLX"}.get(self.kind, self.kind.upper()) + bits


def method_of(config: Config) -> Method:
    """UnsupportedModel names a method that this build cannot read, BadModelFile what makes no sense."""
    mlx = _table(config, "quantization")
    said = _table(config, "quantization_config")
    if mlx and "quant_method" not in mlx and "bits" in mlx:
        return _mlx(mlx)
    if not said:
        return Method()
    name = said.get("quant_method")
    if name is None and "bits" in said and "group_size" in said:
        return _mlx(said)
    if name in _OWN_WAY:
        return Method()
    if name not in _KINDS:
        title = _TITLES.get(str(name).lower(), name)
        raise UnsupportedModel(f"the weights are quantized by {title}, which this build cannot read", hint=_HINT)
    kind = _KINDS[str(name)]
    check = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}.get(kind)
    return Method(kind, said=said) if check is None else check(said)


def _table(config: Config, name: str) -> Config:
    """Multimodal checkpoints may keep it with the language model."""
    inner = config.get("text_config")
    said = config.get(name) or (inner.get(name) if isinstance(inner, Mapping) else None)
    if said and not isinstance(said, Mapping):
        raise BadModelFile(f"{name} must be an object, not {said!r}"[:500])
    return said or {}


def _number(said: Config, name: str, default: int, least: int, most: int) -> int:
    value = said.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise BadModelFile(f"the quantization's {name} must be between {least} and {most}, not {value!r}"[:300])
    return value


def _mlx(said: Config) -> Method:
    if (mode := said.get("mode", "affine")) != "affine":
        raise UnsupportedModel(f"the weights are quantized by MLX as {mode}, which this build cannot read", hint=_HINT)
    return Method("mlx", _number(said, "bits", 4, 2, 8), _number(said, "group_size", 64, 16, 1024), said)


def _gptq(said: Config) -> Method:
    packing = said.get("checkpoint_format") or "gptq"
    if packing not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(f"GPTQ weights packed for {packing} cannot be read", hint=_HINT)
    return Method("gptq", _number(said, "bits", 4, 2, 8), max(_number(said, "group_size", 128, -1, 1 << 20), 0), said)


def _awq(said: Config) -> Method:
    version = str(said.get("version") or "gemm").lower()
    if version != "gemm":
        raise UnsupportedModel(f"AWQ weights packed for {version} cannot be read, only those for gemm", hint=_HINT)
    bits, group = said.get("bits", said.get("w_bit", 4)), said.get("group_size", said.get("q_group_size", 128))
    tidy = {"bits": bits, "group_size": group}
    return Method("awq", _number(tidy, "bits", 4, 4, 4), max(_number(tidy, "group_size", 128, -1, 1 << 20), 0), said)


def _compressed(said: Config) -> Method:
    packing = said.get("format") or ""
    if packing not in _PACKINGS:
        raise UnsupportedModel(f"compressed-tensors weights in the format {packing} cannot be read", hint=_HINT)
    groups = said.get("config_groups")
    for each in groups.values() if isinstance(groups, Mapping) else ():
        weights = each.get("weights") if isinstance(each, Mapping) else None
        if isinstance(weights, Mapping):
            is_float = weights.get("type") == "float"
            bits = _number(weights, "num_bits", 4, 2, 8)
            return Method("fp8" if is_float else "compressed-tensors", bits, said={**said, **weights})
    return Method("compressed-tensors", said=said)


def _four_bits(said: Config) -> str:
    return str(said.get("bnb_4bit_quant_type") or "4-bit").upper()
