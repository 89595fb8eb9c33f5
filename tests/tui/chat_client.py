"""A daemon that answers chats from a script: slowly, with an error, or only in part."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from localllm.client import ChatChunk, Timings
from localllm.client.looking import Preview, PromptParts
from localllm.errors import LocalLLMError
from tests.tui.fakes import FakeClient

TIMINGS = Timings(cache_n=2048, prompt_n=263, predicted_n=412, predicted_per_second=62.4, prompt_ms=184.0)


@dataclass
class Script:
    """One answer: its pieces (a piece of reasoning begins with `?`), and how it ends. `gate` holds back everything from
    piece `holds_at` on until the test opens it."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " there."])
    error: LocalLLMError | None = None
    holds_at: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    finish: str = "stop"
    timings: Timings | None = TIMINGS


class FakeLooking:
    """Previews by counting words."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answer: Preview | LocalLLMError | None = None

    def preview(self, body: dict[str, Any]) -> Preview:
        self.bodies.append(body)
        if isinstance(self.answer, LocalLLMError):
            raise self.answer
        if self.answer is not None:
            return self.answer
        told = sum(len(str(message["content"]).split()) for message in body["messages"])
        draft = len(body.get("draft", "").split())
        return Preview(
            model=body["model"],
            state="ready",
            parts=PromptParts(0, told, draft, 0),
            prompt_tokens=told + draft,
            cached_tokens=told,
            compute_tokens=draft,
            compute_s=0.7,
            context_length=32768,
            max_tokens=1024,
        )


class ChatClient(FakeClient):
    """`scripts` are taken in turn; without one an answer is `Hello there.`"""

    def __init__(self, *scripts: Script, is_up: bool = True) -> None:
        super().__init__(is_up=is_up)
        self.scripts = list(scripts)
        self.seen = list(scripts)
        """All scripts, to open their gates at the end."""
        self.bodies: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.looking = FakeLooking()
        self.names = ["qwen3-4b", "smollm2:135m"]

    def model_names(self) -> list[str]:
        self._check()
        return self.names

    def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def chat(self, body: dict[str, Any]) -> Iterator[ChatChunk]:
        self._check()
        self.bodies.append(body)
        script = self.scripts.pop(0) if self.scripts else Script()
        for place, piece in enumerate(script.pieces):
            if script.holds_at is not None and place >= script.holds_at:
                script.gate.wait(20)
            yield ChatChunk(reasoning=piece[1:]) if piece.startswith("?") else ChatChunk(content=piece)
        if script.holds_at == len(script.pieces):
            script.gate.wait(20)
        if script.error is not None:
            raise script.error
        yield ChatChunk(finish_reason=script.finish, timings=script.timings)
