"""A safetensors checkpoint to a folder as MLX has it: codes of 4 or 8 bits, with a scale and a bias for each group.

The folder keeps the checkpoint's names, config and tokenizer; experts are stacked as MLX stacks them. Vectors, norms,
routers and convolutions stay floats. Refuses checkpoints that are quantized already or have their experts fused.
Source: `mlx.core.quantize` (mode affine), and the layout that mlx-lm's convert writes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, DiskFull, StoreError, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.safetensors import INDEX_NAME, SafetensorsFolder
from localllm.models.hf_facts import check_config, facts_from_hf, guessing_layers_from
from localllm.models.mapping import hf_model
from localllm.models.names import pieces_of
from localllm.models.pieces import Piece
from localllm.models.ready.methods import method_of
from localllm.models.tied import tie
from localllm.quantize.plans import may_be_rounded
from localllm.quantize.recipes import TensorFacts

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

BITS, GROUPS = (4, 8), (32, 64)
SHARD_BYTES = 5 << 30  # as mlx-lm cuts them
LEAST_SCALE = np.float32(1e-7)  # of a group of equal values, as MLX has it
CHUNK_VALUES = 1 << 20
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*", "README.md")
_NOT_COPIED = (INDEX_NAME, "config.json")
_EXPERT = re.compile(r"(.*\.(?:mlp|block_sparse_moe))\.experts\.(\d+)\.(\w+)\.weight")
_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_SIZES = {"F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class MlxType:
    """`group` values of a row share a scale and a bias."""

    bits: int
    group: int

    @property
    def bits_per_weight(self) -> float:
        """With scales and biases of 16 bits."""
        return self.bits + 32 / self.group


@dataclass(frozen=True, slots=True)
class MlxRow:
    """What becomes of a tensor. `parts` are the tensors of the checkpoint, more than one where experts are stacked;
    `dtype` that of floats; `size_bytes` in the folder."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    is_quantized: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor of the folder, and how its bytes are come by."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def mlx_type(text: str, group: int = 64) -> MlxType | None:
    """`mlx-4bit`, `mlx-8bit` in any case; None for other names. UsageError for a group that MLX has no kernels for."""
    found = re.fullmatch(r"mlx[-_]?([48])[-_]?bit", text.lower())
    if found is None:
        return None
    if group not in GROUPS:
        raise UsageError(f"MLX groups have 32 or 64 values here, not {group}", hint="leave --group out for 64")
    return MlxType(int(found[1]), group)


def mlx_plan(folder: SafetensorsFolder, kind: MlxType) -> list[MlxRow]:
    """Every tensor that will be in the folder. UsageError, UnsupportedModel, BadModelFile for what is not for us."""
    if (method := method_of(folder.config)).kind:
        raise UsageError(
            f"the weights are quantized already ({method.title}), and rounding twice would only lose more",
            hint="take the original weights",
        )
    hf_model(folder)  # names, shapes and types are what a model has
    family = check_config(folder.config)
    facts = facts_from_hf(folder.config)
    pieces = pieces_of(folder.tensors, family, guessing_layers_from(facts, folder.config))
    if facts.is_tied:
        tie(folder, pieces)
    matrices = set(_matrices(folder, pieces))
    used = {piece.tensor for each in pieces.values() for piece in each}
    return [_row(folder, name, parts, matrices, kind) for name, parts in _stacked(folder, used).items()]


def _matrices(folder: SafetensorsFolder, pieces: Mapping[str, Sequence[Piece]]) -> Iterator[str]:
    """Tensors that are linear layers, of which MLX knows rounded ones."""
    for canonical, each in pieces.items():
        for piece in each:
            facts = TensorFacts(canonical, folder.tensors[piece.tensor].shape, BlockType.F32)
            if may_be_rounded(facts) and not canonical.endswith("ffn_gate_inp_shexp.weight") and not piece.transposed:
                yield piece.tensor


