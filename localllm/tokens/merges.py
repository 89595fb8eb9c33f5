"""How byte-pair encoding gets from characters to tokens, step by step: a view for people.

The tokenizer itself encodes with `tokenizers`; this slow twin is tested to end in the same ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import Tokenizer, byte_of_name, clean_text

MAX_TRACED_CHARS = 4096
"""Each step looks at all pairs of a word, and for SentencePiece the whole text is one word."""


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
    return [_traced(tokenizer, rules, ids) for ids in tokenizer.words(clean_text(text))]


def _traced(tokenizer: Tokenizer, rules: MergeRules, ids: Sequence[int]) -> WordTrace:
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
    symbols, steps = _first_symbols(rules, word), []
    first = tuple(symbols)
    while (step := _best_step(rules, symbols)) is not None:
        symbols[step.position : step.position + 2] = [step.left + step.right]
        steps.append(step)
    return WordTrace(first, tuple(steps), tuple(rules.ids_by_text[one] for one in symbols if one in rules.ids_by_text))


def _first_symbols(rules: MergeRules, word: str) -> list[str]:
    symbols: list[str] = []
    for character in word:
        is_known = character in rules.ids_by_text or not rules.has_byte_fallback
        symbols += [character] if is_known else [f"<0x{byte:02X}>" for byte in character.encode()]
    return symbols


def _best_step(rules: MergeRules, symbols: Sequence[str]) -> MergeStep | None:
    best: MergeStep | None = None
    for position in range(len(symbols) - 1):
        pair = symbols[position], symbols[position + 1]
        rank = rules.ranks.get(pair)
        if rank is not None and (best is None or rank < best.rank):
            best = MergeStep(position, *pair, rank)
    return best
