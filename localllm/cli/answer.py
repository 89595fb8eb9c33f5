"""A streamed answer on its way to stdout: sanitized, thinking told apart, words wrapped, statistics on stderr."""

import shlex
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from localllm.cli.failures import print_warning
from localllm.cli.human import display_width, stopwatch_text
from localllm.safe_text import StreamSanitizer

if TYPE_CHECKING:
    from localllm.cli.conversation import Conversation
    from localllm.client import ChatChunk, Client, Timings

_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Look:
    """How answers are shown. `wrap_columns` 0: the terminal breaks lines where it likes."""

    is_terminal: bool = False
    has_color: bool = False
    hides_thinking: bool = False
    wrap_columns: int = 0


@dataclass(slots=True)
class Answer:
    """What was said so far; complete when `finish_reason` is set."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    timings: "Timings | None" = None


class Words:
    """Breaks lines between words. Characters show at once; a word that crosses the edge is moved to the next."""

    def __init__(self, columns: int) -> None:
        self._columns, self._column, self._word = columns, 0, ""

    def wrap(self, text: str) -> str:
        return "".join(map(self._place, text)) if self._columns else text

    def _place(self, character: str) -> str:
        if character == "\n":
            self._column, self._word = 0, ""
            return character
        width = 4 if character == "\t" else display_width(character)
        self._column += width
        if self._column > self._columns:
            return self._break_before(character, width)
        self._word = "" if character.isspace() or _stands_alone(character) else self._word + character
        return character

    def _break_before(self, character: str, width: int) -> str:
        if character.isspace():
            self._column, self._word = 0, ""
            return "\n"
        word, taken = self._word, display_width(self._word)
        if taken + width >= self._columns:  # longer than a line: cut it
            self._column, self._word = width, character
            return "\n" + character
        self._column, self._word = taken + width, word + character
        back = f"\x1b[{taken}D\x1b[K" if taken else ""
        return f"{back}\n{word}{character}"


def _stands_alone(character: str) -> bool:
    """Chinese and Japanese lines may break between any two characters."""
    return unicodedata.east_asian_width(character) in "WF"


class AnswerWriter:
    """Writes chunks to `stream` and flushes each, so that a token is seen when it is there."""

    def __init__(self, stream: TextIO, look: Look) -> None:
        self._stream, self._look = stream, look
        self._sanitizer, self._words = StreamSanitizer(), Words(look.wrap_columns)
        self._is_thinking, self._ends_line = False, True

    def write(self, chunk: "ChatChunk") -> None:
        if chunk.reasoning and self._look.is_terminal and not self._look.hides_thinking:
            self._begin_thinking()
            self._put(chunk.reasoning)
        if chunk.content:
            self._end_thinking()
            self._put(chunk.content)

    def finish(self) -> None:
        """Ends the last line; on a terminal an empty line follows."""
        self._emit(self._words.wrap(self._sanitizer.finish()))
        self._end_thinking()
        self._emit(("" if self._ends_line else "\n") + ("\n" if self._look.is_terminal else ""))

    def _begin_thinking(self) -> None:
        if not self._is_thinking:
            self._is_thinking = True
            self._emit((_GREY if self._look.has_color else "") + "Thinking...\n")

    def _end_thinking(self) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._emit(("" if self._ends_line else "\n") + "...done thinking.\n")
            self._emit((_PLAIN if self._look.has_color else "") + "\n")

    def _put(self, text: str) -> None:
        self._emit(self._words.wrap(self._sanitizer.feed(text)))

    def _emit(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._ends_line = text.endswith("\n")


def stream_answer(client: "Client", body: dict[str, Any], look: Look, answer: Answer) -> None:
    """Asks and prints. `answer` fills while it streams, so that an interrupted one is not lost."""
    writer = AnswerWriter(sys.stdout, look)
    try:
        with closing(_generator(client.chat(body))) as chunks:
            for chunk in chunks:
                answer.text += chunk.content
                answer.reasoning += chunk.reasoning
                answer.finish_reason = chunk.finish_reason or answer.finish_reason
                answer.timings = chunk.timings or answer.timings
                writer.write(chunk)
    finally:
        writer.finish()


def _generator(chunks: "Iterator[ChatChunk]") -> Any:
    return chunks  # a generator: closing it closes the connection


def warn_if_cut(answer: Answer, conversation: "Conversation") -> None:
    """An answer that met a limit which nobody set for this conversation must not look whole."""
    if answer.finish_reason == "length" and "max_tokens" not in conversation.body():
        print_warning(
            "the answer is cut off: the context is full, or a limit of tokens is reached",
            f"num_ctx and num_predict of `localllm show {shlex.quote(conversation.model)}`, "
            "context_length and max_tokens of `localllm config list` set them",
        )


def stats_text(timings: "Timings") -> str:
    """The block of `--verbose`, labels padded to 22 columns."""
    rows = [
        ("total duration", stopwatch_text(timings.total_ms / 1000)),
        ("load duration", stopwatch_text(timings.load_ms / 1000)),
        ("prompt eval count", f"{timings.prompt_n + timings.cache_n} token(s)"),
        *([("prompt cached count", f"{timings.cache_n} token(s)")] if timings.cache_n else []),
        ("prompt eval duration", stopwatch_text(timings.prompt_ms / 1000)),
        ("prompt eval rate", f"{timings.prompt_per_second:.2f} tokens/s"),
        ("eval count", f"{timings.predicted_n} token(s)"),
        ("eval duration", stopwatch_text(timings.predicted_ms / 1000)),
        ("eval rate", f"{timings.predicted_per_second:.2f} tokens/s"),
    ]
    return "".join(f"{label + ':':<22}{value}\n" for label, value in rows)
