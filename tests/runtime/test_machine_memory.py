"""A container's memory is not its machine's."""

import resource
from pathlib import Path

import psutil
import pytest

from localllm.runtime.machine_memory import available_memory_bytes, total_memory_bytes

GB = 2**30


def group(root: Path, cgroup: str, **files: str) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def _a_machine_of_64_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        available, total = 60 * GB, 64 * GB

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine)
    limit_address_space(monkeypatch, resource.RLIM_INFINITY)


def limit_address_space(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, soft))


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    assert (available_memory_bytes(tmp_path), total_memory_bytes(tmp_path)) == (60 * GB, 64 * GB)
    group(tmp_path, "0::/", **{"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"})
    assert (available_memory_bytes(tmp_path), total_memory_bytes(tmp_path)) == (60 * GB, 64 * GB)


def test_a_container_has_what_its_group_has_left_with_the_files_it_could_give_back(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/"
    stat = f"anon 7\ninactive_file {GB}\nactive_file 9"
    files = {at + "memory.max": str(4 * GB), at + "memory.current": str(2 * GB), at + "memory.stat": stat}
    group(tmp_path, "0::/", **files)
    assert (available_memory_bytes(tmp_path), total_memory_bytes(tmp_path)) == (3 * GB, 4 * GB)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/user.slice/"
    outer = {at + "memory.max": str(2 * GB), at + "memory.current": str(GB)}
    inner = {at + "app.scope/memory.max": str(8 * GB), at + "app.scope/memory.current": "0"}
    group(tmp_path, "0::/user.slice/app.scope", **outer, **inner)
    assert (available_memory_bytes(tmp_path), total_memory_bytes(tmp_path)) == (GB, 2 * GB)


def test_groups_of_the_first_version_count_too_also_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory/"
    files = {at + "memory.limit_in_bytes": str(4 * GB), at + "memory.usage_in_bytes": str(GB)}
    group(tmp_path, "5:cpu:/x\n4:memory:/docker/0123", **files)
    assert (available_memory_bytes(tmp_path), total_memory_bytes(tmp_path)) == (3 * GB, 4 * GB)
    (tmp_path / at / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert total_memory_bytes(tmp_path) == 64 * GB


def test_a_limit_of_the_address_space_counts_what_is_taken_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_address_space(monkeypatch, 40 * GB)
    assert total_memory_bytes(tmp_path) == 40 * GB and 0 < available_memory_bytes(tmp_path) < 40 * GB
    limit_address_space(monkeypatch, 1)
    assert available_memory_bytes(tmp_path) == 0


@pytest.mark.parametrize("nonsense", ["", ":", "0::/../../..", "a:b:c:d", "4:memory:/\0"])
def test_what_makes_no_sense_is_no_limit(tmp_path: Path, nonsense: str) -> None:
    group(tmp_path, nonsense)
    assert available_memory_bytes(tmp_path) == 60 * GB
