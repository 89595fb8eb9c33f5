"""What bounds a sequence from outside: which tokens may come next. The engine asks, and knows neither text nor grammar.

A guide's state is a function of the tokens that its sequence accepted, so that a preemption or a failed draft costs it
nothing. Masks are bound late: the engine plans with one that is still being computed beside the step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from localllm.engine.step import Mask
from localllm.errors import LocalLLMError
from localllm.wire import Submit


class Guide(Protocol):
    """Of one sequence; used by the engine's thread only."""

    @property
    def is_finished(self) -> bool:
        """Nothing more may be said: the sequence ends here."""

    @property
    def may_end(self) -> bool:
        """The sequence may end here, though more could be said."""

    @property
    def is_forced(self) -> bool:
        """The next token is fixed: nothing else that bears on its choice counts."""

    def mask(self) -> Mask | None:
        """Which tokens may come next; None: any. Reading its bytes waits for it, and raises the sequence's error."""

    def accept(self, token_id: int) -> None:
        """The sequence said this token. LocalLLMError when it cannot go on."""


class Guides(Protocol):
    """Makes guides. The engine starts a sequence once its guide is there."""

    def open(self, submit: Submit) -> Future[Guide]:
        """A guide for a Submit with a constraint or a thinking budget. The future raises LocalLLMError for one that
        cannot be made; it is cancelled when nobody wants the guide any more."""

    def compute(self) -> None:
        """A step begins whose rows were given masks: now is the time to compute them beside it."""


class LateMask:
    """A mask of `num_bytes` bytes that is computed once: by whoever comes first, a thread beside the step or the reader
    of its bytes. Another waits. `compute` raises LocalLLMError for all of them."""

    def __init__(self, num_bytes: int, compute: Callable[[], bytes]) -> None:
        self._num_bytes = num_bytes
        self._compute: Callable[[], bytes] | None = compute
        self._lock = threading.Lock()
        self._bytes = b""
        self._error: LocalLLMError | None = None

    def run(self) -> None:
        """Compute it, unless that was done."""
        with self._lock:
            compute, self._compute = self._compute, None
            if compute is not None:
                try:
                    self._bytes = compute()
                except LocalLLMError as error:
                    self._error = error

    def __len__(self) -> int:
        return self._num_bytes

    def __bytes__(self) -> bytes:
        self.run()
        if self._error is not None:
            raise self._error
        return self._bytes


def is_guided(submit: Submit) -> bool:
    return submit.constraint is not None or submit.thinking is not None


class BothMasks:
    """What two masks of one length allow."""

    def __init__(self, one: Mask, other: Mask) -> None:
        self._one, self._other = one, other

    def __len__(self) -> int:
        return len(self._one)

    def __bytes__(self) -> bytes:
        one, other = bytes(self._one), bytes(self._other)
        return (int.from_bytes(one, "little") & int.from_bytes(other, "little")).to_bytes(len(one), "little")


def mask_of(ids: Iterable[int], vocab_size: int) -> bytes:
    """The mask that allows these tokens."""
    mask = bytearray(-(-vocab_size // 8))
    for token_id in ids:
        mask[token_id >> 3] |= 1 << (token_id & 7)
    return bytes(mask)
