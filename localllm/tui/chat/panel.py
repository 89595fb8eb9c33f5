"""Beside the conversation: parameters, system prompt, branches, and figures of the last answer, as one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.history import Branch
from localllm.safe_text import one_line, sanitize
from localllm.tui import words
from localllm.tui.chat.parameters import PARAMETERS, Parameter, changed
from localllm.tui.conversation.turns import Turn
from localllm.tui.drawn import DrawnList
from localllm.tui.lines import Line, heading, shortened
from localllm.tui.markdown.wrap import drawable, wrap_plain
from localllm.tui.palette import Ink

LABEL_COLUMNS, VALUE_COLUMNS = 14, 8
MAX_BRANCHES = 40
SYSTEM_ROWS = 8

What = Literal["preset", "parameter", "system", "branch"]


@dataclass(frozen=True, slots=True)
class BranchRow:
    """A message beside others, or the one before them (`number` 0). `depth`: how many branchings stand above."""

    message_id: int
    number: int
    depth: int
    text: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class PanelState:
    """All that the panel shows."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    system: str = ""
    system_tokens: int | None = None
    branches: tuple[BranchRow, ...] = ()
    num_branches: int = 1
    facts: tuple[tuple[str, str], ...] = ()
    in_force: Mapping[str, Any] = field(default_factory=dict)
    """What the next answer is sampled with, as far as it is known: also where the model's own values stand."""


@dataclass(frozen=True, slots=True)
class _Row:
    draw: Callable[[Ink, int, bool], Line]
    what: What | None = None
    parameter: Parameter | None = None
    message_id: int = 0


def branch_rows(branch: Branch) -> tuple[tuple[BranchRow, ...], int]:
    """Where the branch that is shown could have gone another way, the latest places; and how many ends there are."""
    rows: list[BranchRow] = []
    depth = 0
    for message_id in branch.ids:
        family = branch.tree.siblings(message_id)
        if len(family) > 1:
            parent = branch.tree.parent(message_id)
            if parent is not None:
                rows.append(BranchRow(parent, 0, depth, excerpt(branch, parent), True))
            for number, sibling in enumerate(family, 1):
                is_active = sibling == message_id
                rows.append(BranchRow(sibling, number, depth + 1, excerpt(branch, sibling), is_active))
            depth = min(4, depth + 1)
    return tuple(rows[-MAX_BRANCHES:]), len(branch.tree.leaves())


def excerpt(branch: Branch, message_id: int) -> str:
    message = branch.message(message_id)
    if message.origin.startswith("from"):
        return message.origin
    plain = one_line(message.content[:200]).replace("**", "").replace("`", "").strip()
    return plain or ("(thinking)" if message.reasoning else "(empty)")


def answer_facts(turn: Turn | None, pages: str = "") -> tuple[tuple[str, str], ...]:
    """Figures of an answer, by their names."""
    stats = turn.stats if turn is not None and turn.is_answer else None
    if turn is None or stats is None:
        return ()
    cached = f"{words.count(stats.cached_tokens)} of {words.count(stats.prompt_tokens)}" if stats.prompt_tokens else ""
    facts = [
        ("request", stats.request_id),
        ("pages", pages),
        ("tokens", words.count(stats.tokens) if stats.tokens else ""),
        ("thought", words.plural(stats.thought_tokens, "token") if stats.thought_tokens else ""),
        ("first token", words.seconds(stats.first_token_s) if stats.first_token_s else ""),
        ("speed", f"{words.rate(stats.tokens_per_s)} tok/s" if stats.tokens_per_s else ""),
        ("cached", cached),
        ("ended", stats.stop_reason if turn.state != "writing" else ""),
    ]
    return tuple((name, one_line(value)) for name, value in facts if value)


