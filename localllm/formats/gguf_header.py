"""The front of a GGUF file: metadata and tensor table, every number checked before it is used.

Refuses version 1, big-endian files, duplicate keys and names, and whatever points outside the file.
Source: docs/gguf.md of ggml; where that is silent, the limits of llama.cpp's reader.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap

from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType
from localllm.formats.gguf_cursor import MAX_ENTRIES, MAX_NAME_BYTES, Cursor
from localllm.formats.gguf_metadata import Metadata, Span, ValueType, read_spans

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` in numpy order (rows first), `offset` in bytes from the start of file number `part`."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    part: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the front of one file says. `metadata` still reads arrays from it."""

    version: int
    alignment: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]


def read_header(data: mmap, file: str, part: int, size: int) -> Header:
    """Parse and check the front of a file of `size` bytes; raises BadModelFile, UnsupportedModel for an unknown block
    type, or FrontTooShort where there is more in front of the tensors than `data` has."""
    cursor = Cursor(data, file, size)
    version = _read_version(cursor)
    num_tensors = cursor.count("the tensor count", MAX_ENTRIES, 8 + 1 + 4 + 4 + 8)
    num_keys = cursor.count("the metadata count", MAX_ENTRIES, 8 + 1 + 4 + 1)
    spans = read_spans(cursor, num_keys)
    alignment = _read_alignment(cursor, spans)
    relative = _read_tensors(cursor, num_tensors, part)
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = _placed(cursor, relative, data_start, alignment)
    return Header(version, alignment, Metadata(data, file, spans), tensors)


def _read_version(cursor: Cursor) -> int:
    if cursor.data[cursor.take(4, "the magic number") : 4] != MAGIC:
        raise cursor.bad("the magic number", "is not that of a GGUF file")
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel(f"{cursor.file}: big-endian GGUF files are not supported", hint="use the usual variant")
    if version == 1:
        raise UnsupportedModel(
            f"{cursor.file}: GGUF files of version 1 (August 2023) are not supported",
            hint="take a newer conversion of the model",
        )
    if version not in (2, 3):
        raise cursor.bad("the version", f"is {version}, but only versions 2 and 3 are known")
    return version


def _read_alignment(cursor: Cursor, spans: Mapping[str, Span]) -> int:
    span = spans.get("general.alignment")
    if span is None:
        return DEFAULT_ALIGNMENT
    if span.type is not ValueType.UINT32:
        raise cursor.bad("general.alignment", f"has type {span.type.name}, not UINT32")
    alignment = int.from_bytes(cursor.data[span.start : span.end], "little")
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.bad("general.alignment", f"is {alignment}, which is not a power of two")
    return alignment


def _read_tensors(cursor: Cursor, num_tensors: int, part: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for index in range(num_tensors):
        name = cursor.name(f"the name of tensor {index}", MAX_NAME_BYTES)
        if name in tensors:
            raise cursor.bad(f"tensor {name}", "is there twice")
        shape = _read_shape(cursor, name)
        block_type = _read_block_type(cursor, name)
        size = _tensor_bytes(cursor, name, block_type, shape)
        tensors[name] = TensorInfo(name, shape, block_type, part, cursor.u64(f"the offset of {name}"), size)
    return tensors


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    num_dims = cursor.u32(f"the dimension count of {name}")
    if num_dims > MAX_DIMS:
        raise cursor.bad(f"tensor {name}", f"has {num_dims} dimensions, but at most {MAX_DIMS} are allowed")
    dims = [cursor.u64(f"the shape of {name}") for _ in range(num_dims)]
    if 0 in dims:
        raise cursor.bad(f"the shape of {name}", "has a dimension of 0")
    return tuple(reversed(dims))  # the file gives the fastest dimension first


def _read_block_type(cursor: Cursor, name: str) -> BlockType:
    number = cursor.u32(f"the type of {name}")
    try:
        return BlockType(number)
    except ValueError:
        raise UnsupportedModel(
            f"{cursor.file}: the type of {name!r} is number {number}, which this build does not know",
            hint="a newer version may know it; otherwise choose another quantization of the model",
        ) from None


def _tensor_bytes(cursor: Cursor, name: str, block_type: BlockType, shape: tuple[int, ...]) -> int:
    values, size = BLOCK_LAYOUTS[block_type]
    columns = shape[-1] if shape else 1
    if columns % values:
        raise cursor.bad(f"tensor {name}", f"has rows of {columns}, not whole {block_type.name} blocks of {values}")
    return columns // values * size * math.prod(shape[:-1])  # Python ints do not wrap around


def _placed(
    cursor: Cursor, relative: Mapping[str, TensorInfo], data_start: int, alignment: int
) -> dict[str, TensorInfo]:
    """The same tensors with offsets from the start of the file, each inside it and none on top of another."""
    placed = {name: _placed_one(cursor, tensor, data_start, alignment) for name, tensor in relative.items()}
    last_end, last_name = data_start, ""
    for tensor in sorted(placed.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < last_end:
            raise cursor.bad(f"the offset of {tensor.name}", f"lies inside tensor {last_name!r}")
        last_end, last_name = tensor.offset + tensor.size_bytes, tensor.name
    return placed


def _placed_one(cursor: Cursor, tensor: TensorInfo, data_start: int, alignment: int) -> TensorInfo:
    if tensor.offset % alignment:
        raise cursor.bad(f"the offset of {tensor.name}", f"is {tensor.offset}, not aligned to {alignment}")
    offset = data_start + tensor.offset
    if offset + tensor.size_bytes > cursor.size:
        raise cursor.bad(
            f"tensor {tensor.name}", f"ends at byte {offset + tensor.size_bytes}, but the file ends at {cursor.size}"
        )
    return TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.part, offset, tensor.size_bytes)
