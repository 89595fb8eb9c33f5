"""One turn of a conversation as rows: who, what was thought, the text, and the line of figures under it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from markdown_it import MarkdownIt
from rich.segment import Segment

from localllm.history import AnswerStats, Attachment
from localllm.safe_text import one_line, sanitize
from localllm.tui import words
from localllm.tui.conversation.turns import Live, Trouble, Turn
from localllm.tui.lines import Line, joined, left_right, shortened
from localllm.tui.markdown.document import MarkdownText
from localllm.tui.markdown.rows import BLANK, Look, Row, row
from localllm.tui.markdown.wrap import drawable, wrap_plain
from localllm.tui.palette import Ink

Action = Literal["fold", "previous", "next"]
NAMES = {"user": "You", "system": "System", "tool": "Tool"}
CARET = "▍"
LONG_QUOTE = 40
"""Rows of what somebody said; of more, half as many are shown until it is unfolded."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Cells of a turn's first row that do something when they are clicked."""

    start: int
    end: int
    action: Action


class TurnView:
    """Holds a turn and its rows. Rows are made when somebody asks and kept until the turn or the look changes."""

    def __init__(self, turn: Turn, reader: MarkdownIt, clock: Callable[[], float] = time.time) -> None:
        self.turn = turn
        self._reader = reader
        self.live = Live()
        self.is_unfolded = False
        self.hits: tuple[Hit, ...] = ()
        self._clock = clock
        self._text, self._thought = MarkdownText(reader), MarkdownText(reader)
        self._floor = 0
        self._look: Look | None = None
        self._is_stale = True
        self._rows: list[Row] = []
        self.become(turn)

    @property
    def is_writing(self) -> bool:
        return self.turn.state == "writing"

    @property
    def num_tokens(self) -> int:
        """Of an answer, as far as it is known."""
        if self.is_writing:
            return self.live.tokens or 0
        return self.turn.stats.tokens if self.turn.stats else 0

    def write(self, text: str, reasoning: str = "") -> None:
        """More of an answer that is being written."""
        self._text.feed(text)
        self._thought.feed(reasoning)
        self.turn = replace(self.turn, text=self.turn.text + text, reasoning=self.turn.reasoning + reasoning)
        self._is_stale = True

    def tell(self, live: Live) -> None:
        self.live = live
        self._is_stale = True

    def become(self, turn: Turn) -> None:
        """The turn as it is now; what was drawn of its text is used again if it only grew."""
        self.turn = turn
        if turn.is_answer:
            self._text = self._grown(self._text, turn.text)
            self._thought = self._grown(self._thought, turn.reasoning)
        if turn.state != "writing":
            self._floor = 0
        self._is_stale = True

    def fold(self) -> None:
        self.is_unfolded = not self.is_unfolded
        self._floor = 0
        self._is_stale = True

    def rows(self, look: Look) -> list[Row]:
        """From its first row to its last, without the blank one that parts it from the next turn."""
        if self._look != look:
            self._floor, self._look, self._is_stale = 0, look, True
        if self._is_stale:
            self._rows = self._answer(look) if self.turn.is_answer else self._quote(look)
            self._is_stale = False
        return self._rows

    def codes(self) -> list[str]:
        """The code blocks of an answer, as they were written."""
        return self._text.codes()

    def _grown(self, drawn: MarkdownText, text: str) -> MarkdownText:
        """`drawn` with what is new in `text`, or a new one where it is another text."""
        is_over = drawn.is_finished and (drawn.source != text or self.is_writing)  # one that goes on is open again
        if is_over or not text.startswith(drawn.source):
            drawn = MarkdownText(self._reader)
        if not drawn.is_finished:
            drawn.feed(text[len(drawn.source) :], is_last=not self.is_writing)
            if not self.is_writing:
                drawn.finish()
        return drawn

    # ---- what others said

    def _quote(self, look: Look) -> list[Row]:
        ink, ground = look.ink, look.ink("text", on="panel")
        lines = [self._quote_head(look)]
        for line in self._said(look):
            lines.append(Line(("▌", ink("muted"))).put(" ", ink()).add(line))
        return [row(line.fit(look.width).on(ground)) for line in lines]

    def _said(self, look: Look) -> list[Line]:
        """The text as it is; a long one is folded."""
        text, width = drawable(sanitize(self.turn.text)), max(2, look.width - 4)
        if not text.strip():
            return []
        shown = text if self.is_unfolded else text[: LONG_QUOTE * width]
        lines = wrap_plain(shown, look.ink(), width)
        if self.is_unfolded or (len(shown) == len(text) and len(lines) <= LONG_QUOTE):
            return lines
        lines = lines[: LONG_QUOTE // 2]
        left_out = len(text) - sum(len(line.text) + 1 for line in lines)
        fold = Line((f"▸ {words.count(left_out)} more characters", look.ink("muted")))
        return [*lines, fold.put("   enter", look.ink("text", bold=True)).put(" shows them", look.ink("muted"))]

    def _quote_head(self, look: Look) -> Line:
        turn, ink = self.turn, look.ink
        left = Line(("▌", ink("muted"))).put(" ", ink()).put(NAMES[turn.role], ink("bright", bold=True))
        if turn.siblings.count > 1:
            right = self._siblings(look, 2)
        else:
            when = _clock_time(turn.created, self._clock())
            right = Line((f"{when}  " if when else "", ink("faint")))
        for chip in (_chip(ink, attachment) for attachment in turn.attachments):
            if left.width + chip.width + 5 + right.width > look.width:
                break
            left.put("   ", ink()).add(chip)
        else:
            return left_right(left, right, look.width)
        return left_right(left.put("  …", ink("muted")), right, look.width)

    # ---- answers

    def _answer(self, look: Look) -> list[Row]:
        body = self._body(look)
        if self.is_writing:
            self._floor = max(self._floor, len(body))
            body += [BLANK] * (self._floor - len(body))
        foot = [row(line.fit(look.width) if line.width > look.width else line) for line in self._foot(look)]
        air = [] if look.is_compact or not body or not foot else [BLANK]
        has_thought = bool(self.turn.reasoning) and not look.is_compact
        return [
            row(self._answer_head(look)),
            *(air if has_thought else ()),
            *body,
            *air,
            *foot,
        ]

    def _body(self, look: Look) -> list[Row]:
        rows = []
        if self.is_unfolded and self.turn.reasoning:
            bar = Line(("│ ", look.ink("line")))
            inner = replace(look, width=max(2, look.width - 2), role="muted")
            thought = self._with_caret(self._thought.rows(inner), inner, not self.turn.text)
            rows = [_cut(each, inner.width)._replace(code=0, is_head=False).behind(bar) for each in thought]
            rows += [BLANK] if self.turn.text and not look.is_compact else []
        return rows + self._with_caret(self._text.rows(look), look, bool(self.turn.text))

    def _with_caret(self, rows: list[Row], look: Look, is_here: bool) -> list[Row]:
        """Where the next token will stand."""
        if not (self.is_writing and is_here and rows and rows[-1].used < look.width):
            return list(rows)
        last = rows[-1]
        caret = Segment(CARET, look.ink("bright", on="panel" if last.code else None))
        start, rest = last.strip.crop(0, last.used), last.strip.crop(last.used + 1)
        return [*rows[:-1], last._replace(segments=[*start, caret, *rest], width=max(last.width, last.used + 1))]

    def _answer_head(self, look: Look) -> Line:
        turn, ink = self.turn, look.ink
        right = self._siblings(look, 0)
        name = shortened(one_line(words.model_name(turn.model)) or "Answer", max(2, look.width - right.width - 2))
        left, hits = Line((name, ink("bright", bold=True))), list(self.hits)
        if turn.reasoning:
            fold = self._fold(ink)
            if left.width + 3 + fold.width + 2 + right.width <= look.width:
                start = left.width + 3
                left.put("   ").add(fold)
                hits.append(Hit(start, left.width, "fold"))
        self.hits = tuple(hits)
        return left_right(left, right, look.width)

    def _fold(self, ink: Ink) -> Line:
        """`▸ thought for 3.4 s  214 tokens`."""
        mark, stats = "▾" if self.is_unfolded else "▸", self.turn.stats
        if self.is_writing and not self.turn.text:
            return Line((f"{mark} thinking", ink("muted")))
        took = f" for {words.age(stats.thought_s)}" if stats and stats.thought_s else ""
        line = Line((f"{mark} thought{took}", ink("muted")))
        return line.put(
            f"  {words.count(stats.thought_tokens)} tokens" if stats and stats.thought_tokens else "", ink("faint")
        )

    def _siblings(self, look: Look, margin: int) -> Line:
        """`‹ 2 of 3 ›`, ending `margin` cells before the right edge; the arrows can be clicked."""
        self.hits = ()
        siblings, ink = self.turn.siblings, look.ink
        if siblings.count < 2:
            return Line()
        line = Line(("‹", ink("text", bold=True))).put(f" {siblings.index} of {siblings.count} ", ink("muted"))
        line.put("›", ink("text", bold=True))
        start = look.width - margin - line.width
        self.hits = (Hit(start - 1, start + 2, "previous"), Hit(start + line.width - 2, start + line.width + 1, "next"))
        return line.put(" " * margin)

    def _foot(self, look: Look) -> list[Line]:
        if self.is_writing:
            return [live_line(look.ink, self.live, look.width)]
        if self.turn.trouble:
            return trouble_lines(look.ink, self.turn.trouble, self.turn.state == "failed", look.width)
        return [line] if self.turn.stats and (line := stats_line(look.ink, self.turn.stats, look.width)).width else []


def _cut(each: Row, width: int) -> Row:
    """Code among thoughts is not moved sideways."""
    if each.width <= width:
        return each
    return each._replace(segments=list(each.strip.crop(0, width)), width=width, used=min(each.used, width))


def stats_line(ink: Ink, stats: AnswerStats, width: int) -> Line:
    """`412 tokens   62.4 tok/s   184 ms first token   2,048 of 2,311 cached   stop`; what does not fit is dropped."""
    parts = []
    if stats.tokens:
        parts.append((words.count(stats.tokens), "tokens"))
    if stats.tokens_per_s:
        parts.append((words.rate(stats.tokens_per_s), "tok/s"))
    if stats.first_token_s:
        parts.append((words.seconds(stats.first_token_s), "first token"))
    if stats.prompt_tokens:
        parts.append((f"{words.count(stats.cached_tokens)} of {words.count(stats.prompt_tokens)}", "cached"))
    if stats.stop_reason:
        parts.append((one_line(stats.stop_reason), ""))
    lines = [Line((value, ink("muted"))).put(f" {label}" if label else "", ink("faint")) for value, label in parts]
    return joined(_fitting(lines, width), 3)


def live_line(ink: Ink, live: Live, width: int) -> Line:
    """`▶ writing   48 tokens   62.4 tok/s   first token 121 ms`, and the key that stops it."""
    right = Line(("esc", ink("text", bold=True))).put(" stop", ink("muted"))
    parts = [Line(("▶ ", ink("accent"))).put(one_line(live.doing), ink())]
    if live.tokens is not None:
        parts.append(Line((words.plural(live.tokens, "token"), ink("muted"))))
    if live.tokens_per_s is not None:
        parts.append(Line((f"{words.rate(live.tokens_per_s)} tok/s", ink("muted"))))
    if live.first_token_s is not None:
        parts.append(Line((f"first token {words.seconds(live.first_token_s)}", ink("muted"))))
    if live.note:
        parts.append(Line((one_line(live.note), ink("muted"))))
    return left_right(joined(_fitting(parts, width - right.width - 2), 3), right, width)


def trouble_lines(ink: Ink, trouble: Trouble, is_failure: bool, width: int) -> list[Line]:
    """`▪ interrupted   the first 48 tokens are saved`, and the key that helps; a long sentence goes below."""
    role = "err" if is_failure else "warn"
    left = Line((f"▪ {one_line(trouble.title)}", ink(role)))
    right = Line()
    if trouble.key:
        right.put(one_line(trouble.key), ink("text", bold=True)).put(f" {one_line(trouble.action)}", ink("muted"))
    elif trouble.code:
        right.put(one_line(trouble.code), ink("faint"))
    said = Line((one_line(trouble.sentence), ink("muted")))
    if left.width + said.width + right.width + 5 <= width or not said.width:
        return [left_right(left.put("   ").add(said), right, width)]
    below = wrap_plain(drawable(one_line(trouble.sentence)), ink("muted"), max(2, width - 2))
    return [left_right(left, right, width), *(Line(("  ", ink())).add(line) for line in below)]


def _fitting(parts: list[Line], width: int) -> list[Line]:
    fitting: list[Line] = []
    used = 0
    for part in parts:
        used += part.width + (3 if fitting else 0)
        if used > width:
            break
        fitting.append(part)
    return fitting


def _chip(ink: Ink, attachment: Attachment) -> Line:
    name = shortened(one_line(attachment.name), 32, "middle")
    chip = Line((f" {name} ", ink("text", on="sel")))
    tokens = words.plural(attachment.num_tokens, "token") if attachment.num_tokens else ""
    return chip.put(f" {tokens} " if tokens else "", ink("muted", on="sel"))


def _clock_time(created: float, now: float) -> str:
    """`14:01`, with the day when it was another one."""
    if not created:
        return ""
    then, today = time.localtime(created), time.localtime(now)
    is_today = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if is_today else "%-d %b %H:%M", then)
