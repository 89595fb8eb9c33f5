"""Perplexity by llama.cpp's method: chunks of the context length, the second half of each scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from localllm.engine.step import Backend
from localllm.errors import UsageError
from localllm.lab.chunk_reader import ChunkReader, open_for_chunks
from localllm.runtime.load import load_text
from localllm.runtime.names import find_entry
from localllm.runtime.presets import NO_WISH, LoadWish, load_order
from localllm.settings import Settings


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`tokens` are the scored ones; `error` is the standard error of the perplexity (llama.cpp's +/-)."""

    perplexity: float
    error: float
    tokens: int
    chunks: int
    context: int
    negative_log_likelihood: float
    backend: str


Progress = Callable[[int, int, float], None]
"""Called after each chunk with chunks done, chunks in all and the perplexity so far."""


def perplexity(
    model: str,
    text: str,
    *,
    context: int = 512,
    settings: Settings,
    wish: LoadWish = NO_WISH,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a model (name, file or folder) on a text. UsageError when the text is shorter than two contexts."""
    entry = find_entry(model, settings)
    tokenizer = load_text(Path(entry.path)).tokenizer
    chunks = chunked(
        tokenizer.encode(text, parse_special=False), context, tokenizer.bos_id if tokenizer.add_bos else None
    )
    backend = open_for_chunks(load_order(entry, settings, wish), context)
    with closing(backend):
        return _score_chunks(backend, chunks, context, progress)


def chunked(ids: Sequence[int], context: int, bos_id: int | None) -> list[list[int]]:
    """Whole chunks of `context` ids; the first id of each is replaced by BOS where the model wants one."""
    if context < 4:
        raise UsageError("the context must have at least 4 tokens", hint="use --context 512")
    if len(ids) < 2 * context:
        raise UsageError(
            f"the text has {len(ids)} tokens; {2 * context} are needed for a context of {context}",
            hint="use a longer text or a smaller --context",
        )
    chunks = [list(ids[start : start + context]) for start in range(0, len(ids) - context + 1, context)]
    return chunks if bos_id is None else [[bos_id, *chunk[1:]] for chunk in chunks]


def _score_chunks(backend: Backend, chunks: list[list[int]], context: int, progress: Progress | None) -> Perplexity:
    reader = ChunkReader(backend, context)
    total = total_squared = 0.0
    count = 0
    for index, chunk in enumerate(chunks):
        for loss in reader.losses(chunk):
            total, total_squared, count = total + loss, total_squared + loss * loss, count + 1
        if progress:
            progress(index + 1, len(chunks), math.exp(total / count))
    return _result(total, total_squared, count, len(chunks), context, backend.info.name)


def _result(total: float, total_squared: float, count: int, num_chunks: int, context: int, backend: str) -> Perplexity:
    mean = total / count
    variance = max(total_squared / count - mean * mean, 0.0)
    value = math.exp(mean)
    error = value * math.sqrt(variance / max(count - 1, 1))
    return Perplexity(value, error, count, num_chunks, context, mean, backend)
