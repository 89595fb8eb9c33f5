"""A daemon that tells where its memory is: for scripts/soak --trace. At SIGUSR1 it adds a line of JSON to the file that
LOCALLLM_TRACE names, and writes what grew since the first time beside it."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from localllm.server.app import library_of
from localllm.server.serving import main  # only now can it be found

NUM_SHOWN = 40
_NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


class Teller:
    """`frames` of each allocation are kept; 0: only the allocators are asked, which costs nothing."""

    def __init__(self, path: Path, frames: int) -> None:
        self._path = path
        self._first: tracemalloc.Snapshot | None = None
        if frames:
            tracemalloc.start(frames)
        signal.signal(signal.SIGUSR1, self._tell)

    def _tell(self, *_: Any) -> None:
        told = {"rss": psutil.Process().memory_info().rss, **_allocators(), "objects": len(gc.get_objects())}
        if tracemalloc.is_tracing():
            told["traced"] = tracemalloc.get_traced_memory()[0]
            self._compare()
        with self._path.open("a") as lines:
            lines.write(json.dumps(told) + "\n")

    def _compare(self) -> None:
        own = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
        found = tracemalloc.take_snapshot().filter_traces(own)
        if self._first is None:
            self._first = found
            return
        grown = found.compare_to(self._first, "traceback")[:NUM_SHOWN]
        shown = (
            f"{each.size_diff / 1024:+.1f} KiB, {each.count_diff:+d} of {each.count}\n"
            + "\n".join(each.traceback.format())
            for each in grown
        )
        self._path.with_suffix(".grown").write_text("\n\n".join(shown))


def _allocators() -> dict[str, int]:
    """`in_use` of what malloc has, `unused` in its heaps, `python` blocks of Python's own allocator."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _MallInfo
    found = ask()
    return {
        "in_use": found.uordblks + found.hblkhd,
        "unused": found.fordblks,
        "python_blocks": sys.getallocatedblocks(),
    }


if __name__ == "__main__":
    teller = Teller(Path(os.environ["LOCALLLM_TRACE"]), int(os.environ.get("LOCALLLM_TRACE_FRAMES", "0")))
    sys.exit(main(sys.argv[1:], library_of))
