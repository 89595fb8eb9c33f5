"""GGUF metadata: found once when a file is opened, decoded when asked for."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from mmap import mmap
from typing import Any

import numpy as np

from localllm.formats.gguf_cursor import (
    MAX_ARRAY_DEPTH,
    MAX_KEY_BYTES,
    MAX_NUMBERS,
    MAX_STRING_BYTES,
    MAX_STRINGS,
    Cursor,
    FrontTooShort,
    bad_field,
)

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
INTEGERS = frozenset(kind for kind, dtype in SCALARS.items() if dtype.kind in "iu") - {ValueType.BOOL}

_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a metadata value lies; for arrays `item` and `count` describe the elements, which begin at `start`."""

    type: ValueType
    start: int
    end: int
    item: ValueType | None = None
    count: int = 0


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

    def is_array(self, key: str) -> bool:
        return self._spans[key].type is ValueType.ARRAY

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
            raise bad_field(self._file, f"{key}[{len(strings)}]", "is not valid UTF-8") from None
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


def read_spans(cursor: Cursor, num_keys: int) -> dict[str, Span]:
    """Where each value lies, every length checked; the values themselves are not looked at."""
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
        pos += 8
    if pos > cursor.size:
        raise cursor.bad(key, "has a string that runs past the end of the file")
    if pos > len(data):
        raise FrontTooShort
    cursor.pos = pos


def _skip_arrays(cursor: Cursor, key: str, count: int, depth: int) -> None:
    if depth >= MAX_ARRAY_DEPTH:
        raise cursor.bad(key, f"nests arrays more than {MAX_ARRAY_DEPTH} deep")
    for _ in range(count):
        _read_array_span(cursor, key, depth + 1)
