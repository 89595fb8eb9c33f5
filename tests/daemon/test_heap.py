"""The memory of a daemon stays where it is, whichever threads asked for it."""

import platform
import subprocess
import sys

import pytest

THREADS = """
import sys, threading
from localllm.daemon.heap import hold_together
if sys.argv[1] == "together":
    hold_together()
kept = []
threads = [threading.Thread(target=lambda: kept.append([bytes(2000) for _ in range(500)])) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
heaps = 0
for line in open("/proc/self/maps"):
    place, rights, _, _, file, *_ = line.split()
    start, _, end = place.partition("-")
    # what glibc sets aside for a heap of a thread's own, as far as it is not used yet
    heaps += rights == "---p" and file == "0" and 0 < 2**26 - (int(end, 16) - int(start, 16)) < 2**24
print(heaps)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep memory in other ways")
@pytest.mark.parametrize(("how", "has_more"), [("apart", True), ("together", False)])
def test_threads_share_one_heap(how: str, has_more: bool) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, how], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 0) == has_more
