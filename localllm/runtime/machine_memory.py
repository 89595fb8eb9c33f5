"""How much memory there is for us: the machine's, or less where a container or a limit of this process says so."""

import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 2**60
"""What the first version of control groups says where there is none is above this."""
# limit, use, and the line of memory.stat with file pages that can be had back
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory_bytes(root: Path = ROOT) -> int:
    """What could be taken now. `root` is where /proc and /sys lie."""
    import psutil  # deferred: 20 ms that a daemon without a model need not pay

    left = [limit - used for limit, used in _groups(root)]
    return max(
        0, min([int(psutil.virtual_memory().available), *left, *_address_space(psutil.Process().memory_info().vms)])
    )


def total_memory_bytes(root: Path = ROOT) -> int:
    """What there is, taken or not."""
    import psutil  # deferred, as above

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _groups(root)), *_address_space(0)])


def _address_space(taken: int) -> Iterator[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft - taken


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each control group that this process is in and that has a limit. None but Linux has them."""
    for folder, (limit_name, used_name, file_line) in _folders(root):
        limit = _number(folder / limit_name)
        if limit is not None and limit < _NO_LIMIT:
            yield limit, (_number(folder / used_name) or 0) - _line(folder / "memory.stat", file_line)


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """From the process's own groups up to the outermost that can be seen, which in a container is its own."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = base / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            yield folder, _V1 if controllers else _V2


def _number(path: Path) -> int | None:
    """None where there is no such file, or where it says `max`."""
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _line(path: Path, name: str) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if pair[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0
