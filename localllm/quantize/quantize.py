"""A model to blocks, tensor by tensor: one file, whole or not at all, and resumed where a killed run left off.

Beside the file, `.NAME.partial` has its tensors so far and `.NAME.journal` the digests of those that are finished.
Both are gone when the file is there.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, DiskFull, StoreError, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, row_bytes
from localllm.formats.gguf_metadata import Value
from localllm.formats.gguf_write import Layout, Place, disk_errors, gguf_layout
from localllm.quantize.convert import Progress, tell_nobody
from localllm.quantize.journal import Journal, JournalEntry, partial_path
from localllm.quantize.plans import Plan, PlannedTensor
from localllm.quantize.plans import plan as planned
from localllm.quantize.recipes import Recipe, recipe_of
from localllm.quantize.recode import check_finite, recode
from localllm.quantize.weights import Bytes, Typed, Weight, Weights

Importance = Callable[[str], NDArray[np.float32] | None]
"""The importance of a tensor's columns by its name, as `encode` takes it; None where nothing is known."""
Rounding = Callable[[PlannedTensor, Bytes], Bytes | None]
"""Another way to round: a line of the plan and the tensor's source bytes to its blocks; None for the usual way."""


Finishing = Callable[[Path], None]


def leave_as_it_is(path: Path) -> None:
    """For callers that have nothing to do with what is written."""


def plan(
    source: Weights,
    recipe: Recipe | str,
    *,
    pure: bool = False,
    keep: Iterable[tuple[str, BlockType]] = (),
    has_importance: bool = False,
) -> Plan:
    """What each tensor becomes, with sizes; nothing is read. See `plans.plan` for arguments and errors."""
    chosen = recipe_of(recipe) if isinstance(recipe, str) else recipe
    metadata = {key: source.value(key) for key in source.metadata if not key.startswith("tokenizer.")}
    return planned(source.facts(), metadata, chosen, pure=pure, keep=keep, has_importance=has_importance)


def quantize(
    source: Weights,
    path: Path,
    plan: Plan,
    weights_of: Importance | None = None,
    *,
    rounding: Rounding | None = None,
    method: str = "rtn",
    extra: Mapping[str, Value | Typed] | None = None,
    allow_requantize: bool = False,
    replaces: bool = False,
    threads: int = 0,
    progress: Progress = tell_nobody,
    finishing: Finishing = leave_as_it_is,
) -> None:
    """Write `path` as the plan says; a run that was killed goes on with the tensors it had not finished.

    `method` names what `rounding` does: a run resumes only what the same method began. `extra`: metadata beside the
    source's. threads: 0 for all cores. `progress` gets a tensor's name, and the bytes written and in all; first, where
    a run goes on, a sentence, the bytes that are there, and 0. `finishing` gets the path under which all is written,
    before the file has its name.
    Raises UsageError when `path` exists (without `replaces`) or is a file of the source (with it, too), or when tensors
    in blocks would be rounded again (without `allow_requantize`); BadModelFile and UnsupportedModel with tensor and row
    for values that cannot be encoded; DiskFull, after which the same call goes on; StoreError.
    """
    _check_requantized(plan, allow_requantize)
    _check_place(path, replaces)
    check_not_source(path, source.paths)
    metadata = {**source.metadata, **_of_quantization(plan.recipe), **(extra or {})}
    layout = gguf_layout(metadata, [(line.name, line.shape, line.target_type) for line in plan.tensors])
    job = _job_key(source, layout, method)
    work = _Work(weights_of, rounding, threads or os.cpu_count() or 1)
    with disk_errors(path), Journal.open(path, job, layout.size_bytes) as journal:
        _check_room(path, layout.size_bytes - journal.kept_bytes)
        if journal.num_kept:
            progress(f"going on from tensor {journal.num_kept + 1} of {len(plan.tensors)}", journal.kept_bytes, 0)
        try:
            _write_tensors(source, plan, layout, journal, work, progress)
            journal.flush()
            finishing(partial_path(path))
        except (BadModelFile, UnsupportedModel):
            journal.discard()  # another try would end at the same tensor
            raise
        journal.finish()


