"""How sure a model was of its tokens: steps of heat, doubts, and the surprise along an answer. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from localllm.tui.inspector.inspected import InspectedAnswer, InspectedToken, SamplerCuts

Measure = Literal["probability", "entropy", "rank"]
MEASURES: tuple[Measure, ...] = ("probability", "entropy", "rank")
DOUBT = 4
"""The step from which on a token is a doubt."""
HIGHEST_BITS = 6.0
"""What fills the plot of surprise."""

LABELS: dict[Measure, tuple[str, ...]] = {
    "probability": ("≥ .7", "≥ .5", "≥ .3", "≥ .12", "less"),
    "entropy": ("< 1 bit", "< 1.5", "< 2.2", "< 3", "more"),
    "rank": ("1st", "2nd", "3rd", "to 5th", "later"),
}
_LEAST = (0.7, 0.5, 0.3, 0.12)
_MOST_BITS = (1.0, 1.5, 2.2, 3.0)
_LAST_RANKS = (1, 2, 3, 5)


def step_of(token: InspectedToken, measure: Measure) -> int:
    """0 (sure) to 4 (a doubt). What is not known counts as sure."""
    if measure == "probability":
        chance = token.probability
        return 0 if chance is None else sum(chance < least for least in _LEAST)
    if measure == "entropy":
        return 0 if token.entropy is None else sum(token.entropy / math.log(2) >= most for most in _MOST_BITS)
    if not token.alternatives:
        return 0
    rank = token.rank
    return DOUBT if rank is None else sum(rank > last for last in _LAST_RANKS)


def doubts(tokens: Sequence[InspectedToken], measure: Measure) -> list[int]:
    """Places of the tokens that hardly came about."""
    return [place for place, token in enumerate(tokens) if step_of(token, measure) >= DOUBT]


def next_doubt(places: Sequence[int], cursor: int, direction: int) -> int | None:
    """The one behind the cursor, or before it; from the end it goes on at the beginning."""
    if not places:
        return None
    if direction > 0:
        return next((place for place in places if place > cursor), places[0])
    return next((place for place in reversed(places) if place < cursor), places[-1])


class Surprise:
    """The surprise along an answer that may grow: `follow` it, then ask. A token is looked at once."""

    def __init__(self) -> None:
        self.num_doubts = 0
        self._bits: list[float | None] = []
        self._total, self._num_known = 0.0, 0
        self._columns: tuple[int, int, list[float | None]] = (-1, -1, [])

    def follow(self, tokens: Sequence[InspectedToken]) -> None:
        for token in tokens[len(self._bits) :]:
            bits = token.surprise_bits
            self._bits.append(bits)
            self.num_doubts += step_of(token, "probability") >= DOUBT
            self._total += bits or 0.0
            self._num_known += bits is not None

    @property
    def mean_bits(self) -> float | None:
        """Of all tokens whose surprise is known."""
        return self._total / self._num_known if self._num_known else None

    def columns(self, width: int) -> list[float | None]:
        """`columns` of all tokens so far."""
        count, of_width, found = self._columns
        if (count, of_width) != (len(self._bits), width):
            found = columns(self._bits, width)
            self._columns = len(self._bits), width, found
        return found


def columns(bits: Sequence[float | None], width: int) -> list[float | None]:
    """The greatest surprise in bits of the tokens behind each column; None where nothing is known."""
    shares = (
        [(column_of(x, width, len(bits)), column_of(x + 1, width, len(bits))) for x in range(width)] if bits else []
    )
    found: list[float | None] = []
    for first, last in shares:
        known = [each for each in bits[first : max(first + 1, last)] if each is not None]
        found.append(max(known) if known else None)
    return found


def column_of(place: int, of: int, into: int) -> int:
    """Where one of `of` places lies among `into` others."""
    return place * into // of if of else 0


def columns_of(place: int, of: int, width: int) -> tuple[int, int]:
    """The columns of `columns` in which one token of so many is, from and up to."""
    end = -(-(place + 1) * width // of)
    start = -(-place * width // of) if of < width else end - 1
    return min(start, width - 1), max(end, start + 1)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, `11th`."""
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    return f"{number}{('th', 'st', 'nd', 'rd')[last] if last < 4 else 'th'}"


def cuts_text(cuts: SamplerCuts) -> str:
    """What keeps the sampler from unlikely tokens: `top p 0.95`, `greedy`."""
    if cuts.temperature <= 0:
        return "greedy"
    parts = [f"top k {cuts.top_k}" if cuts.top_k else ""]
    parts += [f"top p {cuts.top_p:g}" if cuts.top_p < 1 else "", f"min p {cuts.min_p:g}" if cuts.min_p > 0 else ""]
    return "   ".join(filter(None, parts)) or "nothing is cut"


def context_before(answer: InspectedAnswer, place: int, most: int = 24) -> str:
    """The end of the text before a token, on one line: whole words where there are any."""
    raw = b"".join(token.raw for token in answer.tokens[max(0, place - 12) : place])
    text = " ".join(raw.decode("utf-8", errors="ignore").split())
    if len(text) <= most:
        return text
    return text[-most:].partition(" ")[2] or text[-most:]
