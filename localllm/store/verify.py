"""Whether files still hold what they should. Reads every byte; says which file is wrong and how."""

from __future__ import annotations

import os

import msgspec

from localllm.errors import BadModelFile, LocalLLMError
from localllm.store.blobs import sha256_of, stamp_of
from localllm.store.entry import Entry, ModelFile, PullEvent, VerifyResult
from localllm.store.plan import Say


def has_changed(file: ModelFile) -> bool:
    """Whether a file is not what was verified: cheap while size, time and inode are the same, else by its sha256."""
    try:
        if os.stat(file.path).st_size != file.size_bytes:
            return True
        return bool(file.sha256) and file.stamp != stamp_of(file.path) and sha256_of(file.path) != file.sha256
    except OSError:
        return True


def verify_entry(entry: Entry, say: Say) -> tuple[Entry, list[VerifyResult]]:
    """The results, and the entry with its stamps renewed: a damaged file loses its stamp, so that `pull` repairs it."""
    files: list[ModelFile] = []
    results: list[VerifyResult] = []
    for file in entry.files:
        checked, message, is_good = _verify_file(file, say)
        files.append(checked)
        results.append(
            VerifyResult(name=entry.name, path=file.path, is_good=is_good, message=message, size_bytes=file.size_bytes)
        )
    if all(result.is_good for result in results) and (problem := _problem_inside(entry)):
        results.append(VerifyResult(name=entry.name, path=entry.path, is_good=False, message=problem))
    return msgspec.structs.replace(entry, files=tuple(files)), results


def _verify_file(file: ModelFile, say: Say) -> tuple[ModelFile, str, bool]:
    damaged = msgspec.structs.replace(file, stamp="")
    try:
        size = os.stat(file.path).st_size
        if size != file.size_bytes:
            return damaged, f"has {size} bytes, not {file.size_bytes}", False
        if not file.sha256:
            return file, "no checksum is known for it", True
        stamp, found = stamp_of(file.path), _hashed(file, say)
    except FileNotFoundError:
        return damaged, "is missing", False
    except (OSError, BadModelFile) as error:
        return damaged, f"cannot be read: {error}", False
    if found != file.sha256:
        return damaged, f"has the sha256 {found[:12]}…, not {file.sha256[:12]}…", False
    return msgspec.structs.replace(file, stamp=stamp), "", True


def _hashed(file: ModelFile, say: Say) -> str:
    name, done = os.path.basename(file.path), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        say(PullEvent(kind="progress", message=name, file=name, completed_bytes=done, total_bytes=file.size_bytes))

    return sha256_of(file.path, count)


def _problem_inside(entry: Entry) -> str:
    """What is wrong with a model whose files have the right bytes, or that has no checksums."""
    from localllm.store.details import describe  # deferred: it brings numpy

    try:
        describe(entry)
    except LocalLLMError as error:
        return error.message
    return ""
