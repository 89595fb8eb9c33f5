"""Files mapped for reading: regular files only, and pages can be handed back to the system. Their fronts are copied."""

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from localllm.errors import BadModelFile, ModelNotFound, NotEnoughMemory


def map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file read-only; raises ModelNotFound or BadModelFile, never blocks on a pipe."""
    descriptor = _open_regular(path)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise BadModelFile(f"{path} is empty", hint="pull the model again") from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise NotEnoughMemory(
                f"{path} cannot be mapped into memory", hint="raise the limit of this process (`ulimit -v`)"
            ) from None
        raise BadModelFile(f"{path} cannot be mapped into memory: {error.strerror}") from None
    finally:
        os.close(descriptor)


def read_prefix(path: Path, size: int) -> bytes:
    """The first `size` bytes of a regular file (fewer if it is shorter); errors as `map_file`."""
    descriptor = _open_regular(path)
    try:
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def copy_front(path: Path, size: int) -> mmap.mmap:
    """The first `size` bytes of a regular file in memory of our own; errors as `map_file`.

    A page of a mapped file that its owner cuts off, or that a disk cannot give, ends the process that looks at it: who
    must outlive that reads a copy.
    """
    copy = mmap.mmap(-1, size)
    descriptor = _open_regular(path)
    try:
        filled = 0
        while filled < size:
            count = os.preadv(descriptor, [memoryview(copy)[filled:]], filled)
            if not count:
                raise BadModelFile(f"{path} became shorter while it was read", hint="pull the model again")
            filled += count
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return copy


def file_size(path: Path) -> int:
    """Size in bytes of a regular file; errors as `map_file`."""
    descriptor = _open_regular(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _open_regular(path: Path) -> int:
    try:
        # without O_NONBLOCK, opening a named pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise BadModelFile(f"{path} cannot be opened: {reason}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadModelFile(f"{path} is not a regular file")
    return descriptor


def release_pages(mapping: mmap.mmap, start: int, size: int) -> None:
    """Give the pages under these bytes back to the system; reading them again still works."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        mapping.madvise(mmap.MADV_DONTNEED, first, start + size - first)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a system without this advice keeps the pages, which is only slower
            raise


def close_mappings(mappings: Sequence[mmap.mmap]) -> None:
    """Close what no array looks at any more; the rest is unmapped with its last array."""
    for mapping in mappings:
        with suppress(BufferError):
            mapping.close()


@contextmanager
def closing_on_error() -> Iterator[list[mmap.mmap]]:
    """A list to collect mappings in; they are closed if the block fails."""
    mappings: list[mmap.mmap] = []
    try:
        yield mappings
    except BaseException:
        close_mappings(mappings)
        raise


class Placed(Protocol):
    """A tensor's place: in which file, from which byte, how many."""

    @property
    def part(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Placed)


class MappedTensors(Generic[T]):
    """The mapped files of one model and the tensors in them. Close it, or use it in `with`."""

    def __init__(
        self,
        paths: tuple[Path, ...],
        mappings: tuple[mmap.mmap, ...],
        tensors: Mapping[str, T],
        fronts: tuple[mmap.mmap, ...] = (),
    ) -> None:
        self.paths = paths
        self.tensors = tensors
        self.size_bytes = sum(len(mapping) for mapping in mappings)
        self._mappings = mappings
        self._fronts = fronts
        self._closed = False

    def release(self, name: str | None = None) -> None:
        """Let the system drop the pages of one tensor, or of all files, from our memory; views stay valid."""
        if name is None:
            for mapping in self._mappings:
                release_pages(mapping, 0, len(mapping))
        else:
            tensor = self.tensors[name]
            release_pages(self._mapping(tensor), tensor.offset, tensor.size_bytes)

    def close(self) -> None:
        """Stop using the files. While arrays live, their mapping lives with the last of them."""
        self._closed = True
        close_mappings((*self._mappings, *self._fronts))

    def _mapping(self, tensor: T) -> mmap.mmap:
        if self._closed:
            raise ValueError(f"{self.paths[tensor.part]} is closed")
        return self._mappings[tensor.part]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
