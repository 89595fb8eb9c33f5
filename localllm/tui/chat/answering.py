"""An answer on its way: a thread reads the stream, whoever shows it takes what is new as often as it likes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.history import AnswerStats

if TYPE_CHECKING:
    from localllm.client import ChatChunk, Client
    from localllm.tui.inspector.inspected import InspectedToken


@dataclass(frozen=True, slots=True)
class News:
    """What came since the last look."""

    text: str = ""
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning)


class Answering:
    """Starts to read at once; `make_body` runs in the thread that reads. After `stop` nothing changes any more,
    whatever the daemon still says.

    `tokens` begins with those that were there before (`given`), when an answer goes on.
    """

    def __init__(
        self,
        client: Client,
        make_body: Callable[[], dict[str, Any]],
        *,
        model: str = "",
        given: list[InspectedToken] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = f"chat-{uuid.uuid4().hex[:12]}"
        self.model = model
        self.tokens: list[InspectedToken] = list(given or [])
        self.error: LocalLLMError | None = None
        self.is_done = False
        self.counted: tuple[int, int] | None = None
        """Tokens of the prompt and how many of them were cached, as the live feed told: for answers that are stopped,
        after which the daemon gives no account."""
        self._given = len(self.tokens)
        self.num_prompt = 0
        """Tokens before the answer; 0 until the daemon has said it."""
        self._client, self._clock = client, clock
        self._began = clock()
        self._first_at: float | None = None
        self._last_at = self._began
        self._thought_until: float | None = None
        self._num_pieces = self._num_thought = 0
        self._text, self._reasoning = "", ""
        self._last: ChatChunk | None = None
        self._reason = ""
        self._timings: Any = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, args=(make_body,), daemon=True)
        self._thread.start()

    # ---- for who shows it

    def take(self) -> News:
        """What came since the last call."""
        with self._lock:
            news = News(self._text, self._reasoning)
            self._text = self._reasoning = ""
            return news

    def stop(self) -> None:
        """Ends it now. The daemon is told from another thread: it may take its time to listen."""
        with self._lock:
            if self.is_done:
                return
            self.is_done, self._reason = True, "cancelled"
        threading.Thread(target=self._cancel, daemon=True).start()

    @property
    def num_tokens(self) -> int:
        """Written so far. Where the daemon does not say which tokens a piece holds, a piece counts as one."""
        return max(len(self.tokens) - self._given, self._num_pieces)

    @property
    def first_token_s(self) -> float | None:
        return None if self._first_at is None else self._first_at - self._began

    @property
    def tokens_per_s(self) -> float | None:
        """Since the first token; None until there are two."""
        if self._first_at is None or self.num_tokens < 2 or self._last_at <= self._first_at:
            return None
        return (self.num_tokens - 1) / (self._last_at - self._first_at)

    def stats(self) -> AnswerStats:
        """What is known; after the end by the daemon's own measure."""
        timings = self._timings
        thought_s = (self._thought_until or self._last_at) - (self._first_at or self._last_at)
        found: dict[str, Any] = {
            "tokens": self.num_tokens + self._given,
            "tokens_per_s": round(self.tokens_per_s or 0.0, 2),
            "first_token_s": round(self.first_token_s or 0.0, 4),
            "thought_tokens": self._num_thought,
            "thought_s": round(thought_s, 2) if self._num_thought else 0.0,
            "stop_reason": self._reason if self.is_done and self.error is None else "interrupted",
            "request_id": self.request_id,
        }
        if timings is not None:
            found["tokens"] = max(found["tokens"], timings.predicted_n)
            found["tokens_per_s"] = round(timings.predicted_per_second or found["tokens_per_s"], 2)
            prompt = timings.cache_n + timings.prompt_n - self._given
            found["prompt_tokens"], found["cached_tokens"] = prompt, min(prompt, timings.cache_n)
        elif self.counted is not None:
            prompt, cached = self.counted[0] - self._given, self.counted[1]
            found["prompt_tokens"], found["cached_tokens"] = prompt, min(prompt, cached)
        return AnswerStats(**found)

    # ---- the thread

    def _read(self, make_body: Callable[[], dict[str, Any]]) -> None:
        error: LocalLLMError | None = None
        chunks: Iterator[ChatChunk] = iter(())
        try:
            chunks = self._client.chat(make_body() | {"request_id": self.request_id})
            for chunk in chunks:
                if not self._note(chunk):
                    break
        except LocalLLMError as failure:
            error = failure
        except (OSError, ValueError) as failure:  # a connection that ended in a way nobody knew
            error = DaemonUnreachable(f"the connection to the daemon broke off ({failure})")
        finally:
            with suppress(AttributeError, LocalLLMError, OSError):
                chunks.close()  # type: ignore[attr-defined]  # a generator: closing it closes the connection
        with self._lock:
            if not self.is_done:
                self.error, self.is_done = error, True

    def _note(self, chunk: ChatChunk) -> bool:
        """False when nobody wants more."""
        with self._lock:
            if self.is_done:
                return False
            tokens = getattr(chunk, "tokens", None) or ()
            if chunk.prompt_ids:
                self.num_prompt = len(chunk.prompt_ids) - self._given  # those are the answer's own
            self.tokens.extend(tokens)
            if chunk.content or chunk.reasoning or tokens:
                self._time(chunk, max(1, len(tokens)))
            self._text += chunk.content
            self._reasoning += chunk.reasoning
            self._reason = chunk.finish_reason or self._reason
            self._timings = chunk.timings or self._timings
            return True

    def _time(self, chunk: ChatChunk, count: int) -> None:
        now = self._clock()
        self._first_at = now if self._first_at is None else self._first_at
        self._last_at = now
        self._num_pieces += count
        if chunk.reasoning and not chunk.content:
            self._num_thought += count
        elif chunk.content and self._thought_until is None:
            self._thought_until = now

    def _cancel(self) -> None:
        with suppress(LocalLLMError):  # it is gone, or was over before
            self._client.cancel(self.request_id)
