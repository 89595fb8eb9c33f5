"""How a text went on before: its last tokens looked up among all earlier ones, as zlib finds its matches.

Costs a few microseconds a token, whatever the length of the text: places are chained by the pair of tokens before them.
Knows no device and no schedule. Keeps count of how often it was right, by the length of the match, on every token: so
it is known what a draft is worth before one was ever checked.
"""

from __future__ import annotations

from array import array

MOST_PLACES = 8
"""Earlier places of a pair that are compared, the newest first."""
LONG = 32
"""Tokens in common beyond which longer matches are no better."""
ENOUGH = 16
"""A match of this length is followed without looking for a better one."""
BACKLOG = 64
"""With more unseen tokens than this (a prompt) they are noted only; nothing is learned from them."""

_STARTS = (2, 3, 4, 6, 9, 15, 32)
_PRIORS = (0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
"""How often the next token is right after a match of at least so many tokens, before anything is known."""
_PRIOR_WEIGHT = 6.0
_MEMORY = 0.98
"""What is left of an old observation with each new one of its class: about the last 50 count."""
_CLASS_OF = tuple(sum(length >= start for start in _STARTS[1:]) for length in range(LONG + 1))
_PAIR = 2**32


class Lookup:
    """The index of one sequence over its own growing list of `ids`, and the best match of their end.

    `source` is the place of the token that should come next, None where the last two tokens are new together;
    `length` counts the tokens before it that agree with the end.
    """

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._num_seen = 0
        self._newest: dict[int, int] = {}  # by pair of tokens: the place after its last occurrence
        self._older = array("i", [0])  # by place: the place before it with the same pair, 0 for none
        self._right = [prior * _PRIOR_WEIGHT for prior in _PRIORS]
        self._tried = [_PRIOR_WEIGHT] * len(_PRIORS)
        self.source: int | None = None
        self.length = 0

    def follow(self, most: int = 1024) -> bool:
        """Take in what the sequence has grown by, of a backlog at most so many tokens; whether nothing is left."""
        behind = len(self._ids) - self._num_seen
        if behind > BACKLOG:
            self.source = None
            end = self._num_seen + min(behind, most)
            self._note_until(end)
            if end == len(self._ids):
                self._search()
        else:
            while self._num_seen < len(self._ids):
                self._see(self._ids[self._num_seen])
        return self._num_seen == len(self._ids)

    def draft(self, length: int) -> tuple[int, ...]:
        """The next tokens, should the text go on as it did. A source that reaches the end goes round."""
        if self.source is None:
            return ()
        drafted = self._ids[self.source : self.source + length]
        period = len(self._ids) - self.source
        while len(drafted) < length:
            drafted.append(drafted[-period])
        return tuple(drafted)

    def worth(self, most: int) -> list[float]:
        """Tokens that a step is expected to give with a draft of 0, 1, ... `most` tokens."""
        expected = [1.0]
        if self.source is None:
            return expected
        chance = 1.0
        for length in range(self.length, self.length + most):
            kind = _CLASS_OF[min(length, LONG)]
            chance *= self._right[kind] / self._tried[kind]
            expected.append(expected[-1] + chance)
        return expected

    def _see(self, token: int) -> None:
        if self.source is not None:
            self._judge(self._ids[self.source] == token)
        self._num_seen += 1
        if self.length < ENOUGH:
            self._search()
        self._chain(self._num_seen)

    def _judge(self, is_right: bool) -> None:
        """The token that the source foretold has come, or another one."""
        assert self.source is not None
        kind = _CLASS_OF[min(self.length, LONG)]
        self._right[kind] = self._right[kind] * _MEMORY + is_right
        self._tried[kind] = self._tried[kind] * _MEMORY + 1.0
        if is_right:
            self.source, self.length = self.source + 1, self.length + 1
        else:
            self.source, self.length = None, 0

    def _search(self) -> None:
        """The place before which most tokens agree with the end; the newest of equals, but none for a mere tie."""
        end = self._num_seen
        if end < 2:
            return
        place = self._newest.get(self._pair(end), 0)
        if place == end:
            place = self._older[place]
        for _ in range(MOST_PLACES):
            if not place:
                return
            length = self._agreement(place, end)
            if length > self.length:
                self.source, self.length = place, length
                if length >= ENOUGH:
                    return
            place = self._older[place]

    def _agreement(self, place: int, end: int) -> int:
        ids, length = self._ids, 2
        while length < min(place, LONG) and ids[place - length - 1] == ids[end - length - 1]:
            length += 1
        return length

    def _note_until(self, end: int) -> None:
        for place in range(self._num_seen + 1, end + 1):
            self._chain(place)
        self._num_seen = end

    def _chain(self, place: int) -> None:
        if place < 2:
            self._older.append(0)
            return
        pair = self._pair(place)
        self._older.append(self._newest.get(pair, 0))
        self._newest[pair] = place

    def _pair(self, place: int) -> int:
        return self._ids[place - 2] * _PAIR + self._ids[place - 1]
