"""GGUF files put together byte by byte, so that every number in them can be wrong."""

import struct
from collections.abc import Sequence

UINT8, INT32, UINT32, BOOL, STRING, ARRAY = 0, 5, 4, 7, 8, 9
F32, Q4_0, I8, I64 = 0, 2, 24, 27


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string; `length` lies about its size."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", (len(raw) if length is None else length) % 2**64) + raw


def key(name: str | bytes, kind: int, payload: bytes, *, length: int | None = None) -> bytes:
    return text(name, length) + struct.pack("<I", kind) + payload


def number(name: str, value: int, kind: int = UINT32) -> bytes:
    return key(name, kind, struct.pack("<I", value))


def array(name: str, item: int, count: int, payload: bytes = b"") -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", item, count % 2**64) + payload)


def tensor(
    name: str,
    dims: Sequence[int],
    kind: int = F32,
    offset: int = 0,
    *,
    num_dims: int | None = None,
    length: int | None = None,
) -> bytes:
    """A tensor's entry; dims in the file's order (fastest first)."""
    count = len(dims) if num_dims is None else num_dims
    shape = b"".join(struct.pack("<Q", dim % 2**64) for dim in dims)
    return text(name, length) + struct.pack("<I", count) + shape + struct.pack("<IQ", kind, offset % 2**64)


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file, padded to `alignment` before the data."""
    num_keys = len(keys) if num_keys is None else num_keys % 2**64
    num_tensors = len(tensors) if num_tensors is None else num_tensors % 2**64
    front = magic + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(keys) + b"".join(tensors)
    return front + bytes(-len(front) % alignment) + data
