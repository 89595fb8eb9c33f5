"""gpt-oss: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`."""

import re

from localllm.tokens.markup.calls import json_arguments
from localllm.tokens.markup.early import ArgumentsText
from localllm.tokens.markup.overlap import overlap
from localllm.tokens.markup.pieces import Piece, call_piece
from localllm.tokens.markup.spec import HARMONY_TAGS

_TAG = re.compile("|".join(re.escape(tag) for tag in HARMONY_TAGS))
_BEGUN = re.compile(r"\s*\{\s*[\"}]")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


class HarmonyParser:
    """`opening` is what the prompt has already said of the message that the model goes on with.

    Text that no tag came before is content: that model speaks no harmony. A header that ends before its message holds
    nothing that was said, and goes.
    """

    def __init__(self, opening: str = "") -> None:
        self._buffer = ""
        self._header: str | None = ""  # None while a message's body streams
        self._is_addressed = False  # the header is one: a tag has begun it
        self._channel = ""
        self._call_name = ""
        self._arguments = ""
        self._shown: ArgumentsText | None = None  # arguments that are shown as they come
        self.num_calls = 0
        self.push(opening)
        if self._header is not None and not self._is_addressed:
            self._header = ""  # the role

    @property
    def is_reasoning(self) -> bool:
        return self._header is None and self._channel == "analysis" and not self._call_name

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while (match := _TAG.search(self._buffer)) is not None:
            pieces += self._take(self._buffer[: match.start()])
            self._buffer = self._buffer[match.end() :]
            pieces += self._turn(match[0])
        end = len(self._buffer) - overlap(self._buffer, HARMONY_TAGS)
        pieces += self._take(self._buffer[:end])
        self._buffer = self._buffer[end:]
        return pieces

    def finish(self) -> list[Piece]:
        pieces = self._take(self._buffer)
        self._buffer = ""
        return [*pieces, *self._close()]

    def _take(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            return []
        if self._call_name:
            return self._take_arguments(text)
        return [Piece("reasoning" if self._channel == "analysis" else "content", text)]

    def _take_arguments(self, text: str) -> list[Piece]:
        """Shown from where they are JSON without doubt."""
        if self._shown is None:
            self._arguments += text
            if not _BEGUN.match(self._arguments):
                return []
            self._shown = ArgumentsText()
            return self._more(self._call_name, self._arguments)
        return self._more("", text)

    def _more(self, name: str, text: str) -> list[Piece]:
        assert self._shown is not None
        was_complete = self._shown.is_complete
        shown, used = ("", 0) if was_complete else self._shown.take(text)
        self.num_calls += self._shown.is_complete and not was_complete
        rest = text[used:].strip()  # said behind the arguments
        parts = [Piece("tool_call", shown, name)] if shown else []
        return parts + ([Piece("content", rest)] if rest else [])

    def _turn(self, tag: str) -> list[Piece]:
        is_header = tag in ("<|message|>", "<|channel|>", "<|constrain|>")
        pieces = [] if is_header and self._header is not None else self._close()
        if tag == "<|message|>":
            self._read_header()
        elif is_header:
            self._header = (self._header or "") + "\n"
        self._is_addressed = tag in ("<|start|>", "<|channel|>", "<|constrain|>")
        return pieces

    def _read_header(self) -> None:
        """`assistant to=functions.f` LF `commentary` LF `json`, where LF stands for a tag."""
        header = self._header or ""
        recipient = _RECIPIENT.search(header)
        self._call_name = recipient[1] if recipient else ""
        self._channel = next((name for name in ("analysis", "commentary", "final") if name in header), "final")
        self._header, self._arguments = None, ""

    def _close(self) -> list[Piece]:
        name, arguments, header = self._call_name, self._arguments, self._header
        self._header, self._channel, self._call_name, self._arguments = "", "", "", ""
        was_shown, self._shown = self._shown is not None, None
        if was_shown:
            return []
        if not name:
            return [Piece("content", header)] if header and not self._is_addressed else []
        try:
            call = call_piece(name, json_arguments(arguments))
        except (ValueError, RecursionError):
            return [Piece("content", arguments)] if arguments else []
        self.num_calls += 1
        return [call]