def _check_requantized(plan: Plan, allowed: bool) -> None:
    again = plan.requantized()
    if again and not allowed:
        first = again[0]
        raise UsageError(
            f"{len(again)} tensors are {first.source_type.name} blocks already, and would be rounded a second time, "
            f"{first.name} among them: the errors of both roundings add up",
            hint="start from the float model, or allow it with --allow-requantize",
        )


def _check_place(path: Path, replaces: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name the file to write")
    if path.exists() and not replaces:
        raise UsageError(f"{path} is there already", hint="name another file, or allow it with --force")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist", hint="make it, or name another file")


def check_not_source(path: Path, sources: Iterable[Path]) -> None:
    """UsageError where `path` is one of these files, also by a link of either kind."""
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(
                f"{path} is {source}, a file of the model itself, and nothing replaces what it is made from",
                hint="name another file to write",
            )


def _check_room(path: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        raise DiskFull(
            f"{path.name} needs {needed_bytes / 1e9:.2f} GB more, but {free_bytes / 1e9:.2f} GB are free",
            hint="free some space, choose a smaller type, or write to another disk",
        )


def _of_quantization(recipe: Recipe) -> dict[str, Value | Typed]:
    return {"general.file_type": recipe.file_type, "general.quantization_version": 2}


def _job_key(source: Weights, layout: Layout, method: str) -> str:
    """What must be the same for bytes of an earlier run to be those of this one."""
    digest = hashlib.sha256(layout.header)
    digest.update(f"{source.identity}\0{method}".encode())
    return digest.hexdigest()


class _Work:
    """How one tensor is encoded."""

    def __init__(self, weights_of: Importance | None, rounding: Rounding | None, threads: int) -> None:
        self._weights_of = weights_of
        self._rounding = rounding
        self._threads = threads

    def importance(self, line: PlannedTensor) -> NDArray[np.float32] | None:
        needs_it = self._weights_of is not None and line.source_type != line.target_type
        return self._weights_of(line.name) if needs_it and self._weights_of is not None else None

    def blocks(self, weight: Weight, line: PlannedTensor, importance: NDArray[np.float32] | None) -> Bytes:
        raw = weight.raw()
        expected = row_bytes(line.source_type, line.shape[-1] if line.shape else 1) * math.prod(line.shape[:-1])
        if raw.size != expected:
            raise BadModelFile(f"it has {raw.size} bytes, but its shape needs {expected}")
        if line.source_type == line.target_type:
            check_finite(line.source_type, raw, line.shape)
            return raw
        found = self._rounding(line, raw) if self._rounding is not None else None
        if found is not None:
            return found.reshape(-1)
        return recode(
            line.source_type, line.target_type, raw, line.shape, weights=importance, threads=self._threads
        ).reshape(-1)


def _write_tensors(
    source: Weights, plan: Plan, layout: Layout, journal: Journal, work: _Work, progress: Progress
) -> None:
    journal.write_at(0, layout.header)
    done, total = 0, sum(place.size_bytes for place in layout.places)
    for weight, line, place in zip(source.tensors, plan.tensors, layout.places, strict=True):
        progress(line.name, done, total)
        _write_tensor(weight, line, place, journal, work)
        done += place.size_bytes
    if plan.tensors:
        progress(plan.tensors[-1].name, done, total)


def _write_tensor(weight: Weight, line: PlannedTensor, place: Place, journal: Journal, work: _Work) -> None:
    importance = work.importance(line)
    of_what = "" if importance is None else hashlib.sha256(np.ascontiguousarray(importance).data).hexdigest()
    if journal.has(place.name, of_what):
        return
    try:
        blocks = np.ascontiguousarray(work.blocks(weight, line, importance))
    except (BadModelFile, UnsupportedModel) as error:
        raise type(error)(f"tensor {line.name}: {error.message}", hint=error.hint) from error
    if blocks.dtype != np.uint8 or blocks.size != place.size_bytes:
        raise BadModelFile(f"tensor {line.name} has {blocks.nbytes} bytes, but its shape needs {place.size_bytes}")
    journal.write_at(place.offset, blocks.data)
    digest = hashlib.sha256(blocks.data).hexdigest()
    weight.release()
    journal.add(JournalEntry(place.name, place.offset, place.size_bytes, digest, of_what))
