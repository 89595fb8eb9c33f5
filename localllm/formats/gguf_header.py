"""The front of a GGUF file: metadata and tensor table, every number checked before it is used.

Refuses version 1, big-endian files, duplicate keys and names, and whatever points outside the file.
Source: docs/gguf.md of ggml; where that is silent, the limits of llama.cpp's reader.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from mmap import mmap
from typing import Any

import numpy as np

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME_BYTES = 63  # ggml keeps 64 with the closing zero
MAX_KEY_BYTES = 65535
# Far above any model known (merges of 500k, 50k tensors), low enough that a hostile file is refused within a second.
MAX_ENTRIES = 1 << 17
MAX_NUMBERS = 1 << 24
MAX_STRINGS = 1 << 22
MAX_STRING_BYTES = 1 << 26
MAX_ARRAY_DEPTH = 4
EAGER_STRING_BYTES = 1 << 16

Value = int | float | bool | str | list[Any]


class ValueType(IntEnum):
    """The numbers GGUF uses for metadata types."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: Mapping[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


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
class Span:
    """Where a metadata value lies; for arrays `item` and `count` describe the elements, which begin at `start`."""

    type: ValueType
    start: int
    end: int
    item: ValueType | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """What the front of one file says. `metadata` still reads arrays from the mapping."""

    version: int
    alignment: int
    metadata: "Metadata"
    tensors: Mapping[str, TensorInfo]


class Cursor:
    """A position in untrusted bytes that cannot leave them."""

    __slots__ = ("data", "file", "pos", "size", "strings_left")

    def __init__(self, data: mmap, file: str) -> None:
        self.data = data
        self.file = file
        self.pos = 0
        self.size = len(data)
        self.strings_left = MAX_STRINGS

    def bad(self, field: str, problem: str) -> BadModelFile:
        # the field may hold a name out of the file: no terminal escapes, no 64 kB in a message
        shown = field[:200] if field[:200].isprintable() else repr(field[:200])
        return BadModelFile(
            f"{self.file}: {shown} {problem}",
            hint="the file is damaged or not a model; pull it again, or compare its sha256 with the publisher's",
        )

    def take(self, size: int, field: str) -> int:
        """Step over `size` bytes and return where they begin."""
        start = self.pos
        if size > self.size - start:
            raise self.bad(field, f"needs {size} bytes at {start}, but the file ends at {self.size}")
        self.pos = start + size
        return start

    def u32(self, field: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, field))[0])

    def u64(self, field: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, field))[0])

    def count(self, field: str, limit: int, bytes_each: int) -> int:
        """A declared count, refused if it passes `limit` or if that many things cannot be in the bytes left."""
        count = self.u64(field)
        if count > limit:
            raise self.bad(field, f"is {count}, more than the {limit} that are allowed")
        if count * bytes_each > self.size - self.pos:
            raise self.bad(field, f"is {count}, more than the rest of the file can hold")
        return count

    def name(self, field: str, limit: int) -> str:
        length = self.count(f"the length of {field}", limit, 1)
        if length == 0:
            raise self.bad(field, "is empty")
        start = self.take(length, field)
        try:
            return self.data[start : self.pos].decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad(field, "is not valid UTF-8") from None


class Metadata(Mapping[str, Value]):
    """Metadata by key. Numbers, booleans and short strings are ready; arrays are decoded (to lists) on first use.

    Reading an array may raise BadModelFile (a string that is not UTF-8), and ValueError once the file is closed.
    """

    def __init__(self, data: mmap, file: str, spans: Mapping[str, Span]) -> None:
        self._data = data
        self._file = file
        self._spans = spans
        self._values: dict[str, Value] = {key: self._read(key, span) for key, span in spans.items() if _is_small(span)}

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            span = self._spans[key]
            if self._data.closed:
                raise ValueError(f"{self._file} is closed; {key} must be read before that")
            self._values[key] = self._read(key, span)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def type_of(self, key: str) -> ValueType:
        """The type of a value; of an array, the type of its elements."""
        span = self._spans[key]
        return span.type if span.item is None else span.item

    def length_of(self, key: str) -> int:
        """Number of elements of an array (0 for anything else), without decoding it."""
        return self._spans[key].count

    def typed(self) -> dict[str, tuple[ValueType, Value]]:
        """Everything with its type, decoded, in the form `write_gguf` takes."""
        return {key: (self.type_of(key), self[key]) for key in self}

    def _read(self, key: str, span: Span) -> Value:
        if span.type is ValueType.STRING:
            # descriptions are for people: a broken character there must not keep a model from running
            return self._data[span.start : span.end].decode("utf-8", errors="replace")
        if span.type is not ValueType.ARRAY:
            number: int | float | bool = _numbers(self._data, span.type, span.start, 1)[0]
            return number
        return self._read_array(key, span)

    def _read_array(self, key: str, span: Span) -> list[Any]:
        if span.item is ValueType.STRING:
            return self._read_strings(key, span)
        if span.item is ValueType.ARRAY:
            return self._read_nested(key, span)
        assert span.item is not None
        return _numbers(self._data, span.item, span.start, span.count)

    def _read_strings(self, key: str, span: Span) -> list[Any]:
        chunk, pos, strings = self._data[span.start : span.end], 0, []
        length_at = _U64.unpack_from
        try:
            for _ in range(span.count):
                start = pos + 8
                pos = start + length_at(chunk, pos)[0]
                strings.append(str(chunk[start:pos], "utf-8"))
        except UnicodeDecodeError:
            raise BadModelFile(f"{self._file}: {key}[{len(strings)}] is not valid UTF-8") from None
        return strings

    def _read_nested(self, key: str, span: Span) -> list[Any]:
        cursor, lists = Cursor(self._data, self._file), []
        cursor.pos = span.start
        for _ in range(span.count):
            lists.append(self._read_array(key, _read_array_span(cursor, key, 1)))
        return lists


