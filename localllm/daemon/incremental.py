"""From token ids to the pieces a client sees: text, reasoning and tool calls, never half a character."""

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from localllm.errors import InvalidRequest

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


DONE = ""
"""In place of a stop string: the answer has all that it may have."""


class TextCutter(Protocol):
    """Adds what a token brought to a piece."""

    @property
    def is_reasoning(self) -> bool:
        """The next token is one of reasoning."""

    def push(self, token_id: int, piece: "Piece") -> str | None:
        """The stop string that this token completed, if it did; DONE for an end without one."""

    def finish(self, piece: "Piece") -> str | None:
        """Add what was held back; a stop string that only the end completed, if there is one."""


class PlainCutter:
    """All text is content."""

    is_reasoning = False

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
    """Text between a model's tags is reasoning or a call of a tool. `one_call`: the answer ends behind the first."""

    def __init__(self, stream: "TokenStream", parser: "MarkupParser", *, one_call: bool = False) -> None:
        self._stream = stream
        self._parser = parser
        self._max_calls = 1 if one_call else None
        self._num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        return self._parser.is_reasoning

    def push(self, token_id: int, piece: "Piece") -> str | None:
        delta = self._stream.push((token_id,))
        self._add(self._parser.push(delta.text), piece)
        if self._max_calls is not None and self._parser.num_calls >= self._max_calls:
            return DONE
        if delta.stop is not None:
            self._add(self._parser.finish(), piece)
        return delta.stop

    def finish(self, piece: "Piece") -> str | None:
        delta = self._stream.finish()
        self._add([*self._parser.push(delta.text), *self._parser.finish()], piece)
        return delta.stop

    def _add(self, marked: "list[MarkedPiece]", piece: "Piece") -> None:
        for part in marked:
            if part.name and self._num_calls == self._max_calls:
                return
            if part.kind == "tool_call":
                self._add_call(part, piece.tool_calls)
            elif part.kind == "reasoning":
                piece.reasoning += part.text
            else:
                piece.text += part.text

    def _add_call(self, part: "MarkedPiece", calls: list[ToolCall]) -> None:
        if part.name:
            calls.append(ToolCall(self._num_calls, f"call_{uuid.uuid4().hex[:24]}", part.name, part.text))
            self._num_calls += 1
            return
        index = self._num_calls - 1
        if calls and calls[-1].index == index:  # nobody has read it yet
            last = calls.pop()
            calls.append(ToolCall(index, last.id, last.name, last.arguments + part.text))
        else:
            calls.append(ToolCall(index, "", "", part.text))


def begin(text: "TextSide", ask: "Ask") -> "tuple[TextCutter, Piece]":
    """A cutter that has read what was given of the answer, and the text that this is. InvalidRequest where the answer
    ended in there. Takes long where much was given."""
    from localllm.daemon.replies import Piece  # deferred: it imports this module

    cutter, said = open_cutter(text, ask), Piece(0)
    for token_id in ask.prompt[len(ask.prompt) - ask.num_given :]:
        stop = cutter.push(token_id, said)
        if stop is not None:
            what = f"hold the stop string {stop!r}" if stop else "hold all that the answer may have"
            raise InvalidRequest(f"continue_token_ids {what}", hint="send fewer of them", param="continue_token_ids")
    return cutter, said


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
    if ask.markup is None:
        return PlainCutter(stream)
    return MarkupCutter(stream, MarkupParser(ask.markup), one_call=ask.markup.one_call)
