"""From token ids to the pieces a client sees: text, reasoning and tool calls, never half a character."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from localllm.daemon.replies import Ask, Piece
    from localllm.runtime.load import TextSide
    from localllm.tokens.stream import TokenStream


class TextCutter(Protocol):
    """Adds what a token brought to a piece."""

    def push(self, token_id: int, piece: "Piece") -> str | None:
        """The stop string that this token completed, if it did."""

    def finish(self, piece: "Piece") -> str | None:
        """Add what was held back; a stop string that only the end completed, if there is one."""


class PlainCutter:
    """All text is content."""

    def __init__(self, stream: "TokenStream") -> None:
        self._stream = stream

    def push(self, token_id: int, piece: "Piece") -> str | None:
        delta = self._stream.push((token_id,))
        piece.text += delta.text
        return delta.stop

    def finish(self, piece: "Piece") -> str | None:
        delta = self._stream.finish()
        piece.text += delta.text
        return delta.stop


def open_cutter(text: "TextSide", ask: "Ask") -> TextCutter:
    """For a new sequence of this model."""
    from localllm.tokens.stream import TokenStream  # deferred: it brings `tokenizers`, which a loaded model has brought

    stream = TokenStream(
        text.tokenizer,
        stop=ask.stop,
        include_stop=ask.include_stop,
        skip_special=ask.skip_special,
        continuation=not ask.is_chat,
    )
    return PlainCutter(stream)
