"""The tokens of a model as bytes: for grammars, and to find a text in what was generated wherever tokens are cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from localllm.runtime.place import place_of
from localllm.tokens.borders import borders

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Trigger:
    """Finds the first place where a text ends in a stream of bytes (Knuth-Morris-Pratt)."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.num_matched = 0
        self._borders = borders(text)

    def push(self, raw: bytes) -> bytes | None:
        """What of `raw` comes behind the text, once that is complete; None before."""
        for place, byte in enumerate(raw):
            while self.num_matched and self.text[self.num_matched] != byte:
                self.num_matched = self._borders[self.num_matched - 1]
            self.num_matched += self.text[self.num_matched] == byte
            if self.num_matched == len(self.text):
                return raw[place + 1 :]
        return None

    def starts(self) -> list[int]:
        """How much of the text may be matched already, as the next byte may see it; longest first."""
        lengths, length = [self.num_matched], self.num_matched
        while length:
            length = self._borders[length - 1]
            lengths.append(length)
        return lengths


class TokenBytes:
    """What each token of a model stands for. Ids that the tokenizer does not know stand for nothing, and no grammar
    ever allows them. `raw` of a control token is its spelling, as that is what triggers are written in."""

    def __init__(
        self, raws: Sequence[bytes], vocab_size: int, *, control_ids: Iterable[int] = (), eog_ids: Iterable[int] = ()
    ) -> None:
        self.vocab_size = vocab_size
        self.unknown_ids = range(len(raws), vocab_size)
        self.raws = [*raws[:vocab_size], *[b""] * (vocab_size - len(raws))]
        self.control_ids = frozenset(control_ids)
        self.eog_ids = sorted(token for token in eog_ids if token < vocab_size)

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> TokenBytes:
        """Of the model at `path`; errors as of `Tokenizer`."""
        from localllm.tokens.tokenizer import Tokenizer  # deferred: unconstrained workers carry no tokenizer

        place = place_of(path)
        tokenizer = Tokenizer.from_path(place.path if place.kind == "gguf" else place.folder)
        raws = [tokenizer.token_bytes(token) for token in range(min(vocab_size, tokenizer.vocab_size))]
        control_ids = tokenizer.special_ids | tokenizer.eog_ids
        return cls(raws, vocab_size, control_ids=control_ids, eog_ids=tokenizer.eog_ids)

    def raw(self, token_id: int) -> bytes:
        return self.raws[token_id]

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask."""
        return -(-self.vocab_size // 8)

    @cached_property
    def for_llguidance(self) -> LLTokenizer:
        """llguidance's trie of this vocabulary. A model without an end gets one behind its last id."""
        from llguidance import LLTokenizer, TokenizerWrapper  # deferred: only constrained models pay for it

        return LLTokenizer(TokenizerWrapper(_Wrapped(self)), eos_token=self.eog_ids or [self.vocab_size])

    @cached_property
    def _ids(self) -> dict[bytes, list[int]]:
        """Of all that is text; several tokens may stand for the same bytes."""
        ids: dict[bytes, list[int]] = {}
        for token, raw in enumerate(self.raws):
            if raw and token not in self.control_ids:
                ids.setdefault(raw, []).append(token)
        return ids

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=1)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self._ids)

    def ids_of(self, raw: bytes) -> list[int]:
        """Tokens that together are these bytes, the longest first; bytes that no token starts with are left out."""
        ids, place = [], 0
        while place < len(raw):
            for end in range(min(len(raw), place + self._longest), place, -1):
                if known := self._ids.get(raw[place:end]):
                    ids.append(known[0])
                    place = end - 1
                    break
            place += 1
        return ids

    def ending_inside(self, trigger: Trigger) -> list[tuple[int, bytes]]:
        """Tokens that would complete the trigger's text with bytes to spare, and these bytes."""
        key = (trigger.text, trigger.num_matched)
        known = self._endings.get(key)
        if known is None:
            known = self._endings[key] = self._find_endings(trigger)
        return known

    def _find_endings(self, trigger: Trigger) -> list[tuple[int, bytes]]:
        found: dict[bytes, bytes] = {}
        for length in trigger.starts():
            tail = trigger.text[length:]
            for raw in self._starting_with(tail) if length else self._containing(tail):
                found.setdefault(raw, raw[raw.index(tail) + len(tail) :])
        return [(token, rest) for raw, rest in found.items() if rest for token in self._ids[raw]]

    def _starting_with(self, head: bytes) -> Iterable[bytes]:
        place = bisect_left(self._sorted, head)
        while place < len(self._sorted) and self._sorted[place].startswith(head):
            yield self._sorted[place]
            place += 1

    def _containing(self, text: bytes) -> Iterable[bytes]:
        return (raw for raw in self._ids if text in raw)

    @cached_property
    def _endings(self) -> dict[tuple[bytes, int], list[tuple[int, bytes]]]:
        return {}


class _Wrapped:
    """What llguidance wants to know of a vocabulary. It may cut bytes into tokens as it likes: it never says any."""

    bos_token_id = None

    def __init__(self, tokens: TokenBytes) -> None:
        self._ids_of = tokens.ids_of
        self.eos_token_id = tokens.eog_ids[0] if tokens.eog_ids else tokens.vocab_size
        self.tokens = tokens.raws if tokens.eog_ids else [*tokens.raws, b"<end>"]
        self.special_token_ids = sorted({*tokens.control_ids, self.eos_token_id} & {*range(len(self.tokens))})

    def __call__(self, text: bytes) -> list[int]:
        return self._ids_of(text)


def mask_of(ids: Iterable[int], vocab_size: int, *, inverted: bool = False) -> bytes:
    """The mask that allows these ids only, or all others of the vocabulary."""
    bits = np.full(vocab_size, inverted)
    bits[np.fromiter(ids, np.int64)] = not inverted
    return np.packbits(bits, bitorder="little").tobytes()
