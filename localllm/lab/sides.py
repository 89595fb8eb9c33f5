"""One of the two models of a divergence: how it is loaded, what it says of each chunk, and how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.engine.step import NOTHING, Backend, Want
from localllm.errors import BadLogits
from localllm.lab.chunk_reader import ChunkReader, open_for_chunks
from localllm.lab.weight_errors import bytes_of, infos_of
from localllm.runtime.names import find_entry
from localllm.runtime.open_model import open_model
from localllm.runtime.presets import LoadWish, load_order
from localllm.settings import Settings

Floats = NDArray[np.float32]

DECODED_TOKENS = 32


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


class Opener:
    """How to load one of the models, and what is known of it afterwards."""

    def __init__(self, name: str, path: Path, settings: Settings, wish: LoadWish, context: int) -> None:
        self.name, self.path, self._context = name, path, context
        self._load = load_order(find_entry(name, settings), settings, wish)
        self.size_bytes = sum(map(bytes_of, infos_of(open_model(path, self._load.quantize).source)))
        self._told: Side | None = None

    def open(self) -> ReadModel:
        return ReadModel(self, open_for_chunks(self._load, self._context), self._context)

    def remember(self, side: Side) -> None:
        self._told = side

    def told_side(self, losses: Floats) -> Side:
        assert self._told is not None, "the base was measured"
        value, error = perplexity_of(losses)
        return replace(self._told, perplexity=value, error=error)


class ReadModel:
    """A loaded model that reads chunk after chunk, and how long that took."""

    def __init__(self, opener: Opener, backend: Backend, context: int) -> None:
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
        value, error = perplexity_of(losses)
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


def perplexity_of(losses: Floats) -> tuple[float, float]:
    """exp of the mean, and its standard error; of differences of losses: the ratio of perplexities."""
    exact = losses.astype(np.float64)
    value = math.exp(min(float(exact.mean()), 700.0))
    return value, value * float(exact.std()) / math.sqrt(max(len(exact) - 1, 1))
