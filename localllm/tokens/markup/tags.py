"""The parser of tags in plain text: reasoning first, then content with calls in it.

What opens a call is held back until it is one. What turns out to be none is content, tag and all, and is read on from
right behind the tag; so nothing is lost, and a call inside is still found. A call whose arguments stream has begun.
"""

import re
from dataclasses import dataclass
from typing import Literal

from localllm.tokens.markup.early import EarlyCalls
from localllm.tokens.markup.ends import EndFinder
from localllm.tokens.markup.families import GRAMMARS, Grammar, Mark
from localllm.tokens.markup.overlap import overlap
from localllm.tokens.markup.pieces import Piece, PieceKind
from localllm.tokens.markup.spec import MarkupSpec

State = Literal["start", "reasoning", "content", "call"]

_MAX_DISAPPOINTMENTS = 64  # each may have cost a look at all of the text: a model in a loop must not take minutes
_BETWEEN_BARE_CALLS = re.compile(r"\s*[;,]?\s*")


@dataclass(frozen=True, slots=True)
class _Open:
    """A call whose end has not come: its mark, the white space before it, where its body may end, what is shown of it
    already."""

    mark: Mark
    lead: str
    end: EndFinder
    early: EarlyCalls


class TagParser:
    def __init__(self, spec: MarkupSpec) -> None:
        self._spec = spec
        self._grammar = GRAMMARS[spec.tools] if spec.tools else Grammar(())
        self._marks = {mark.opener: mark for mark in self._grammar.marks}
        self._reasons_anywhere = spec.reasoning is not None and spec.reasoning[0].startswith("<|channel>")
        self._state: State = "reasoning" if spec.starts_in_reasoning else "start"
        self._may_reason = spec.reasoning is not None and not spec.starts_in_reasoning
        self._skips_space = spec.starts_in_reasoning
        self._is_answer_open = False
        self._is_section_proven = False  # it has held a call, so that its end tag is no text
        self._owed = ""  # a section's opening tag, until a call proves that it was one
        self._is_behind_bare_call = False
        self._patience = _MAX_DISAPPOINTMENTS
        self._num_calls = 0
        self._last_letter = ""
        self._open: _Open | None = None
        self._buffer = ""
        self._pieces: list[Piece] = []
        self._tags = self._content_tags()

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while self._step():
            pass
        return self._released()

    def finish(self) -> list[Piece]:
        while self._step() or self._settle():
            pass
        kind: PieceKind = "reasoning" if self._state == "reasoning" else "content"
        self._emit(kind, self._without_answer_end(self._buffer))
        self._pay()
        self._buffer = ""
        return self._released()

    @property
    def num_calls(self) -> int:
        """Calls whose arguments are complete."""
        return self._num_calls + (self._open.early.num_complete if self._open else 0)

    @property
    def is_reasoning(self) -> bool:
        """What comes next is reasoning, until a tag says otherwise."""
        return self._state == "reasoning"

    def _released(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _step(self) -> bool:
        """Advance by one tag; False if that needs more text."""
        if self._state == "start":
            return self._step_start()
        if self._state == "reasoning":
            return self._step_reasoning()
        return self._step_content() if self._state == "content" else self._step_call()

    # --- the beginning, and what follows the reasoning

    def _step_start(self) -> bool:
        """Only here may text open the reasoning, the answer, or a call without tags; later it is talked about."""
        begun = self._buffer.lstrip()
        openers = self._start_openers()
        opener = next((tag for tag in openers if begun.startswith(tag)), None)
        if opener is not None:
            self._open_part(opener, begun[len(opener) :])
            return True
        if not begun or any(tag.startswith(begun) for tag in openers):
            return False
        return self._step_bare()

    def _start_openers(self) -> list[str]:
        reasoning = [self._spec.reasoning[0]] if self._spec.reasoning and self._may_reason else []
        return reasoning + ([self._spec.answer[0]] if self._spec.answer else [])

    def _open_part(self, opener: str, rest: str) -> None:
        self._skips_space = True
        self._buffer = rest
        if self._spec.answer is not None and opener == self._spec.answer[0]:
            self._state, self._is_answer_open = "content", True
            self._tags = self._content_tags()
        else:
            self._state, self._may_reason = "reasoning", self._reasons_anywhere

    def _step_bare(self) -> bool:
        mark = self._grammar.bare
        if mark is not None:
            between = _BETWEEN_BARE_CALLS if self._is_behind_bare_call else re.compile(r"\s*")
            match = between.match(self._buffer)
            begun = self._buffer[match.end() :] if match else self._buffer
            if not begun:
                return False
            if begun[0] in "{[":
                self._enter_call(mark, self._buffer[: len(self._buffer) - len(begun)], begun)
                return True
        self._state, self._is_behind_bare_call = "content", False
        return True

    # --- reasoning

    def _step_reasoning(self) -> bool:
        assert self._spec.reasoning is not None  # the state is entered only with tags
        tag = self._spec.reasoning[1]
        before, found, after = self._buffer.partition(tag)
        if not found:
            self._release("reasoning", (tag,))
            return False
        self._emit("reasoning", before.rstrip())
        self._state, self._buffer, self._skips_space = "start", after, True
        return True

    # --- content

    def _content_tags(self) -> tuple[str, ...]:
        """What content has to be searched for."""
        tags = [*self._marks, *self._grammar.section]
        if self._spec.reasoning is not None and self._reasons_anywhere:
            tags.append(self._spec.reasoning[0])
        if self._spec.answer is not None and self._is_answer_open:
            tags.append(self._spec.answer[1])
        return tuple(tag for tag in tags if tag)

    def _step_content(self) -> bool:
        found = self._first_tag()
        if found is None:
            self._release("content", self._tags)
            return False
        place, tag = found
        before, after = self._buffer[:place], self._buffer[place + len(tag) :]
        if (before[-1:] or self._last_letter) == "`" and not tag.startswith("`"):  # it is quoted as code
            self._emit("content", before + tag)
            self._buffer = after
            return True
        return self._take_tag(tag, before, after)

    def _first_tag(self) -> tuple[int, str] | None:
        places = [(self._buffer.find(tag), tag) for tag in self._tags]
        return min(((place, tag) for place, tag in places if place >= 0), default=None)

    def _take_tag(self, tag: str, before: str, after: str) -> bool:
        said = before.rstrip()
        lead = before[len(said) :]
        if self._spec.answer is not None and tag == self._spec.answer[1]:
            return self._close_answer(tag, before, after)
        if tag in self._marks:
            self._emit("content", said)
            self._enter_call(self._marks[tag], lead, after)
        elif tag in self._grammar.section:
            self._take_section(tag, before, after)
        else:
            self._emit("content", said)
            self._open_part(tag, after)
        return True

    def _close_answer(self, tag: str, before: str, after: str) -> bool:
        """The tag ends the answer only where nothing follows."""
        if after.strip():
            self._emit("content", before + tag)
            self._buffer = after
            return True
        said = before.rstrip()
        self._emit("content", said)
        self._buffer = self._buffer[len(said) :]
        return False

    def _without_answer_end(self, text: str) -> str:
        if self._spec.answer is None or not self._is_answer_open or self._state != "content":
            return text
        bare = text.rstrip()
        return bare.removesuffix(self._spec.answer[1]).rstrip() if bare.endswith(self._spec.answer[1]) else text

    def _take_section(self, tag: str, before: str, after: str) -> None:
        said = before.rstrip()
        if tag == self._grammar.section[0]:
            self._emit("content", said)
            self._pay()
            self._owed = before[len(said) :] + tag
            self._buffer = after
        elif self._is_section_proven:
            self._emit("content", said)
            self._is_section_proven, self._skips_space = False, True
            self._buffer = after
        else:
            self._emit("content", before + tag)
            self._buffer = after

    # --- calls

    def _enter_call(self, mark: Mark, lead: str, body: str) -> None:
        self._open = _Open(mark, lead, mark.end(), EarlyCalls(mark.heads, lambda name: self._may_show(mark, name)))
        self._state, self._buffer = "call", body

    def _step_call(self) -> bool:
        call = self._open
        assert call is not None  # the state is entered only with one
        if not call.mark.is_plausible(self._buffer):
            self._give_back(call)
            return True
        while (end := call.end.find(self._buffer)) is not None:
            self._show(call, end[0])
            if not call.early.is_quoted:
                break
        if end is None:
            self._show(call, len(self._buffer) - overlap(self._buffer, (call.mark.closer,)))
            return False
        if not self._accept(call, *end):
            self._be_disappointed(call)
        return True

    def _may_show(self, mark: Mark, name: str) -> bool:
        known = self._spec.tool_names
        return name in known if known or mark.is_bare else True

    def _show(self, call: _Open, limit: int) -> None:
        """What is certain of a call before its end has come."""
        parts = call.early.read(self._buffer, limit)
        if parts:
            self._owed, self._is_section_proven = "", True
            self._pieces += parts

    def _settle(self) -> bool:
        """At the end of the text: what an unfinished call is after all; False if none is open."""
        call = self._open
        if self._state != "call" or call is None:
            return False
        whole = len(self._buffer)
        before_closer = whole - overlap(self._buffer, (call.mark.closer,))  # an answer can end within the tag
        if call.early.num_begun:
            end = whole if call.early.is_quoted else before_closer
            self._show(call, end)
            return self._accept(call, end, whole)
        place = self._buffer.find(call.mark.closer) if call.mark.closer else -1
        if place >= 0 and self._accept(call, place, place + len(call.mark.closer)):
            return True
        if not self._accept(call, whole, whole) and not self._accept(call, before_closer, whole):
            self._be_disappointed(call)
        return True

    def _accept(self, call: _Open, body_end: int, rest_start: int) -> bool:
        """Take the body as calls, if it is some."""
        body = self._buffer[:body_end]
        calls = self._read(call.mark, call.mark.opener + body if call.mark.keeps_opener else body)
        num_shown = call.early.num_begun
        if not calls and not num_shown:
            return False
        self._pieces += calls[num_shown:]
        self._num_calls += max(len(calls), call.early.num_complete)
        self._owed, self._is_section_proven = "", True
        self._open, self._buffer = None, self._buffer[rest_start:]
        self._skips_space, self._last_letter = True, ""
        if not calls:
            self._emit("content", call.early.tail(body))
        self._is_behind_bare_call = call.mark.is_bare
        self._state = "start" if call.mark.is_bare else "content"
        return True

    def _read(self, mark: Mark, body: str) -> list[Piece]:
        try:
            calls = mark.reader(body, self._spec.text_parameters)
        except (ValueError, RecursionError):
            return []
        known = self._spec.tool_names
        is_known = not mark.is_bare or not known or all(call.name in known for call in calls)
        return calls if is_known else []

    def _be_disappointed(self, call: _Open) -> None:
        """A body that looked like a call is none. After many of them no more calls are looked for."""
        self._give_back(call)
        self._patience -= 1
        if self._patience <= 0:
            self._marks, self._grammar, self._tags = {}, Grammar(()), ()

    def _give_back(self, call: _Open) -> None:
        self._open, self._state, self._is_behind_bare_call = None, "content", False
        self._emit("content", call.lead + call.mark.opener)

    # --- what comes out

    def _release(self, kind: PieceKind, tags: tuple[str, ...]) -> None:
        """Emit what can be no part of a tag; white space waits, because before a tag it means nothing."""
        end = len(self._buffer)
        if tags:
            end -= overlap(self._buffer, tags)
            end = len(self._buffer[:end].rstrip())
        self._emit(kind, self._buffer[:end])
        self._buffer = self._buffer[end:]

    def _emit(self, kind: PieceKind, text: str) -> None:
        if self._skips_space:
            text = text.lstrip()
        if text:
            self._pay()
            self._skips_space = False
            self._pieces.append(Piece(kind, text))
            self._last_letter = text[-1]

    def _pay(self) -> None:
        if self._owed:
            self._pieces.append(Piece("content", self._owed))
            self._owed = ""
