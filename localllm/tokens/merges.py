"""How byte-pair encoding gets from characters to tokens, step by step: a view for people.

The tokenizer itself encodes with `tokenizers`; this slow twin is tested to end in the same ids.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import Tokenizer, byte_of_name, clean_text

MAX_TRACED_CHARS = 4096
"""A step is an object of its own: what is longer than this nobody reads."""


@dataclass(frozen=True, slots=True)
class MergeStep:
    """`symbols[position]` and the one after it became one, by the rule of this rank (lower goes first)."""

    position: int
    left: str
    right: str
    rank: int


@dataclass(frozen=True, slots=True)
class WordTrace:
    """One word (what the pre-tokenizer leaves in one piece) from symbols to token ids.

    Symbols are spelled as the vocabulary spells them. A word that is a token as it stands has no steps.
    """

    symbols: tuple[str, ...]
    steps: tuple[MergeStep, ...]
    ids: tuple[int, ...]

    def stages(self) -> list[tuple[str, ...]]:
        """The symbols before the first step and after each one."""
        stages = [self.symbols]
        for step in self.steps:
            before = stages[-1]
            stages.append((*before[: step.position], step.left + step.right, *before[step.position + 2 :]))
        return stages

    def part(self, first: int, last: int) -> "WordTrace":
        """What led to the tokens `first:last` alone: no merge reaches from one token into the next."""
        ends = self._starts(len(self.steps))
        if (first, last) == (0, len(self.ids)) or len(ends) != len(self.ids):  # a symbol without an id is no token
            return self
        low, high = ends[first], [*ends, len(self.symbols)][last]
        starts, steps = list(range(len(self.symbols))), []
        for step in self.steps:
            if low <= starts[step.position] < high:
                steps.append(replace(step, position=step.position - bisect_left(starts, low)))
            del starts[step.position + 1]
        return WordTrace(self.symbols[low:high], tuple(steps), self.ids[first:last])

    def _starts(self, num_steps: int) -> list[int]:
        """Where each symbol that is there after so many steps begins, in first symbols."""
        starts = list(range(len(self.symbols)))
        for step in self.steps[:num_steps]:
            del starts[step.position + 1]
        return starts


@dataclass(frozen=True, slots=True)
class MergeRules:
    """A BPE model's vocabulary and the rank of each pair it merges."""

    ids_by_text: Mapping[str, int]
    ranks: Mapping[tuple[str, str], int]
    ignores_merges: bool
    has_byte_fallback: bool


def merge_rules(tokenizer: Tokenizer) -> MergeRules:
    """Read the rules; takes a while for a large vocabulary, so keep them. UnsupportedModel if the kind is not BPE."""
    state: dict[str, Any] = json.loads(tokenizer.built.core.model.__getstate__())
    if state.get("type", "BPE") != "BPE":
        raise UnsupportedModel(f"merges can only be shown for BPE, and this tokenizer is {state['type']}")
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in state["merges"]]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
    return MergeRules(state["vocab"], ranks, bool(state.get("ignore_merges")), bool(state.get("byte_fallback")))


def explain_merges(tokenizer: Tokenizer, text: str, rules: MergeRules | None = None) -> list[WordTrace]:
    """One trace per word; their ids joined are `tokenizer.encode(text, add_special=False)`.

    Raises InvalidRequest for a text past MAX_TRACED_CHARS.
    """
    if len(text) > MAX_TRACED_CHARS:
        raise InvalidRequest(f"merges can be shown for at most {MAX_TRACED_CHARS} characters, and this is {len(text)}")
    rules = rules or merge_rules(tokenizer)
    return [trace_spelled(tokenizer, rules, ids) for ids in tokenizer.words(clean_text(text))]


def trace_spelled(tokenizer: Tokenizer, rules: MergeRules, ids: Sequence[int]) -> WordTrace:
    """The trace of the word that became these ids."""
    types = tokenizer.built.types
    if len(ids) == 1 and types[ids[0]] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
        return WordTrace((tokenizer.built.texts[ids[0]],), (), tuple(ids))
    return trace_word(rules, _spelled(tokenizer, ids))


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The word in the vocabulary's spelling; bytes that stood for missing characters become those again."""
    spelled, raw = "", b""
    for token_id in ids:
        text = tokenizer.built.texts[token_id]
        if tokenizer.built.types[token_id] == TokenType.BYTE:
            raw += byte_of_name(text)
            continue
        spelled += raw.decode("utf-8", errors="replace") + text
        raw = b""
    return spelled + raw.decode("utf-8", errors="replace")


def trace_word(rules: MergeRules, word: str) -> WordTrace:
    """Merge the pair of the lowest rank, the leftmost of equals, until no pair has a rule."""
    if rules.ignores_merges and word in rules.ids_by_text:
        return WordTrace((word,), (), (rules.ids_by_text[word],))
    first = _first_symbols(rules, word)
    row = _Row(rules, first)
    steps = tuple(iter(row.next_step, None))
    return WordTrace(tuple(first), steps, tuple(row.ids()))


def _first_symbols(rules: MergeRules, word: str) -> list[str]:
    symbols: list[str] = []
    for character in word:
        is_known = character in rules.ids_by_text or not rules.has_byte_fallback
        symbols += [character] if is_known else [f"<0x{byte:02X}>" for byte in character.encode()]
    return symbols


class _Row:
    """The symbols of a word while they merge. Places are those of the first symbols; a merge keeps the left one.

    A heap of the pairs that have a rule makes a long word cost its length times a logarithm. Entries that a merge has
    overtaken stay in it and are passed over when they come up.
    """

    def __init__(self, rules: MergeRules, symbols: Sequence[str]) -> None:
        self._rules = rules
        self._symbols = list(symbols)
        self._alive = list(range(len(symbols)))  # places that still begin a symbol, in order
        self._next = [*range(1, len(symbols)), -1]
        self._before = list(range(-1, len(symbols) - 1))
        self._heap: list[tuple[int, int, str, str]] = []
        for place in range(len(symbols) - 1):
            self._offer(place)

    def ids(self) -> Iterator[int]:
        """The tokens that the symbols are; symbols that are none have no id."""
        known = self._rules.ids_by_text
        return (known[self._symbols[place]] for place in self._alive if self._symbols[place] in known)

    def next_step(self) -> MergeStep | None:
        """Do the next merge; None if there is none."""
        while self._heap:
            rank, place, left, right = heappop(self._heap)
            if self._is_there(place, left, right):
                position = bisect_left(self._alive, place)
                self._merge(position)
                return MergeStep(position, left, right, rank)
        return None

    def _is_there(self, place: int, left: str, right: str) -> bool:
        after = self._next[place]
        return after >= 0 and self._symbols[place] == left and self._symbols[after] == right

    def _merge(self, position: int) -> None:
        place = self._alive[position]
        gone = self._alive.pop(position + 1)
        self._symbols[place] += self._symbols[gone]
        self._symbols[gone] = ""
        after = self._next[place] = self._next[gone]
        self._next[gone] = -1
        if after >= 0:
            self._before[after] = place
            self._offer(place)
        if position:
            self._offer(self._before[place])

    def _offer(self, place: int) -> None:
        left, right = self._symbols[place], self._symbols[self._next[place]]
        rank = self._rules.ranks.get((left, right))
        if rank is not None:
            heappush(self._heap, (rank, place, left, right))
