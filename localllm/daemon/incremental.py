"""From token ids to the pieces a client sees: text, reasoning and tool calls, never half a character."""

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from localllm.daemon.replies import Ask, Piece
    from localllm.daemon.text import TextSide


class TextCutter(Protocol):
    """Adds what a token brought to a piece."""

    def push(self, token_id: int, piece: "Piece") -> str | None:
        """The stop string that this token completed, if it did."""

    def finish(self, piece: "Piece") -> None:
        """Add what was held back."""


class _PlainCutter:
    """Bytes of tokens to text, with stop strings."""

    def __init__(self, text: "TextSide", ask: "Ask") -> None:
        self._tokenizer = text.tokenizer
        self._stops = ask.stop
        self._include_stop = ask.include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_id: int, piece: "Piece") -> str | None:
        self._held += self._decoder.decode(self._tokenizer.token_bytes(token_id))
        hits = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if hits:
            place, stop = min(hits)
            piece.text += self._held[: place + len(stop) * self._include_stop]
            self._held = ""
            return stop
        keep = max(
            (size for stop in self._stops for size in range(len(stop)) if self._held.endswith(stop[:size])), default=0
        )
        end = len(self._held) - keep
        piece.text += self._held[:end]
        self._held = self._held[end:]
        return None

    def finish(self, piece: "Piece") -> None:
        piece.text += self._held + self._decoder.decode(b"", final=True)


def open_cutter(text: "TextSide", ask: "Ask") -> TextCutter:
    return _PlainCutter(text, ask)
