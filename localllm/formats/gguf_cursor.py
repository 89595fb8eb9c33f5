"""A position in untrusted bytes that cannot leave them, and the limits on what a GGUF file may declare."""

import struct
from mmap import mmap

from localllm.errors import BadModelFile

MAX_NAME_BYTES = 63  # ggml keeps 64 with the closing zero
MAX_KEY_BYTES = 65535
# Far above any model known (merges of 500k, 50k tensors), low enough that a hostile file is refused within a second.
MAX_ENTRIES = 1 << 17
MAX_NUMBERS = 1 << 24
MAX_STRINGS = 1 << 22
MAX_STRING_BYTES = 1 << 26
MAX_ARRAY_DEPTH = 4

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def bad_field(file: str, field: str, problem: str) -> BadModelFile:
    """The error for a field that is wrong. `field` may hold a name out of the file: no terminal escapes, no 64 kB."""
    shown = field[:200] if field[:200].isprintable() else repr(field[:200])
    return BadModelFile(
        f"{file}: {shown} {problem}",
        hint="the file is damaged or not a model; pull it again, or compare its sha256 with the publisher's",
    )


class FrontTooShort(Exception):
    """What is declared is in the file, but not in the bytes of it that are at hand."""


class Cursor:
    """A position in untrusted bytes that cannot leave them. `data` may be the front of a file of `size` bytes."""

    __slots__ = ("data", "file", "pos", "size", "strings_left")

    def __init__(self, data: mmap, file: str, size: int | None = None) -> None:
        self.data = data
        self.file = file
        self.pos = 0
        self.size = len(data) if size is None else size
        self.strings_left = MAX_STRINGS

    def bad(self, field: str, problem: str) -> BadModelFile:
        return bad_field(self.file, field, problem)

    def take(self, size: int, field: str) -> int:
        """Step over `size` bytes and return where they begin. FrontTooShort where they are not at hand."""
        start = self.pos
        if size > self.size - start:
            raise self.bad(field, f"needs {size} bytes at {start}, but the file ends at {self.size}")
        if size > len(self.data) - start:
            raise FrontTooShort
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
