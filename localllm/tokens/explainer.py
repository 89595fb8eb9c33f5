"""One tokenizer, ready to be asked about: a text as tokens, a word step by step, its vocabulary.

What takes long to read (merge rules, scores) is read when first needed and kept as long as the explainer is.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from localllm import told
from localllm.errors import InvalidRequest
from localllm.tokens.alphabet import spelled_bytes
from localllm.tokens.greedy import GreedyWord, Pieces, matches_of, read_pieces
from localllm.tokens.lattice import UNKNOWN, Scores, is_whole, lattice_of, read_scores
from localllm.tokens.lookup import Lookup
from localllm.tokens.merges import MAX_TRACED_CHARS, MergeRules, WordTrace, merge_rules, trace_spelled
from localllm.tokens.tokenizer import SpelledWord, Tokenizer, byte_of_name, clean_text
from localllm.tokens.vocabulary import SPACE_MARK

NUM_TRIED_SHOWN = 3  # of the prefixes at each end of what WordPiece tried
ALREADY_WHOLE = "this is a token as it stands: it is matched before any cutting"
LOOKED_UP = "this word is a token as it stands: the model looks words up before it merges"
NOTHING_FITS = "no prefix of the rest is in the vocabulary, so that the word is unknown as a whole"
TOO_LONG = "the word is longer than the model looks into, so that it is unknown as a whole"


Cut = tuple[int, int, int]
"""The id of a token, and the characters where it begins and ends."""


@dataclass(frozen=True, slots=True)
class Place:
    """The word around a place of a text: `tokens[first:last]` of `cuts`, the `word`'s tokens from `skip` on."""

    word: SpelledWord
    tokens: Sequence[Cut]
    skip: int

    @property
    def last(self) -> int:
        return self.skip + len(self.tokens)