def _is_small(span: Span) -> bool:
    return span.type is not ValueType.ARRAY and span.end - span.start <= EAGER_STRING_BYTES


def _numbers(data: mmap, value_type: ValueType, start: int, count: int) -> list[Any]:
    dtype = SCALARS[value_type]
    numbers = np.frombuffer(data[start : start + count * dtype.itemsize], dtype)
    values: list[Any] = (numbers != 0).tolist() if value_type is ValueType.BOOL else numbers.tolist()
    return values


def read_header(data: mmap, file: str, part: int) -> Header:
    """Parse and check the front of one file; raises BadModelFile, or UnsupportedModel for an unknown block type."""
    cursor = Cursor(data, file)
    version = _read_version(cursor)
    num_tensors = cursor.count("the tensor count", MAX_ENTRIES, 8 + 1 + 4 + 4 + 8)
    num_keys = cursor.count("the metadata count", MAX_ENTRIES, 8 + 1 + 4 + 1)
    spans = _read_spans(cursor, num_keys)
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
    if version not in (2, 3):
        raise cursor.bad("the version", f"is {version}, but only versions 2 and 3 are known")
    return version


def _read_spans(cursor: Cursor, num_keys: int) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for index in range(num_keys):
        key = cursor.name(f"metadata key {index}", MAX_KEY_BYTES)
        if key in spans:
            raise cursor.bad(f"metadata key {key}", "is there twice")
        spans[key] = _read_span(cursor, key)
    return spans


def _read_type(cursor: Cursor, key: str) -> ValueType:
    number = cursor.u32(f"the type of {key}")
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.bad(f"the type of {key}", f"is {number}, which is not a GGUF type") from None


def _read_span(cursor: Cursor, key: str) -> Span:
    value_type = _read_type(cursor, key)
    if value_type is ValueType.ARRAY:
        return _read_array_span(cursor, key, 1)
    if value_type is ValueType.STRING:
        size = cursor.count(f"the length of {key}", MAX_STRING_BYTES, 1)
    else:
        size = SCALARS[value_type].itemsize
    start = cursor.take(size, key)
    return Span(value_type, start, cursor.pos)


def _read_array_span(cursor: Cursor, key: str, depth: int) -> Span:
    item, field = _read_type(cursor, key), f"the length of {key}"
    if item in SCALARS:
        size = SCALARS[item].itemsize
        count = cursor.count(field, MAX_NUMBERS, size)
        start = cursor.take(count * size, key)
    else:
        count = cursor.count(field, min(MAX_STRINGS, cursor.strings_left), 8)
        cursor.strings_left -= count
        start = cursor.pos
        if item is ValueType.STRING:
            _skip_strings(cursor, key, count)
        else:
            _skip_arrays(cursor, key, count, depth)
    return Span(ValueType.ARRAY, start, cursor.pos, item, count)


def _skip_strings(cursor: Cursor, key: str, count: int) -> None:
    pos, data, length_at = cursor.pos, cursor.data, _U64.unpack_from
    try:
        # the hottest loop of opening a file: a string that runs past the end makes the next look-up fail
        for _ in range(count):
            pos += 8 + length_at(data, pos)[0]
    except (struct.error, OverflowError):
        pos = cursor.size + 1
    if pos > cursor.size:
        raise cursor.bad(key, "has a string that runs past the end of the file")
    cursor.pos = pos


def _skip_arrays(cursor: Cursor, key: str, count: int, depth: int) -> None:
    if depth >= MAX_ARRAY_DEPTH:
        raise cursor.bad(key, f"nests arrays more than {MAX_ARRAY_DEPTH} deep")
    for _ in range(count):
        _read_array_span(cursor, key, depth + 1)


def _read_alignment(cursor: Cursor, spans: Mapping[str, Span]) -> int:
    span = spans.get("general.alignment")
    if span is None:
        return DEFAULT_ALIGNMENT
    if span.type is not ValueType.UINT32:
        raise cursor.bad("general.alignment", f"has type {span.type.name}, not UINT32")
    alignment = int(_U32.unpack_from(cursor.data, span.start)[0])
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
