"""How far a model's next-token distributions are from another's of the same tokenizer: Kullback-Leibler divergence.

Chunks and scored positions are those of `perplexity`: the second half of each chunk. Both models are loaded side by
side where there is memory for both; else, or for several models, the base goes first, and its log-probabilities wait
in a temporary file as float16. One chunk's logits are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UsageError
from localllm.lab.base_answers import KeptAnswers, Progress, base_answers
from localllm.lab.chunk_reader import scored
from localllm.lab.perplexity import chunked
from localllm.lab.sides import Floats, Opener, Side, perplexity_of
from localllm.lab.weight_errors import WeightErrors, weight_errors
from localllm.runtime.load import load_text
from localllm.runtime.names import find_entry
from localllm.runtime.presets import NO_WISH, LoadWish
from localllm.settings import Settings


def tell_nobody(done: int, total: int, mean: float) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """In nats, over `tokens` positions; `kl_error` is the standard error of the mean. `same_top`: the share of
    positions at which both find the same token likeliest. `ratio` of the perplexities: above 1 is worse."""

    model: Side
    base: Side
    tokens: int
    chunks: int
    context: int
    kl_mean: float
    kl_error: float
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: float
    ratio: float
    ratio_error: float
    weights: WeightErrors


def divergence(
    model: str,
    base: str,
    text: str,
    *,
    context: int = 512,
    settings: Settings,
    wish: LoadWish = NO_WISH,
    max_chunks: int = 0,
    progress: Progress = tell_nobody,
    kept: KeptAnswers | None = None,
) -> Divergence:
    """Of two models (names, files or folders) on a text. UsageError where their tokens are not the same, or the text is
    shorter than two contexts. `max_chunks` 0: all. `kept`: where the base's answers are kept for other models."""
    paths = [Path(find_entry(name, settings).path) for name in (model, base)]
    chunks, vocab_size = _chunks(paths, text, context)
    chunks = chunks[: max_chunks or None]
    if kept is not None and not kept.has_room(chunks, vocab_size):
        kept = None
    openers = [Opener(name, path, settings, wish, context) for name, path in zip((model, base), paths, strict=True)]
    scores = Scores()
    with base_answers(openers[1], openers[0], chunks, progress, kept) as answers:
        own = openers[0].open()
        with closing(own):
            for done, (chunk, expected) in enumerate(zip(chunks, answers, strict=True)):
                scores.add(expected, own.log_probabilities(chunk), np.array(scored(chunk)))
                progress(done + 1, len(chunks), scores.mean)
            side = own.side(scores.own_losses, chunks[0])
    base_side = openers[1].told_side(scores.base_losses)
    return scores.result(side, base_side, context, len(chunks), weight_errors(*paths))


def _chunks(paths: Sequence[Path], text: str, context: int) -> tuple[list[list[int]], int]:
    """And the size of the vocabulary."""
    own, base = (load_text(path).tokenizer for path in paths)
    if own.vocab_size != base.vocab_size or any(own.piece(i) != base.piece(i) for i in range(own.vocab_size)):
        raise UsageError(
            "the two models have different tokenizers, so their probabilities are not of the same tokens",
            hint="compare a model with the one that it was made from",
        )
    bos = own.bos_id if own.add_bos else None
    ids = own.encode(text, parse_special=False)
    if ids != base.encode(text, parse_special=False):
        raise UsageError("the two models split this text into different tokens", hint="give both the same tokenizer")
    return chunked(ids, context, bos), own.vocab_size


class Scores:
    """What is kept of each scored position: four numbers."""

    def __init__(self) -> None:
        self._kl: list[Floats] = []
        self._own: list[Floats] = []
        self._base: list[Floats] = []
        self._same: list[NDArray[np.bool_]] = []

    def add(self, base: Floats, own: Floats, targets: NDArray[np.int64]) -> None:
        """Log-probabilities (positions, vocab); the last position has no target in the chunk and is left out."""
        base, own = base[: len(targets)], own[: len(targets)]
        divergences = np.einsum("tv,tv->t", np.exp(base), base - own, dtype=np.float64)
        self._kl.append(np.maximum(divergences, 0).astype(np.float32))
        at = np.arange(len(targets))
        self._own.append(-own[at, targets])
        self._base.append(-base[at, targets])
        self._same.append(own.argmax(axis=1) == base.argmax(axis=1))

    @property
    def mean(self) -> float:
        return float(np.concatenate(self._kl).mean(dtype=np.float64))

    @property
    def own_losses(self) -> Floats:
        return np.concatenate(self._own)

    @property
    def base_losses(self) -> Floats:
        return np.concatenate(self._base)

    def result(self, own: Side, base: Side, context: int, chunks: int, weights: WeightErrors) -> Divergence:
        kl = np.concatenate(self._kl).astype(np.float64)
        ratio, ratio_error = perplexity_of(self.own_losses - self.base_losses)
        return Divergence(
            model=own,
            base=base,
            tokens=len(kl),
            chunks=chunks,
            context=context,
            kl_mean=float(kl.mean()),
            kl_error=float(kl.std() / math.sqrt(max(len(kl) - 1, 1))),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            same_top=float(np.concatenate(self._same).mean()),
            ratio=ratio,
            ratio_error=ratio_error,
            weights=weights,
        )
