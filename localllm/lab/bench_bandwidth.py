"""How fast this machine reads memory with so many threads: the C library's search for a byte that is not there.

It is the roof over decoding: a step can be no faster than its weights come in.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MAX_BYTES = 512 * 2**20
"""Several times what last-level caches hold."""
SHARE_OF_FREE = 4
NUM_PASSES = 10
BUDGET_S = 1.0


def memory_bandwidth(threads: int, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second, of the fastest of several passes: what else the machine does only takes away. 0.0 where no memory
    is free to measure with."""
    import psutil  # deferred: costs 20 ms

    size = min(MAX_BYTES, psutil.virtual_memory().available // SHARE_OF_FREE) // (4096 * threads) * 4096
    if not size:
        return 0.0
    with ThreadPoolExecutor(threads) as team:
        parts = list(team.map(lambda _: b"\1" * size, range(threads)))
        spent: list[float] = []
        while len(spent) < NUM_PASSES and sum(spent) < BUDGET_S:
            started = clock()
            found = list(team.map(read_through, parts))
            spent.append(clock() - started)
            assert not any(found), "no part holds a zero"
    return size * threads / min(spent)


def read_through(part: bytes) -> bool:
    """Whether there is a zero in it; reads every byte up to there, without the GIL."""
    search = ctypes.CDLL(None).memchr
    search.restype, search.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
    return search(part, 0, len(part)) is not None
