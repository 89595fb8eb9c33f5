"""What a confined child process lays upon itself: the kernel ends it when it takes more."""

import resource
import signal
import sys

MAX_MEMORY_BYTES = 1 << 30


def limit_cpu(seconds: float) -> None:
    """End this process after so much CPU time; 0 takes the limit away."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(work: str) -> None:
    """At most `MAX_MEMORY_BYTES` of address space. `work`: what is done without a limit where there can be none."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MAX_MEMORY_BYTES)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
    except (ValueError, OSError):  # macOS refuses; the limit on time still holds
        print(f"{work} without a memory limit on this system", file=sys.stderr)
