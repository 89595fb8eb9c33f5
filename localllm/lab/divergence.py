"""How far a model's next-token distributions are from another's of the same tokenizer: Kullback-Leibler divergence.

Chunks and scored positions are those of `perplexity`: the second half of each chunk. Both models are loaded side by
side where there is memory for both; else, or for several models, the base goes first, and its log-probabilities wait
in a temporary file as float16. One chunk's logits are held at a time.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from localllm.engine.limits import no_writer
from localllm.engine.step import NOTHING, Backend, Want
from localllm.errors import BadLogits, UsageError
from localllm.lab.chunk_reader import ChunkReader, scored
from localllm.lab.perplexity import chunked
from localllm.lab.weight_errors import WeightErrors, bytes_of, infos_of, weight_errors
from localllm.runtime.load import backend_options, load_backend, load_text
from localllm.runtime.names import find_entry
from localllm.runtime.open_model import open_model
from localllm.runtime.presets import NO_WISH, LoadWish, load_order
from localllm.settings import Settings

Floats = NDArray[np.float32]

DECODED_TOKENS = 32
MEMORY_SHARE = 0.7

Progress = Callable[[int, int, float], None]
"""Called after each chunk with chunks done, chunks in all and the mean divergence so far (of the base's turn: nan)."""


def tell_nobody(done: int, total: int, mean: float) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second: of the text that was measured on, and one after another behind half a chunk of it."""

    prompt: float
    decode: float


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models. `perplexity` is of the scored tokens, `error` its standard error."""

    model: str
    size_bytes: int
    perplexity: float
    error: float
    speeds: Speeds
    backend: str


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
    openers = [_Opener(name, path, settings, wish, context) for name, path in zip((model, base), paths, strict=True)]
    scores = _Scores()
    with _base_answers(openers[1], openers[0], chunks, progress, kept) as answers:
        own = openers[0].open()
        with closing(own):
            for done, (chunk, expected) in enumerate(zip(chunks, answers, strict=True)):
                scores.add(expected, own.log_probabilities(chunk), np.array(scored(chunk)))
                progress(done + 1, len(chunks), scores.mean)
            side = own.side(scores.own_losses, chunks[0])
    base_side = openers[1].told_side(scores.base_losses)
    return scores.result(side, base_side, context, len(chunks), weight_errors(*paths))


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


class _Opener:
    """How to load one of the models, and what is known of it afterwards."""

    def __init__(self, name: str, path: Path, settings: Settings, wish: LoadWish, context: int) -> None:
        self.name, self.path, self._context = name, path, context
        load = load_order(find_entry(name, settings), settings, wish)
        self._name, self._quantize = load.backend, load.quantize
        self._options = replace(
            backend_options(load), max_tokens_per_step=max(context, load.token_budget), context_length=context
        )
        self.size_bytes = sum(map(bytes_of, infos_of(open_model(path, load.quantize).source)))
        self._told: Side | None = None

    def open(self) -> _Model:
        loaded = load_backend(self.path, self._name, self._options, quantize=self._quantize)
        if loaded.config.is_encoder:
            loaded.backend.close()
            raise no_writer()
        return _Model(self, loaded.backend, self._context)

    def remember(self, side: Side) -> None:
        self._told = side

    def told_side(self, losses: Floats) -> Side:
        assert self._told is not None, "the base was measured"
        value, error = _perplexity(losses)
        return replace(self._told, perplexity=value, error=error)


class _Model:
    """A loaded model that reads chunk after chunk, and how long that took."""

    def __init__(self, opener: _Opener, backend: Backend, context: int) -> None:
        self._opener, self._backend = opener, backend
        self._reader = ChunkReader(backend, context)
        self._read_tokens = 0
        self._read_s = 0.0

    def close(self) -> None:
        self._backend.close()

    def log_probabilities(self, chunk: Sequence[int]) -> Floats:
        """(scored tokens, vocab)."""
        started = time.perf_counter()
        logits = self._reader.read(chunk, Want(logits="all")).logits
        self._read_s += time.perf_counter() - started
        self._read_tokens += len(chunk) - 1
        assert logits is not None
        if not np.isfinite(logits).all():
            raise BadLogits(f"{self._opener.name} gives logits that are no numbers")
        return _log_softmax(logits)

    def side(self, losses: Floats, chunk: Sequence[int]) -> Side:
        value, error = _perplexity(losses)
        prompt = self._read_tokens / max(self._read_s, 1e-9)
        speeds = Speeds(prompt, self._decode_speed(chunk))
        opener = self._opener
        return Side(opener.name, opener.size_bytes, value, error, speeds, self._backend.info.name)

    def _decode_speed(self, chunk: Sequence[int]) -> float:
        half = len(chunk) // 2
        self._reader.step(chunk[:half], 0, NOTHING)
        started = time.perf_counter()
        tokens = chunk[half : half + DECODED_TOKENS]
        for i, token in enumerate(tokens):
            self._reader.step([token], half + i, Want(targets=(token,)))
        return len(tokens) / max(time.perf_counter() - started, 1e-9)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)), np.float32)


@contextmanager
def _base_answers(
    base: _Opener, other: _Opener, chunks: Sequence[Sequence[int]], progress: Progress, kept: KeptAnswers | None
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


def _live(model: _Model, chunks: Sequence[Sequence[int]]) -> Iterator[Floats]:
    return (model.log_probabilities(chunk) for chunk in chunks)


def _fit_together(base: _Opener, other: _Opener) -> bool:
    import psutil  # deferred: as in runtime/load

    return base.size_bytes + other.size_bytes <= MEMORY_SHARE * psutil.virtual_memory().available


def _record(base: _Opener, chunks: Sequence[Sequence[int]], kept: KeptAnswers, progress: Progress) -> Side:
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


class _Scores:
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
        ratio, ratio_error = _perplexity(self.own_losses - self.base_losses)
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


def _perplexity(losses: Floats) -> tuple[float, float]:
    """exp of the mean, and its standard error; of differences of losses: the ratio of perplexities."""
    exact = losses.astype(np.float64)
    value = math.exp(min(float(exact.mean()), 700.0))
    return value, value * float(exact.std()) / math.sqrt(max(len(exact) - 1, 1))
