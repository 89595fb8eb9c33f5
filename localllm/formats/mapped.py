"""Files mapped for reading: regular files only, and pages can be handed back to the system."""

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from localllm.errors import BadModelFile, ModelNotFound


def map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file read-only; raises ModelNotFound or BadModelFile, never blocks on a pipe."""
    descriptor = _open_regular(path)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise BadModelFile(f"{path} is empty", hint="pull the model again") from None
    except OSError as error:
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
