"""The context bar: what a message would cost before it is sent, as one line and its legend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.strip import Strip

from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, joined, left_right
from localllm.tui.palette import Ink

if TYPE_CHECKING:
    from localllm.client.looking import Preview

PARTS_FROM = 90
"""Columns from which the legend names all parts."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens. None: not known. `reserve`: what the answer may take; `over`: how many messages, from the first on, do
    not fit."""

    system: int = 0
    history: int = 0
    files: int = 0
    draft: int = 0
    cached: int = 0
    reserve: int | None = None
    total: int | None = None
    compute_s: float | None = None
    over: int = 0

    @property
    def prompt(self) -> int:
        return self.system + self.history + self.files + self.draft

    @property
    def to_compute(self) -> int:
        return max(0, self.prompt - self.cached)

    @property
    def used(self) -> int:
        """With what is held free for the answer."""
        return self.prompt + (self.reserve or 0)

    @property
    def is_over(self) -> bool:
        return self.over > 0 or (self.total is not None and self.prompt >= self.total)


def budget_of(preview: Preview, file_tokens: int = 0) -> Budget:
    """`file_tokens` of the draft are files."""
    parts = preview.parts
    files = min(file_tokens, parts.draft)
    total, reserve = preview.context_length, preview.max_tokens
    if total is not None and reserve is not None:
        reserve = min(reserve, max(0, total - preview.prompt_tokens))
    return Budget(
        system=parts.system,
        history=parts.history + parts.continued,
        files=files,
        draft=parts.draft - files,
        cached=preview.cached_tokens,
        reserve=reserve,
        total=total,
        compute_s=preview.compute_s,
    )


class ContextBar(Drawn):
    """`budget` None: nobody was asked yet. `note` stands in place of the legend: why nothing is known, what to do."""

    DEFAULT_CSS = """
    ContextBar { height: 2; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.budget: Budget | None = None
        self.note = ""
        self.is_off = False
        """The daemon is gone: what is drawn is what was known."""

    def show(self, budget: Budget | None, note: str = "", *, is_off: bool = False) -> None:
        if (budget, note, is_off) != (self.budget, self.note, self.is_off):
            self.budget, self.note, self.is_off = budget, note, is_off
            self.redraw()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        bar = Line(("─" * width, ink("line")))
        if self.budget is not None and not self.is_off:
            bar = over_bar(ink, width) if self.budget.is_over else share_bar(ink, self.budget, width)
        return [bar.strip(width), legend(ink, self.budget, self.note, width).strip(width)]


def over_bar(ink: Ink, width: int) -> Line:
    return Line(("━" * width, ink("warn")))


def share_bar(ink: Ink, budget: Budget, width: int) -> Line:
    """Cached, to compute, held free for the answer, and the rest."""
    total = budget.total or max(budget.used, 1)
    parts = ((budget.cached, "━", "accent"), (budget.to_compute, "━", "text"), (budget.reserve or 0, "╌", "muted"))
    line, room = Line(), width
    for tokens, sign, role in parts:
        cells = min(room, max(1, round(tokens / total * width))) if tokens else 0
        line.put(sign * cells, ink(role))
        room -= cells
    return line.put("─" * room, ink("line"))


def legend(ink: Ink, budget: Budget | None, note: str, width: int) -> Line:
    """What fits: first the parts are dropped, then the time, then the total."""
    if budget is None:
        return Line((note, ink("muted"))).fit(width) if note else Line()
    if note or budget.is_over:
        said = note or over_note(budget)
        left = total_text(ink, budget)
        right = Line((said, ink("warn" if budget.is_over else "muted")))
        return left_right(left, right, width) if left.width + right.width + 2 <= width else right.fit(width)
    for left, right in _forms(ink, budget, width >= PARTS_FROM):
        if left.width + right.width + (3 if left.width else 0) <= width:
            return left_right(left, right, width)
    return Line()


def over_note(budget: Budget) -> str:
    if not budget.over:
        return "The conversation does not fit. alt+o shows where."
    return f"{words.plural(budget.over, 'message')} will not fit: alt+o shows which"


def total_text(ink: Ink, budget: Budget) -> Line:
    line = Line((words.count(budget.used), ink("muted")))
    return (
        line.put(f" of {words.count(budget.total)}", ink("faint"))
        if budget.total
        else line.put(" tokens", ink("faint"))
    )


def _forms(ink: Ink, budget: Budget, has_parts: bool) -> Iterator[tuple[Line, Line]]:
    shares = joined(
        [
            Line(("━ ", ink("accent"))).put(f"{words.count(budget.cached)} cached", ink()),
            Line(("━ ", ink("text"))).put(f"{words.count(budget.to_compute)} to compute", ink()),
        ],
        3,
    )
    timed = Line().add(shares)
    if budget.compute_s is not None and budget.to_compute:
        timed.put(f"  ≈ {about(budget.compute_s)}", ink("muted"))
    total = total_text(ink, budget)
    if has_parts:
        yield _parts(ink, budget, budget.total), timed
        yield _parts(ink, budget), timed
        yield _parts(ink, budget), shares
    yield total, timed
    yield total, shares
    yield Line(), shares


def _parts(ink: Ink, budget: Budget, total: int | None = None) -> Line:
    told = [
        ("system", words.count(budget.system), budget.system),
        ("history", words.count(budget.history), budget.history),
        ("file", words.count(budget.files), budget.files),
        ("draft", words.count(budget.draft), budget.draft),
        ("reply", f"≤ {words.count(budget.reserve)}", budget.reserve),
        ("of", words.count(total), total),
    ]
    return joined(
        [Line((f"{name} ", ink("faint"))).put(text, ink("muted")) for name, text, is_there in told if is_there], 3
    )


def about(span_s: float) -> str:
    """An estimate: `0.7 s`, `12 s`, `2 min`."""
    if span_s < 9.95:
        return f"{max(0.1, span_s):.1f} s"
    return f"{span_s:.0f} s" if span_s < 90 else f"{span_s / 60:.0f} min"
