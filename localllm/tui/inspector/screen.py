"""The token inspector: an answer token by token, live or finished, and the way into another one from any of them.

It takes an `InspectedAnswer`, which may still grow, and tells `on_branch` what is wished for; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from localllm.tui.frame import FrameScreen
from localllm.tui.inspector.answer import AnswerPanel, Pointed, SurprisePanel
from localllm.tui.inspector.inspected import BranchWish, InspectedAnswer
from localllm.tui.inspector.measure import MEASURES, Measure, doubts, next_doubt
from localllm.tui.inspector.token import TokenPanel

LOOK_S = 0.1
FAR = 16


def _key(keys: str, action: str, name: str, tooltip: str, *, shows: str = "", key_id: str = "") -> Binding:
    """`shows`: how the footer writes the key; without it the footer does not."""
    return Binding(
        keys, action, name, show=bool(shows), key_display=shows or None, tooltip=tooltip,
        id=f"inspector.{key_id or name.replace(' ', '_')}",
    )  # fmt: skip


class InspectorScreen(FrameScreen):
    """Above the chat. `on_branch` is called after the screen has closed."""

    TAB = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        _key("left,h", "token(-1)", "token", "The token before; the right arrow: the one behind", shows="←→"),
        _key("right,l", "token(1)", "next token", "The token behind"),
        _key("up,k", "alternative(-1)", "alternative", "A likelier alternative; down: an unlikelier one", shows="↑↓"),
        _key("down,j", "alternative(1)", "next alternative", "An unlikelier alternative"),
        _key("enter", "branch", "branch", "Go on from the chosen alternative, as another answer", shows="enter"),
        _key("n", "doubt(1)", "next doubt", "The next token that hardly came about", shows="n"),
        _key("N,upper_n", "doubt(-1)", "last doubt", "The doubt before this one"),
        _key("m", "measure", "colour", "Colour by probability, entropy or rank", shows="m"),
        _key("escape,q", "back", "back", "Back to the chat", shows="esc"),
        _key("pageup", f"token(-{FAR})", "far left", f"{FAR} tokens back"),
        _key("pagedown", f"token({FAR})", "far right", f"{FAR} tokens on"),
        _key("home", "to(0)", "first token", "The first token"),
        _key("end", "to(-1)", "last token", "The last token; it follows an answer that is still written"),
    ]
    DEFAULT_CSS = """
    InspectorScreen > #body { layout: horizontal; padding: 1 2; }
    InspectorScreen #answer { width: 1fr; margin-right: 4; }
    InspectorScreen TokenPanel { width: 42; }
    InspectorScreen.wide TokenPanel { width: 60; }
    InspectorScreen.compact > #body { layout: vertical; padding: 0 1; }
    InspectorScreen.compact #answer { width: 100%; height: 1fr; margin: 0; }
    InspectorScreen.compact SurprisePanel { display: none; }
    InspectorScreen.compact TokenPanel { width: 100%; height: 9; }
    """

    def __init__(self, answer: InspectedAnswer, on_branch: Callable[[BranchWish], None]) -> None:
        super().__init__()
        self.answer = answer
        self._on_branch = on_branch
        self._heat, self._surprise, self._side = AnswerPanel(answer), SurprisePanel(answer), TokenPanel(answer)
        found = doubts(answer.tokens, "probability")
        self._follows = answer.is_live
        self._cursor = len(answer.tokens) - 1 if answer.is_live else next(iter(found), 0)
        self._seen: tuple[int, bool] = (-1, False)

    def compose_body(self) -> ComposeResult:
        with Vertical(id="answer"):
            yield self._heat
            yield self._surprise
        yield self._side

    def on_mount(self) -> None:
        self.go_to(self._cursor)
        self.set_interval(LOOK_S, self._look)

    @property
    def cursor(self) -> int:
        return self._cursor

    @property
    def chosen(self) -> int:
        """The number of the alternative under the selection."""
        return self._side.chosen

    @property
    def measure(self) -> Measure:
        return self._heat.measure

    def go_to(self, token: int, chosen: int | None = None) -> None:
        """Puts the cursor on a token; the selection goes to the token itself among its alternatives."""
        last = len(self.answer.tokens) - 1
        self._cursor = max(0, min(token, last))
        for panel in (self._heat, self._surprise, self._side):
            panel.cursor = self._cursor
        self._side.chosen = self._taken() if chosen is None else chosen
        self._draw()

    # ---- actions

    def action_token(self, by: int) -> None:
        self._follows = False
        self.go_to(self._cursor + by)

    def action_to(self, place: int) -> None:
        last = len(self.answer.tokens) - 1
        self._follows = place < 0 and self.answer.is_live
        self.go_to(last if place < 0 else place)

    def action_alternative(self, by: int) -> None:
        most = len(self._side.choices()) - 1
        self.go_to(self._cursor, max(0, min(self._side.chosen + by, most)))

    def action_doubt(self, direction: int) -> None:
        place = next_doubt(doubts(self.answer.tokens, self.measure), self._cursor, direction)
        if place is None:
            self.local.say("there is no doubt in this answer")
            return
        self._follows = False
        self.go_to(place)

    def action_measure(self) -> None:
        self._show(MEASURES[(MEASURES.index(self.measure) + 1) % len(MEASURES)])

    def action_branch(self) -> None:
        choices = self._side.choices()
        if not choices:
            return
        wish = self.answer.branch(self._cursor, choices[self._side.chosen].token_id)
        self.dismiss()
        self._on_branch(wish)

    def action_back(self) -> None:
        self.dismiss()

    # ---- the mouse

    def on_pointed(self, message: Pointed) -> None:
        self._follows = False
        self.go_to(message.token)

    def on_answer_panel_measured(self, message: AnswerPanel.Measured) -> None:
        self._show(message.measure)

    def on_token_panel_picked(self, message: TokenPanel.Picked) -> None:
        if message.number == self._side.chosen:
            self.action_branch()
        else:
            self.go_to(self._cursor, message.number)

    # ---- inside

    def _show(self, measure: Measure) -> None:
        self._heat.measure = measure
        self._draw()

    def _taken(self) -> int:
        token = self._side.token
        ids = [each.token_id for each in self._side.choices()]
        return ids.index(token.token_id) if token is not None and token.token_id in ids else 0

    def _look(self) -> None:
        """Whether the answer has grown, or is done."""
        seen = (len(self.answer.tokens), self.answer.is_live)
        if seen == self._seen:
            return
        self._seen = seen
        if self._follows:
            self.go_to(len(self.answer.tokens) - 1)
        else:
            self._draw()

    def _draw(self) -> None:
        for panel in (self._heat, self._surprise, self._side):
            panel.redraw()
