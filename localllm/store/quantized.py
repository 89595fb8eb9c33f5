"""Models that are quantized here: one file of our own for each way to round a model, whatever it is called in the end.

The file lies under a key of all that went into it, so whoever was killed goes on where he stopped, and two names of the
same make share it. Nothing is listed before it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localllm.quantize.journal import partial_path
from localllm.quantize.receipt import Receipt
from localllm.store.blobs import FreeBytes, check_space, model_lock, sha256_of, stamp_of
from localllm.store.details import describe
from localllm.store.entry import Entry, ModelFile, PullEvent

if TYPE_CHECKING:
    from localllm.store.plan import Say

PREFIX = "quantized-"
KEPT_S = 7 * 86400.0
"""So long what a killed process left waits for somebody to go on."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Quantizing:
    """A way to quantize. `label` names the type, as in Q4_K_M; `identity` changes with whatever changes the bytes.

    `write` makes a GGUF file of a model's path: whole or not at all, going on where it was killed. `size_of` says how
    many bytes that will take.
    """

    label: str
    identity: str
    write: Callable[[Path, Path, str, str, Progress], Receipt]
    """Source, target, the source's name and digest, progress."""
    size_of: Callable[[Path], int]


def quantized(source: Entry, way: Quantizing, store_dir: Path, free: FreeBytes, say: Say) -> Entry:
    """The source's entry with the weights of a new file, which is ours. DiskFull before anything is written."""
    files_dir = store_dir / "files"
    _forget_old(files_dir)
    key = hashlib.sha256(f"{source.digest}\n{source.path}\n{way.identity}".encode()).hexdigest()
    folder = files_dir / f"{PREFIX}{key[:40]}"
    target = folder / f"{_stem(source)}-{way.label}.gguf"
    with model_lock(store_dir / "locks", f"+{PREFIX}{key[:40]}", lambda: say(_waiting(target))):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if not target.is_file():
                check_space(folder, way.size_of(Path(source.path)), free)
                way.write(Path(source.path), target, source.name, source.digest, _teller(say, source, way, target))
        finally:
            with contextlib.suppress(
                OSError
            ):  # where there is something in it, it is the result or waits for a next try
                folder.rmdir()
        say(PullEvent(kind="status", message="verifying sha256 digest"))
        record = ModelFile(
            path=str(target),
            size_bytes=target.stat().st_size,
            sha256=sha256_of(target),
            stamp=stamp_of(target),
            is_ours=True,
        )
    return describe(
        msgspec.structs.replace(
            source,
            path=str(target),
            files=(record,),
            source="path",
            quantization="",
            size_bytes=record.size_bytes,
            modified=time.time(),
            origin={},
            parent=source.name,
            receipt=None,
        )
    )


def _stem(source: Entry) -> str:
    """A harmless file name; whoever quantizes two models of one name has two folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source.name).name).strip("-.")[:80] or "model"


def _waiting(target: Path) -> PullEvent:
    return PullEvent(kind="status", message=f"another process writes {target.name}; waiting for it")


def _teller(say: Say, source: Entry, way: Quantizing, target: Path) -> Progress:
    message = f"quantizing {source.quantization or 'F16'} model to {way.label}"

    resumed = 0

    def tell(name: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal resumed
        if not total_bytes:
            resumed = resumed or done_bytes
            say(PullEvent(kind="status", message=name, resumed_bytes=done_bytes))
            return
        say(
            PullEvent(
                kind="progress",
                message=message,
                completed_bytes=done_bytes,
                total_bytes=total_bytes,
                resumed_bytes=min(resumed, done_bytes),
                file=way.label,
                partial=str(partial_path(target)),
            )
        )

    return tell


def _forget_old(files_dir: Path) -> None:
    """What was begun, and nobody went on with for days. A whole file that no model took is no different."""
    for folder in _begun(files_dir):
        with contextlib.suppress(OSError):
            if max(map(_changed, [folder, *folder.iterdir()])) < time.time() - KEPT_S:
                shutil.rmtree(folder)


def _begun(files_dir: Path) -> Iterator[Path]:
    """Folders in which there is no finished file."""
    with contextlib.suppress(OSError):
        for folder in files_dir.glob(f"{PREFIX}*"):
            if not any(path.suffix == ".gguf" and not path.name.startswith(".") for path in folder.iterdir()):
                yield folder


def _changed(path: Path) -> float:
    return os.stat(path).st_mtime
