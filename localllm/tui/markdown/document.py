"""A text that grows, drawn as Markdown: what is finished is read and drawn once, only its open end again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt

from localllm.safe_text import StreamSanitizer
from localllm.tui.markdown.closing import open_tree
from localllm.tui.markdown.draw import Painter
from localllm.tui.markdown.rows import Look, Row
from localllm.tui.markdown.tree import Block, Environment, Placed, codes, parse, tops, tree

_MAY_SEAL = re.compile(r"\n[ \t]*\n[^\n]*\S[^\n]*\n")


class MarkdownText:
    """Text comes in by `feed`, in any pieces; `finish` says that no more comes. However it is cut, the rows at the end
    are those of the whole text.

    Blocks are sealed when another block has begun after a blank line: nothing that comes can change them then, but for
    the target of a link that is defined later.
    """

    def __init__(self, reader: MarkdownIt) -> None:
        self.source = ""
        self.is_finished = False
        self._parser = reader
        self._stream = StreamSanitizer()
        self._open = ""
        self._sealed: list[Placed] = []
        self._env: Environment = {}
        self._painter: Painter | None = None
        self._rows: list[Row] = []
        self._num_drawn = 0
        self._num_targets = 0
        self._num_codes = 0
        self._last: Block | None = None
        self._codes: list[str] | None = None

    def feed(self, text: str, *, is_last: bool = False) -> None:
        """More of the text; `is_last`: `finish` comes next."""
        self.source += text
        self._codes = None
        shown = self._stream.feed(text)
        self._open += shown
        if "\n" in shown and not is_last:
            self._seal()
            if self._open.isspace():
                self._open = self._open[self._open.rfind("\n") + 1 :]

    def finish(self) -> None:
        """It is whole."""
        self._open += self._stream.finish()
        self.is_finished = True
        self._codes = None
        self._take(self._open)
        self._open = ""

    def rows(self, look: Look) -> list[Row]:
        """As it looks now. Rows are as wide as what stands in them; only code may be wider than the look."""
        painter = self._ready(look)
        self._draw_sealed(painter)
        if not self._open.strip():
            return list(self._rows)
        env = _copy(self._env)
        blocks = open_tree(self._parser, self._open, env)
        painter.turn_over(env)
        rows = painter.blocks(blocks, look, self._last)
        return self._rows + list(_numbered(rows, self._num_codes))

    @property
    def blocks(self) -> Sequence[Placed]:
        """Those that nothing can change any more; of a finished text all."""
        return self._sealed

    def codes(self) -> list[str]:
        """The texts of the code blocks, in order, without the newline at their ends."""
        if self._codes is None:
            found = codes(self._sealed)
            if "\n" in self._open:
                found += codes(tree(parse(self._parser, self._open, _copy(self._env)), self._open))
            self._codes = [text.removesuffix("\n") for text in found]
        return self._codes

    # ---- sealing

    def _seal(self) -> None:
        """Everything before the last block that begins after a blank line, whole lines only: the last line may become
        anything."""
        whole = self._open[: self._open.rfind("\n") + 1]
        if not _MAY_SEAL.search(whole):
            return
        lines = whole.split("\n")
        starts = [line for line in tops(parse(self._parser, whole, _copy(self._env))) if line]
        line = next((line for line in reversed(starts) if not lines[line - 1].strip()), 0)
        if line:
            cut = sum(len(each) + 1 for each in lines[:line])
            self._take(whole[:cut])
            self._open = self._open[cut:]

    def _take(self, source: str) -> None:
        made = tree(parse(self._parser, source, self._env), source)
        if made:  # what is sealed ended with a blank line
            self._sealed += (Placed(made[0].block, bool(self._sealed)), *made[1:])

    # ---- drawing

    def _ready(self, look: Look) -> Painter:
        num_targets = len(self._env.get("references", ()))
        if self._painter is None or self._painter.look != look or num_targets != self._num_targets:
            self._painter = Painter(self._parser, look)
            self._rows, self._num_drawn, self._num_codes, self._last = [], 0, 0, None
            self._num_targets = num_targets
        return self._painter

    def _draw_sealed(self, painter: Painter) -> None:
        if self._num_drawn == len(self._sealed):
            return
        painter.turn_over(self._env)
        for placed in self._sealed[self._num_drawn :]:
            rows = painter.blocks([placed], painter.look, self._last)
            self._rows += _numbered(rows, self._num_codes)
            self._num_codes += len(codes([placed]))
            self._last = placed.block if rows else self._last
        self._num_drawn = len(self._sealed)


def _numbered(rows: list[Row], number: int) -> Iterator[Row]:
    """Rows of code with the numbers of their blocks; `number` blocks came before."""
    for row in rows:
        if row.code:
            number += row.is_head
            yield row._replace(code=number)
        else:
            yield row


def _copy(env: Environment) -> Environment:
    return {**env, "references": dict(env.get("references", {}))}
