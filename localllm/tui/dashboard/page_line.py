"""The line under the map: what the page under the cursor is, in words; with room, its tokens and its chain as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from localllm.safe_text import one_line
from localllm.tui.lines import Line, joined, plain_text, shortened
from localllm.tui.live.pages import CACHED, FREE, Holder, PageBoard
from localllm.tui.live.requests import record_of
from localllm.tui.live.state import LiveState, ModelState
from localllm.tui.palette import OTHERS as OTHERS_LETTER
from localllm.tui.palette import OWNER_LETTERS, Ink
from localllm.tui.words import age, count

MIN_QUOTE = 14


@dataclass(frozen=True, slots=True)
class ChainLink:
    """A page before this one: the start of its hash, how many hold it, and the ids of those that may be seen."""

    chain: str
    num_holders: int = 0
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PageText:
    """What is in a page, as the daemon told: its `tokens` as texts, the first at position `first`, and the `chain` of
    full pages back towards the root, `num_links` in all."""

    model: str
    page: int
    tokens: tuple[str, ...] = ()
    first: int | None = None
    chain: tuple[ChainLink, ...] = ()
    num_links: int = 0


def swatch(ink: Ink, slot: int | None, *, bold: bool = True) -> Line:
    """`▌a`: the hue, and the letter that says the same."""
    if slot is None:
        return Line(("  ", ink("faint")))
    letter = OWNER_LETTERS[slot] if slot < len(OWNER_LETTERS) else OTHERS_LETTER
    return Line(("▌", ink(ink.roles.owner(slot)))).put(letter, ink(bold=bold))


def page_line(ink: Ink, width: int, state: LiveState, model: ModelState, page: int, told: PageText | None) -> Line:
    board = model.board
    line = Line(("▸ ", ink("accent"))).put(f"page {page:,}", ink("bright", bold=True))
    raw = board.state(page)
    if raw == FREE:
        return line.put("   free", ink("muted")).fit(width)
    holders = board.holders(page, model.row.page_size)
    parts = [_owners(ink, state, holders, width)]
    if raw == CACHED:
        parts = [Line(("cached", ink())).put(", no request holds it", ink("muted"))]
    parts += _facts(ink, state, model, page, holders, told)
    for part in parts:
        if line.width + 3 + part.width <= width:
            line.put("   ").add(part)
    return _quoted(ink, line, width, told).fit(width)


def _owners(ink: Ink, state: LiveState, holders: Sequence[Holder], width: int) -> Line:
    if len(holders) == 1:
        request = state.requests.find(record_of(holders[0].sequence_id)[0])
        line = swatch(ink, state.slots.of(record_of(holders[0].sequence_id)[0]))
        if request is not None:
            line.put(f" {request.name} {shortened(request.source, 16)}".rstrip(), ink())
        return line
    line = Line(("shared by ", ink("muted"))) if holders else Line(("held", ink()))
    most = 8 if width >= 100 else 3
    slots = {state.slots.of(record_of(holder.sequence_id)[0]) for holder in holders}
    known = sorted(slot for slot in slots if slot is not None)
    swatches = [swatch(ink, slot) for slot in known[:most]]
    more = len(holders) - most
    return line.add(joined(swatches, 1)).put(f" and {more} more" if more > 0 else "", ink("muted"))


def _facts(
    ink: Ink, state: LiveState, model: ModelState, page: int, holders: Sequence[Holder], told: PageText | None
) -> list[Line]:
    board: PageBoard = model.board
    facts = []
    first = told.first if told is not None and told.tokens else next((each.first for each in holders), None)
    if first is not None:
        last = first + (len(told.tokens) if told is not None and told.tokens else model.row.page_size) - 1
        facts.append(Line(("tokens ", ink("muted"))).put(f"{count(first)}–{count(last)}", ink()))
    if holders:
        facts.append(Line(("refs ", ink("muted"))).put(count(board.references(page)), ink()))
    written = board.written(page)
    ago = "before this was opened" if written is None else f"{age(state.now - written)} ago"
    number, _, rest = ago.rpartition(" ") if written is not None else ("", "", ago)
    facts.append(Line(("written ", ink("muted"))).put(number, ink()).put(f" {rest}" if number else rest, ink("muted")))
    return facts


def _quoted(ink: Ink, line: Line, width: int, told: PageText | None) -> Line:
    text = one_line("".join(told.tokens)).strip() if told is not None else ""
    room = width - line.width - 5
    if not text or room < MIN_QUOTE:
        return line
    return line.put(f"   “{shortened(text, room)}”", ink("muted", italic=True))


def token_line(ink: Ink, width: int, told: PageText | None) -> Line:
    """The tokens side by side, neighbours on different grounds; blanks are dots."""
    line = Line(("  tokens   ", ink("muted")))
    if told is None or not told.tokens:
        return line.put("–", ink("faint"))
    for number, token in enumerate(told.tokens):
        text = plain_text(token)[0].replace(" ", "·") or "‹›"
        if line.width + cell_len(text) + 1 > width:
            return line.put("…", ink("muted"))
        line.put(text, ink(on="raised" if number % 2 else "sel"))
    return line


def chain_line(ink: Ink, width: int, state: LiveState, told: PageText | None) -> Line:
    """Hashes from the page towards the root, and who shares the beginning."""
    line = Line(("  chain    ", ink("muted")))
    if told is None or not told.chain:
        return line.put("–", ink("faint")).put("  only full pages can be found again", ink("faint"))
    for number, link in enumerate(told.chain[:3]):
        line.put("" if not number else " ← ", ink("faint")).put(link.chain[:6], ink())
    more = told.num_links - min(3, len(told.chain))
    if more > 0:
        line.put(" ← ", ink("faint")).put(f"{count(more)} more", ink("muted"))
    sharers = _sharers(state, told)
    if len(sharers) > 1:
        line.put(f", the first {count(_num_shared(told))} shared by " if more > 0 else ", shared by ", ink("muted"))
        letters = [OWNER_LETTERS[slot] if slot < len(OWNER_LETTERS) else OTHERS_LETTER for slot in sharers]
        line.put(" ".join(letters), ink())
    return line.fit(width)


def _sharers(state: LiveState, told: PageText) -> list[int]:
    names = {holder for link in told.chain for holder in link.holders}
    return sorted({slot for name in names if (slot := state.slots.of(name)) is not None})


def _num_shared(told: PageText) -> int:
    """How many pages from the root on have several holders; those beyond what was told are likely to, too."""
    shared = sum(link.num_holders > 1 for link in told.chain)
    return shared + max(0, told.num_links - len(told.chain)) if shared else 0
