"""The panel of pages: title and legend, the map with its cursor, and a line about the page under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.daemon.feed import Progress
from localllm.safe_text import one_line
from localllm.tui.dashboard.map import MapLayout, MapPainter, Zoom, layout, ruler, zooms
from localllm.tui.dashboard.page_line import PageText, chain_line, page_line, token_line
from localllm.tui.drawn import Drawn, ink_of
from localllm.tui.lines import Line, gauge, heading, joined
from localllm.tui.live.pages import LOOK_FREE
from localllm.tui.live.state import LiveState, ModelState
from localllm.tui.palette import Ink
from localllm.tui.words import count, percent

if TYPE_CHECKING:
    from localllm.tui.app import LocalApp

EMPTY_PAGES = 2048
"""That are drawn while there are none."""
NARROW = 90


class PagesPanel(Drawn, can_focus=True):
    """`model` is the one whose pages are shown. `chosen` is the slot of a selected request: other owners are dimmed."""

    DEFAULT_CSS = """
    PagesPanel { height: 13; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(0, -1)", "page", id="pages.up", key_display="↑↓←→", tooltip="The page above"),
        Binding("down", "move(0, 1)", "page", show=False, id="pages.down", tooltip="The page below"),
        Binding("left", "move(-1, 0)", "page", show=False, id="pages.left", tooltip="The page before"),
        Binding("right", "move(1, 0)", "page", show=False, id="pages.right", tooltip="The next page"),
        Binding("shift+left", "move(-16, 0)", "16 back", show=False, id="pages.back", tooltip="16 pages back"),
        Binding("shift+right", "move(16, 0)", "16 on", show=False, id="pages.on", tooltip="16 pages on"),
        Binding("shift+up", "move(0, -16)", "16 up", show=False, id="pages.far_up", tooltip="16 rows up"),
        Binding("shift+down", "move(0, 16)", "16 down", show=False, id="pages.far_down", tooltip="16 rows down"),
        Binding("home", "go_to(0)", "first page", show=False, id="pages.first", tooltip="The first page"),
        Binding("end", "go_to(1000000000)", "last page", show=False, id="pages.last", tooltip="The last page"),
    ]

    class Looked(Message):
        """Another page is explained now."""

    class NextModel(Message):
        """The name of the model was clicked."""

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.model: ModelState | None = None
        self.chosen: int | None = None
        self.told: PageText | None = None
        self.wanted: Zoom | None = None
        self.has_letters = False
        self.is_by_owner = False
        self.has_chequer = True
        self.is_frozen = False
        self.keeps_words = False
        """Whether only the map is due: numbers around it that change in every frame cannot be read."""
        self.cursor = 0
        self.hovered: int | None = None
        self._painter = MapPainter()
        self._place: MapLayout | None = None
        self._first_row = 0
        self._shown = 0
        self._top = 1
        self._order: list[int] = []
        self._model_span = (0, 0)
        self._words: tuple[object, list[Strip], list[Strip]] = None, [], []

    # ---- what it shows

    @property
    def page(self) -> int:
        """That the line under the map is about: the one under the mouse, else under the cursor."""
        return self.cursor if self.hovered is None else self.hovered

    @property
    def num_pages(self) -> int:
        return len(self.model.board) if self.model is not None else 0

    @property
    def _reach(self) -> int | None:
        """In the order of owners the pages in use are the first ones."""
        if self.model is None:
            return None
        board = self.model.board
        return self.num_pages - board.counts().free if self.is_by_owner else board.reach

    @property
    def shows_letters(self) -> bool:
        """Wished for, or where two colours in a cell cannot be told apart."""
        return self.has_letters or ink_of(self).is_mono or cast("LocalApp", self.app).is_ascii

    def rows_needed(self, width: int, most: int) -> int:
        """Rows of the map at a zoom that shows all of it in `most` rows."""
        place = layout(self.num_pages or EMPTY_PAGES, width, most, has_letters=self.shows_letters, reach=self._reach)
        return max(1, min(most, place.num_rows))

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        board = self.model.board if self.model is not None else None
        self.cursor = min(self.cursor, max(0, self.num_pages - 1))
        if self.hovered is not None and self.hovered >= self.num_pages:
            self.hovered = None
        self._top = 1 if width < NARROW else 2
        room = max(1, height - self._top - 1)
        num_pages, letters = self.num_pages or EMPTY_PAGES, self.shows_letters
        place = self._place = layout(num_pages, width, room, wanted=self.wanted, has_letters=letters, reach=self._reach)
        self._order = board.order_by_owner() if board is not None and self.is_by_owner else []
        looks = bytes([LOOK_FREE]) * num_pages if not self.num_pages or board is None else bytes(board.looks)
        if self._order:
            looks = bytes(looks[page] for page in self._order)
        cursor = self._place_of(self.cursor) if self.num_pages else None
        shown = self._shown = min(room, place.num_rows)
        self._keep_in_view(cursor, place, shown)
        references = self._references if self.num_pages else (lambda place: 0)
        map_ink = self._painter.ink_for(ink, self.chosen, has_chequer=self.has_chequer)
        rows = self._painter.rows(map_ink, place, looks, references, cursor, self._first_row, shown)
        key = (ink, width, height, place, self.model, self.page, cursor)
        if not self.keeps_words or self._words[0] != key:
            top = [self._title(ink, width, place), ruler(ink, place, cursor)][: self._top]
            under = self._under(ink, width, height - len(top) - len(rows))
            self._words = key, [line.strip(width) for line in top], [line.strip(width) for line in under]
        return [*self._words[1], *rows, *self._words[2]]

    def _keep_in_view(self, cursor: int | None, place: MapLayout, shown: int) -> None:
        row = 0 if cursor is None else place.row_of(cursor)
        first = min(max(self._first_row, row - shown + 1), row)
        self._first_row = max(0, min(first, place.num_rows - shown))

    def _place_of(self, page: int) -> int:
        return self._order.index(page) if self._order else page

    def _page_in(self, place: int) -> int:
        return self._order[place] if self._order else place

    def _references(self, place: int) -> int:
        assert self.model is not None
        return self.model.board.references(self._page_in(place))

    # ---- title

    def _title(self, ink: Ink, width: int, place: MapLayout) -> Line:
        notes = [self._model_note(), self._size_note(width, place)]
        notes += ["by owner"] if self.is_by_owner else []
        notes += ["frozen"] if self.is_frozen else []
        note = "  ".join(note for note in notes if note)
        start = len("Pages") + 2
        self._model_span = (start, start + cell_len(notes[0] or "")) if notes[0] else (0, 0)
        is_focused = self.has_focus
        for legend in (self._legend(ink, width), self._legend(ink, 0), self._legend(ink, 0, num_names=4), None):
            if legend is None or len("Pages") + cell_len(note) + legend.width + 6 <= width:
                return heading(ink, width, "Pages", legend, note=note, is_focused=is_focused)
        raise AssertionError("without a legend it fits")

    def _model_note(self) -> str:
        """Only where there is a choice."""
        names = list(self.state.models)
        if self.model is None or len(names) < 2 or self.model.row.name not in names:
            return ""
        return f"‹ {one_line(self.model.row.name)}  {names.index(self.model.row.name) + 1} of {len(names)} ›"

    def _size_note(self, width: int, place: MapLayout) -> str:
        cells = f"cell = {place.zoom.per_cell}" if place.zoom.per_cell > 1 else ""
        if not cells and place.num_rows > self._shown and width >= NARROW:
            cells = f"{count(self._shown * place.pages_per_row)} in view"
        if width < NARROW or not self.num_pages:
            return cells if self.num_pages else ""
        size = self.model.row.page_size if self.model is not None else 0
        return f"{count(self.num_pages)} × {size}, {cells}" if cells else f"{count(self.num_pages)} × {size} tokens"

    def _legend(self, ink: Ink, width: int, num_names: int = 5) -> Line | None:
        if self.model is None or not self.num_pages:
            return None
        counts, roles = self.model.board.counts(), ink.roles
        is_long = width >= NARROW
        letters = self.shows_letters
        entries = [
            ("held", counts.held, "a", [(roles.owners[at], roles.owners[at + 3]) for at in range(3 if is_long else 1)]),
            ("shared", counts.shared, "2", [(roles.shared, roles.shared)]),
            ("cached", counts.cached, ":", [(roles.cached, roles.cached)]),
            ("free", counts.free, "·", [(roles.free, roles.free)]),
        ]
        if is_long or counts.preempted:
            entries.append(("preempted", counts.preempted, "×", [(roles.preempted, roles.preempted)]))
        parts = []
        for name, number, letter, hues in entries[:num_names]:
            part = Line((letter, ink("bright"))) if letters else Line(*[("▀", ink(up, on=low)) for up, low in hues])
            parts.append(part.put(f" {name} ", ink("muted")).put(count(number), ink()))
        return joined(parts, 3 if is_long else 2)

    # ---- below the map

    def _under(self, ink: Ink, width: int, room: int) -> list[Line]:
        if self.model is None or not self.num_pages:
            return self._empty(ink, width)[: max(1, room)]
        told = self.told
        if told is not None and (told.page != self.page or told.model != self.model.row.name):
            told = None
        lines = [page_line(ink, width, self.state, self.model, self.page, told)]
        if room >= 4 and width >= NARROW:
            lines += [Line(), token_line(ink, width, told), chain_line(ink, width, self.state, told)]
        return lines

    def _empty(self, ink: Ink, width: int) -> list[Line]:
        row = self.model.row if self.model is not None else None
        if row is not None and row.state == "loading":
            progress = row.progress or Progress("loading")
            share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
            stage = one_line(progress.stage)
            line = Line(("▸ ", ink("accent"))).put(one_line(row.name), ink("bright", bold=True))
            line.put(f"   {stage} ", ink("muted")).put(f"{percent(share)}   ", ink())
            return [line.add(gauge(ink, share, max(8, min(40, width - line.width))))]
        if row is not None and row.state == "failed":
            line = Line(("▪ ", ink("err"))).put(one_line(row.name), ink("bright", bold=True))
            return [line.put(f"   {one_line(row.error)}", ink()).fit(width)]
        line = Line(("Load a model to fill these pages", ink("bright", bold=True)))
        for key, what in (("f5", "models"), ("f2", "chat")):
            line.put("   ").put(key, ink(bold=True)).put(f" {what}", ink("muted"))
        return [line.fit(width)]

    # ---- moving

    def action_move(self, columns: int, rows: int) -> None:
        if self._place is not None and self.num_pages:
            self.look_at(self._page_in(self._place.beside(self._place_of(self.cursor), columns, rows)))

    def action_go_to(self, page: int) -> None:
        self.look_at(page)

    def look_at(self, page: int) -> None:
        """Puts the cursor there."""
        self.cursor, self.hovered = max(0, min(page, self.num_pages - 1)), None
        self.redraw()
        self.post_message(self.Looked())

    def turn_zoom(self) -> None:
        """The next coarser zoom; behind the coarsest one that makes sense comes the finest."""
        levels = self._levels()
        if levels and self._place is not None and self._place.zoom in levels:
            self.wanted = levels[(levels.index(self._place.zoom) + 1) % len(levels)]
            self.redraw()

    def zoom_in(self) -> None:
        """Single pages around the cursor, in half cells; scrolls with it."""
        self.wanted = Zoom("letters" if self.shows_letters else "half")
        self.redraw()

    def zoom_out(self) -> None:
        """As much as fits, as it is picked."""
        self.wanted = None
        self.redraw()

    def _levels(self) -> list[Zoom]:
        if self._place is None:
            return []
        room = max(1, self.size.height - self._top - 1)
        letters = self.shows_letters
        return zooms(self.num_pages, self._place.columns, room, has_letters=letters)

    # ---- mouse

    def page_under(self, x: int, y: int) -> int | None:
        if self._place is None or not self.num_pages:
            return None
        row = y - self._top
        if not 0 <= row < min(self._place.num_rows - self._first_row, self.size.height - self._top - 1):
            return None
        place = self._place.page_at(self._first_row + row, x - self._place.label)
        return None if place is None else self._page_in(place)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        found = self.page_under(event.x, event.y)
        if found != self.hovered:
            self.hovered = found
            self.redraw()
            self.post_message(self.Looked())

    def on_leave(self, event: events.Leave) -> None:
        if self.hovered is not None:
            self.hovered = None
            self.redraw()

    def on_click(self, event: events.Click) -> None:
        start, end = self._model_span
        if event.y == 0 and start <= event.x < end:
            self.post_message(self.NextModel())
            return
        found = self.page_under(event.x, event.y)
        if found is not None:
            self.look_at(found)

    # ---- painting

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()
