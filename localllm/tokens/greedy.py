"""How WordPiece cuts a word: the longest prefix that is in the vocabulary, again and again. A view for people.

The tokenizer itself encodes with `tokenizers`; this slow twin is tested to end in the same ids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.lattice import is_whole
from localllm.tokens.tokenizer import SpelledWord, Tokenizer, clean_text

MAX_GREEDY_CHARS = 512
"""Every place tries every length: a longer word would take long, and nobody reads what was tried."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A WordPiece model: its vocabulary, the mark of a piece that goes on, and the longest word it looks into."""

    ids: Mapping[str, int]
    unknown_id: int
    mark: str
    longest_word: int


@dataclass(frozen=True, slots=True)
class Match:
    """`tried` are the prefixes that were no pieces, longest first; then `piece` was one. `rest` is still to be cut.

    A `piece` of None ends the search: the word is unknown as a whole.
    """

    tried: tuple[str, ...]
    piece: str | None
    rest: str


@dataclass(frozen=True, slots=True)
class GreedyWord:
    """One word, as the tokenizer normalized it. Without matches it was a token as it stood, or is too long for it."""

    text: str
    matches: tuple[Match, ...]
    ids: tuple[int, ...]


def read_pieces(tokenizer: Tokenizer) -> Pieces:
    """Read the vocabulary; takes a while for a large one, so keep it. UnsupportedModel if it is no WordPiece."""
    state: dict[str, Any] = json.loads(tokenizer.built.core.model.__getstate__())
    if state.get("type", "WordPiece") != "WordPiece":
        raise UnsupportedModel(f"matches can only be shown for WordPiece, and this tokenizer is {state.get('type')}")
    ids: dict[str, int] = state["vocab"]
    unknown = ids.get(state["unk_token"], -1)
    return Pieces(ids, unknown, state["continuing_subword_prefix"], state["max_input_chars_per_word"])


def explain_matches(tokenizer: Tokenizer, text: str, pieces: Pieces | None = None) -> list[GreedyWord]:
    """One trace per word; their ids joined are `tokenizer.encode(text, add_special=False)`."""
    pieces = pieces or read_pieces(tokenizer)
    text = clean_text(text)
    spans = [(token.char_start, token.char_end) for token in tokenizer.explain(text, add_special=False)]
    found: list[GreedyWord] = []
    for word in tokenizer.spelled_words(text):
        held = spans[word.first_token : word.first_token + len(word.ids)]
        found.append(matches_of(tokenizer, pieces, word, text[held[0][0] : held[-1][1]]))
    return found


def matches_of(tokenizer: Tokenizer, pieces: Pieces, word: SpelledWord, text: str) -> GreedyWord:
    """The matches of one word, whose part of the text is `text`. InvalidRequest for one past MAX_GREEDY_CHARS."""
    if pieces.unknown_id in word.ids and text.strip() != word.spellings[0]:
        return trace_word(pieces, _as_read(tokenizer, text))
    if is_whole(tokenizer, word):
        return GreedyWord(word.spellings[0], (), word.ids)
    return trace_word(pieces, _joined(pieces, word))


def _joined(pieces: Pieces, word: SpelledWord) -> str:
    first, *others = word.spellings
    return first + "".join(piece.removeprefix(pieces.mark) for piece in others)


def _as_read(tokenizer: Tokenizer, text: str) -> str:
    """The word of an unknown token, which has no spelling of its own, as the tokenizer normalizes it."""
    normalizer = tokenizer.built.core.normalizer
    return (normalizer.normalize_str(text) if normalizer else text).strip()


def trace_word(pieces: Pieces, word: str) -> GreedyWord:
    """The longest prefix that is a piece, then the longest of the rest; a rest without one makes all of it unknown."""
    if len(word) > pieces.longest_word:
        return GreedyWord(word, (), (pieces.unknown_id,))
    if len(word) > MAX_GREEDY_CHARS:
        raise InvalidRequest(
            f"this word has {len(word)} characters, and matches are shown for at most {MAX_GREEDY_CHARS}"
        )
    matches: list[Match] = []
    place = 0
    while place < len(word):
        match = _longest(pieces, word, place)
        matches.append(match)
        if match.piece is None:
            return GreedyWord(word, tuple(matches), (pieces.unknown_id,))
        place = len(word) - len(match.rest)
    return GreedyWord(word, tuple(matches), tuple(pieces.ids[match.piece] for match in matches if match.piece))


def _longest(pieces: Pieces, word: str, place: int) -> Match:
    mark = pieces.mark if place else ""
    tried: list[str] = []
    for end in range(len(word), place, -1):
        candidate = mark + word[place:end]
        if candidate in pieces.ids:
            return Match(tuple(tried), candidate, word[end:])
        tried.append(candidate)
    return Match(tuple(tried), None, word[place:])
