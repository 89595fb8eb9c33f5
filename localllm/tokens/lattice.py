"""How a Unigram model cuts a word: every piece that fits, its score, and the way with the best sum. A view for people.

The tokenizer itself encodes with `tokenizers`; this slow twin is tested to end in the same ids.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import SpelledWord, Tokenizer, byte_of_name, clean_text

MAX_LATTICE_CHARS = 1024
"""Every start looks at every length: a longer word would take long, and nobody reads its lattice."""
_UNKNOWN_PENALTY = 10.0  # sentencepiece's: an unknown character costs this much more than the worst piece
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Scores:
    """A Unigram model's pieces with their log probabilities. `unknown_id` None: it refuses unknown characters."""

    ids: Mapping[str, int]
    scores: Sequence[float]
    unknown_id: int | None
    has_byte_fallback: bool
    longest: int
    worst: float


@dataclass(frozen=True, slots=True)
class Piece:
    """`text[start:end]` as one piece; `id` UNKNOWN for a single character that is none. `best` is the best sum of
    scores from the start of the word to the end of this piece, if it goes through it."""

    start: int
    end: int
    id: int
    score: float
    best: float


@dataclass(frozen=True, slots=True)
class WordLattice:
    """One word, as the tokenizer normalized it. `path` is the way that was taken; `ids` are its tokens and `spans` the
    characters of each: unknown neighbours are one token, or as many as they have bytes."""

    text: str
    pieces: tuple[Piece, ...]
    path: tuple[Piece, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def score(self) -> float:
        return self.path[-1].best if self.path else 0.0


def read_scores(tokenizer: Tokenizer) -> Scores:
    """Read the pieces; takes a while for a large vocabulary, so keep them. UnsupportedModel if it is no Unigram."""
    state: dict[str, Any] = json.loads(tokenizer.built.core.model.__getstate__())
    if state.get("type", "Unigram") != "Unigram":
        raise UnsupportedModel(f"a lattice can only be shown for Unigram, and this tokenizer is {state.get('type')}")
    texts = [str(text) for text, _ in state["vocab"]]
    scores = [float(score) for _, score in state["vocab"]]
    ids = {text: token_id for token_id, text in enumerate(texts)}  # of equal texts the last one, as the package has it
    return Scores(
        ids,
        scores,
        state.get("unk_id"),
        bool(state.get("byte_fallback")),
        max(map(len, texts), default=0),
        min((score for score in scores if not math.isnan(score)), default=0.0),
    )


def explain_lattices(tokenizer: Tokenizer, text: str, scores: Scores | None = None) -> list[WordLattice]:
    """One lattice per word; their ids joined are `tokenizer.encode(text, add_special=False)`."""
    scores = scores or read_scores(tokenizer)
    return [lattice_of(tokenizer, scores, word, clean_text(text)) for word in tokenizer.spelled_words(text)]


def lattice_of(tokenizer: Tokenizer, scores: Scores, word: SpelledWord, text: str) -> WordLattice:
    """The lattice of one word of a text. InvalidRequest for one past MAX_LATTICE_CHARS."""
    if is_whole(tokenizer, word):
        return WordLattice(word.spellings[0], (), (), word.ids)
    return trace_word(scores, _normalized(tokenizer, word, text))


def is_whole(tokenizer: Tokenizer, word: SpelledWord) -> bool:
    """Whether the word is a token that was matched before any cutting: nothing led to it."""
    if len(word.ids) != 1:
        return False
    kind, text = tokenizer.built.types[word.ids[0]], tokenizer.built.texts[word.ids[0]]
    return kind in (TokenType.CONTROL, TokenType.USER_DEFINED) or (
        kind == TokenType.UNKNOWN and word.spellings[0] == text
    )


def _normalized(tokenizer: Tokenizer, word: SpelledWord, text: str) -> str:
    """The word as the model read it; bytes that stood for unknown characters become those again.

    A text may also spell the name of such a byte out, and a Unigram model finds that as a piece.
    """
    joined = bytearray()
    for token_id, spelling, span in zip(word.ids, word.spellings, word.spans, strict=True):
        is_byte = tokenizer.built.types[token_id] == TokenType.BYTE and text[slice(*span)] != spelling
        joined += byte_of_name(spelling) if is_byte else spelling.encode("utf-8", errors="replace")
    return joined.decode("utf-8", errors="replace")


def trace_word(scores: Scores, word: str) -> WordLattice:
    """Viterbi: for every place the best way to it, the first of equals; then the way back from the end."""
    if len(word) > MAX_LATTICE_CHARS:
        raise InvalidRequest(
            f"this word has {len(word)} characters, and a lattice is shown for at most {MAX_LATTICE_CHARS}"
        )
    arrivals: list[Piece | None] = [None] * (len(word) + 1)
    pieces: list[Piece] = []
    for start in range(len(word)):
        before = arrivals[start]
        for piece in _pieces_from(scores, word, start, before.best if before else 0.0):
            pieces.append(piece)
            known = arrivals[piece.end]
            if known is None or piece.best > known.best:
                arrivals[piece.end] = piece
    path = _way_back(arrivals)
    tokens = list(_tokens_of(scores, word, path))
    ids, spans = tuple(token_id for token_id, _ in tokens), tuple(span for _, span in tokens)
    return WordLattice(word, tuple(pieces), path, ids, spans)


def _pieces_from(scores: Scores, word: str, start: int, so_far: float) -> Iterator[Piece]:
    has_single = False
    for end in range(start + 1, min(len(word), start + scores.longest) + 1):
        token_id = scores.ids.get(word[start:end])
        if token_id is None:
            continue
        score = scores.scores[token_id]
        has_single = has_single or end == start + 1
        yield Piece(start, end, token_id, score, so_far + score)
    if not has_single:  # a single character can always be passed, known or not
        score = scores.worst - _UNKNOWN_PENALTY
        yield Piece(start, start + 1, UNKNOWN, score, so_far + score)


def _way_back(arrivals: Sequence[Piece | None]) -> tuple[Piece, ...]:
    path: list[Piece] = []
    place = len(arrivals) - 1
    while place > 0:
        piece = arrivals[place]
        assert piece is not None  # every place can be reached from the one before it
        path.append(piece)
        place = piece.start
    return tuple(reversed(path))


def _tokens_of(scores: Scores, word: str, path: Sequence[Piece]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Neighbours that are unknown are one token, or its bytes where the model has those."""
    for is_unknown, group in groupby(path, key=lambda piece: piece.id in (UNKNOWN, scores.unknown_id)):
        pieces = list(group)
        if is_unknown:
            span = (pieces[0].start, pieces[-1].end)
            yield from ((token_id, span) for token_id in _unknown_ids(scores, word[slice(*span)]))
        else:
            yield from ((piece.id, (piece.start, piece.end)) for piece in pieces)


def _unknown_ids(scores: Scores, text: str) -> list[int]:
    if text in scores.ids:  # what was passed character by character may be a piece as a whole
        return [scores.ids[text]]
    names = [f"<0x{byte:02X}>" for byte in text.encode("utf-8", errors="replace")]
    if scores.has_byte_fallback and all(name in scores.ids for name in names):
        return [scores.ids[name] for name in names]
    if scores.unknown_id is None:
        raise InvalidRequest("the model's tokenizer has no token for characters it does not know")
    return [scores.unknown_id]
