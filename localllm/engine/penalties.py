"""Which logits a sequence changes before its next token: bias, penalties and bans, as sparse edits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from localllm.engine.repeats import Repeats
from localllm.engine.step import LogitEdit
from localllm.wire import SamplingParams


class Penalties:
    """The edits of one sequence, kept up to date token by token.

    `ids` is the sequence's own list, which holds the prompt now and grows; those behind `num_prompt` (None: none) count
    as generated. `needs_history` is false when the edits do
    not depend on which tokens were generated, so that the next token may be planned before the last one is known.
    """

    def __init__(
        self, params: SamplingParams, stop_ids: Sequence[int], ids: list[int], num_prompt: int | None = None
    ) -> None:
        self._params = params
        self._ids = ids
        self._repeats = params.repetition_penalty != 1.0 and params.repeat_last_n != 0
        self._counts_generated = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._again = Repeats(params, ids, num_prompt)
        self._follows = self._again.needs_history
        self.needs_history = self._repeats or self._counts_generated or self._follows
        said = ids[num_prompt:] if num_prompt is not None and self._counts_generated else ()
        self._generated: Counter[int] = Counter(said)
        self._repeated: Counter[int] = Counter(self._first_window())
        self._banned = {token: LogitEdit(token, add=-math.inf) for token in stop_ids}
        self._never = frozenset(bad[0] for bad in params.bad_sequences if len(bad) == 1)
        self._edits: dict[int, LogitEdit] = {}
        for token in (*params.logit_bias, *self._repeated, *self._generated, *self._never):
            self._refresh(token)
        self._frozen: tuple[LogitEdit, ...] | None = None

    def edits(self, num_generated: int) -> tuple[LogitEdit, ...]:
        """The edits for generated token number `num_generated`; stop ids are banned while that is below min_tokens."""
        if self._follows:
            return tuple((self._with_repeats() | self._banned_at(num_generated)).values())
        if num_generated < self._params.min_tokens and self._banned:
            return tuple((self._edits | self._banned).values())
        if self._frozen is None:
            self._frozen = tuple(self._edits.values())
        return self._frozen

    def _banned_at(self, num_generated: int) -> dict[int, LogitEdit]:
        stops = self._banned if num_generated < self._params.min_tokens else {}
        return stops | {token: LogitEdit(token, add=-math.inf) for token in self._again.banned()}

    def _with_repeats(self) -> dict[int, LogitEdit]:
        edits = dict(self._edits)
        for token, less in self._again.penalties().items():
            before = edits.get(token, LogitEdit(token))
            edits[token] = LogitEdit(token, before.add - less, before.penalty)
        return edits

    def edits_along(self, num_generated: int, drafted: Sequence[int]) -> tuple[tuple[LogitEdit, ...], ...]:
        """The edits after each drafted token in turn, should those before it stand and be number `num_generated` and
        on; empty where no token changes any."""
        if not self.needs_history and num_generated >= self._params.min_tokens:
            return ()
        along = []
        for number, token_id in enumerate(drafted, num_generated + 1):
            self._ids.append(token_id)
            self.note(token_id)
            along.append(self.edits(number))
        for token_id in reversed(drafted):
            self._forget(token_id)
            self._ids.pop()
        return tuple(along)

    def _forget(self, token_id: int) -> None:
        """Undo `note` of the last token."""
        if not self.needs_history:
            return
        if self._counts_generated:
            self._generated[token_id] -= 1
        if self._repeats:
            self._slide_window(token_id, -1)
        self._refresh(token_id)
        self._frozen = None

    def note(self, token_id: int) -> None:
        """The sequence generated this token, which is the last of its ids by now."""
        if not self.needs_history:
            return
        if self._counts_generated:
            self._generated[token_id] += 1
        if self._repeats:
            self._slide_window(token_id, 1)
        self._refresh(token_id)
        self._frozen = None

    def _first_window(self) -> list[int]:
        if not self._repeats:
            return []
        last_n = self._params.repeat_last_n
        return self._ids if last_n < 0 else self._ids[-last_n:]

    def _slide_window(self, token_id: int, step: int) -> None:
        """On (1) over the last token, or back again (-1)."""
        self._repeated[token_id] += step
        last_n = self._params.repeat_last_n
        if 0 < last_n < len(self._ids):
            left = self._ids[-last_n - 1]
            self._repeated[left] -= step
            self._refresh(left)

    def _refresh(self, token: int) -> None:
        add = -math.inf if token in self._never else self._params.logit_bias.get(token, 0.0)
        count = self._generated[token]
        if count:
            add -= self._params.presence_penalty + self._params.frequency_penalty * count
        penalty = self._params.repetition_penalty if self._repeated[token] > 0 else 1.0
        if add or penalty != 1.0:
            self._edits[token] = LogitEdit(token, add, penalty)
        else:
            self._edits.pop(token, None)
