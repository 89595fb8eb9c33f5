"""The layout of the Hugging Face cache on this machine, read without importing huggingface_hub (half a second)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def hf_cache_dir(env: Mapping[str, str]) -> Path:
    """Where the cache is: HF_HUB_CACHE, else `hub` in HF_HOME, else below the user's cache folder."""
    if named := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    caches = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(env.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"


def repo_dir(cache: Path, repo: str) -> Path:
    return cache / ("models--" + repo.replace("/", "--"))


def repo_name(folder: Path) -> str:
    """`models--org--name` to `org/name`; "" for other folders."""
    kind, _, rest = folder.name.partition("--")
    return rest.replace("--", "/", 1) if kind == "models" and "--" in rest else ""


def snapshot_of(folder: Path) -> Path | None:
    """The snapshot that `refs/main` names, or else the newest one."""
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    snapshots = folder / "snapshots"
    if commit.isalnum() and (snapshots / commit).is_dir():
        return snapshots / commit
    try:
        return max(
            (path for path in snapshots.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime, default=None
        )
    except OSError:
        return None


def snapshot_files(folder: Path) -> tuple[Path, list[str]] | None:
    """The snapshot and the relative names of its files that are whole; None when the repository is not cached."""
    root = snapshot_of(folder)
    if root is None:
        return None
    # is_file follows the link: a blob that is gone, or still incomplete, does not count
    return root, sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
