"""Guides for the worker: grammars by llguidance over the bytes of the model's tokens, and a bound on reasoning.

Nothing is loaded before the first guide is asked for. Guides are made in a thread of their own and masks in others
(llguidance gives the interpreter free), so that the engine's thread never waits for more than the rest of a mask.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.engine.guides import Guide, LateMask
from localllm.engine.step import Mask
from localllm.errors import ConstraintFailed, LocalLLMError
from localllm.runtime.token_bytes import TokenBytes, Trigger, mask_of
from localllm.wire import Constraint, Submit, ThinkingBudget

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

_MASKS_PER_JOB = 16


def parser_limits() -> LLParserLimits:
    """What llguidance may spend on a grammar: far less at its start than by default, and no state in its messages."""
    from llguidance import LLParserLimits  # deferred: only constrained models pay for it

    return LLParserLimits(initial_lexer_fuel=200_000, verbose_errors=False)


class Constraints:
    """Makes guides for the model at `path`, whose logits have `vocab_size` entries; nothing is read before that."""

    def __init__(
        self, path: Path, vocab_size: int, *, read: Callable[[Path, int], TokenBytes] = TokenBytes.read
    ) -> None:
        self._path = path
        self._read = read
        self._vocab_size = vocab_size
        self._tokens: TokenBytes | None = None
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._masks = MaskThreads(max(1, min(4, (os.cpu_count() or 2) // 2)))

    def open(self, submit: Submit) -> Future[Guide]:
        return self._maker.submit(self._make, submit)

    def compute(self) -> None:
        self._masks.compute()

    def _make(self, submit: Submit) -> Guide:
        try:
            tokens = self._tokens = self._tokens or self._read(self._path, self._vocab_size)
            grammar = None if submit.constraint is None else self._follow(tokens, submit.constraint)
            return SequenceGuide(tokens, grammar, submit.thinking)
        except LocalLLMError:
            raise
        except Exception as error:  # whatever llguidance or a tokenizer meets, it is this sequence's alone
            raise ConstraintFailed(f"the constraint cannot be followed: {error}") from error

    def _follow(self, tokens: TokenBytes, constraint: Constraint) -> GrammarGuide:
        from llguidance import LLMatcher  # deferred: only constrained models pay for it

        matcher = LLMatcher(tokens.for_llguidance, _unforced(constraint.grammar), log_level=0, limits=parser_limits())
        _check(matcher)
        guide = GrammarGuide(tokens, matcher, constraint, self._masks.add)
        mask = guide.mask()  # the first is the dearest: no step should wait for it
        if mask is not None:
            bytes(mask)
        return guide


class MaskThreads:
    """Computes masks beside the steps. They are woken once a step: waking them costs more than a mask does."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._asked_for: list[LateMask] = []
        self._jobs: queue.SimpleQueue[list[LateMask]] = queue.SimpleQueue()

    def add(self, mask: LateMask) -> None:
        self._asked_for.append(mask)

    def compute(self) -> None:
        """What was added since the last call."""
        masks, self._asked_for = self._asked_for, []
        if masks and not self._threads:
            self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self._num_threads)]
            for thread in self._threads:
                thread.start()
        for start in range(0, len(masks), _MASKS_PER_JOB):
            self._jobs.put(masks[start : start + _MASKS_PER_JOB])

    def _run(self) -> None:
        while True:
            for mask in self._jobs.get():
                mask.run()


class SequenceGuide:
    """A grammar, a bound on reasoning, or both. A grammar that holds from the first token may have reasoning at its
    beginning; a tag of reasoning in its midst is text."""

    def __init__(self, tokens: TokenBytes, grammar: GrammarGuide | None, budget: ThinkingBudget | None) -> None:
        self._grammar = grammar
        self._is_inside = grammar is not None and not grammar.is_waiting
        self._thinking = None if budget is None else Thinking(tokens, budget, only_first=self._is_inside)
        self._drop_what_cannot_follow()

    @property
    def is_finished(self) -> bool:
        return not self.is_forced and self._grammar is not None and self._grammar.is_finished

    @property
    def may_end(self) -> bool:
        return not self.is_forced and (self._grammar is None or self._grammar.may_end)

    @property
    def is_forced(self) -> bool:
        return self._thinking is not None and bool(self._thinking.forced)

    def mask(self) -> Mask | None:
        if self._thinking is not None and self._thinking.forced:
            return self._thinking.mask()
        return None if self._grammar is None else self._grammar.mask()

    def accept(self, token_id: int) -> None:
        if self._thinking is not None:
            self._thinking.accept(token_id)
        if self._grammar is not None:
            self._grammar.accept(token_id)
        self._drop_what_cannot_follow()

    def _drop_what_cannot_follow(self) -> None:
        """Where the grammar has no place for the end of a reasoning, there is no reasoning."""
        if self._is_inside and self.is_forced and self._grammar is not None and self._thinking is not None:
            self._thinking = self._thinking if self._grammar.takes(self._thinking.forced) else None