class Explainer:
    """Answers about one tokenizer, under the name and the title that people know it by. Safe for several threads."""

    def __init__(self, tokenizer: Tokenizer, name: str, title: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.title = title or name
        self._reading = threading.Lock()

    # ---- a text

    def cuts(self, text: str, *, add_special: bool, parse_special: bool) -> list[Cut]:
        return self.tokenizer.cuts(text, add_special=add_special, parse_special=parse_special)

    # ---- a word

    def trace(self, text: str, at: int, *, parse_special: bool = True) -> told.Trace:
        """How the word around the character `at` became tokens.

        Raises InvalidRequest for a place outside the text, and for a word that is too long to be read.
        """
        text = clean_text(text)
        place = self._place(text, at, parse_special)
        word = place.word
        start, end = place.tokens[0][1], place.tokens[-1][2]
        ids = [token_id for token_id, _, _ in place.tokens]
        kind, name = self.tokenizer.kind, self.name
        common: dict[str, Any] = {"model": name, "kind": kind, "start": start, "end": end, "ids": ids}
        if self.tokenizer.kind == "WordPiece":  # an unknown word is a token as it stands, too, but there was a search
            found = matches_of(self.tokenizer, self._pieces, word, text[start:end])
            return told.Trace(**common, word=found.text, matches=self._matches(found), note=self._no_match(found))
        if is_whole(self.tokenizer, word):
            return told.Trace(**common, word=word.spellings[0], note=ALREADY_WHOLE)
        return self._lattice(place, text, common) if self.tokenizer.kind == "Unigram" else self._merges(place, common)

    def traces(self, text: str, *, parse_special: bool = True) -> list[told.Trace]:
        """How every word of a short text became tokens. InvalidRequest for one past MAX_TRACED_CHARS."""
        text = clean_text(text)
        if len(text) > MAX_TRACED_CHARS:
            raise InvalidRequest(
                f"words can be shown for at most {MAX_TRACED_CHARS} characters, and this text has {len(text)}"
            )
        traces: list[told.Trace] = []
        at = 0
        while at < len(text):
            trace = self.trace(text, at, parse_special=parse_special)
            if trace.end <= at:  # only spaces, which are no token, are left
                break
            traces.append(trace)
            at = trace.end
        return traces

    def _place(self, text: str, at: int, parse_special: bool) -> Place:
        if not 0 <= at < max(1, len(text)):
            raise InvalidRequest(f"at is {at}, and the text has {len(text)} characters", param="at")
        tokens = self.tokenizer.cuts(text, add_special=False, parse_special=parse_special)
        if not tokens:
            raise InvalidRequest("there is no token in this text", param="text")
        number = next((n for n, (_, start, end) in enumerate(tokens) if start <= at < end), None)
        if number is None:  # a space that belongs to no token: the word behind it, else the last one
            number = next((n for n, (_, start, _) in enumerate(tokens) if start >= at), len(tokens) - 1)
        words = self.tokenizer.spelled_words(text, parse_special=parse_special)
        word = next(word for word in words if number < word.next_token)
        first, last = self._between_spaces(word, number - word.first_token)
        return Place(word, tokens[word.first_token + first : word.first_token + last], first)

    def _between_spaces(self, word: SpelledWord, number: int) -> tuple[int, int]:
        """Where a pre-tokenizer leaves whole texts in one piece: the tokens from one space to the next."""
        marked = [spelling.startswith(SPACE_MARK) for spelling in word.spellings]
        first = next((n for n in range(number, 0, -1) if marked[n]), 0)
        last = next((n for n in range(number + 1, len(marked)) if marked[n]), len(marked))
        return first, last

    def _merges(self, place: Place, common: dict[str, Any]) -> told.Trace:
        spelled = sum(map(len, place.word.spellings))
        if spelled > MAX_TRACED_CHARS:
            raise InvalidRequest(
                f"this word has {spelled} characters, and merges are shown for at most {MAX_TRACED_CHARS}", param="at"
            )
        whole = trace_spelled(self.tokenizer, self._rules, place.word.ids)
        traced = whole.part(place.skip, place.last)
        steps = [
            told.Merge(position=step.position, left=self._hex(step.left), right=self._hex(step.right), rank=step.rank)
            for step in traced.steps
        ]
        merges = told.Merges(symbols=[self._hex(symbol) for symbol in traced.symbols], steps=steps)
        note = LOOKED_UP if self._rules.ignores_merges and not steps else ""
        return told.Trace(**common, word=self._said(traced), merges=merges, note=note)

    def _said(self, traced: WordTrace) -> str:
        return b"".join(map(self._spelled, traced.symbols)).decode("utf-8", errors="replace")

    def _lattice(self, place: Place, text: str, common: dict[str, Any]) -> told.Trace:
        found = lattice_of(self.tokenizer, self._scores, place.word, text)
        start, end = found.spans[place.skip][0], found.spans[place.last - 1][1]
        before = next((piece.best for piece in found.path if piece.end == start), 0.0)
        taken = frozenset(found.path)
        edges = [
            told.Edge(
                start=piece.start - start,
                end=piece.end - start,
                id=piece.id if piece.id != UNKNOWN else -1,
                bytes=self._hex(found.text[piece.start : piece.end]),
                score=piece.score,
                best=piece.best - before,
                is_taken=piece in taken,
            )
            for piece in found.pieces
            if start <= piece.start and piece.end <= end
        ]
        score = next((piece.best for piece in found.path if piece.end == end), 0.0) - before
        word = found.text[start:end].replace(SPACE_MARK, " ")
        return told.Trace(**common, word=word, lattice=told.Lattice(edges=edges, score=score))

    def _no_match(self, found: GreedyWord) -> str:
        if not found.matches:
            return TOO_LONG if found.ids == (self._pieces.unknown_id,) else ALREADY_WHOLE
        return NOTHING_FITS if found.matches[-1].piece is None else ""

    def _matches(self, found: GreedyWord) -> list[told.Match]:
        return [
            told.Match(
                id=self._pieces.ids[match.piece] if match.piece is not None else -1,
                piece=match.piece or "",
                rest=match.rest,
                tried=_ends_of(match.tried),
                num_tried=len(match.tried),
            )
            for match in found.matches
        ]

    def _hex(self, symbol: str) -> str:
        return self._spelled(symbol).hex()

    def _spelled(self, symbol: str) -> bytes:
        """The bytes of what the model spells so."""
        if self.tokenizer.built.is_byte_level:
            return spelled_bytes(symbol)
        return byte_of_name(symbol.replace(SPACE_MARK, " "))

    # ---- the vocabulary

    @cached_property
    def vocabulary(self) -> Lookup:
        with self._reading:
            return self.__dict__.get("vocabulary") or Lookup(self.tokenizer, self.name)

    def page(
        self, *, text: str | None, token_id: int | None, raw: bytes | None, offset: int, limit: int
    ) -> told.VocabularyPage:
        """Entries by their text, their id or their bytes; all of them where nothing is asked for."""
        found = self.vocabulary.find(text=text, token_id=token_id, raw=raw)
        shown = found[offset : offset + limit]
        as_tokens = self.tokenizer.encode(text, add_special=False)[:64] if text else []
        return told.VocabularyPage(
            model=self.name,
            vocab_size=self.tokenizer.vocab_size,
            total=len(found),
            offset=offset,
            entries=self._entries(shown),
            as_tokens=as_tokens,
        )

    def facts(self, token_id: int) -> told.TokenFacts:
        """What there is to know of one token. InvalidRequest for an id out of range."""
        raw = self.tokenizer.token_bytes(token_id)
        (entry,) = self._entries([token_id])
        holding = self.vocabulary.holding(token_id)
        made = self._made_from([token_id]).get(token_id)
        return told.TokenFacts(
            model=self.name,
            id=token_id,
            bytes=raw.hex(),
            type=entry.type,
            rank=entry.rank,
            score=entry.score,
            merged_from=[self._hex(symbol) for symbol in made[:2]] if made else [],
            also_in=self._entries(holding[:8]),
            num_also_in=len(holding),
        )

    def _entries(self, ids: Sequence[int]) -> list[told.VocabularyEntry]:
        made = self._made_from(ids)
        return [
            told.VocabularyEntry(
                id=token_id,
                bytes=self.tokenizer.token_bytes(token_id).hex(),
                type=self.vocabulary.type_of(token_id),
                rank=made[token_id][2] if token_id in made else None,
                score=self._score(token_id),
            )
            for token_id in ids
        ]

    def _made_from(self, ids: Sequence[int]) -> dict[int, tuple[str, str, int]]:
        """The two symbols and the rank of the first merge that makes each token; BPE only."""
        if self.tokenizer.kind != "BPE" or not ids:
            return {}
        texts = {self.tokenizer.built.texts[token_id]: token_id for token_id in ids}
        made: dict[int, tuple[str, str, int]] = {}
        for (left, right), rank in self._rules.ranks.items():  # in the order of their ranks
            token_id = texts.get(left + right)
            if token_id is not None:
                made.setdefault(token_id, (left, right, rank))
        return made

    def _score(self, token_id: int) -> float | None:
        has_scores = self.tokenizer.kind == "Unigram" and token_id < len(self._scores.scores)
        return self._scores.scores[token_id] if has_scores else None

    # ---- what is read when first needed

    @cached_property
    def _rules(self) -> MergeRules:
        with self._reading:
            return self.__dict__.get("_rules") or merge_rules(self.tokenizer)

    @cached_property
    def _scores(self) -> Scores:
        with self._reading:
            return self.__dict__.get("_scores") or read_scores(self.tokenizer)

    @cached_property
    def _pieces(self) -> Pieces:
        with self._reading:
            return self.__dict__.get("_pieces") or read_pieces(self.tokenizer)


def _ends_of(tried: Sequence[str]) -> list[str]:
    """The first and the last of what was tried."""
    if len(tried) <= 2 * NUM_TRIED_SHOWN:
        return list(tried)
    return [*tried[:NUM_TRIED_SHOWN], *tried[-NUM_TRIED_SHOWN:]]


def explanation(
    explainers: Sequence[Explainer], text: str, *, add_special: bool, parse_special: bool, most: int
) -> told.Explanation:
    """A text through several tokenizers, the first `most` tokens of each listed; counts and cuts are of all of it."""
    text = clean_text(text)
    read = [_read(each, text, add_special, parse_special) for each in explainers]
    cuts = [{end for _, _, end in tokens} for tokens in read if isinstance(tokens, list)]
    agreed = set.intersection(*cuts) if cuts else set()
    return told.Explanation(
        num_chars=len(text),
        num_bytes=len(text.encode()),
        num_listed=most,
        tokenizers=[_split(each, found, agreed, most) for each, found in zip(explainers, read, strict=True)],
    )


def _read(explainer: Explainer, text: str, add_special: bool, parse_special: bool) -> list[Cut] | InvalidRequest:
    """One tokenizer's refusal must not keep the others from showing theirs."""
    try:
        return explainer.cuts(text, add_special=add_special, parse_special=parse_special)
    except InvalidRequest as refusal:
        return refusal


def _split(explainer: Explainer, found: list[Cut] | InvalidRequest, agreed: set[int], most: int) -> told.SplitText:
    tokenizer = explainer.tokenizer
    common: dict[str, Any] = {"model": explainer.name, "title": explainer.title, "vocab_size": tokenizer.vocab_size}
    if isinstance(found, InvalidRequest):
        return told.SplitText(**common, kind=tokenizer.kind, problem=found.message)
    tokens = [
        told.TextToken(
            id=token_id,
            bytes=tokenizer.token_bytes(token_id).hex(),
            start=start,
            end=end,
            is_special=token_id in tokenizer.special_ids,
            agrees=end in agreed,
        )
        for token_id, start, end in found[:most]
    ]
    num_agreed = len({end for _, _, end in found} & agreed - {0})
    return told.SplitText(**common, kind=tokenizer.kind, count=len(found), tokens=tokens, num_agreed=num_agreed)
