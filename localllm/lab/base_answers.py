"""What the base of a divergence says of a text: as it is asked, or read from a file that was written before."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from localllm.lab.sides import Floats, Opener, ReadModel, Side

MEMORY_SHARE = 0.7

Progress = Callable[[int, int, float], None]
"""Called after each chunk with chunks done, chunks in all and the mean divergence so far (of the base's turn: nan)."""


class KeptAnswers:
    """A base's log-probabilities of a text, float16 in a file in `folder`: computed for the first model that is
    measured against it, read for the others. `file` is the caller's to close."""

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self.folder, self.file = folder, file
        self.chunks: Sequence[Sequence[int]] = ()
        self.shape = (0, 0)
        self.side: Side | None = None

    def has_room(self, chunks: Sequence[Sequence[int]], vocab_size: int) -> bool:
        """Or has them already. As much again is left to others."""
        needed_bytes = 2 * vocab_size * sum(len(chunk) - len(chunk) // 2 for chunk in chunks)
        return chunks == self.chunks or shutil.disk_usage(self.folder).free > 2 * needed_bytes


@contextmanager
def base_answers(
    base: Opener, other: Opener, chunks: Sequence[Sequence[int]], progress: Progress, kept: KeptAnswers | None
) -> Iterator[Iterator[Floats]]:
    """The base's log-probabilities, chunk by chunk: as they are asked for, or from a file that was written before."""
    if kept is None and _fit_together(base, other):
        model = base.open()
        with closing(model):
            yield _live(model, chunks)
            base.remember(model.side(np.zeros(1, np.float32), chunks[0]))
        return
    with nullcontext(kept) if kept is not None else _kept_for_one() as answers:
        if answers.side is None or answers.chunks != chunks:
            answers.side = _record(base, chunks, answers, progress)
        base.remember(answers.side)
        answers.file.seek(0)
        yield _recorded(answers)


@contextmanager
def _kept_for_one() -> Iterator[KeptAnswers]:
    with tempfile.TemporaryFile() as file:
        yield KeptAnswers(Path(tempfile.gettempdir()), file)


def _live(model: ReadModel, chunks: Sequence[Sequence[int]]) -> Iterator[Floats]:
    return (model.log_probabilities(chunk) for chunk in chunks)


def _fit_together(base: Opener, other: Opener) -> bool:
    import psutil  # deferred: as in runtime/load

    return base.size_bytes + other.size_bytes <= MEMORY_SHARE * psutil.virtual_memory().available


def _record(base: Opener, chunks: Sequence[Sequence[int]], kept: KeptAnswers, progress: Progress) -> Side:
    kept.file.seek(0)
    model = base.open()
    with closing(model):
        for done, chunk in enumerate(chunks):
            answers = model.log_probabilities(chunk)
            # what is likely is near 0, where float16 is finest; nothing is lost that weighs
            kept.file.write(np.maximum(answers, np.float32(-60000)).astype(np.float16).data)
            rows, columns = answers.shape
            progress(done + 1, len(chunks), math.nan)
        kept.chunks, kept.shape = chunks, (rows, columns)
        return model.side(np.zeros(1, np.float32), chunks[0])


def _recorded(kept: KeptAnswers) -> Iterator[Floats]:
    size = 2 * kept.shape[0] * kept.shape[1]
    for _ in kept.chunks:
        yield np.frombuffer(kept.file.read(size), np.float16).astype(np.float32).reshape(kept.shape)
