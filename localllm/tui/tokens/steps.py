"""How a word became tokens, drawn: merges as a stair that shrinks, a lattice with its best way, greedy matches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style

from localllm import told
from localllm.tui import words
from localllm.tui.lines import Line, cell, heading
from localllm.tui.palette import Ink
from localllm.tui.tokens.state import Stage, hex_text, stages
from localllm.visible import visible_text

NUMBER, MERGED, RANK = 6, 15, 8
TITLES = {"BPE": "Merges of", "Unigram": "Lattice of", "WordPiece": "Greedy matches of"}


def trace_lines(ink: Ink, trace: told.Trace, width: int, height: int, step: int, *, title: str = "") -> list[Line]:
    """At most `height` lines, the heading first; `step` is lit. `title` names the tokenizer, where it is not clear."""
    room = max(0, height - 1)
    if trace.merges is not None:
        body, info = (
            _merge_lines(ink, trace.merges, width, room, step),
            _count(ink, "step", step, len(trace.merges.steps)),
        )
    elif trace.lattice is not None:
        body, info = _lattice_lines(ink, trace.lattice, width, room, step), _score(ink, trace.lattice)
    elif trace.matches:
        body, info = _match_lines(ink, trace.matches, width, room, step), _count(ink, "match", step, len(trace.matches))
    else:
        body, info = [], Line()
    if trace.note:
        body = [*body[: room - 1], *_wrapped(ink, trace.note, width)]
    if title:
        info = Line((title, ink("muted"))).put(", ", ink("muted")).put(trace.kind, ink("muted"))
    shown = f"{TITLES.get(trace.kind, 'Word')} “{visible_text(trace.word)}”" if trace.word else "Steps"
    return [heading(ink, width, shown, info), *body][:height]


def _count(ink: Ink, what: str, step: int, of: int) -> Line:
    return Line((f"{what} ", ink("muted"))).put(str(step), ink()).put(f" of {of}", ink("muted"))


def _score(ink: Ink, lattice: told.Lattice) -> Line:
    return Line(("score ", ink("muted"))).put(_signed(lattice.score), ink())


def _signed(score: float) -> str:
    return f"{score:.2f}".replace("-", words.MINUS)


def _wrapped(ink: Ink, text: str, width: int) -> list[Line]:
    lines, line = [], Line()
    for word in text.split():
        if line.width and line.width + len(word) + 1 > width:
            lines.append(line)
            line = Line()
        line.put(" " if line.width else "", ink("muted")).put(word, ink("muted"))
    return [*lines, line]


# ---- BPE


def _merge_lines(ink: Ink, merges: told.Merges, width: int, room: int, step: int) -> list[Line]:
    shown = list(stages(merges))
    head = Line((cell("step", NUMBER), ink("faint"))).put(cell("pieces", _pieces_width(width)), ink("faint"))
    lines = [head.put(cell("merged", MERGED), ink("faint")).put(cell("rank", RANK, "right"), ink("faint"))]
    for number in _window(len(shown), room - 1, step):
        if number is None:
            lines.append(Line(("  …", ink("faint"))))
        else:
            lines.append(_stage_line(ink, shown[number], number, width, number - step))
    return lines


def _window(count: int, room: int, step: int) -> list[int | None]:
    """The numbers of the rows that fit: the first, then those around the lit one, with None for a gap."""
    if count <= room:
        return list(range(count))
    if room < 4:
        return list(range(max(0, step - room + 1), step + 1))
    last = min(count, max(step + 1, room - 1))
    first = last - (room - 2)
    return list(range(last)) if first <= 1 else [0, None, *range(first, last)]


def _pieces_width(width: int) -> int:
    return width - NUMBER - MERGED - RANK


def _stage_line(ink: Ink, stage: Stage, number: int, width: int, behind: int) -> Line:
    """`behind`: how many steps later than the lit one; those are still to come and whisper."""
    pieces = Line()
    for place, symbol in enumerate(stage.symbols):
        pieces.put(" " if place else "")
        pieces.put(hex_text(symbol), _symbol_style(ink, place == stage.made, behind))
    role = "accent" if behind == 0 else "faint"
    line = Line((f"{number:>3}", ink(role, bold=behind == 0))).pad_to(NUMBER)
    line.add(pieces.fit(_pieces_width(width) - 1)).pad_to(NUMBER + _pieces_width(width))
    if stage.merge is None:
        return line
    told_role = "text" if behind == 0 else "muted" if behind < 0 else "faint"
    made = f"{hex_text(stage.merge.left)} + {hex_text(stage.merge.right)}"
    line.put(cell(made, MERGED), ink(told_role))
    return line.put(cell(words.count(stage.merge.rank), RANK, "right"), ink(told_role))


def _symbol_style(ink: Ink, is_made: bool, behind: int) -> Style:
    if behind > 0:
        return ink("faint")
    if is_made and behind == 0:
        return ink("on_accent", on="accent", bold=True)
    if is_made:
        return ink("accent", on="accent_bg", underline=ink.is_mono)
    return ink("text", on="raised")


# ---- Unigram


def _lattice_lines(ink: Ink, lattice: told.Lattice, width: int, room: int, step: int) -> list[Line]:
    """A place for each character; each piece stands over its characters, the best way first."""
    if not lattice.edges:
        return []
    length = max(edge.end for edge in lattice.edges)
    pitch = max(1, min(4, (width - 1) // max(1, length)))
    taken = [edge for edge in lattice.edges if edge.is_taken]
    rest = sorted((edge for edge in lattice.edges if not edge.is_taken), key=lambda edge: (-edge.score, edge.start))
    lit = taken[step - 1] if 0 < step <= len(taken) else None
    rows = [taken, *_packed(rest)]
    table = [Line(), _path_head(ink), *(_path_row(ink, edge, edge is lit) for edge in taken)]
    shown = rows[: max(1, room - 2)]
    if len(shown) + len(table) + 2 > room:
        table = []
    lines = [_edge_row(ink, row, pitch, lit, width) for row in shown]
    hidden = sum(map(len, rows[len(shown) :]))
    if lit is not None and room >= 3:
        lines += [Line(), _edge_told(ink, lit, lattice, hidden)]
    return lines + table


def _path_head(ink: Ink) -> Line:
    return Line((cell("best way", 16), ink("faint"))).put("   score     sum", ink("faint"))


def _path_row(ink: Ink, edge: told.Edge, is_lit: bool) -> Line:
    role = "accent" if is_lit else "text"
    line = Line((cell(hex_text(edge.bytes), 16), ink(role, bold=is_lit)))
    return line.put(_signed(edge.score).rjust(8), ink(role)).put(_signed(edge.best).rjust(8), ink("muted"))


def _packed(edges: Sequence[told.Edge]) -> list[list[told.Edge]]:
    """In as few rows as the order allows, without two pieces over one character."""
    rows: list[list[told.Edge]] = []
    for edge in edges:
        row = next((row for row in rows if all(edge.end <= one.start or one.end <= edge.start for one in row)), None)
        if row is None:
            rows.append([edge])
        else:
            row.append(edge)
    return [sorted(row, key=lambda edge: edge.start) for row in rows]


def _edge_row(ink: Ink, row: Sequence[told.Edge], pitch: int, lit: told.Edge | None, width: int) -> Line:
    line = Line()
    for edge in row:
        cells = max(1, (edge.end - edge.start) * pitch - (1 if pitch > 1 else 0))
        at = edge.start * pitch
        if at >= width:
            break
        if edge is lit:
            style = ink("on_accent", on="accent", bold=True)
        elif edge.is_taken:
            style = ink("accent", on="accent_bg", underline=ink.is_mono)
        else:
            style = ink("muted", on="raised")
        line.pad_to(at).put(cell(hex_text(edge.bytes), min(cells, width - at)), style)
    return line


def _edge_told(ink: Ink, edge: told.Edge, lattice: told.Lattice, hidden: int) -> Line:
    others = sum(one.end == edge.end for one in lattice.edges) - 1
    name = "an unknown character" if edge.id < 0 else hex_text(edge.bytes)
    line = Line((name, ink("bright"))).put("   score ", ink("muted")).put(_signed(edge.score), ink())
    line.put("   best way to here ", ink("muted")).put(_signed(edge.best), ink())
    said = {0: "no other piece ends here", 1: "1 other piece ends here"}.get(others, f"{others} other pieces end here")
    line.put(f"   {said}", ink("muted"))
    return line.put(f", {hidden} more not shown" if hidden else "", ink("faint"))


# ---- WordPiece


def _match_lines(ink: Ink, matches: Sequence[told.Match], width: int, room: int, step: int) -> list[Line]:
    lines = []
    left = max(20, min(36, width // 2))
    for number in _window(len(matches), room, max(0, step - 1)):
        if number is None:
            lines.append(Line(("  …", ink("faint"))))
            continue
        match, is_lit = matches[number], number + 1 == step
        word = Line()
        if match.piece:
            lit_style = ink("on_accent", on="accent", bold=True)
            word.put(visible_text(match.piece), lit_style if is_lit else ink("accent", on="accent_bg"))
        word.put(visible_text(match.rest), ink("muted"))
        line = Line((f"{number + 1:>3}", ink("accent" if is_lit else "faint", bold=is_lit))).pad_to(NUMBER)
        line.add(word.fit(left)).put(_tried(match, width - NUMBER - left), ink("faint"))
        lines.append(line)
    return lines


def _tried(match: told.Match, width: int) -> str:
    """`unbelievably … unb`: what was no piece, the first and the last of it."""
    if not match.tried:
        return ""
    ends = [visible_text(match.tried[0]), visible_text(match.tried[-1])]
    shown = ends[0] if match.num_tried == 1 else f"{ends[0]} … {ends[1]}" if match.num_tried > 2 else ", ".join(ends)
    return shown if cell_len(shown) <= width else f"{match.num_tried} longer ones"
