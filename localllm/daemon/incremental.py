"""From token ids to the pieces a client sees: text, reasoning and tool calls, never half a character."""

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from localllm.daemon.replies import Ask, Piece
    from localllm.runtime.load import TextSide
    from localllm.tokens.markup import MarkupParser
    from localllm.tokens.markup import Piece as MarkedPiece
    from localllm.tokens.stream import TokenStream


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants, or a part of one: the `index`-th of its answer. The first part has `id` and `name`,
    later ones have neither; the `arguments` of all parts together are JSON."""

    index: int
    id: str
    name: str
    arguments: str


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


class MarkupCutter:
    """Text between a model's tags is reasoning or a call of a tool."""

    def __init__(self, stream: "TokenStream", parser: "MarkupParser") -> None:
        self._stream = stream
        self._parser = parser
        self._num_calls = 0

    def push(self, token_id: int, piece: "Piece") -> str | None:
        delta = self._stream.push((token_id,))
        self._add(self._parser.push(delta.text), piece)
        if delta.stop is not None:
            self._add(self._parser.finish(), piece)
        return delta.stop

    def finish(self, piece: "Piece") -> str | None:
        delta = self._stream.finish()
        self._add([*self._parser.push(delta.text), *self._parser.finish()], piece)
        return delta.stop

    def _add(self, marked: "list[MarkedPiece]", piece: "Piece") -> None:
        for part in marked:
            if part.kind == "tool_call":
                piece.tool_calls.append(
                    ToolCall(self._num_calls, f"call_{uuid.uuid4().hex[:24]}", part.name, part.text)
                )
                self._num_calls += 1
            elif part.kind == "reasoning":
                piece.reasoning += part.text
            else:
                piece.text += part.text


def open_cutter(text: "TextSide", ask: "Ask") -> TextCutter:
    """For a new sequence of this model."""
    # deferred: they bring `tokenizers`, which a loaded model has brought
    from localllm.tokens.markup import MarkupParser
    from localllm.tokens.stream import TokenStream

    stream = TokenStream(
        text.tokenizer,
        stop=ask.stop,
        include_stop=ask.include_stop,
        skip_special=ask.skip_special,
        keep_special=ask.keep_special,
        continuation=not ask.is_chat,
    )
    return PlainCutter(stream) if ask.markup is None else MarkupCutter(stream, MarkupParser(ask.markup))
