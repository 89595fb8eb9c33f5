"""Tokens as lines for a terminal. Pieces are coloured where colours are wanted; what others wrote is made visible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper
from typing import TYPE_CHECKING

from localllm.cli.human import aligned, display_width, padded
from localllm.safe_text import one_line
from localllm.visible import visible, visible_text

if TYPE_CHECKING:
    from localllm import told

COLUMNS = 100


@dataclass(frozen=True, slots=True)
class Look:
    """`has_color`: pieces are told apart by colours, else by bars."""

    has_color: bool

    def piece(self, raw: bytes, token_id: int, width: int = 0) -> str:
        """A token's text, filled up to `width`."""
        shown = visible(raw)
        blank = " " * max(0, width - display_width(shown))
        if not self.has_color:
            return shown + blank
        from localllm.tui.colour import rgb  # only a terminal needs them
        from localllm.tui.tokens.chips import chip_colours, hue_of

        ink, ground = (rgb(colour) for colour in chip_colours(hue_of(token_id), is_dark=True))
        return f"\x1b[38;2;{_dotted(ink)};48;2;{_dotted(ground)}m{shown}\x1b[0m{blank}"


def _dotted(colour: tuple[int, int, int]) -> str:
    return ";".join(map(str, colour))


def listed(found: "told.Explanation", look: Look) -> str:
    """One tokenizer: a row for each token, then the counts."""
    (split,) = found.tokenizers
    pieces = [bytes.fromhex(token.bytes) for token in split.tokens]
    width = max([5, *(display_width(visible(raw)) for raw in pieces)])
    digits = max([2, *(len(str(token.id)) for token in split.tokens)])
    lines = [f"{'ID':>{digits}}    {padded('PIECE', width)}    {'CHARACTERS':<13}BYTES"]
    for token, raw in zip(split.tokens, pieces, strict=True):
        where = f"{token.start}-{token.end}" if token.end > token.start else "-"
        shown = look.piece(raw, token.id, width)
        lines.append(f"{token.id:>{digits}}    {shown}    {where:<13}{raw.hex(' ')}")
    return "\n".join([*lines, "", _counts(split, found), ""])


def compared(found: "told.Explanation", look: Look) -> str:
    """Several tokenizers: the pieces of each, then their counts; `fewest` marks the shortest."""
    blocks = []
    for split in found.tokenizers:
        blocks.append(f"{one_line(split.model)}  {split.kind}")
        blocks += [f"  {line}" for line in _wrapped(split, look)] if not split.problem else [f"  {split.problem}"]
        blocks.append("")
    counts = [split.count for split in found.tokenizers if not split.problem]
    rows = [["NAME", "KIND", "TOKENS", "CHARACTERS/TOKEN", ""]]
    for split in found.tokenizers:
        fewest = min(counts, default=0)
        more = "" if split.problem else "fewest" if split.count == fewest else f"+{split.count - fewest}"
        rate = f"{found.num_chars / split.count:.1f}" if split.count else "-"
        rows.append([split.model, split.kind, str(split.count), rate, more])
    agreed = found.tokenizers[0].num_agreed
    told = f"{found.num_chars} characters, {found.num_bytes} bytes; {agreed} cuts are made by all of them\n"
    return "\n".join(blocks) + "\n" + aligned(rows) + told


def _wrapped(split: "told.SplitText", look: Look) -> Iterator[str]:
    line, width = "", 0
    for token in split.tokens:
        raw = bytes.fromhex(token.bytes)
        room = display_width(visible(raw)) + 1
        if line and width + room > COLUMNS:
            yield line.rstrip()
            line, width = "", 0
        line += look.piece(raw, token.id) + (" " if look.has_color else "|")
        width += room
    if line:
        yield line.rstrip().removesuffix("|")


def _counts(split: "told.SplitText", found: "told.Explanation") -> str:
    rate = f", {found.num_chars / split.count:.1f} characters each" if split.count else ""
    return f"{split.count} tokens{rate}; {found.num_chars} characters, {found.num_bytes} bytes; {split.kind}"


# ---- step by step


def stepped(trace: "told.Trace", look: Look) -> str:
    """How one word became tokens."""
    lines = [visible_text(trace.word)]
    if trace.merges is not None:
        lines += _merged(trace.merges, look)
    elif trace.lattice is not None:
        lines += _weighed(trace.lattice)
    else:
        lines += _matched(trace.matches or [])
    return "\n".join([*lines, *([f"  {trace.note}"] if trace.note else []), f"  = {' '.join(map(str, trace.ids))}", ""])


def _merged(merges: "told.Merges", look: Look) -> list[str]:
    symbols = list(merges.symbols)
    rows = [["  0", _row(symbols), "", ""]]
    for number, step in enumerate(merges.steps, 1):
        symbols[step.position : step.position + 2] = [step.left + step.right]
        made = f"{_shown(step.left)} + {_shown(step.right)}"
        rows.append([f"{number:>3}", _row(symbols), made, f"rank {step.rank}"])
    return aligned(rows, "  ").splitlines()


def _row(symbols: Sequence[str]) -> str:
    return " ".join(map(_shown, symbols))


def _shown(symbol: str) -> str:
    return visible(bytes.fromhex(symbol))


def _weighed(lattice: "told.Lattice") -> list[str]:
    rows = [
        [
            ">" if edge.is_taken else " ",
            _shown(edge.bytes),
            f"{edge.start}-{edge.end}",
            f"{edge.score:.2f}",
            f"{edge.best:.2f}",
        ]
        for edge in lattice.edges
    ]
    return aligned([["", "piece", "place", "score", "best sum"], *rows], "  ").splitlines()


def _matched(matches: "Sequence[told.Match]") -> list[str]:
    rows = []
    for match in matches:
        skipped = match.num_tried - len(match.tried)
        half = len(match.tried) // 2
        middle = [f"({skipped} more)"] if skipped else []
        tried = [*match.tried[:half], *middle, *match.tried[half:]]
        rows.append([visible_text(match.piece) or "-", "not " + ", ".join(map(visible_text, tried)) if tried else ""])
    return aligned(rows, "  ").splitlines() if rows else []


# ---- a template


def taken_apart(view: "told.TemplateView", look: Look) -> str:
    """A conversation as the model reads it: a row for each part."""
    wrapper = TextWrapper(COLUMNS - 30, drop_whitespace=False, break_on_hyphens=False)
    rows = [["KIND", "ROLE", "TEXT"]]
    for part in view.parts:
        for number, line in enumerate(wrapper.wrap(visible_text(part.text)) or [""]):
            rows.append(["", "", line] if number else [part.kind, part.role or "-", line])
    told = f"{view.num_tokens} tokens, {view.num_special} special"
    return aligned(rows) + "\n" + "; ".join(filter(None, (told, one_line(view.note)))) + "\n"
