"""A conversation as its model reads it, piece by piece: which message each came from, special tokens by themselves.

Templates are programs, so where a message went is found by rendering it with marks around its words. A template that
changes what messages say (and not only the spaces around it) shows in that the text without the marks is another one;
then the words are looked for in the plain text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from localllm import told
from localllm.errors import LocalLLMError
from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import Tokenizer, clean_text

CHANGED = "the template changes what the messages say; their parts were found by their words"
HIDDEN = "the template leaves some of what the messages say out"
_OPEN, _CLOSE = "\ue0a1", "\ue0a2"  # private characters, which no conversation holds
_MARK = re.compile(f"{_OPEN}(\\d+){_OPEN}|{_CLOSE}(\\d+){_CLOSE}")
Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]` holds what a message says, or (from `bounds`) all that was written for it."""

    message: int
    start: int
    end: int


def template_view(
    tokenizer: Tokenizer, name: str, messages: Messages, render: Render, *, add_generation_prompt: bool, note: str = ""
) -> told.TemplateView:
    """`render` gives the text for messages and whether the answer's beginning follows. Raises what it raises."""
    text = render(messages, add_generation_prompt)
    contents, is_exact = _contents(messages, text, render, add_generation_prompt)
    bounds = _bounds(messages, text, render, contents)
    closed = bounds[-1].end if bounds else 0
    tokens = tokenizer.explain(text, add_special=False)
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    marks = [
        (token.char_start, token.char_end, token.id) for token in tokens if tokenizer.built.types[token.id] in kinds
    ]
    missing = HIDDEN if len(contents) < sum(bool(_said(message)) for message in messages) else ""
    notes = [note, "" if is_exact else CHANGED, missing]
    return told.TemplateView(
        model=name,
        parts=list(_parts(clean_text(text), messages, contents, bounds, closed, marks)),
        num_tokens=len(tokens),
        num_special=len(marks),
        is_exact=is_exact,
        note="; ".join(filter(None, notes)),
    )


# ---- where the words of the messages are


def _contents(messages: Messages, text: str, render: Render, opening: bool) -> tuple[list[Span], bool]:
    """Where what each message says lies, and whether that is certain."""
    if not any(_OPEN in _said(message) or _CLOSE in _said(message) for message in messages):
        try:
            marked = render([_marked(message, number) for number, message in enumerate(messages)], opening)
        except LocalLLMError:  # a template may refuse words that it does not know
            marked = ""
        spans, bare = _without_marks(marked)
        if bare == text:
            return spans, True
    return _looked_for(messages, text), False


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _marked(message: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """Marks inside the outer spaces: many templates take those away."""
    said = _said(message)
    inner = said.strip()
    if not inner:
        return message
    start = said.index(inner)
    words = f"{_OPEN}{number}{_OPEN}{inner}{_CLOSE}{number}{_CLOSE}"
    return {**message, "content": said[:start] + words + said[start + len(inner) :]}


def _without_marks(marked: str) -> tuple[list[Span], str]:
    """The spans between the marks, and the text without them."""
    spans: list[Span] = []
    parts: list[str] = []
    opened: dict[str, int] = {}
    length = place = 0
    for mark in _MARK.finditer(marked):
        parts.append(marked[place : mark.start()])
        length += len(parts[-1])
        place = mark.end()
        if mark[1] is not None:
            opened[mark[1]] = length
        elif mark[2] in opened:
            spans.append(Span(int(mark[2]), opened.pop(mark[2]), length))
    return spans, "".join([*parts, marked[place:]])


def _looked_for(messages: Messages, text: str) -> list[Span]:
    """Each message's words behind those of the one before; messages that are not found have none."""
    spans: list[Span] = []
    place = 0
    for number, message in enumerate(messages):
        inner = _said(message).strip()
        start = text.find(inner, place) if inner else -1
        if start >= 0:
            place = start + len(inner)
            spans.append(Span(number, start, place))
    return spans


# ---- where the frames of the messages are


def _bounds(messages: Messages, text: str, render: Render, contents: Sequence[Span]) -> list[Span]:
    """What was written for each message: up to where the rendering without the later ones ends, where that begins
    alike; else up to the end of its words."""
    ends = {span.message: span.end for span in contents}
    starts = {span.message: span.start for span in contents}
    spans: list[Span] = []
    place = 0
    for number in range(len(messages)):
        end = _end_of(messages[: number + 1], text, render, ends.get(number, place))
        if end < ends.get(number, place) or end > min((starts[one] for one in starts if one > number), default=end):
            end = ends.get(number, place)
        spans.append(Span(number, place, max(place, end)))
        place = spans[-1].end
    return spans


def _end_of(messages: Messages, text: str, render: Render, otherwise: int) -> int:
    try:
        alone = render(messages, False)
    except LocalLLMError:  # some want an answer behind each question
        return otherwise
    return len(alone) if text.startswith(alone) else otherwise


# ---- the parts


def _parts(
    text: str,
    messages: Messages,
    contents: Sequence[Span],
    bounds: Sequence[Span],
    closed: int,
    marks: Sequence[tuple[int, int, int]],
) -> Iterator[told.TemplatePart]:
    """The text, cut at special tokens and at the ends of words and messages. What is behind the last message opens the
    answer."""
    edges = {0, len(text), min(closed, len(text))}
    for span in (*contents, *bounds):
        edges |= {span.start, span.end}
    for start, end, _ in marks:
        edges = {edge for edge in edges if not start < edge < end} | {start, end}
    ids = {start: token_id for start, end, token_id in marks if end > start}
    for start, end in pairwise(sorted(edges)):
        message = next((span.message for span in bounds if span.start <= start < span.end), -1)
        role = str(messages[message].get("role", "")) if message >= 0 else ""
        piece = text[start:end]
        if start in ids:
            yield told.TemplatePart(kind="special", text=piece, message=message, role=role, id=ids[start])
        elif any(span.start <= start < span.end for span in contents):
            yield told.TemplatePart(kind="content", text=piece, message=message, role=role)
        elif message < 0:
            yield told.TemplatePart(kind="opening", text=piece)
        else:
            yield from _frame(piece, message, role)


def _frame(piece: str, message: int, role: str) -> Iterator[told.TemplatePart]:
    """The frame of a message, with the name of its role by itself."""
    found = re.search(rf"\b{re.escape(role)}\b", piece) if role else None
    if found is None:
        yield told.TemplatePart(kind="frame", text=piece, message=message, role=role)
        return
    for kind, part in (("frame", piece[: found.start()]), ("role", found[0]), ("frame", piece[found.end() :])):
        if part:
            yield told.TemplatePart(kind=kind, text=part, message=message, role=role)  # type: ignore[arg-type]
