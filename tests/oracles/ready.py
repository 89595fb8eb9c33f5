"""Weights quantized by hand, as each method's files have them, and what the method's own arithmetic makes of them.

Written down from the formats' specifications with loops over codes; nothing of localllm is used. Parts are named by
what follows the module's name; arrays of 8-bit floats are `torch.float8_e4m3fn`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parts = dict[str, Any]
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


@dataclass(frozen=True)
class Packer:
    """`make(weight, rng)` gives the parts of a module and the values they stand for; `config` goes to config.json.

    `kind`: the block type that a matrix must become, "" for float16. `embeds`: embeddings are quantized, too.
    """

    name: str
    config: Mapping[str, Any]
    make: Callable[[Array, np.random.Generator], tuple[Parts, Array]]
    kind: str
    title: str
    embeds: bool = False


def words(codes: Array, bits: int) -> Array:
    """Rows of codes as rows of int32, from the lowest bit on."""
    count = -(-codes.shape[1] * bits // 32)
    rows = []
    for row in codes:
        stream = 0
        for index, code in enumerate(row.tolist()):
            stream |= code << (bits * index)
        rows.append(np.frombuffer(stream.to_bytes(count * 4, "little"), np.int32))
    return np.stack(rows)


def stepped(weight: Array, group: int, bits: int, symmetric: bool, order: Array | None = None) -> tuple[Array, ...]:
    """Codes, scales and zeros (rows, groups) of a plain quantizer, scales in float16; and the group of each column."""
    rows, columns = weight.shape
    of_column = np.arange(columns) // group if order is None else order
    top, num = 2**bits - 1, int(of_column.max()) + 1
    codes = np.zeros(weight.shape, int)
    scales, zeros = np.zeros((rows, num), np.float16), np.zeros((rows, num), int)
    for row in range(rows):
        for each in range(num):
            values = weight[row, of_column == each]
            low, high = min(values.min(), 0.0), max(values.max(), 0.0)
            scale = np.float16(2 * max(-low, high) / top if symmetric else (high - low) / top)
            zero = 2 ** (bits - 1) if symmetric else int(np.clip(round(-low / float(scale)), 0, top))
            scales[row, each], zeros[row, each] = scale, zero
            codes[row, of_column == each] = np.clip(np.round(values / float(scale)) + zero, 0, top)
    return codes, scales, zeros, of_column


def meant(codes: Array, scales: Array, zeros: Array, of_column: Array) -> Array:
    """(code - zero) * scale, in float64."""
    return (codes - zeros[:, of_column]) * scales.astype(np.float64)[:, of_column]


def gptq(bits: int, group: int, symmetric: bool, version: int = 1, shuffled: bool = False) -> Any:
    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        order = rng.permutation(np.arange(weight.shape[1]) // group) if shuffled else None
        codes, scales, zeros, of_column = stepped(weight, group, bits, symmetric, order)
        kept = zeros if version == 2 else (zeros - 1) % 2**bits
        parts = {
            ".qweight": words(codes, bits).T,
            ".qzeros": words(kept.T, bits),
            ".scales": scales.T,
            ".g_idx": of_column.astype(np.int32),
        }
        return parts, meant(codes, scales, zeros, of_column)

    return make


def awq(group: int) -> Any:
    def packed(codes: Array) -> Array:
        """Eight neighbours to a word: nibbles 0, 1, 2 ... are columns 0, 2, 4, 6, 1, 3, 5, 7."""
        return words(codes.reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(codes.shape), 4)

    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        codes, scales, zeros, of_column = stepped(weight, group, 4, False)
        parts = {".qweight": packed(codes.T), ".qzeros": packed(zeros.T), ".scales": scales.T}
        return parts, meant(codes, scales, zeros, of_column)

    return make


def compressed(bits: int, group: int, symmetric: bool) -> Any:
    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        codes, scales, zeros, of_column = stepped(weight, group, bits, symmetric)
        shape = np.array(weight.shape, np.int64)
        parts = {".weight_packed": words(codes, bits), ".weight_scale": scales, ".weight_shape": shape}
        if not symmetric:
            parts[".weight_zero_point"] = words(zeros.T, bits).T
        return parts, meant(codes, scales, zeros, of_column)

    return make


def int8_rows(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
    scales = (np.abs(weight).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.clip(np.round(weight / scales.astype(float)), -128, 127).astype(np.int8)
    return {".weight": codes, ".weight_scale": scales}, codes * scales.astype(float)


def bnb_int8(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
    most = np.abs(weight).max(axis=1).astype(np.float32)
    codes = np.round(weight / most[:, None] * 127).astype(np.int8)
    parts = {".weight": codes, ".SCB": most, ".weight_format": np.array(0, np.uint8)}
    return parts, codes * most[:, None].astype(float) / 127


def nf4(block: int, nested: bool) -> Any:
    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        blocks = weight.reshape(-1, block)
        sizes = np.abs(blocks).max(axis=1).astype(np.float32)
        table = np.array(NF4, np.float32)
        codes = np.abs(blocks[..., None] / sizes[:, None, None] - table).argmin(-1).reshape(-1)
        parts: Parts = {
            ".weight": (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
            ".weight.quant_map": table,
        }
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": weight.shape}
        if nested:
            offset = float(sizes.mean())
            map8 = np.linspace(-1, 1, 256).astype(np.float32)
            outer = np.array([np.abs(part - offset).max() for part in np.split(sizes, range(256, len(sizes), 256))])
            outer = outer.astype(np.float32)
            per = outer[np.arange(len(sizes)) // 256]
            kept = np.abs((sizes - offset)[:, None] / per[:, None] - map8).argmin(1).astype(np.uint8)
            sizes = (map8[kept].astype(float) * per + offset).astype(np.float32)
            parts |= {".weight.absmax": kept, ".weight.nested_absmax": outer, ".weight.nested_quant_map": map8}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        else:
            parts[".weight.absmax"] = sizes
        said = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts[".weight.quant_state.bitsandbytes__nf4"] = said
        values = table[codes].astype(float) * np.repeat(sizes.astype(float), block)
        return parts, values.reshape(weight.shape)

    return make


def fp8(block: tuple[int, int] | None, ending: str, per_row: bool = False) -> Any:
    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        import torch

        rows, columns = weight.shape
        height, width = block or (1 if per_row else rows, columns)
        scales = np.zeros((-(-rows // height), -(-columns // width)), np.float32)
        every = np.zeros(weight.shape, np.float32)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
                scales[i, j] = every[part] = np.abs(weight[part]).max() / 448
        codes = torch.from_numpy((weight / every).astype(np.float32)).to(torch.float8_e4m3fn)
        values = codes.to(torch.float64).numpy() * every.astype(float)
        kept = scales.reshape(()) if block is None and not per_row else scales
        return {".weight": codes, ending: kept, ".input_scale": np.array(1, np.float32)}, values

    return make


def mlx(bits: int, group: int, scale_type: str = "bfloat16") -> Any:
    def make(weight: Array, rng: np.random.Generator) -> tuple[Parts, Array]:
        import torch

        kind = getattr(torch, scale_type)
        grouped = weight.reshape(len(weight), -1, group)
        low, high = grouped.min(-1), grouped.max(-1)
        scales = torch.from_numpy((high - low) / (2**bits - 1)).to(kind)
        biases = torch.from_numpy(low).to(kind)
        s, b = scales.double().numpy()[..., None], biases.double().numpy()[..., None]
        codes = np.clip(np.round((grouped - b) / s), 0, 2**bits - 1).astype(int)
        packed = words(codes.reshape(weight.shape), bits).view(np.uint32)
        return {".weight": packed, ".scales": scales, ".biases": biases}, (codes * s + b).reshape(weight.shape)

    return make


def _gptq_config(bits: int, group: int, symmetric: bool, version: int = 1, shuffled: bool = False) -> dict[str, Any]:
    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": shuffled}
    return {"quantization_config": {**said, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}}


def _compressed_config(bits: int, packing: str, kind: str = "int", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, **more}
    said = {"quant_method": "compressed-tensors", "format": packing}
    return {"quantization_config": {**said, "config_groups": {"group_0": {"weights": weights}}}}


def _gptq(name: str, kind: str, *args: Any, **more: Any) -> Packer:
    return Packer(name, _gptq_config(*args, **more), gptq(*args, **more), kind, f"GPTQ {args[0]}-bit")


def _mlx(bits: int, group: int, kind: str, scale_type: str = "bfloat16") -> Packer:
    said = {"quantization": {"bits": bits, "group_size": group}}
    name = f"mlx, {bits} bits, groups of {group}, {scale_type}"
    return Packer(name, said, mlx(bits, group, scale_type), kind, f"MLX {bits}-bit", embeds=True)


_AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}
_BNB4 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
_BNB8 = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
_FP8 = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 64]}}
_ONE_FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}
PACKERS = (
    _gptq("gptq", "Q4_0", 4, 32, True),
    _gptq("gptq, one group", "Q4_0", 4, 96, True),
    _gptq("gptq, asymmetric", "Q5_0", 4, 32, False),
    _gptq("gptq, second version", "Q5_0", 4, 32, False, version=2),
    _gptq("gptq, by activation order", "", 4, 32, True, shuffled=True),
    _gptq("gptq, small groups", "", 4, 16, True),
    _gptq("gptq, 2 bits", "Q4_0", 2, 32, False),
    _gptq("gptq, 3 bits", "Q4_0", 3, 32, False),
    _gptq("gptq, 8 bits", "Q8_0", 8, 32, True),
    _gptq("gptq, 8 bits, asymmetric", "", 8, 32, False),
    Packer("awq", _AWQ, awq(32), "Q5_0", "AWQ 4-bit"),
    Packer("fp8 in blocks", _FP8, fp8((32, 64), ".weight_scale_inv"), "", "FP8"),
    Packer("fp8, one scale", _ONE_FP8, fp8(None, ".weight_scale"), "", "FP8"),
    Packer(
        "fp8 by rows",
        _compressed_config(8, "float-quantized", "float"),
        fp8(None, ".weight_scale", per_row=True),
        "",
        "FP8",
    ),
    Packer(
        "compressed-tensors",
        _compressed_config(4, "pack-quantized"),
        compressed(4, 32, True),
        "Q4_0",
        "compressed-tensors 4-bit",
    ),
    Packer(
        "compressed-tensors, asymmetric",
        _compressed_config(4, "pack-quantized", symmetric=False),
        compressed(4, 32, False),
        "Q5_0",
        "compressed-tensors 4-bit",
    ),
    Packer(
        "compressed-tensors, 8 bits packed",
        _compressed_config(8, "pack-quantized"),
        compressed(8, 32, True),
        "Q8_0",
        "compressed-tensors 8-bit",
    ),
    Packer(
        "compressed-tensors, int8",
        _compressed_config(8, "int-quantized"),
        int8_rows,
        "Q8_0",
        "compressed-tensors 8-bit",
    ),
    Packer("bitsandbytes int8", _BNB8, bnb_int8, "Q8_0", "bitsandbytes int8"),
    Packer("nf4", _BNB4, nf4(64, False), "", "bitsandbytes NF4"),
    Packer("nf4, nested", _BNB4, nf4(64, True), "", "bitsandbytes NF4"),
    _mlx(4, 32, "Q4_1"),
    _mlx(4, 32, "Q4_1", "float16"),
    _mlx(2, 32, "Q4_1"),
    _mlx(3, 32, "Q4_1"),
    _mlx(5, 32, "Q5_1"),
    _mlx(6, 32, ""),
    _mlx(8, 32, ""),
)
BY_NAME = {packer.name: packer for packer in PACKERS}


def tensor(array: Any) -> Any:
    import torch

    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array, order="C"))


def quantized_folder(source: Path, target: Path, packer: Packer, also: tuple[str, ...] = ()) -> dict[str, Array]:
    """A checkpoint's folder again, its linear layers quantized (`*_proj`, and those that end in `also`); and the values
    of all weights, float64."""
    import torch
    from safetensors.torch import load_file, save_file

    rng = np.random.default_rng(7)
    kept: dict[str, Any] = {}
    values: dict[str, Array] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        plain = weight.to(torch.float64).numpy()
        is_linear = plain.ndim == 2 and name.endswith(("_proj.weight", *(f"{end}.weight" for end in also)))
        is_linear &= not (packer.embeds and plain.shape[-1] % 32)
        is_linear |= packer.embeds and ("embed_tokens" in name or "lm_head" in name)
        if is_linear:
            parts, values[name] = packer.make(plain, rng)
            kept |= {name.removesuffix(".weight") + ending: tensor(array) for ending, array in parts.items()}
        else:
            kept[name], values[name] = weight, plain
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (target / file.name).write_bytes(file.read_bytes())
    said = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**said, **packer.config}))
    save_file({name: array.contiguous() for name, array in kept.items()}, target / "model.safetensors")
    return values
