"""The first line of the models screen: the field to search in, and how full the disk is."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widgets import Input

from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, gauge
from localllm.tui.models.list import ModelList
from localllm.tui.models.state import ModelsState
from localllm.tui.palette import Ink


class Slash(Drawn):
    """Before the field; an accent bar where one types."""

    DEFAULT_CSS = "Slash { width: 4; height: 1; }"

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        is_here = isinstance(self.screen.focused, SearchField)
        bar = Line((("▌" if is_here else " ") + " " * (width - 3), ink("accent"))) if width > 2 else Line()
        return [bar.put("/ ", ink("accent" if is_here else "text", bold=True)).strip(width)]


class SearchField(Input):
    """Filters as one types; enter asks the hub, too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave", show=False, id="search.leave", tooltip="Back to the list, unfiltered"),
        Binding("down", "to_list", "list", show=False, id="search.list", tooltip="Go to what was found"),
    ]

    def action_leave(self) -> None:
        self.value = ""
        self.action_to_list()

    def action_to_list(self) -> None:
        self.screen.query_one(ModelList).focus()


class DiskLine(Drawn):
    """How many models there are, what they take, and how full the disk is."""

    DEFAULT_CSS = "DiskLine { width: 52; height: 1; }"

    def __init__(self, state: ModelsState) -> None:
        super().__init__()
        self._state = state

    def line(self, ink: Ink) -> Line:
        here = self._state.here
        if not self._state.is_told or not here.disk_bytes:
            return Line((words.UNKNOWN, ink("faint")))
        line = Line((words.plural(len(here.models), "model"), ink("muted")))
        if here.models:
            line.put(" ").put(words.size(sum(model.size_bytes for model in here.models)), ink())
        line.put("   disk ", ink("muted"))
        line.add(gauge(ink, 1 - here.free_bytes / here.disk_bytes, 10))
        return line.put(f"  {here.free_bytes / 1e9:,.0f}", ink()).put(" GB free", ink("muted"))

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        return [self.line(ink).fit(width, "right").strip(width)]
