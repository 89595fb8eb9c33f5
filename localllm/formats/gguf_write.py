"""Writes GGUF version 3, all or nothing: a file appears under its name only when it is whole and on the disk."""

import errno
import math
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localllm.errors import DiskFull, StoreError
from localllm.formats.blocks import BlockType, row_bytes
from localllm.formats.gguf_cursor import MAX_NAME_BYTES
from localllm.formats.gguf_header import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS
from localllm.formats.gguf_metadata import SCALARS, Value, ValueType

Raw = NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]
Tensor = tuple[str, Sequence[int], BlockType, Raw]
VERSION = 3


class Place(NamedTuple):
    """Where a tensor lies; `offset` in bytes from the start of the file."""

    name: str
    offset: int
    size_bytes: int


class Layout(NamedTuple):
    """A file before it is written: what stands before the tensors, and where these will lie."""

    header: bytes
    places: tuple[Place, ...]
    size_bytes: int


class _Planned(NamedTuple):
    name: str
    shape: Sequence[int]
    type: BlockType
    raw: Raw
    offset: int  # from the start of the data
    size_bytes: int


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value | tuple[ValueType, Value]],
    tensors: Iterable[Tensor],
) -> None:
    """Write a GGUF file atomically.

    metadata: a value (its type is inferred: UINT32, FLOAT32, BOOL, STRING, arrays of them; integers in arrays INT32)
    or (type, value), where the type of a list is that of its elements; `Metadata.typed()` gives this form.
    tensors: (name, shape in numpy order, type, blocks as uint8) in file order; blocks may be a function that is called
    when they are written, so that a converter never holds more than one tensor. `general.alignment` is honoured.
    Raises DiskFull, StoreError for other failures of the disk, ValueError or TypeError for what cannot be written.
    """
    alignment = _alignment(metadata)
    planned = list(_plan(tensors, alignment))
    header = _header(metadata, planned)
    with atomic_file(Path(path)) as file:
        file.write(header)
        _pad(file, alignment)
        start = file.tell()
        for tensor in planned:
            file.write(bytes(start + tensor.offset - file.tell()))
            file.write(_blocks(tensor).data)
        _pad(file, alignment)


def gguf_layout(
    metadata: Mapping[str, Value | tuple[ValueType, Value]], tensors: Iterable[tuple[str, Sequence[int], BlockType]]
) -> Layout:
    """The same file that `write_gguf` makes, for who writes its tensors in another order; errors are the same."""
    alignment = _alignment(metadata)
    planned = list(_plan(((*tensor, _not_here) for tensor in tensors), alignment))
    header = _header(metadata, planned)
    start = _aligned(len(header), alignment)
    places = tuple(Place(tensor.name, start + tensor.offset, tensor.size_bytes) for tensor in planned)
    end = places[-1].offset + places[-1].size_bytes if places else start
    return Layout(header.ljust(start, b"\0"), places, _aligned(end, alignment))


