"""How MLX says that it got no memory, as our error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from localllm.errors import NotEnoughMemory

SIGNS = ("alloc", "memory")  # MLX raises RuntimeError for everything; these words are in those of its allocators


@contextmanager
def shortage(message: str, hint: str) -> Iterator[None]:
    """NotEnoughMemory with this message where the block ran out of memory; other errors pass."""
    try:
        yield
    except MemoryError:
        raise NotEnoughMemory(message, hint=hint) from None
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise NotEnoughMemory(f"{message}: {error}", hint=hint) from None