def _stacked(folder: SafetensorsFolder, used: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names in the folder to be, with the tensors that make them."""
    found: dict[str, dict[int, str]] = {}
    for name in sorted(used):
        expert = _EXPERT.fullmatch(name)
        if expert is None:
            found[name] = {0: name}
        else:
            part = _EXPERT_NAMES.get(expert[3], expert[3])
            found.setdefault(f"{expert[1]}.switch_mlp.{part}.weight", {})[int(expert[2])] = name
    return {name: tuple(parts[number] for number in sorted(parts)) for name, parts in found.items()}


def _row(folder: SafetensorsFolder, name: str, parts: tuple[str, ...], matrices: set[str], kind: MlxType) -> MlxRow:
    first = folder.tensors[parts[0]]
    if first.dtype not in _SIZES:
        raise UnsupportedModel(f"{parts[0]} has the type {first.dtype}, which cannot be written for MLX")
    if len(first.shape) == 3 and parts[0] in matrices:
        raise UnsupportedModel(
            f"the experts of this checkpoint lie in one tensor ({parts[0]}), which cannot be written for MLX",
            hint="choose a GGUF type such as q4_k_m",
        )
    shape = first.shape if len(parts) == 1 and name == parts[0] else (len(parts), *first.shape)
    is_quantized = (
        parts[0] in matrices and name.endswith(".weight") and len(first.shape) == 2 and not shape[-1] % kind.group
    )
    count, width = math.prod(shape), _SIZES[first.dtype]
    size = count * kind.bits // 8 + 2 * width * count // kind.group if is_quantized else count * width
    return MlxRow(name, parts, shape, first.dtype, is_quantized, size)


def write_mlx(
    folder: SafetensorsFolder, source: Path, output: Path, kind: MlxType, receipt: Mapping[str, str], progress: Progress
) -> None:
    """Write the folder `output`, whole or not at all; nothing may be there. `source` is where config and tokenizer lie;
    `receipt` goes into the files' own metadata. BadModelFile names a tensor that is not all finite; DiskFull."""
    rows = mlx_plan(folder, kind)
    with _atomic_folder(output) as building:
        _copy_files(source, building)
        config = {**folder.config, "quantization": _said(kind), "quantization_config": _said(kind)}
        (building / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
        shards = list(_shards(rows))
        total, done = sum(row.size_bytes for row in rows), 0
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= {part.name: name for row in shard for part in _placed(row, kind)}
            with open(building / name, "xb") as file:
                _write_header(file, shard, kind, receipt)
                for row in shard:
                    progress(row.name, done, total)
                    _write_row(file, folder, row, kind)
                    done += row.size_bytes
                file.flush()
                os.fsync(file.fileno())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (building / INDEX_NAME).write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")
        progress("", total, total)


def _said(kind: MlxType) -> dict[str, Any]:
    return {"group_size": kind.group, "bits": kind.bits, "mode": "affine"}


@contextmanager
def _atomic_folder(output: Path) -> Iterator[Path]:
    """A hidden folder that takes its name when the block ends well, and vanishes when it does not. One that a killed
    process left is cleared away by the next."""
    building = output.with_name(f".{output.name[:100]}.partial")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        yield building
        os.rename(building, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"the disk is full while writing {output}", hint="free some space and try again") from None
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"{output} cannot be written: {reason}", hint="write to another folder") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy_files(source: Path, target: Path) -> None:
    names = {path.name for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    for name in sorted(names.difference(_NOT_COPIED)):
        shutil.copyfile(source / name, target / name)


def _shards(rows: Sequence[MlxRow]) -> Iterator[list[MlxRow]]:
    shard: list[MlxRow] = []
    for row in rows:
        if shard and sum(each.size_bytes for each in shard) + row.size_bytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(row)
    if shard:
        yield shard


def _placed(row: MlxRow, kind: MlxType) -> list[_Placed]:
    """In the order in which they are written."""
    if not row.is_quantized:
        return [_Placed(row.name, row.dtype, row.shape, row.size_bytes)]
    stem, width = row.name.removesuffix("weight"), _SIZES[row.dtype]
    lead, columns = row.shape[:-1], row.shape[-1]
    words, groups = (*lead, columns * kind.bits // 32), (*lead, columns // kind.group)
    return [
        _Placed(row.name, "U32", words, 4 * math.prod(words)),
        _Placed(f"{stem}scales", row.dtype, groups, width * math.prod(groups)),
        _Placed(f"{stem}biases", row.dtype, groups, width * math.prod(groups)),
    ]


def _write_header(file: BinaryIO, rows: Sequence[MlxRow], kind: MlxType, receipt: Mapping[str, str]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx", **receipt}}
    offset = 0
    for placed in (each for row in rows for each in _placed(row, kind)):
        span = [offset, offset + placed.size_bytes]
        entries[placed.name] = {"dtype": placed.dtype, "shape": list(placed.shape), "data_offsets": span}
        offset += placed.size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _write_row(file: BinaryIO, folder: SafetensorsFolder, row: MlxRow, kind: MlxType) -> None:
    parts: tuple[list[bytes], ...] = ([], [], [])
    for name in row.parts:
        if row.is_quantized:
            for kept, part in zip(parts, _quantized(folder, name, row.dtype, kind), strict=True):
                kept.append(part)
        else:
            if not np.isfinite(folder.as_float32(name)).all():
                raise _not_finite(name)
            file.write(np.ascontiguousarray(folder.array(name)).tobytes())
        folder.release(name)
    for kept in parts:
        for part in kept:
            file.write(part)


def _quantized(folder: SafetensorsFolder, name: str, dtype: str, kind: MlxType) -> tuple[bytes, bytes, bytes]:
    values = folder.as_float32(name)
    step = max(1, CHUNK_VALUES // values.shape[-1])
    chunks = [affine(values[at : at + step], kind, dtype) for at in range(0, len(values), step)]
    if not all(np.isfinite(scales).all() for _, scales, _ in chunks):
        raise _not_finite(name)
    codes, scales, biases = (np.concatenate(each) for each in zip(*chunks, strict=True))
    return packed(codes, kind.bits).tobytes(), _as_stored(scales, dtype), _as_stored(biases, dtype)


def _not_finite(name: str) -> BadModelFile:
    return BadModelFile(
        f"{name} has values that are not finite numbers", hint="the checkpoint is damaged: fetch it again"
    )


def affine(values: Floats, kind: MlxType, dtype: str) -> tuple[Bytes, Floats, Floats]:
    """Codes (rows, columns), and scales and biases (rows, groups) as `dtype` holds them: value = code * scale + bias.

    The value farther from zero of each group's two ends is met exactly, and zero is among the codes where it lies
    between them: MLX's own choice. Codes are chosen for the scales as a reader sees them, which MLX does not.
    """
    groups = values.reshape(len(values), -1, kind.group)
    low, high = groups.min(axis=2), groups.max(axis=2)
    most = np.float32((1 << kind.bits) - 1)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by its scale
        scales = np.maximum((high - low) / most, LEAST_SCALE)
        is_low = np.abs(low) > np.abs(high)
        scales, edge = np.where(is_low, scales, -scales), np.where(is_low, low, high)
        at_zero = np.rint(edge / scales)
        scales = np.where(at_zero != 0, edge / np.where(at_zero != 0, at_zero, np.float32(1)), scales)
        biases = np.where(at_zero != 0, edge, np.float32(0))
        scales, biases = _rounded(scales, dtype), _rounded(biases, dtype)
        codes = np.clip(np.rint((groups - biases[:, :, None]) / scales[:, :, None]), 0, most)
        codes = np.nan_to_num(codes).astype(np.uint8)
    return codes.reshape(values.shape), scales, biases


def packed(codes: Bytes, bits: int) -> NDArray[np.uint32]:
    """Codes into words, the first in the lowest bits."""
    per_word = 32 // bits
    fields = codes.reshape(len(codes), -1, per_word).astype(np.uint32)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(
        fields << (np.arange(per_word, dtype=np.uint32) * np.uint32(bits)), axis=2
    )
    return words


def _rounded(values: Floats, dtype: str) -> Floats:
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    return (_bfloat_bits(values).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bfloat_bits(values: Floats) -> NDArray[np.uint16]:
    """The nearest, ties to even; what is not finite stays so."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isfinite(values), nearest, bits >> np.uint32(16)).astype(np.uint16)


def _as_stored(values: Floats, dtype: str) -> bytes:
    if dtype == "BF16":
        return _bfloat_bits(values).tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
