"""A model in fewer bits: the types there are, what each would take, and the start of making one."""

from __future__ import annotations

from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.strip import Strip

from localllm.client import QuantizedSizes
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.help import Overlay, Title
from localllm.tui.lines import Line, cell, gauge
from localllm.tui.models.list import selected
from localllm.tui.palette import Ink

NAME, SIZE, BITS = 12, 10, 8
USUAL = "Q4_K_M"
"""Where the cursor stands first: the type that most people take."""


class TypeList(DrawnList):
    """A row for each type; the line says how much of the model is left."""

    def __init__(self, sizes: QuantizedSizes) -> None:
        super().__init__(id="types-list")
        self._sizes = sizes
        names = [each.type for each in sizes.types]
        self.cursor = names.index(USUAL) if USUAL in names else 0

    @property
    def type(self) -> str:
        return self._sizes.types[self.cursor].type if self.cursor < len(self._sizes.types) else ""

    def row_count(self) -> int:
        return len(self._sizes.types)

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        each = self._sizes.types[row]
        line = Line((cell(f"  {one_line(each.type).lower()}", NAME + 2), ink()))
        line.put(cell(words.size(each.size_bytes), SIZE, "right"), ink())
        line.put(cell(f"{each.bits_per_weight:.2f}", BITS, "right"), ink("muted")).put("   ")
        share = each.size_bytes / self._sizes.size_bytes if self._sizes.size_bytes else 0.0
        line.add(gauge(ink, min(1.0, share), max(0, min(40, width - line.width))))
        return (selected(line, ink) if row == self.cursor else line).strip(width)


class TypesHead(Drawn):
    """The names of the columns, or why there are none."""

    DEFAULT_CSS = "TypesHead { height: 2; }"

    def __init__(self, sizes: QuantizedSizes) -> None:
        super().__init__()
        self._sizes = sizes

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        if not self._sizes.types:
            sentence = one_line(self._sizes.refusal) or "no type would make it smaller"
            return [Line((f"{sentence[:1].upper()}{sentence[1:]}.", ink("muted"))).strip(width)]
        line = Line((cell("  type", NAME + 2), ink("faint"))).put(cell("size", SIZE, "right"), ink("faint"))
        line.put(cell("bits", BITS, "right"), ink("faint")).put(
            f"   of {words.size(self._sizes.size_bytes)}", ink("faint")
        )
        return [Line().strip(width), line.strip(width)]


class TypesPage(Overlay):
    """Enter makes the model under the cursor's type; it is listed with the pulls."""

    def __init__(self, sizes: QuantizedSizes, take: Callable[[str], None]) -> None:
        super().__init__()
        self._sizes, self._take = sizes, take
        self.list = TypeList(sizes)

    def compose(self) -> ComposeResult:
        with Container():
            yield Title(f"Quantize {one_line(self._sizes.model)}")
            yield TypesHead(self._sizes)
            yield self.list

    def on_mount(self) -> None:
        self.list.refill()
        self.list.focus()

    @on(DrawnList.Chosen, "#types-list")
    def _chosen(self) -> None:
        chosen = self.list.type
        self.dismiss()
        if chosen:
            self._take(chosen)
