"""An answer as parts in a row, as the dialects of Responses and Messages show it: reasoning, text, calls of tools.

Each part is opened, added to and closed before the next begins.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from localllm import wire
from localllm.daemon.incremental import ToolCall
from localllm.daemon.replies import Piece

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Part:
    """The `rank`-th part. `written` is what came so far: text, or the arguments of the call `id` of the tool `name`."""

    kind: Kind
    rank: int
    id: str = ""
    name: str = ""
    call_index: int = -1
    written: list[str] = field(default_factory=list)
    logprobs: list[wire.TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.written)


class PartWriter(Protocol):
    """Events of parts."""

    def opened(self, part: Part) -> bytes: ...

    def added(self, part: Part, text: str, logprobs: list[wire.TokenLogprobs]) -> bytes: ...

    def closed(self, part: Part, *, is_cut: bool) -> bytes: ...


class Row:
    """Sorts the pieces of one sequence into parts. White space before a call is no part of an answer; an answer without
    anything else has one empty text."""

    def __init__(self, writer: PartWriter) -> None:
        self.parts: list[Part] = []
        self._writer = writer
        self._open: Part | None = None
        self._blank = ""
        self._logprobs: list[wire.TokenLogprobs] = []

    def feed(self, piece: Piece) -> bytes:
        written = self._reasoning(piece.reasoning) if piece.reasoning else b""
        self._logprobs += piece.logprobs
        if piece.text:
            written += self._text(piece.text)
        elif piece.reasoning:
            self._logprobs = []  # they are those of the reasoning
        for call in piece.tool_calls:
            written += self._call(call)
        return written

    def end(self, *, is_cut: bool = False) -> bytes:
        """Nothing more comes. `is_cut`: there would have been more."""
        written = b""
        if not self.parts or (self._blank and self.parts[-1].kind != "call"):
            written = self._switch(Part("text", len(self.parts)))
            written += self._add(self._blank) if self._blank else b""
        return written + self._close(is_cut=is_cut)

    @property
    def has_calls(self) -> bool:
        return any(part.kind == "call" for part in self.parts)

    def _reasoning(self, text: str) -> bytes:
        written = b""
        if self._open is None or self._open.kind != "reasoning":
            written = self._switch(Part("reasoning", len(self.parts)))
        return written + self._add(text)

    def _text(self, text: str) -> bytes:
        if self._open is not None and self._open.kind == "text":
            return self._add(text)
        self._blank += text
        if self._blank.isspace():
            return b""
        held, self._blank = self._blank, ""
        return self._switch(Part("text", len(self.parts))) + self._add(held)

    def _call(self, call: ToolCall) -> bytes:
        written = b""
        if self._open is None or self._open.call_index != call.index:
            self._blank = ""
            part = Part("call", len(self.parts), call.id, call.name, call.index)
            written = self._switch(part)
        return written + self._add(call.arguments) if call.arguments else written

    def _switch(self, part: Part) -> bytes:
        written = self._close(is_cut=False)
        self._open = part
        self.parts.append(part)
        return written + self._writer.opened(part)

    def _add(self, text: str) -> bytes:
        assert self._open is not None
        logprobs: list[wire.TokenLogprobs] = []
        if self._open.kind == "text":
            logprobs, self._logprobs = self._logprobs, []
            self._open.logprobs += logprobs
        self._open.written.append(text)
        return self._writer.added(self._open, text, logprobs)

    def _close(self, *, is_cut: bool) -> bytes:
        part, self._open = self._open, None
        return b"" if part is None else self._writer.closed(part, is_cut=is_cut)
