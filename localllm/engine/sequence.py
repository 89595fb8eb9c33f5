"""One request inside the engine: its ids, what of them is computed, what memory it holds, and what it still wants.

There is no phase: a sequence has tokens, some of them are computed, and the gap between the two is its work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from localllm.engine.guides import BothMasks, Guide
from localllm.engine.marks import Marks
from localllm.engine.pages import ChainHash
from localllm.engine.penalties import Penalties
from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    NOTHING,
    SAMPLED_LAST,
    CommitDraft,
    Mask,
    PageId,
    Row,
    RowResult,
    SampleWant,
    SeqId,
    SlotId,
    Want,
)
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.wire import SamplingParams, Submit

Tables = tuple[tuple[PageId, ...], ...]


@dataclass(slots=True)
class Holding:
    """The memory of one sequence: a page table per KV group (all of the same length), a state slot, a chain of hashes.

    `num_registered` pages are findable by others already, `num_trimmed` of each group have left its window.
    `marks`: where the state of its prompt is kept; `checkpointed`: the state kept last while it generated.
    """

    tables: list[list[PageId]]
    chain: list[ChainHash]
    slot: SlotId = NO_SLOT
    num_registered: int = 0
    num_trimmed: list[int] = field(default_factory=list)
    checkpointed: ChainHash | None = None
    marks: Marks | None = None
    _frozen: Tables | None = None

    @property
    def num_entries(self) -> int:
        return len(self.tables[0]) if self.tables else 0

    def touch(self) -> None:
        """The tables changed."""
        self._frozen = None

    def frozen(self) -> Tables:
        """The tables as plain data; built only after a change, because most steps change nothing."""
        if self._frozen is None:
            self._frozen = tuple(tuple(table) for table in self.tables)
        return self._frozen

    def pages(self) -> list[PageId]:
        return [page for table in self.tables for page in table if page != NO_PAGE]


class Sequence:
    """State of one request. `num_computed` and `num_pending` count what is planned, `ids` only what is known.

    `limit` is the length at which it ends. `whole` asks for the same thing of every token instead of generating
    (embeddings, evaluation, tests); its answers gather in `parts`, and `is_awaited` where somebody waits in the engine
    for them instead of reading chunks.
    """

    def __init__(
        self,
        seq_id: int,
        submit: Submit,
        *,
        limit: int,
        seed: int,
        rank: int,
        whole: Want | None = None,
        atomic: bool = False,
        adapter: int = 0,
    ) -> None:
        self.seq_id = SeqId(seq_id)
        self.request_id = submit.request_id
        self.ids = list(submit.prompt)
        num_given = submit.num_given if limit > len(submit.prompt) else 0  # nothing follows: all of it is a prompt
        self.num_prompt = len(submit.prompt) - num_given
        self.limit = limit
        self.priority = submit.priority
        self.owner = submit.owner
        self.rank = (rank, -seq_id)  # greater runs first; the older of two equals is the greater
        self.cache_salt = submit.cache_salt
        self.adapter = adapter
        self.lora = submit.lora
        self.adapter_scale = submit.lora_scale
        self.atomic = atomic
        self.second_from = submit.second_from
        self.whole = whole
        self.is_awaited = False
        self.parts: list[tuple[int, RowResult]] = []  # with the end of each
        self.params: SamplingParams = submit.sampling
        self.seed = seed
        self.stop_ids = frozenset(submit.stop_ids)
        self.top_logprobs = submit.top_logprobs
        self.prompt_logprobs = submit.prompt_logprobs
        self.penalties = Penalties(submit.sampling, submit.stop_ids, self.ids, self.num_prompt)
        self.guide: Guide | None = None
        self.allowed: Mask | None = None
        """The tokens that it may say at all; None: every one."""
        self.generates = whole is None and limit > len(self.ids)
        self.chain: list[ChainHash] = []  # of its full pages, kept over preemptions
        self.num_known_pages = 0  # of its prefix, whether or not a state was kept with them
        self.holding: Holding | None = None
        self.num_computed = 0
        self.num_pending = 0  # samples planned and not yet collected
        self.may_draft = True
        self.drafted: tuple[int, ...] = ()  # guesses of the tokens after the known ones, in the step under way
        self.num_cached = 0
        self.num_scored = 0
        self.num_reported = 0
        self.num_preemptions = 0
        self.added_s = 0.0
        self.admitted_s = 0.0
        self.is_started = False
        self.is_finished = False

    @property
    def waited_s(self) -> float:
        """Seconds between its arrival and the first step that computed some of it."""
        return max(0.0, self.admitted_s - self.added_s)  # one that cannot have its guide is never admitted

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.num_prompt

    @property
    def shares_prefix(self) -> bool:
        """Whether it may read pages that others computed; rows that must answer for every token may not."""
        return self.prompt_logprobs is None and self._needs_last_only and not self.atomic

    @property
    def _needs_last_only(self) -> bool:
        whole = self.whole
        return whole is None or (whole.pooled == "last" and not whole.targets and whole.logits is None)

    @property
    def gap(self) -> int:
        """Tokens to compute that can be planned now."""
        known = len(self.ids)
        pending = self.num_pending
        if not pending:
            return known - self.num_computed
        if known + pending >= self.limit or self.penalties.needs_history or self.guide is not None:
            return 0  # nothing more is wanted, or the next edits or mask depend on the token that is still out
        return known + pending - self.num_computed

    @property
    def room_for_draft(self) -> int:
        """Tokens that may be guessed in a step that computes the last known one and samples after each."""
        is_open = self.may_draft and self.generates and not self.num_pending and self.guide is None
        return self.limit - len(self.ids) - 1 if is_open else 0

    def row(self, num_tokens: int) -> Row:
        """Its part of the next step, `drafted` at its end; counts the tokens as computed and the sample as pending."""
        holding = self.holding
        assert holding is not None
        start = self.num_computed
        end = start + num_tokens
        known = len(self.ids)
        # a token beyond the known ones is the one that the last step samples
        unknown = self.drafted or (SAMPLED_LAST,)
        token_ids = tuple(self.ids[start:end]) if end <= known else (*self.ids[start:known], *unknown)
        want = self._want(start, end)
        self.num_computed = end
        if want.sample is not None:
            self.num_pending += 1
        tables, slot = holding.frozen(), holding.slot
        applied = self.adapter, self.atomic, self.second_from, self.adapter_scale
        return Row(self.seq_id, token_ids, start, tables, want, slot, *applied)

    def _want(self, start: int, end: int) -> Want:
        total = len(self.ids) + self.num_pending
        if self.whole is not None:
            return self._part_of_whole(start, end)
        sample = self._sample(total) if self.generates and end == total + len(self.drafted) else None
        if self.prompt_logprobs is not None and start < self.num_prompt - 1 and end > self.num_scored:
            targets = tuple(self.ids[start + 1 : min(end + 1, self.num_prompt)])
            return Want(sample, self.top_logprobs if sample else None, targets, self.prompt_logprobs)
        if sample is None:
            return NOTHING
        return Want(sample, self.top_logprobs)

    def _sample(self, total: int) -> SampleWant:
        generated = total - self.num_prompt
        if self.guide is not None:
            return self._guided(self.guide, generated)
        edits = self.penalties.edits(generated)
        num_positions = 1 + len(self.drafted)
        masks = () if self.allowed is None else (self.allowed,) * num_positions
        along = self.penalties.edits_along(generated, self.drafted) if self.drafted else ()
        return SampleWant(self.params, self.seed, generated, num_positions, edits, masks, along)

    def _guided(self, guide: Guide, generated: int) -> SampleWant:
        mask = guide.mask()
        edits = () if guide.is_forced else self.penalties.edits(generated)
        if self.allowed is not None and not guide.is_forced:
            mask = self.allowed if mask is None else BothMasks(mask, self.allowed)
        return SampleWant(self.params, self.seed, generated, 1, edits, () if mask is None else (mask,))

    def _part_of_whole(self, start: int, end: int) -> Want:
        """A chunk of a request that wants something of all its tokens: only the last position, or every one."""
        whole = self.whole
        assert whole is not None
        is_last = end == self.num_prompt
        return Want(
            targets=whole.targets[start:end],
            target_top=whole.target_top,
            pooled=whole.pooled if self._pools(start, is_last) else None,
            logits=whole.logits if whole.logits != "last" or is_last else None,
        )

    def _pools(self, start: int, is_last: bool) -> bool:
        kind = self.whole.pooled if self.whole else None
        return kind == "mean" or (kind == "first" and start == 0) or (kind == "last" and is_last)

    def settle(self, num_standing: int) -> CommitDraft:
        """Of the drafted tokens so many stand; the others count as never computed."""
        num_drafted = len(self.drafted)
        self.num_computed -= num_drafted - num_standing
        self.drafted = ()
        return CommitDraft(self.seq_id, num_standing, num_drafted)

    def follow(self, guide: Guide) -> None:
        """Be guided from here on, over what it was given first. InvalidRequest where that leads nowhere."""
        given = self.ids[self.num_prompt :]
        for token_id in given:
            try:
                guide.accept(token_id)
            except LocalLLMError as error:
                what = f"continue_token_ids are no beginning of such an answer: {error.message}"
                raise InvalidRequest(what) from None
            if guide.is_finished:
                raise InvalidRequest("continue_token_ids are a whole answer of the wanted form: nothing may follow")
        self.guide = guide

    def accept(self, token_id: int) -> None:
        """A sampled token that stands. LocalLLMError when its guide cannot go on from there."""
        self.ids.append(token_id)
        self.penalties.note(token_id)
        if self.guide is not None:
            self.guide.accept(token_id)

    def restart(self) -> None:
        """Its memory was taken away: everything known is to be computed again."""
        self.num_computed = 0
        self.drafted = ()
        self.num_preemptions += 1
        self.parts.clear()
