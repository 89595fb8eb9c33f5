"""Tokens that go on with what was said before: DRY penalties, and the ends of sequences that are banned. Plain Python.

Looks at the ids that are known now, so that whoever asks must know them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from localllm.wire import SamplingParams

MAX_MATCH = 50
"""Longer repetitions are counted as this long: their penalty is beyond any logit by then."""
MAX_PENALTY = 1e6


class Repeats:
    """What `params` say of the next token after `ids`, the sequence's own list, whose first `num_prompt` (None: all so
    far) are its prompt."""

    def __init__(self, params: SamplingParams, ids: list[int], num_prompt: int | None = None) -> None:
        self._ids = ids
        self._num_prompt = len(ids) if num_prompt is None else num_prompt
        self._params = params
        self._breakers = frozenset(params.dry_breakers)
        self._dries = params.dry_multiplier > 0.0 and params.dry_penalty_last_n != 0
        self._endings = [tuple(bad) for bad in params.bad_sequences if len(bad) > 1]
        self.needs_history = self._dries or bool(self._endings)

    def banned(self) -> list[int]:
        """Tokens that would complete a banned sequence; like OpenAI's penalties this looks at generated ones only."""
        num_generated = len(self._ids) - self._num_prompt
        return [
            last
            for *before, last in self._endings
            if len(before) <= num_generated and self._ids[len(self._ids) - len(before) :] == before
        ]

    def penalties(self) -> dict[int, float]:
        """What is taken from the logit of each token that would make a repetition longer: `multiplier * base ** (length
        - allowed_length)` (p-e-w 2024, "DRY", text-generation-webui)."""
        if not self._dries or not self._ids:
            return {}
        params = self._params
        return {
            token: min(MAX_PENALTY, params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length))
            for token, length in self._matches().items()
            if length >= params.dry_allowed_length
        }

    def _matches(self) -> dict[int, int]:
        """For each token that once followed what now ends the text: over how many tokens the two agree."""
        ids, last_n = self._ids, self._params.dry_penalty_last_n
        start = 0 if last_n < 0 else max(0, len(ids) - last_n)
        longest: dict[int, int] = {}
        last = ids[-1]
        if last in self._breakers:
            return longest
        place = _find(ids, last, start, len(ids) - 1)
        while place >= 0:
            token = ids[place + 1]
            if token not in self._breakers:
                longest[token] = max(longest.get(token, 0), self._agreement(place, start))
            place = _find(ids, last, place + 1, len(ids) - 1)
        return longest

    def _agreement(self, place: int, start: int) -> int:
        """How many tokens up to `place` are those at the end of the text."""
        ids, length = self._ids, 1
        while length < min(MAX_MATCH, place - start + 1):
            token = ids[place - length]
            if token != ids[-1 - length] or token in self._breakers:
                break
            length += 1
        return length


def _find(ids: Sequence[int], token: int, start: int, end: int) -> int:
    try:
        return ids.index(token, start, end)
    except ValueError:
        return -1
