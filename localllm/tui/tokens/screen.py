"""Tokens: a text as up to four tokenizers see it, side by side; each word step by step; vocabulary and template."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Input, TextArea

from localllm.errors import LocalLLMError
from localllm.tui.drawn import Drawn
from localllm.tui.frame import FrameScreen
from localllm.tui.tokens.asking import Asking, Turn, first_names
from localllm.tui.tokens.panel import TokenPanel
from localllm.tui.tokens.parts import (
    TALL,
    Facts,
    Panels,
    Query,
    Steps,
    Template,
    TextBar,
    TextField,
    TextHead,
    VocabularyHead,
    VocabularyRows,
    key_of,
)
from localllm.tui.tokens.sheet import TokenizerSheet
from localllm.tui.tokens.state import MAX_PANELS, TokensState

TYPED_S, MOVED_S = 0.12, 0.06
"""How long typing and moving have to rest before the daemon is asked."""


class TokensScreen(FrameScreen):
    """Text above, tokenizers in the middle, what is known of the token below."""

    TAB = "tokens"
    BINDINGS: ClassVar[list[BindingType]] = [
        key_of("escape", "leave", "back", "back", "Back to the tokens, and to their facts", show=False),
    ]
    DEFAULT_CSS = """
    TokensScreen #body { layout: vertical; }
    TokensScreen TextHead { height: 1; margin-top: 1; }
    TokensScreen #field { height: 2; }
    TokensScreen TextBar { width: 2; background: $role-raised; }
    TokensScreen #text { height: 1fr; }
    TokensScreen Panels { layout: grid; grid-size: 2; grid-gutter: 1 4; height: 17; margin-top: 1; }
    TokensScreen Panels.-few { height: 11; }
    TokensScreen Panels.-one { grid-size: 1; height: 9; }
    TokensScreen TokenPanel { height: 1fr; }
    TokensScreen #below { height: 1fr; margin: 1 0; }
    TokensScreen #left { width: 1fr; margin-right: 4; }
    TokensScreen #middle { width: 44; }
    TokensScreen #right { width: 57; margin-left: 4; display: none; }
    TokensScreen #vocabulary { display: none; height: 1fr; }
    TokensScreen VocabularyHead { height: 1; }
    TokensScreen #template { display: none; }
    TokensScreen.view-template #steps, TokensScreen.view-vocabulary #facts { display: none; }
    TokensScreen.view-template #template, TokensScreen.view-vocabulary #vocabulary { display: block; }

    TokensScreen.compact TextHead { margin: 0; }
    TokensScreen.compact Panels, TokensScreen.compact Panels.-few, TokensScreen.compact Panels.-one {
        grid-size: 1; height: 6; }
    TokensScreen.compact #below { margin: 1 0 0 0; }
    TokensScreen.compact #left { display: none; margin-right: 0; }
    TokensScreen.compact #middle { width: 1fr; }
    TokensScreen.compact.view-template #left, TokensScreen.compact.view-steps #left { display: block; }
    TokensScreen.compact.view-template #middle, TokensScreen.compact.view-steps #middle { display: none; }

    TokensScreen.wide #field { height: 4; }
    TokensScreen.wide Panels { grid-size: 4; grid-gutter: 0 4; height: 23; }
    TokensScreen.wide Panels.-few { grid-size: 2; height: 17; }
    TokensScreen.wide Panels.-one { grid-size: 1; height: 13; }
    TokensScreen.wide Panels.-three { grid-size: 3; }
    TokensScreen.wide #left { width: 73; }
    TokensScreen.wide #middle { width: 1fr; }
    TokensScreen.wide #right { display: block; }
    TokensScreen.wide #facts { display: block; height: 14; }
    TokensScreen.wide #vocabulary { display: block; }
    TokensScreen.wide #steps { display: block; }
    TokensScreen.wide #template { display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = TokensState()
        self._view = ""
        self._waits: dict[str, Timer] = {}
        self._has_chosen = False
        self._turns = {
            "explain": Turn(self._explain),
            "look": Turn(self._look),
            "page": Turn(self._look_up),
            "template": Turn(self._show_template),
        }

    def compose_body(self) -> ComposeResult:
        yield TextHead(self.state)
        with Horizontal(id="field"):
            yield TextBar()
            yield TextField(id="text", soft_wrap=True, compact=True, placeholder="Type or paste a text.")
        with Panels(id="panels"):
            for number in range(MAX_PANELS):
                yield TokenPanel(self.state, number)
        with Horizontal(id="below"):
            with Vertical(id="left"):
                yield Steps(self.state, id="steps")
                yield Template(self.state, id="template")
            with Vertical(id="middle"):
                yield Facts(self.state, id="facts")
                with Vertical(id="vocabulary"):
                    yield VocabularyHead(self.state)
                    yield Query(id="query", placeholder="/ text, #id or 0x bytes")
                    yield VocabularyRows(self.state)
            with Vertical(id="right"):
                yield Template(self.state)

    def on_mount(self) -> None:
        self.query_one("#text").focus()
        self._arrange()
        self.link_changed()

    @property
    def _asking(self) -> Asking:
        return Asking(self.local.link, self.state)

    # ---- what others can set

    def show_text(self, text: str) -> None:
        """Explain this text: other screens open this one with it."""
        self.query_one("#text", TextArea).text = text

    # ---- link and size

    def link_changed(self) -> None:
        """Tokenizers that were explained stay; a new daemon is asked again."""
        if self.local.link.state == "up" and self.is_mounted:
            self.call_later(self._connected)  # the link calls from outside of the screen's own messages

    def _connected(self) -> None:
        if not self._has_chosen:
            self.run_worker(self._choose_first(), group="tokens", exit_on_error=True)
        elif self.state.problem:
            self._soon("explain", 0.0)

    def resized(self, size_class: str) -> None:
        self._fit_text(self.query_one("#text", TextArea))
        self._arrange()
        if self.state.splits:
            self._soon("look", MOVED_S)
        self._refresh_views()

    async def _choose_first(self) -> None:
        self._has_chosen = True
        try:
            rows = await self._asking.rows()
        except LocalLLMError as error:
            self._has_chosen = False
            self.state.problem = error.message
            self._redraw()
            return
        wanted = self.local.default_model or self.local.glance.model
        if self._is_open:
            self._take_names(first_names(rows, wanted))

    def _take_names(self, names: list[str]) -> None:
        if names != self.state.names:
            self.state.names = names
            self.state.panel = min(self.state.panel, max(0, len(names) - 1))
            self.state.explanation = None
            self.state.page = self.state.template = None
        self._arrange()
        self._soon("explain", 0.0)

    def _arrange(self) -> None:
        """How many panels there are, and which of them is seen in a small window."""
        num = len(self.state.names)
        panels = self.query_one(Panels)
        panels.set_class(num == 2, "-few")
        panels.set_class(num <= 1, "-one")
        panels.set_class(num == 3, "-three")
        is_small = self.size_class == "compact"
        for panel in self.query(TokenPanel):
            shown = panel.number == self.state.panel if is_small else panel.number < max(1, num)
            panel.display = shown
        self._redraw()

    # ---- asking

    @on(TextArea.Changed, "#text")
    def _typed(self, event: TextArea.Changed) -> None:
        self.state.text = event.text_area.text
        self.query_one(TextHead).redraw()
        self._fit_text(event.text_area)
        self._soon("explain", TYPED_S)

    def _fit_text(self, area: TextArea) -> None:
        """In a wide window the field grows with the text."""
        is_wide = self.size_class == "wide"
        self.query_one("#field").styles.height = max(4, min(8, area.wrapped_document.height)) if is_wide else 2

    def _soon(self, what: str, after_s: float) -> None:
        """The last wish of a kind, after a rest."""
        if what in self._waits:
            self._waits[what].stop()
        turn = self._turns[what]
        self._waits[what] = self.set_timer(
            max(0.001, after_s), lambda: self.run_worker(turn.take(), group="tokens", exit_on_error=True)
        )

    async def _explain(self) -> None:
        await self._asking.explain()
        if not self._is_open:
            return
        self._arrange()
        self._soon("look", 0.0)
        self._refresh_views()

    async def _look(self) -> None:
        await self._asking.look(with_others=self._height_of(Steps) >= TALL)
        self._redraw(Steps, Facts)

    async def _look_up(self, offset: int | None = None) -> None:
        await self._asking.look_up(max(4, self._height_of(VocabularyRows) - 2), offset)
        self._redraw(VocabularyHead, VocabularyRows)

    async def _show_template(self) -> None:
        await self._asking.show_template()
        self._redraw(Template)

    @property
    def _is_open(self) -> bool:
        """False where an answer comes when the application is on its way out."""
        return self.is_running and bool(self.query(Panels))

    def _height_of(self, kind: type[Drawn]) -> int:
        return next((drawn.size.height for drawn in self.query(kind)), 0)

    def _refresh_views(self) -> None:
        """Asks for what is seen besides the tokens."""
        is_wide = self.size_class == "wide"
        if (is_wide or self._view == "template") and self.state.names:
            self._soon("template", MOVED_S)
        if (is_wide or self._view == "vocabulary") and self.state.names:
            self._soon("page", MOVED_S)

    def _redraw(self, *kinds: type[Drawn]) -> None:
        """Widgets of these kinds again; all of them without."""
        for drawn in self.query(Drawn):
            if not kinds or isinstance(drawn, kinds):
                drawn.redraw()

    # ---- focus

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        self._mark_focus()

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        self._mark_focus()

    def _mark_focus(self) -> None:
        focused = self.focused.id if self.focused else ""
        self.query_one(TextHead).is_focused = self.query_one(TextBar).is_focused = focused == "text"
        for panel in self.query(TokenPanel):
            panel.is_focused = focused == "panels"
        self._redraw(TextHead, TextBar, TokenPanel, VocabularyHead)
        self.bindings_changed()

    def action_leave(self) -> None:
        if self.focused is not None and self.focused.id in ("text", "query"):
            self.query_one(Panels).focus()
        else:
            self._show("")

    def action_edit(self) -> None:
        self.query_one("#text").focus()

    # ---- the cursor

    def _moved(self) -> None:
        for panel in self.query(TokenPanel):
            panel.follow()
        self._redraw(TokenPanel, Facts, Steps)
        self._soon("look", MOVED_S)
        if not self.state.query:
            self._refresh_page()

    def _refresh_page(self) -> None:
        if self.size_class == "wide" or self._view == "vocabulary":
            self._soon("page", MOVED_S)

    def action_move(self, by: int) -> None:
        self.state.move(by)
        self._moved()

    def action_move_row(self, by: int) -> None:
        panel = next(panel for panel in self.query(TokenPanel) if panel.number == self.state.panel)
        self.state.move(panel.row_step(by))
        self._moved()

    def action_turn(self, by: int) -> None:
        self.state.turn(by)
        self.state.template = None
        self._arrange()
        self._moved()
        self._refresh_views()

    def action_step(self, by: int) -> None:
        if self.size_class == "compact" and self._view != "steps":
            self._show("steps")
        self.state.go_step(by)
        self.query_one("#steps", Steps).redraw()

    @on(TokenPanel.Picked)
    def _picked(self, event: TokenPanel.Picked) -> None:
        self.query_one(Panels).focus()
        token = event.token
        if token < 0:
            place = self.state.current.start if self.state.current else 0
            token = self.state.token_at(event.panel, place)
        has_turned = event.panel != self.state.panel
        self.state.go(event.panel, token)
        self._moved()
        if has_turned:
            self._refresh_views()

    # ---- views

    def action_view(self, name: str) -> None:
        self._show("" if self._view == name and self.size_class != "wide" else name)

    def _show(self, name: str) -> None:
        self._view = name
        for each in ("steps", "template", "vocabulary"):
            self.set_class(each == name, f"view-{each}")
        self._redraw()
        self._refresh_views()

    def action_ids(self) -> None:
        self.state.shows_ids = not self.state.shows_ids
        self._redraw()

    def action_look_up(self) -> None:
        self._show("vocabulary")
        self.query_one("#query").focus()

    @on(Input.Changed, "#query")
    def _asked(self, event: Input.Changed) -> None:
        self.state.query = event.value
        self._soon("page", TYPED_S)

    def action_page(self, by: int) -> None:
        page = self.state.page
        if page is None or not page.entries:
            return
        offset = page.offset + by * max(1, len(page.entries))
        if 0 <= offset < page.total or by < 0:
            self.run_worker(self._look_up(max(0, offset)), group="tokens", exit_on_error=True)

    # ---- tokenizers

    def action_add(self) -> None:
        self.run_worker(self._open_sheet(), group="sheet", exclusive=True, exit_on_error=True)

    async def _open_sheet(self) -> None:
        try:
            rows = await self._asking.rows()
        except LocalLLMError as error:
            self.local.complain(error)
            return
        self.app.push_screen(TokenizerSheet(rows, self.state.names), self._sheet_closed)

    def _sheet_closed(self, names: list[str] | None) -> None:
        if names is not None:
            self._take_names(names)
