"""Facts of a token, tokenizers compared, the vocabulary, and a chat template: lines of the Tokens screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style

from localllm import told
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.lines import Line, cell, heading, shortened
from localllm.tui.palette import Ink
from localllm.tui.tokens.state import MAX_CHARS, TokensState, hex_text
from localllm.visible import visible_text

LABEL = 13
NOBODY = "No tokenizer is here yet: esc, then a adds one."
NAME = 11
_ROLE_SLOTS = {"system": 5, "user": 0, "assistant": 2, "tool": 1}


def fact_lines(ink: Ink, state: TokensState, width: int) -> list[Line]:
    """The token under the cursor."""
    token, split = state.current, state.split
    if token is None or split is None:
        return [heading(ink, width, "Token"), Line(("Nothing to look at yet.", ink("muted")))]
    info = Line((shortened(one_line(split.title), 20), ink("muted")))
    lines = [heading(ink, width, f"Token {words.count(state.token + 1)}", info)]
    lines.append(_fact(ink, "id", words.count(token.id), width))
    lines.append(_fact(ink, "bytes", _hex(token.bytes, width - LABEL), width))
    place = f"{token.start:,}–{token.end:,}" if token.end > token.start else "added, not in the text"
    lines.append(_fact(ink, "characters", place, width))
    facts = state.facts
    if facts is None or facts.id != token.id or facts.model != split.model:
        return lines
    if facts.merged_from:
        made = " + ".join(map(hex_text, facts.merged_from))
        lines.append(_fact(ink, "merged from", made, width))
    elif facts.score is not None:
        lines.append(_fact(ink, "score", f"{facts.score:.2f}".replace("-", words.MINUS), width))
    else:
        lines.append(_fact(ink, "kind", facts.type, width))
    lines.append(_fact(ink, "also in", _also_in(facts, width - LABEL), width))
    return lines


def _fact(ink: Ink, label: str, value: str, width: int) -> Line:
    return Line((cell(label, LABEL), ink("muted"))).put(shortened(value, width - LABEL), ink())


def _hex(raw: str, width: int) -> str:
    shown = bytes.fromhex(raw).hex(" ")
    return shown if len(shown) <= width else shown[: max(0, (width - 1) // 3) * 3 - 1] + "…"


def _also_in(facts: told.TokenFacts, width: int) -> str:
    if not facts.num_also_in:
        return "no other token"
    first = f"“{hex_text(facts.also_in[0].bytes)}”"
    more = facts.num_also_in - 1
    return first + (f", {words.count(more)} more" if more else "")


# ---- side by side


def compare_lines(ink: Ink, state: TokensState, width: int) -> list[Line]:
    """How many tokens each needs; the fewest in accent."""
    splits = [split for split in state.splits if not split.problem]
    if len(splits) < 2:
        return []  # nothing to compare it with
    counts = [split.count for split in splits]
    fewest, most = min(counts, default=0), max(counts, default=0)
    info = Line()
    if fewest:
        info = Line(("spread ", ink("muted"))).put(words.percent(most / fewest - 1), ink())
    lines = [heading(ink, width, "Compare", info)]
    bar = width - NAME - 8 - 8
    for split in splits:
        is_fewest = split.count == fewest
        is_current = state.split is not None and split.model == state.split.model
        filled = round(split.count / most * bar) if most else 0
        line = Line((cell(one_line(split.title), NAME - 1) + " ", ink("text" if is_current else "muted")))
        line.put("━" * filled, ink("accent" if is_fewest else "muted")).pad_to(NAME + bar)
        line.put(words.short_count(split.count).rjust(8), ink("bright" if is_fewest else "text", bold=is_fewest))
        more = "fewest" if is_fewest else f"+{words.short_count(split.count - fewest)}"
        lines.append(line.put(more.rjust(8), ink("accent" if is_fewest else "muted")))
    return [*lines, _agreement(ink, splits)]


def _agreement(ink: Ink, splits: Sequence[told.SplitText]) -> Line:
    number = {2: "both", 3: "all three", 4: "all four"}[len(splits)]
    agreed = splits[0].num_agreed
    line = Line((words.plural(agreed, "cut"), ink("muted"))).put(
        f" {'agrees' if agreed == 1 else 'agree'} in {number}", ink("muted")
    )
    if all(split.count == agreed for split in splits):
        return line
    return line.put(", ", ink("muted")).put("the others", ink(underline=True)).put(" do not", ink("muted"))


def text_info(ink: Ink, state: TokensState, width: int) -> Line:
    """Counts of the text, and where it is cut off and why."""
    text = state.text
    info, num_bytes = Line(), len(text.encode("utf-8", "replace"))
    for gap, number, name in (("", len(text), "character"), ("   ", num_bytes, "byte")):
        info.put(f"{gap}{words.count(number)}", ink()).put(f" {words.noun(number, name)}", ink("muted"))
    if len(text) <= MAX_CHARS:
        return info
    why = f"the first {words.count(MAX_CHARS)} are shown, so that typing stays quick   "
    return Line((why, ink("warn"))).add(info) if width > 90 else Line(("cut   ", ink("warn"))).add(info)


# ---- the vocabulary


def vocabulary_lines(ink: Ink, state: TokensState, width: int) -> list[Line]:
    """What was looked up; without a question, the neighbours of the token under the cursor."""
    page = state.page
    if page is None:
        return [Line(("/ looks a token up: text, #id or 0x bytes", ink("muted")))]
    lines = []
    if state.query and len(page.as_tokens) > 1 and page.offset == 0:
        shown = visible_text(state.query)
        line = Line((cell(shown, width - 22), ink("faint"))).put(cell("not a token", 11, "right"), ink("faint"))
        lines.append(line.put(cell(words.plural(len(page.as_tokens), "token"), 11, "right"), ink("faint")))
    for entry in page.entries:
        is_current = state.current is not None and entry.id == state.current.id
        shown = hex_text(entry.bytes) or "–"
        line = Line((cell(shown, width - 22), ink("accent" if is_current else "text", bold=is_current)))
        line.put(cell(words.count(entry.id), 11, "right"), ink())
        lines.append(line.put(cell(_weight(entry), 11, "right"), ink("muted")))
    if not page.entries:
        lines.append(Line(("No token holds this.", ink("muted"))))
    elif page.total > page.offset + len(page.entries):
        rest = page.total - page.offset - len(page.entries)
        lines.append(Line((f"… {words.count(rest)} more", ink("faint"))))
    return lines


def _weight(entry: told.VocabularyEntry) -> str:
    if entry.rank is not None:
        return words.count(entry.rank)
    if entry.score is not None:
        return f"{entry.score:.2f}".replace("-", words.MINUS)
    return "" if entry.type == "normal" else entry.type


def vocabulary_info(ink: Ink, state: TokensState) -> Line:
    page = state.page
    if page is None:
        return Line()
    if not state.query:
        return Line((words.count(page.vocab_size), ink("muted")))
    found = Line((words.count(page.total), ink())).put(" of ", ink("muted"))
    return found.put(words.count(page.vocab_size), ink("muted"))


# ---- the template


def template_lines(ink: Ink, state: TokensState, width: int) -> list[Line]:
    """The text as a message, as the model reads it: roles with a bar, special tokens as chips."""
    view = state.template
    info = Line()
    if view is not None:
        info.put(words.count(view.num_tokens), ink()).put(" tokens, ", ink("muted"))
        info.put(words.count(view.num_special), ink()).put(" special", ink("muted"))
    lines = [heading(ink, width, "Chat template", info)]
    if view is None:
        nothing = "Type a text to see it as a message." if state.names else NOBODY
        said = state.template_problem or nothing
        return [
            *lines,
            Line(("▪ " if state.template_problem else "", ink("err"))).put(one_line(said), ink("muted")).fit(width),
        ]
    lines += _Template(ink, width).lines(view.parts)
    if view.note:
        lines.append(Line((shortened(one_line(view.note), width), ink("faint"))))
    return lines


class _Template:
    """Wraps the parts of a template into lines; a line of what a message says begins with the bar of its role."""

    def __init__(self, ink: Ink, width: int) -> None:
        self._ink = ink
        self._width = width
        self._lines: list[Line] = []
        self._line = Line()

    def lines(self, parts: Sequence[told.TemplatePart]) -> list[Line]:
        for part in parts:
            self._part(part)
        if parts and parts[-1].message < 0 and parts[-1].kind == "opening":
            self._put(" the answer begins here", self._ink("faint"), "")
        self._end()
        return self._lines

    def _part(self, part: told.TemplatePart) -> None:
        ink = self._ink
        if part.kind == "special":
            name = visible_text(part.text).strip("<|>") or visible_text(part.text)
            self._put(f" {name} ", ink("accent", on="accent_bg", underline=ink.is_mono), "")
            return
        hue = ink.roles.owner(_ROLE_SLOTS.get(part.role, 3))
        style = {"role": ink(hue, bold=True), "content": ink(), "opening": ink("bright", bold=True)}.get(
            part.kind, ink("faint")
        )
        bar = hue if part.kind == "content" else ""
        for number, row in enumerate(part.text.split("\n")):
            if number:
                self._put("↵", ink("faint"), bar)
                self._end()
            if row:
                self._put(visible_text(row).replace("·", " "), style, bar)

    def _put(self, text: str, style: Style, bar: str) -> None:
        """Whole words where they fit, else as much as fits."""
        while text:
            if bar and not self._line.width:
                self._line.put("▌ ", self._ink(bar))
            room = self._width - self._line.width
            begin = text[: 4 * self._width]  # what is measured of a long text: else each line would cost all the rest
            if len(begin) == len(text) and cell_len(text) <= room:
                self._line.put(text, style)
                return
            cut = self._cut(begin, room)
            self._line.put(text[:cut], style)
            text = text[cut:].lstrip(" ") if bar else text[cut:]
            self._end()

    def _cut(self, text: str, room: int) -> int:
        if room <= 0:
            return 0
        fits = next((n for n in range(min(len(text), room), 0, -1) if cell_len(text[:n]) <= room), 1)
        space = text.rfind(" ", 0, fits + 1)
        if space > 0:
            return space
        return 0 if self._line.width > 2 and fits < len(text) and len(text) < self._width - 2 else fits

    def _end(self) -> None:
        if self._line.width:
            self._lines.append(self._line)
        self._line = Line()
