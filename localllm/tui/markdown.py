"""A text that grows, drawn as Markdown."""

from __future__ import annotations

from localllm.safe_text import StreamSanitizer
from localllm.tui.markdown_rows import Look, Row, row
from localllm.tui.markdown_wrap import wrap_plain


class MarkdownText:
    """Text comes in by `feed`, in any pieces; `finish` says that no more comes."""

    def __init__(self) -> None:
        self.source = ""
        self.is_finished = False
        self._shown = ""
        self._stream = StreamSanitizer()

    def feed(self, text: str) -> None:
        self.source += text
        self._shown += self._stream.feed(text)

    def finish(self) -> None:
        self._shown += self._stream.finish()
        self.is_finished = True

    def rows(self, look: Look) -> list[Row]:
        return [row(line) for line in wrap_plain(self._shown, look.ink(look.role), look.width)] if self._shown else []

    def codes(self) -> list[str]:
        return []