class Thinking:
    """Counts the tokens of reasoning; when there are too many, `forced` are the ids that still have to follow. With
    `only_first` reasoning is what the sequence begins with."""

    def __init__(self, tokens: TokenBytes, budget: ThinkingBudget, *, only_first: bool = False) -> None:
        self.forced: list[int] = []
        self._tokens = tokens
        self._only_first = only_first
        self._num_said = 0  # bytes
        self._budget = budget
        self._left = budget.max_tokens
        self._start = Trigger(budget.start.encode()) if budget.start else None
        self._end: Trigger | None = Trigger(budget.end.encode())
        self._force_at_the_limit()

    def mask(self) -> bytes:
        return mask_of([self.forced[0]], self._tokens.vocab_size)

    def accept(self, token_id: int) -> None:
        raw = self._tokens.raw(token_id)
        if self.forced:
            del self.forced[0]
        elif self._start is not None:
            self._look_for_the_start(self._start, raw)
        elif self._end is not None:
            self._left -= 1
            if self._end.push(raw) is not None:
                self._end = None
            else:
                self._force_at_the_limit()

    def _look_for_the_start(self, start: Trigger, raw: bytes) -> None:
        self._num_said += len(raw)
        rest = start.push(raw)
        num_matched = start.num_matched + len(rest or b"")
        if self._only_first and num_matched != self._num_said:
            self._start = self._end = None  # something else stands first
        elif rest is not None:
            self._start = None
            self._force_at_the_limit()

    def _force_at_the_limit(self) -> None:
        if self._start is None and self._end is not None and self._left <= 0:
            self.forced = list(self._budget.end_ids)
            self._end = None


class GrammarGuide:
    """Follows a grammar, from the start or from behind a trigger. `ask_for` has a mask computed beside the step."""

    def __init__(
        self,
        tokens: TokenBytes,
        matcher: LLMatcher,
        constraint: Constraint,
        ask_for: Callable[[LateMask], None],
    ) -> None:
        self.is_finished = False
        self._tokens = tokens
        self._matcher = matcher
        self._ask_for = ask_for
        self._trigger = Trigger(constraint.after.encode()) if constraint.after else None
        self._is_lazy = constraint.lazy
        self._is_at_start = False
        self._before: dict[int, bytes] = {}  # masks while the trigger is waited for, by how much of it was said
        self._mask: LateMask | None = None

    @property
    def is_waiting(self) -> bool:
        return self._trigger is not None

    @property
    def may_end(self) -> bool:
        return self._is_lazy if self._trigger is not None else self._matcher.is_accepting()

    def mask(self) -> Mask | None:
        """The same until a token is accepted."""
        if self._mask is None:
            trigger = self._trigger
            if trigger is not None and not self._tokens.ending_inside(trigger) and self._is_lazy:
                return None
            compute = self._allowed_now if trigger is None else self._allowed_before
            self._mask = LateMask(self._tokens.mask_bytes, compute)
            self._ask_for(self._mask)
        return self._mask

    def takes(self, ids: list[int]) -> bool:
        """Whether these may follow, one after the other."""
        return self._matcher.validate_tokens(ids) == len(ids)

    def accept(self, token_id: int) -> None:
        self._mask = None
        if self._trigger is not None:
            rest = self._trigger.push(self._tokens.raw(token_id))
            if rest is not None:
                self._trigger = None
                self._begin(rest)
        elif token_id in self._tokens.eog_ids:
            self.is_finished = True
        elif not self._is_blank_before(token_id):
            self._consume([token_id])

    def _begin(self, rest: bytes) -> None:
        """`rest` came behind the trigger in the same token: the grammar's beginning, or blanks before it."""
        self._is_at_start = True
        ids = self._tokens.ids_of(rest)
        if rest.strip() or self.takes(ids):
            self._consume(ids)

    def _is_blank_before(self, token_id: int) -> bool:
        """Between the reasoning and the answer there may be blanks, as those that a budget forces."""
        is_blank = self._is_at_start and self._tokens.raw(token_id).isspace()
        return is_blank and not self.takes([token_id])

    def _consume(self, ids: list[int]) -> None:
        self._is_at_start = self._is_at_start and not ids
        if not self._matcher.consume_tokens(ids):
            _check(self._matcher)
        self.is_finished = self._matcher.is_stopped()

    # ---- perhaps in another thread

    def _allowed_now(self) -> bytes:
        try:
            mask = self._matcher.compute_bitmask()
        except Exception as error:
            raise ConstraintFailed(f"the constraint cannot be followed: {error}") from error
        _check(self._matcher)  # a matcher that failed allows the end, as if all were well
        return mask

    def _allowed_before(self) -> bytes:
        """All but tokens that would carry on behind the trigger with what the grammar does not allow, and the end
        where the grammar must have its turn."""
        assert self._trigger is not None
        place = self._trigger.num_matched
        known = self._before.get(place)
        if known is None:
            endings = self._tokens.ending_inside(self._trigger)
            bad = [token for token, rest in endings if rest.strip() and not self._accepts(rest)]
            forbidden = [*bad, *self._tokens.unknown_ids, *(() if self._is_lazy else self._tokens.eog_ids)]
            known = self._before[place] = mask_of(forbidden, self._tokens.vocab_size, inverted=True)
        return known

    def _accepts(self, rest: bytes) -> bool:
        return self.takes(self._tokens.ids_of(rest))


def _unforced(grammar: str) -> str:
    """Where only one text may follow, llguidance would allow one way of cutting it into tokens; the model knows better
    which is its own."""
    top, *others = json.loads(grammar)["grammars"]
    name = top.get("name") or "answer"
    around = {"lark_grammar": f'%llguidance {{"no_forcing": true}}\nstart: @{name}\n'}
    return json.dumps({"grammars": [around, {**top, "name": name}, *others]})


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        reason = matcher.get_error().partition("\n")[0].partition("<state>")[0].strip()
        raise ConstraintFailed(f"the constraint cannot be followed: {reason}")
