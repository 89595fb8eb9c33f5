"""The token in question: its facts, what could have stood in its place, and what a branch from there costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.inspector.inspected import Alternative, InspectedAnswer, InspectedToken, is_allowed
from localllm.tui.inspector.measure import context_before, cuts_text, ordinal
from localllm.tui.lines import Line, clip, gauge, heading, left_right, shortened
from localllm.tui.palette import Ink
from localllm.visible import visible

LABEL = 13
NUMBER = 8
NAME = 17
"""Names of alternatives and the sign of the one taken: thirteen cells hold nearly all words."""
ROOMY = 24
"""Rows from which on everything has its own."""


class TokenPanel(Drawn):
    """`cursor` is the token, `chosen` the alternative under the selection. Nine rows are enough for all of it."""

    class Picked(Message):
        """An alternative was clicked; a second time, if it is chosen already."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, answer: InspectedAnswer) -> None:
        super().__init__()
        self.answer = answer
        self.cursor = 0
        self.chosen = 0
        self._numbers: dict[int, int] = {}
        """Of rows, the alternatives in them."""

    @property
    def token(self) -> InspectedToken | None:
        tokens = self.answer.tokens
        return tokens[self.cursor] if self.cursor < len(tokens) else None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        token = self.token
        if token is None:
            nothing = [heading(ink, width, "Token"), Line(), Line(("Nothing was written yet.", ink("muted")))]
            return [line.strip(width) for line in nothing]
        make = self._whole if height >= ROOMY else self._sheet
        return [line.strip(width) for line in make(ink, token, width, height)]

    def on_click(self, event: events.Click) -> None:
        number = self._numbers.get(event.y)
        if number is not None:
            self.post_message(self.Picked(number))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, 1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, by: int) -> None:
        event.stop()
        number = self.chosen + by
        if 0 <= number < len(self.choices()):
            self.post_message(self.Picked(number))

    # ---- the two forms

    def _whole(self, ink: Ink, token: InspectedToken, width: int, height: int) -> list[Line]:
        choice = Line((_choice(token), ink("muted")))
        lines = [heading(ink, width, f"Token {self.cursor + 1:,}", choice), Line()]
        lines += [
            Line((clip(visible(token.raw), width) or "nothing", _here(ink))),
            Line(),
            *self._facts(ink, token, width),
        ]
        lines += [Line(), heading(ink, width, "Alternatives", Line((cuts_text(self.answer.cuts), ink("muted"))))]
        branch = self._branch(ink, token, width)
        lines += self._alternatives(ink, token, width, height - len(lines) - len(branch) - 1, len(lines))
        lines += [Line()] * (height - len(branch) - len(lines))
        return lines + branch

    def _sheet(self, ink: Ink, token: InspectedToken, width: int, height: int) -> list[Line]:
        facts = Line((f"{_choice(token)}   ", ink("muted"))).put(_chance(token), ink())
        entropy = _entropy(token, self.answer.vocab_size)
        facts.put("   entropy ", ink("muted")).put(entropy, ink())
        lines = [heading(ink, width, f"Token {self.cursor + 1:,}", facts)]
        chip = Line((shortened(visible(token.raw), width // 2) or "nothing", _here(ink)))
        chip.put("   id ", ink("muted")).put(str(token.token_id), ink()).put("   bytes ", ink("muted"))
        lines.append(chip.put(shortened(token.raw.hex(" "), max(1, width - chip.width)), ink()))
        lines += self._alternatives(ink, token, width, height - 3, 2)
        lines += [Line()] * (height - 1 - len(lines))
        return [*lines, self._branch_line(ink, token, width)]

    # ---- facts

    def _facts(self, ink: Ink, token: InspectedToken, width: int) -> list[Line]:
        chance = Line((_chance(token), ink()))
        if token.logprob is not None:
            chance.put(f"   {_signed(token.logprob)} nats", ink("muted"))
        facts = [
            ("id", Line((str(token.token_id), ink()))),
            ("bytes", Line((shortened(token.raw.hex(" "), width - LABEL), ink()))),
            ("probability", chance),
            ("entropy", Line((_entropy(token, self.answer.vocab_size), ink()))),
            ("page", self._page(ink)),
        ]
        return [Line((f"{label:<{LABEL}}", ink("muted"))).add(value) for label, value in facts]

    def _page(self, ink: Ink) -> Line:
        """Where it lies in its chat; which page of the machine that is, only the dashboard knows."""
        if not self.answer.num_prompt:
            return Line((words.UNKNOWN, ink("faint")))
        page, place = divmod(self.answer.num_prompt + self.cursor, self.answer.page_size)
        line = Line((ordinal(page + 1), ink()))
        return line.put(f"   token {place + 1} of {self.answer.page_size}", ink("muted"))

    # ---- alternatives

    def choices(self) -> Sequence[Alternative]:
        """What can be branched to: the alternatives, and the token itself where it is none of them."""
        return choices_of(self.token) if self.token else ()

    def _alternatives(self, ink: Ink, token: InspectedToken, width: int, room: int, at: int) -> list[Line]:
        self._numbers = {}
        if not token.alternatives:
            return _explained(ink, width)[: max(0, room)]
        choices, allowed = choices_of(token), list(is_allowed(token, self.answer.cuts))
        best = max(each.probability for each in choices)
        last = len(allowed) - 1 - allowed[::-1].index(True) if True in allowed else -1
        rows: list[tuple[int | None, Line]] = []
        for number, each in enumerate(choices):
            is_out = number < len(allowed) and not allowed[number]
            rows.append((number, self._row(ink, token, number, each, each.probability / best / 1.09, width, is_out)))
            if number == last and last < len(allowed) - 1:
                rows.append((None, _never(ink, width)))
        rows.append((None, self._rest(ink, choices, width)))
        start = _window([number for number, _ in rows], self.chosen, room)
        shown = rows[start : start + max(0, room)]
        self._numbers = {at + place: number for place, (number, _) in enumerate(shown) if number is not None}
        return [line for _, line in shown]

    def _row(
        self, ink: Ink, token: InspectedToken, number: int, each: Alternative, share: float, width: int, is_out: bool
    ) -> Line:
        is_taken, is_chosen = each.token_id == token.token_id, number == self.chosen
        role = "accent" if is_taken else "faint" if is_out else "muted"
        name = "faint" if is_out else "bright" if is_chosen else "text"
        name_width = max(NAME, width // 4)
        text = shortened(visible(each.raw) or f"id {each.token_id}", name_width - 4)
        line = Line(("▌" if is_chosen else " ", ink("accent"))).put(text, ink(name))
        line.put("  ✓" if is_taken else "", ink("accent")).pad_to(name_width)
        bar = gauge(ink, share, width - name_width - NUMBER, role, None)
        line.add(bar).put(f"{each.probability:{NUMBER}.3f}", ink("faint" if is_out else "text"))
        return line.on(ink.selected) if is_chosen else line

    def _rest(self, ink: Ink, choices: Sequence[Alternative], width: int) -> Line:
        left = max(0.0, 1.0 - sum(each.probability for each in choices))
        known = self.answer.vocab_size - len(choices)
        text = f" {words.count(known)} more" if known > 0 else " all others"
        return left_right(Line((text, ink("faint"))), Line((f"{left:.3f}", ink("faint"))), width)

    # ---- the branch

    def _branch(self, ink: Ink, token: InspectedToken, width: int) -> list[Line]:
        choices = choices_of(token)
        if not choices:
            return []
        chosen = choices[min(self.chosen, len(choices) - 1)]
        name = shortened(_spoken(chosen.raw), width // 2)
        before = _safe(context_before(self.answer, self.cursor, width - cell_len(name) - len("“… ") - len(" …”")))
        quote = Line((f"“… {before}" if before else "“", ink("muted")))
        quote.put(name, ink("bright", bold=True)).put(" …”", ink("muted"))
        keeps = Line(("keeps     ", ink("muted"))).put(self._kept(), ink())
        computes = Line(("computes  ", ink("muted"))).put(self._computed(), ink())
        return [
            heading(ink, width, "Branch here"),
            quote,
            keeps,
            computes,
            Line(),
            self._enter(ink, token, chosen, width),
        ]

    def _branch_line(self, ink: Ink, token: InspectedToken, width: int) -> Line:
        choices = choices_of(token)
        if not choices:
            return Line()
        enter = self._enter(ink, token, choices[min(self.chosen, len(choices) - 1)], width // 2)
        kept = words.plural(self.cursor, "token")
        cost = Line((f"keeps {kept}, computes {self._computed()}", ink("muted")))
        return left_right(enter, cost, width) if enter.width + cost.width < width else enter

    def _kept(self) -> str:
        tokens = words.plural(self.cursor, "token")
        pages = self.answer.pages_kept(self.cursor)
        return f"{tokens}, {words.plural(pages, 'page')} shared" if self.answer.num_prompt else tokens

    def _computed(self) -> str:
        return words.plural(self.answer.computed_by_branch(self.cursor), "token") if self.answer.num_prompt else "–"

    def _enter(self, ink: Ink, token: InspectedToken, chosen: Alternative, width: int) -> Line:
        line = Line(("enter", ink("text", bold=True)))
        name = shortened(_spoken(chosen.raw).strip() or visible(chosen.raw), max(4, width - 20))
        what = "write on from here again" if chosen.token_id == token.token_id else f"go on from “{name}”"
        return line.put(f" {what}", ink("muted"))


def choices_of(token: InspectedToken) -> Sequence[Alternative]:
    """The alternatives, and last the token itself where it is none of them."""
    if not token.alternatives or token.rank is not None:
        return token.alternatives
    return (*token.alternatives, Alternative(token.token_id, token.raw, token.logprob or -math.inf))


def _here(ink: Ink) -> Style:
    return Style(reverse=True, bold=True) if ink.is_mono else ink("on_accent", on="accent", bold=True)


def _choice(token: InspectedToken) -> str:
    if not token.alternatives:
        return ""
    return f"{ordinal(token.rank)} choice" if token.rank else f"beyond the {ordinal(len(token.alternatives))}"


def _chance(token: InspectedToken) -> str:
    return words.UNKNOWN if token.probability is None else f"{token.probability:.3f}"


def _entropy(token: InspectedToken, vocab_size: int) -> str:
    if token.entropy is None:
        return words.UNKNOWN
    bits = token.entropy / math.log(2)
    return f"{bits:.2f} of {math.log2(vocab_size):.1f} bits" if vocab_size > 1 else f"{bits:.2f} bits"


def _signed(number: float) -> str:
    return f"{number:.2f}".replace("-", words.MINUS)


def _never(ink: Ink, width: int) -> Line:
    said = " below here the sampler never goes "
    before = max(0, min(6, width - len(said)))
    line = Line(("╌" * before, ink("line"))).put(said, ink("faint"))
    return line.put("╌" * (width - line.width), ink("line"))


def _explained(ink: Ink, width: int) -> list[Line]:
    said = ("What else could have stood here is not", "known: nobody asked when it was written.")
    return [Line((text, ink("muted"))) for text in said] if width < 80 else [Line((" ".join(said), ink("muted")))]


def _window(numbers: Sequence[int | None], chosen: int, room: int) -> int:
    """The first row to show, so that the chosen one is in view."""
    at = numbers.index(chosen) if chosen in numbers else 0
    return max(0, min(at - room // 2, len(numbers) - room)) if at >= room - 1 else 0


def _spoken(raw: bytes) -> str:
    """As it reads in a text: a blank before a word is one."""
    shown = visible(raw)
    return " " + shown[1:] if shown[:1] == "·" and shown.strip("·") else shown


def _safe(text: str) -> str:
    return visible(text.encode("utf-8", errors="replace")).replace("·", " ")