def _not_here() -> NDArray[np.uint8]:
    raise ValueError("the blocks of a layout are written elsewhere")


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name, synced, when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _said(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What goes wrong on the disk while `path` is written, as DiskFull or StoreError."""
    try:
        yield
    except OSError as error:
        raise _said(error, path) from None


def _said(error: OSError, path: Path) -> DiskFull | StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full while writing {path}", hint="free some space and try again")
    return StoreError(f"{path} cannot be written: {error.strerror}", hint="write to another folder")


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alignment(metadata: Mapping[str, Value | tuple[ValueType, Value]]) -> int:
    value_type, value = _typed(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    if value_type is not ValueType.UINT32 or not isinstance(value, int) or value < 1 or value & (value - 1):
        raise ValueError(f"general.alignment must be a UINT32 power of two, not {value!r}")
    return value


def _plan(tensors: Iterable[Tensor], alignment: int) -> Iterator[_Planned]:
    offset, names = 0, set[str]()
    for name, shape, block_type, raw in tensors:
        if name in names or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"the tensor name {name!r} is empty, too long, or there twice")
        if len(shape) > MAX_DIMS or any(dim < 1 for dim in shape):
            raise ValueError(f"tensor {name} has shape {tuple(shape)}, which GGUF cannot hold")
        size = row_bytes(block_type, shape[-1] if shape else 1) * math.prod(shape[:-1])
        names.add(name)
        yield _Planned(name, shape, block_type, raw, offset, size)
        offset += _aligned(size, alignment)


def _blocks(tensor: _Planned) -> NDArray[np.uint8]:
    raw = tensor.raw() if callable(tensor.raw) else tensor.raw
    if raw.dtype != np.uint8 or raw.size != tensor.size_bytes:
        raise ValueError(f"tensor {tensor.name} needs {tensor.size_bytes} uint8, not {raw.size} of {raw.dtype}")
    return np.ascontiguousarray(raw).reshape(-1)


def _header(metadata: Mapping[str, Value | tuple[ValueType, Value]], tensors: Sequence[_Planned]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if not key:
            raise ValueError("a metadata key is empty")
        parts += [_packed_string(key), _packed_value(key, *_typed(value))]
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        layout = f"<I{len(dims)}QIQ"
        parts += [_packed_string(tensor.name), struct.pack(layout, len(dims), *dims, tensor.type, tensor.offset)]
    return b"".join(parts)


def _typed(value: Value | tuple[ValueType, Value]) -> tuple[ValueType, Value]:
    return value if isinstance(value, tuple) else (_inferred(value), value)


def _inferred(value: Value) -> ValueType:
    if isinstance(value, list):
        return _inferred_item(value)
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        return _narrowest(value, value, (ValueType.UINT32, ValueType.INT32, ValueType.INT64, ValueType.UINT64))
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, str):
        return ValueType.STRING
    raise TypeError(f"metadata cannot hold a {type(value).__name__}")


def _inferred_item(values: list[Any]) -> ValueType:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        # token types are INT32 arrays by custom
        order = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
        return _narrowest(min(values), max(values), order)
    if kinds == {int, float}:
        return ValueType.FLOAT32
    if kinds == {list}:
        return ValueType.ARRAY
    if len(kinds) != 1:
        raise TypeError("a metadata array is empty or mixes types; give it as (element type, values)")
    return _inferred(values[0])


def _narrowest(low: int, high: int, order: Sequence[ValueType]) -> ValueType:
    for value_type in order:
        limits = np.iinfo(SCALARS[value_type])
        if limits.min <= low and high <= limits.max:
            return value_type
    raise ValueError(f"{low}..{high} does not fit any integer type of GGUF")


def _packed_string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _packed_value(key: str, value_type: ValueType, value: Value) -> bytes:
    if isinstance(value, list):
        return struct.pack("<I", ValueType.ARRAY) + _packed_array(key, value_type, value)
    if value_type is ValueType.STRING and isinstance(value, str):
        return struct.pack("<I", value_type) + _packed_string(value)
    if value_type in SCALARS and not isinstance(value, str):
        return struct.pack("<I", value_type) + _packed_numbers(key, value_type, [value])
    raise TypeError(f"{key} is {value_type.name}, but its value is a {type(value).__name__}")


def _packed_array(key: str, item: ValueType, values: list[Any]) -> bytes:
    front = struct.pack("<IQ", item, len(values))
    if item is ValueType.STRING:
        return front + b"".join(map(_packed_string, values))
    if item is ValueType.ARRAY:
        return front + b"".join(_packed_array(key, _inferred_item(inner), inner) for inner in values)
    return front + _packed_numbers(key, item, values)


def _packed_numbers(key: str, value_type: ValueType, values: list[Any]) -> bytes:
    try:
        return np.array(values, SCALARS[value_type]).tobytes()
    except (OverflowError, TypeError) as error:
        raise ValueError(f"{key} cannot be written as {value_type.name}: {error}") from None


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
