"""Which logits a sequence changes before its next token: bias, penalties and banned stop ids, as sparse edits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from localllm.engine.step import LogitEdit
from localllm.wire import SamplingParams


class Penalties:
    """The edits of one sequence. `needs_history` is false when they do not depend on which tokens were generated, so
    that the next token may be planned before the last one is known."""

    def __init__(self, params: SamplingParams, stop_ids: Sequence[int]) -> None:
        self._params = params
        self._counts: Counter[int] = Counter()
        self._repeats = params.repetition_penalty != 1.0 and params.repeat_last_n != 0
        self._recounts = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self.needs_history = self._repeats or self._recounts
        biased = {token: LogitEdit(token, add=bias) for token, bias in params.logit_bias.items()}
        banned = {token: LogitEdit(token, add=-math.inf) for token in stop_ids}
        self._always = tuple(biased.values())
        self._early = tuple((biased | banned).values())

    def note(self, token_id: int) -> None:
        """The sequence generated this token."""
        if self._recounts:
            self._counts[token_id] += 1

    def edits(self, ids: Sequence[int], num_generated: int) -> tuple[LogitEdit, ...]:
        """The edits for generated token number `num_generated` of a sequence that is `ids` so far."""
        static = self._early if num_generated < self._params.min_tokens else self._always
        return self._with_history(static, ids) if self.needs_history else static

    def _with_history(self, static: tuple[LogitEdit, ...], ids: Sequence[int]) -> tuple[LogitEdit, ...]:
        merged = {edit.token_id: edit for edit in static}
        repeated = self._window(ids)
        for token in sorted(repeated | set(self._counts)):
            count = self._counts.get(token, 0)
            add = merged[token].add if token in merged else 0.0
            if count:
                add -= self._params.presence_penalty + self._params.frequency_penalty * count
            penalty = self._params.repetition_penalty if token in repeated else 1.0
            merged[token] = LogitEdit(token, add, penalty)
        return tuple(merged.values())

    def _window(self, ids: Sequence[int]) -> set[int]:
        if not self._repeats:
            return set()
        last_n = self._params.repeat_last_n
        return set(ids if last_n < 0 else ids[-last_n:])
