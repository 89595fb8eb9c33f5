"""safetensors files, alone or as the shards of a model folder, mapped read-only.

The header is parsed here, with its bounds checked before use; pickle checkpoints in the folder are never touched.
Source: the format section of the safetensors README, whose rules (no holes, no overlaps) are kept.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, ModelNotFound, UnsupportedModel
from localllm.formats.json_file import parse_json_object, read_json_object
from localllm.formats.mapped import MappedTensors, closing_on_error, map_file, read_prefix

MAX_HEADER_BYTES = 1 << 25
MAX_DIMS = 16
MAX_VALUES = 1 << 56
INDEX_NAME = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors", re.ASCII | re.DOTALL)


class _Dtype(NamedTuple):
    bits: int
    array: np.dtype[Any] | None  # None: numpy has no view for it


_DTYPES: Mapping[str, _Dtype] = MappingProxyType(
    {
        "BOOL": _Dtype(8, np.dtype("?")),
        "U8": _Dtype(8, np.dtype("u1")),
        "I8": _Dtype(8, np.dtype("i1")),
        "F8_E5M2": _Dtype(8, np.dtype("u1")),
        "F8_E4M3": _Dtype(8, np.dtype("u1")),
        "F8_E8M0": _Dtype(8, np.dtype("u1")),
        "F8_E4M3FNUZ": _Dtype(8, np.dtype("u1")),
        "F8_E5M2FNUZ": _Dtype(8, np.dtype("u1")),
        "U16": _Dtype(16, np.dtype("<u2")),
        "I16": _Dtype(16, np.dtype("<i2")),
        "F16": _Dtype(16, np.dtype("<f2")),
        "BF16": _Dtype(16, np.dtype("<u2")),
        "U32": _Dtype(32, np.dtype("<u4")),
        "I32": _Dtype(32, np.dtype("<i4")),
        "F32": _Dtype(32, np.dtype("<f4")),
        "U64": _Dtype(64, np.dtype("<u8")),
        "I64": _Dtype(64, np.dtype("<i8")),
        "F64": _Dtype(64, np.dtype("<f8")),
        "C64": _Dtype(64, np.dtype("<c8")),
        "F4": _Dtype(4, None),
        "F6_E2M3": _Dtype(6, None),
        "F6_E3M2": _Dtype(6, None),
    }
)
_PLAIN_FLOATS = frozenset({"F16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class SafetensorInfo:
    """One tensor: `dtype` as the format names it ("BF16"), `offset` in bytes from the start of file number `part`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: int
    offset: int
    size_bytes: int


class SafetensorsFolder(MappedTensors[SafetensorInfo]):
    """The tensors of a model folder, or of one .safetensors file, and its config.json. Close it, or use `with`.

    `config` is {} where there is no config.json.
    """

    def __init__(
        self,
        paths: tuple[Path, ...],
        mappings: tuple[mmap, ...],
        tensors: Mapping[str, SafetensorInfo],
        config: Mapping[str, Any],
    ) -> None:
        super().__init__(paths, mappings, MappingProxyType(dict(tensors)))
        self.config = config

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Open a folder (its index if there is one, else its only safetensors file or its only whole set of shards) or
        a single file.

        Raises ModelNotFound, or BadModelFile with file and field.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        weight_map = _weight_map(folder) if path.is_dir() else None
        paths = (path,) if path != folder else _shard_paths(folder, weight_map)
        with closing_on_error() as mappings:
            tables = []
            for part, part_path in enumerate(paths):
                mappings.append(map_file(part_path))
                tables.append(_read_table(part_path, part, len(mappings[part])))
            if weight_map is None:
                tensors = _joined(paths, tables)
            else:
                tensors = _mapped_tensors(folder, weight_map, paths, tables)
            return cls(paths, tuple(mappings), tensors, _read_config(folder))

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as it lies in the file, read-only and not copied; BF16 as uint16 bits, 8-bit floats as uint8.

        Raises KeyError for an unknown name, UnsupportedModel for a dtype of less than 8 bits, ValueError once closed.
        """
        tensor = self.tensors[name]
        dtype = _DTYPES[tensor.dtype].array
        if dtype is None:
            raise UnsupportedModel(f"tensor {name} has dtype {tensor.dtype}, which this build cannot read")
        count = tensor.size_bytes // dtype.itemsize
        return np.frombuffer(self._mapping(tensor), dtype, count, tensor.offset).reshape(tensor.shape)

    def as_float32(self, name: str) -> NDArray[np.float32]:
        """A copy of a F16, BF16, F32 or F64 tensor as float32; UnsupportedModel for other dtypes."""
        tensor = self.tensors[name]
        if tensor.dtype == "BF16":
            return (self.array(name).astype(np.uint32) << np.uint32(16)).view(np.float32)
        if tensor.dtype not in _PLAIN_FLOATS:
            raise UnsupportedModel(f"tensor {name} has dtype {tensor.dtype}, which cannot be read as float32 here")
        return self.array(name).astype(np.float32)


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    return read_json_object(path) if path.exists() else {}


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name to shard name from the index of a folder, each checked to be a plain file name; None: no index."""
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelFile(f"{path}: weight_map is missing or empty")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise BadModelFile(f"{path}: weight_map names {shard!r}, which is no .safetensors file beside it"[:500])
    return weight_map