class ChatPanel(DrawnList):
    """`show` says what there is. Posts `Changed` for parameters, `Wanted` for everything that needs a sheet."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "adjust(-1)", "less", id="parameters.less", tooltip="A step down; another preset"),
        Binding("right", "adjust(1)", "more", id="parameters.more", tooltip="A step up; another preset"),
        Binding(
            "enter", "choose", "set", id="parameters.set", tooltip="Type a value; edit the prompt; go to the branch"
        ),
        Binding("backspace,delete", "reset", "model's own", id="parameters.reset", tooltip="Leave it to the model"),
        Binding("s", "save", "save preset", id="parameters.save", tooltip="Keep these parameters under a name"),
        Binding("escape", "leave", "back", id="parameters.leave", tooltip="Back to the message"),
    ]
    DEFAULT_CSS = """
    ChatPanel { width: 50; height: 1fr; margin: 1 2; }
    """

    class Changed(Message):
        def __init__(self, parameters: dict[str, Any]) -> None:
            super().__init__()
            self.parameters = parameters

    class Wanted(Message):
        """`what`: preset, parameter, system, branch, save or leave; `step` for presets."""

        def __init__(self, what: str, row: _Row | None = None, step: int = 0) -> None:
            super().__init__()
            self.what, self.step = what, step
            self.parameter = row.parameter if row else None
            self.message_id = row.message_id if row else 0

    def __init__(self) -> None:
        super().__init__()
        self.state = PanelState()
        self._rows: list[_Row] = []
        self._made_for: tuple[PanelState, int] | None = None

    def show(self, state: PanelState) -> None:
        if state != self.state:
            self.state = state
            self.refill()

    # ---- the list

    def row_count(self) -> int:
        self._make()
        return len(self._rows)

    def can_choose(self, row: int) -> bool:
        return self._rows[row].what is not None

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        self._make()
        is_chosen = row == self.cursor and self.has_focus
        line = self._rows[row].draw(ink, width, is_chosen)
        return (line.fit(width).over(ink.selected) if is_chosen else line).strip(width)

    @property
    def chosen(self) -> _Row | None:
        return self._rows[self.cursor] if self.cursor < len(self._rows) else None

    def action_choose(self) -> None:
        if (row := self.chosen) and row.what:
            if row.parameter is not None and row.parameter.kind == "switch":
                is_off = self.state.parameters.get(row.parameter.field) == "none"
                self._set(row.parameter, None if is_off else "none")
            else:
                self.post_message(self.Wanted(row.what, row))

    def action_adjust(self, by: int) -> None:
        row = self.chosen
        if row is None or row.what == "preset":
            self.post_message(self.Wanted("preset", row, by))
        elif row.parameter is not None and row.parameter.kind in ("slider", "switch"):
            name = row.parameter.field
            value = self.state.parameters.get(name, self.state.in_force.get(name))
            self._set(row.parameter, row.parameter.moved(value, by))

    def action_reset(self) -> None:
        if (row := self.chosen) and row.parameter is not None:
            self._set(row.parameter, None)

    def action_save(self) -> None:
        self.post_message(self.Wanted("save"))

    def action_leave(self) -> None:
        self.post_message(self.Wanted("leave"))

    def _set(self, parameter: Parameter, value: Any) -> None:
        self.post_message(self.Changed(changed(self.state.parameters, parameter, value)))

    # ---- rows

    def _make(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        if self._made_for != (self.state, width):
            self._made_for = (self.state, width)
            self._rows = list(self._all(width))

    def _all(self, width: int) -> Iterator[_Row]:
        state = self.state
        yield _Row(self._head, "preset")
        for parameter in PARAMETERS:
            value, own = state.parameters.get(parameter.field), state.in_force.get(parameter.field)
            yield _Row(parameter_row(parameter, value, own), "parameter", parameter)
        yield _BLANK
        tokens = words.plural(state.system_tokens, "token") if state.system_tokens else ""
        yield _Row(title_row("System prompt", tokens))
        yield from self._system(width)
        yield _BLANK
        yield _Row(title_row("Branches", words.count(state.num_branches)))
        yield from (_Row(branch_row(each), "branch", message_id=each.message_id) for each in state.branches)
        if not state.branches:
            yield _Row(plain_row("Edit a message, or ask again, and a branch begins.", "faint"))
        if state.facts:
            yield _BLANK
            yield _Row(title_row("This answer", ""))
            yield from (_Row(fact_row(name, value)) for name, value in state.facts)

    def _head(self, ink: Ink, width: int, is_chosen: bool) -> Line:
        info = Line((one_line(self.state.preset), ink("text"))).put(" ▾", ink("muted"))
        return heading(ink, width, "Parameters", info, is_focused=self.has_focus)

    def _system(self, width: int) -> Iterator[_Row]:
        text = drawable(sanitize(self.state.system)).strip()
        if not text:
            yield _Row(plain_row("none: enter writes one", "faint"), "system")
            return
        lines = [line.text for line in wrap_plain(text[:4000], Ink(_roles(self))(), max(2, width))]
        for place, line in enumerate(lines[:SYSTEM_ROWS]):
            told = f"{line[: width - 1]}…" if place == SYSTEM_ROWS - 1 and len(lines) > SYSTEM_ROWS else line
            yield _Row(plain_row(told, "text"), "system" if place == 0 else None)


def _roles(panel: ChatPanel) -> Any:
    return panel.app.ink.roles  # type: ignore[attr-defined]  # LocalApp


def plain_row(text: str, role: str) -> Callable[[Ink, int, bool], Line]:
    return lambda ink, width, is_chosen: Line((shortened(text, width), ink(role)))


def title_row(title: str, info: str) -> Callable[[Ink, int, bool], Line]:
    return lambda ink, width, is_chosen: heading(ink, width, title, Line((info, ink("muted"))) if info else None)


def fact_row(name: str, value: str) -> Callable[[Ink, int, bool], Line]:
    return lambda ink, width, is_chosen: (
        Line((name, ink("muted"))).fit(LABEL_COLUMNS).put(shortened(value, width - LABEL_COLUMNS), ink())
    )


def branch_row(row: BranchRow) -> Callable[[Ink, int, bool], Line]:
    def draw(ink: Ink, width: int, is_chosen: bool) -> Line:
        line = Line(("  " * row.depth, ink())).put(
            "● " if row.is_active else "○ ", ink("accent" if row.is_active else "faint")
        )
        line.put(f"{row.number}  " if row.number else "   ", ink("muted"))
        role = "bright" if row.is_active and row.number else "muted"
        return line.put(shortened(row.text, max(4, width - line.width)), ink(role))

    return draw


def parameter_row(parameter: Parameter, value: Any, own: Any = None) -> Callable[[Ink, int, bool], Line]:
    """`own`: the model's value, which holds where `value` is None."""

    def draw(ink: Ink, width: int, is_chosen: bool) -> Line:
        line = Line((parameter.label, ink("bright" if is_chosen else "muted"))).fit(LABEL_COLUMNS)
        told = own if value is None else value
        role = "muted" if value is None else "text"
        if parameter.kind == "switch":
            return line.add(switch(ink, value != "none"))
        if parameter.kind != "slider":
            return line.put(shortened(one_line(parameter.text(told)), width - LABEL_COLUMNS), ink(role))
        share = None if told is None else parameter.share(told)
        line.add(slider(ink, share, width - LABEL_COLUMNS - VALUE_COLUMNS, "accent" if value is not None else "muted"))
        return line.add(Line((parameter.text(told), ink(role))).fit(VALUE_COLUMNS, "right"))

    return draw


def slider(ink: Ink, share: float | None, width: int, role: str = "accent") -> Line:
    """A knob on its line; None: no knob."""
    if share is None:
        return Line(("─" * width, ink("line")))
    place = round(min(1.0, max(0.0, share)) * (width - 1))
    return Line(("━" * place, ink(role))).put("●", ink(role)).put("─" * (width - 1 - place), ink("line"))


def switch(ink: Ink, is_on: bool) -> Line:
    if is_on:
        return Line(("● on", ink("accent"))).put("   off", ink("faint"))
    return Line(("  on   ", ink("faint"))).put("● off", ink("accent"))


def _blank(ink: Ink, width: int, is_chosen: bool) -> Line:
    return Line()


_BLANK = _Row(_blank)
