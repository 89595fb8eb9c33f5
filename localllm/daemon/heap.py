"""The memory of a process that runs for weeks: when Python looks for garbage, what glibc keeps of what was freed."""

import ctypes
import gc
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGE_BYTES = 2**18


def hold_together() -> None:
    """One heap for all threads, and large pieces outside of it; call it before there are threads. Otherwise each thread
    that ever read a vocabulary keeps a heap of its own, full of holes: 100 MB of them for 30 MB in use."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        # once said they stay, where glibc would raise both to the largest piece that was ever freed
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def settle() -> None:
    """Look for garbage in all there is, once, and from then on only in what is newer. Modules and vocabularies are a
    million objects that live long: each time Python looked through them, the whole daemon stood still for 0.1 s."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back_memory() -> None:
    """Return to the system what vocabularies leave behind: glibc keeps tens of megabytes of freed small pieces."""
    settle()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