def _is_plain_name(shard: str) -> bool:
    return shard.endswith(_SUFFIX) and not any(mark in shard for mark in ("/", "\\", "\0")) and shard != _SUFFIX


def _shard_paths(folder: Path, weight_map: Mapping[str, str] | None) -> tuple[Path, ...]:
    if weight_map is not None:
        return tuple(folder / shard for shard in sorted(set(weight_map.values())))
    found = sorted(folder.glob(f"*{_SUFFIX}"))
    usual = folder / f"model{_SUFFIX}"
    if usual in found:
        return (usual,)
    if not found:
        raise _nothing_to_open(folder)
    found = [path for path in found if not path.name.startswith(("consolidated", "adapter_"))] or found
    if len(found) > 1 and not is_whole_set([path.name for path in found]):
        raise BadModelFile(f"{folder} has {len(found)} safetensors files, but no {INDEX_NAME}")
    return tuple(found)


def is_whole_set(names: Sequence[str]) -> bool:
    """Whether these are all the shards of one model by their names: `x-00001-of-00002.safetensors` and the other."""
    shards = [match for match in map(_SHARD.fullmatch, names) if match is not None]
    count = len(shards)
    same = (
        {(match["stem"], int(match["count"])) for match in shards} == {(shards[0]["stem"], count)} if shards else False
    )
    return same and count == len(names) and {int(match["part"]) for match in shards} == set(range(1, count + 1))


def _joined(paths: Sequence[Path], tables: Sequence[dict[str, SafetensorInfo]]) -> dict[str, SafetensorInfo]:
    tensors: dict[str, SafetensorInfo] = {}
    for path, table in zip(paths, tables, strict=True):
        if twice := tensors.keys() & table.keys():
            raise BadModelFile(f"{path}: tensor {min(twice)[:100]!r} is in another shard, too")
        tensors |= table
    return tensors


def _nothing_to_open(folder: Path) -> BadModelFile | ModelNotFound:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")) or any(folder.glob("*.ckpt")):
        return BadModelFile(
            f"{folder} has only pickle checkpoints, which can run code when they are opened, so they are refused",
            hint="look for a GGUF or safetensors version of this model",
        )
    return ModelNotFound(f"there is no safetensors file in {folder}")


def _mapped_tensors(
    folder: Path, weight_map: Mapping[str, str], paths: tuple[Path, ...], tables: list[dict[str, SafetensorInfo]]
) -> dict[str, SafetensorInfo]:
    by_shard = {path.name: table for path, table in zip(paths, tables, strict=True)}
    tensors = {}
    for name, shard in weight_map.items():
        if name not in by_shard[shard]:
            raise BadModelFile(
                f"{folder / shard}: tensor {name[:100]!r} is missing, although {INDEX_NAME} says it is there"
            )
        tensors[name] = by_shard[shard][name]
    return tensors


def _read_table(path: Path, part: int, size: int) -> dict[str, SafetensorInfo]:
    """The header of one file of `size` bytes as a table; every byte of the file's data belongs to exactly one tensor.
    It is read, not mapped, so that a file that is cut meanwhile costs an error, not the process."""
    file = str(path)
    if size < 8:
        raise BadModelFile(f"{file}: the header length is missing")
    length = int.from_bytes(read_prefix(path, 8), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise BadModelFile(f"{file}: the header length is {length}, but the file has {size} bytes")
    entries = parse_json_object(read_prefix(path, 8 + length)[8:], f"{file}: the header")
    entries.pop("__metadata__", None)
    table = {name: _read_entry(file, name, entry, part, 8 + length) for name, entry in entries.items()}
    _check_tiling(file, table, 8 + length, size)
    return table


def _read_entry(file: str, name: str, entry: Any, part: int, data_start: int) -> SafetensorInfo:
    where = f"{file}: tensor {name[:100]!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise BadModelFile(f"{where} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise BadModelFile(f"{where} has an unknown dtype: {dtype!r}"[:500])
    # the other dimensions of an empty tensor must still fit numpy's index type
    if not _are_counts(shape) or len(shape) > MAX_DIMS or math.prod(dim or 1 for dim in shape) > MAX_VALUES:
        raise BadModelFile(f"{where} has a wrong shape: {shape!r}"[:500])
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadModelFile(f"{where} has wrong data_offsets: {offsets!r}"[:500])
    size = _size_bytes(shape, dtype)
    if offsets[1] - offsets[0] != size:
        raise BadModelFile(f"{where} has data_offsets {offsets}, but {dtype} of shape {shape} takes {size} bytes")
    return SafetensorInfo(name, tuple(shape), dtype, part, data_start + offsets[0], size)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _size_bytes(shape: list[int], dtype: str) -> int:
    return -(-_DTYPES[dtype].bits * math.prod(shape) // 8)  # Python ints do not wrap around


def _check_tiling(file: str, table: Mapping[str, SafetensorInfo], data_start: int, size: int) -> None:
    end = data_start
    for tensor in sorted(table.values(), key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            raise BadModelFile(f"{file}: tensor {tensor.name[:100]!r} begins at byte {tensor.offset}, expected {end}")
        end = tensor.offset + tensor.size_bytes
    if end != size:
        raise BadModelFile(f"{file}: the tensors end at byte {end}, but the file ends at {size}")
