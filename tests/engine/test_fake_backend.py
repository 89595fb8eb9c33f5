"""The fake backend notices every breach of the seam's contract, and each field of the seam works on it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localllm.backends.fake import FakeBackend, PlanViolation
from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    SAMPLED_LAST,
    CheckpointId,
    CommitDraft,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    LogitEdit,
    MemoryOp,
    PageId,
    ResizePool,
    RestoreState,
    Row,
    RowResult,
    SampleWant,
    SaveState,
    SeqId,
    SlotId,
    StepPlan,
    Want,
    ZeroSlot,
    run_step,
)
from localllm.models.adapters import Adapter
from localllm.wire import SamplingParams

from .worlds import GREEDY, VOCAB_SIZE, fake, true_logits

SAMPLE = Want(sample=SampleWant(GREEDY, 0, 0))
SLOT, OTHER_SLOT = SlotId(0), SlotId(1)
KEPT = CheckpointId(3)


class Bench:
    """A backend with eight pages and two slots, and plans numbered for it."""

    def __init__(self, shape: str = "full", **changes: Any) -> None:
        self.backend: FakeBackend = fake(shape, **changes)
        self.backend.allocate(8, 2 if self.backend.layout.has_state else 0)
        self._next = 0

    def row(self, seq: int, ids: list[int], start: int, pages: list[int], want: Want = SAMPLE, **changes: Any) -> Row:
        table = tuple(PageId(page) for page in pages)
        slot = SLOT if self.backend.layout.has_state else NO_SLOT
        fields: dict[str, Any] = {"slot": slot} | changes
        return Row(SeqId(seq), tuple(ids), start, (table,) * len(self.backend.layout.groups), want, **fields)

    def run(self, *rows: Row, memory: tuple[MemoryOp, ...] = ()) -> tuple[RowResult, ...]:
        self._next += 1
        return run_step(self.backend, StepPlan(self._next, rows, memory)).rows

    def truth(self, ids: list[int]) -> int:
        return int(true_logits(self.backend, ids).argmax())


# ---- breaches


def test_a_page_table_that_ends_too_early_is_refused() -> None:
    bench = Bench()
    with pytest.raises(PlanViolation, match="ends before"):
        bench.run(bench.row(1, [1, 2, 3, 4, 5], 0, [0]))


def test_two_rows_may_not_write_one_page() -> None:
    bench = Bench()
    with pytest.raises(PlanViolation, match="written twice"):
        bench.run(bench.row(1, [1], 0, [0]), bench.row(2, [1], 0, [0]))


def test_nobody_may_read_a_page_that_another_writes() -> None:
    bench = Bench()
    bench.run(bench.row(1, [1, 2, 3, 4], 0, [0]))
    with pytest.raises(PlanViolation, match="another reads"):
        bench.run(bench.row(1, [9], 3, [0]), bench.row(2, [5], 4, [0, 1]))


def test_a_gap_in_the_past_is_refused() -> None:
    bench = Bench()
    bench.run(bench.row(1, [1, 2], 0, [0]))
    with pytest.raises(PlanViolation, match="a gap"):
        bench.run(bench.row(1, [4], 3, [0]))


def test_another_pages_content_is_a_gap_or_another_answer() -> None:
    bench = Bench()
    bench.run(bench.row(1, [1, 2, 3, 4, 5], 0, [0, 1]))
    bench.run(bench.row(2, [6, 2, 3, 4, 5], 0, [2, 3]))
    with pytest.raises(PlanViolation, match="a gap"):
        bench.run(bench.row(1, [7], 5, [1, 1]))
    (result,) = bench.run(bench.row(1, [7], 5, [2, 1]))
    assert result.sampled[0] == bench.truth([6, 2, 3, 4, 5, 7]) != bench.truth([1, 2, 3, 4, 5, 7])


def test_a_page_of_another_group_is_refused() -> None:
    bench = Bench("windowed")
    table = (PageId(0),)
    with pytest.raises(PlanViolation, match="written twice"):
        bench.run(Row(SeqId(1), (1,), 0, (table, table), SAMPLE))


def windowed_row(bench: Bench, ids: list[int], start: int, full: list[int], window: list[int]) -> Row:
    tables = tuple(tuple(PageId(page) for page in pages) for pages in (full, window))
    return replace(bench.row(1, ids, start, []), tables=tables)


def test_a_page_that_left_the_window_may_be_missing_and_one_inside_may_not() -> None:
    bench = Bench("windowed")  # the window is 6
    ids = list(range(9))
    bench.run(windowed_row(bench, ids, 0, [0, 1, 2], [3, 4, 5]))
    (result,) = bench.run(windowed_row(bench, [20], 9, [0, 1, 2], [NO_PAGE, 4, 5]))
    assert result.sampled == (bench.truth([*ids, 20]),)
    with pytest.raises(PlanViolation, match="inside the window"):
        bench.run(windowed_row(bench, [21], 10, [0, 1, 2], [NO_PAGE, NO_PAGE, 5]))
    with pytest.raises(PlanViolation, match="inside the window"):
        bench.run(windowed_row(bench, [21], 10, [NO_PAGE, 1, 2], [NO_PAGE, 4, 5]))


def test_minus_one_needs_a_sample_in_the_step_before() -> None:
    bench = Bench()
    with pytest.raises(PlanViolation, match="not in the last step"):
        bench.run(bench.row(1, [SAMPLED_LAST], 0, [0]))
    bench.run(bench.row(1, [1], 0, [0], Want()))
    with pytest.raises(PlanViolation, match="sampled nothing"):
        bench.run(bench.row(1, [SAMPLED_LAST], 1, [0]))


def test_minus_one_is_what_was_sampled_last() -> None:
    bench = Bench(overlaps=True)
    bench.backend.submit(StepPlan(1, (bench.row(1, [1], 0, [0]),)))
    bench.backend.submit(StepPlan(2, (bench.row(1, [SAMPLED_LAST], 1, [0]),)))
    first, second = (bench.backend.collect().rows[0].sampled[0] for _ in range(2))
    assert (first, second) == (bench.truth([1]), bench.truth([1, first]))


@pytest.mark.parametrize(
    ("want", "message"),
    [
        (Want(sample=SampleWant(GREEDY, 0, 0, 2)), "more positions"),
        (Want(sample=SampleWant(GREEDY, 0, 0, 1, (LogitEdit(1), LogitEdit(1)))), "edited twice"),
        (Want(sample=SampleWant(GREEDY, 0, 0, 1, (), (b"\1",))), "too short"),
        (Want(sample=SampleWant(GREEDY, 0, 0, 1, (), (b"\1" * 8,) * 2)), "one mask per position"),
        (Want(targets=(1, 2)), "more targets"),
        (Want(targets=(VOCAB_SIZE,)), "outside the vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_want_that_makes_no_sense_is_refused(want: Want, message: str) -> None:
    bench = Bench()
    with pytest.raises(PlanViolation, match=message):
        bench.run(bench.row(1, [1], 0, [0], want))


def test_slots_are_checked() -> None:
    bench = Bench("hybrid")
    with pytest.raises(PlanViolation, match="holds nothing"):
        bench.run(bench.row(1, [1], 0, [0]))
    with pytest.raises(PlanViolation, match="share a slot"):
        bench.run(bench.row(1, [1], 0, [0]), bench.row(2, [1], 0, [1]), memory=(ZeroSlot(SLOT),))
    with pytest.raises(PlanViolation, match="slot is for"):
        bench.run(bench.row(1, [1], 0, [0], slot=NO_SLOT))
    bench.run(bench.row(1, [1, 2], 0, [0]), memory=(ZeroSlot(SLOT),))
    with pytest.raises(PlanViolation, match="another position"):
        bench.run(bench.row(1, [2], 1, [0]))


def test_steps_come_in_order_and_not_too_many_at_once() -> None:
    bench = Bench()
    plan = StepPlan(5, (bench.row(1, [1], 0, [0]),))
    bench.backend.submit(plan)
    with pytest.raises(PlanViolation, match="must rise"):
        bench.backend.submit(plan)
    with pytest.raises(PlanViolation, match="under way"):
        bench.backend.submit(replace(plan, step_id=6))
    bench.backend.collect()
    with pytest.raises(PlanViolation, match="nothing was submitted"):
        bench.backend.collect()


# ---- the fields of the seam


def test_a_copied_page_serves_as_the_original() -> None:
    bench = Bench()
    bench.run(bench.row(1, [1, 2, 3], 0, [0]))
    rows = bench.row(1, [4], 3, [0]), bench.row(2, [5], 3, [7])
    one, other = bench.run(*rows, memory=(CopyPage(PageId(0), PageId(7)),))
    assert (one.sampled[0], other.sampled[0]) == (bench.truth([1, 2, 3, 4]), bench.truth([1, 2, 3, 5]))


def test_states_are_copied_saved_restored_and_dropped() -> None:
    bench = Bench("state only")
    bench.run(bench.row(1, [1, 2], 0, []), memory=(ZeroSlot(SLOT),))
    copied = (CopySlot(SLOT, OTHER_SLOT), SaveState(SLOT, KEPT))
    one, other = bench.run(bench.row(1, [3], 2, []), bench.row(2, [4], 2, [], slot=OTHER_SLOT), memory=copied)
    assert (one.sampled[0], other.sampled[0]) == (bench.truth([1, 2, 3]), bench.truth([1, 2, 4]))
    (again,) = bench.run(bench.row(3, [5], 2, []), memory=(RestoreState(KEPT, SLOT), DropCheckpoint(KEPT)))
    assert again.sampled[0] == bench.truth([1, 2, 5])
    with pytest.raises(PlanViolation, match="never saved"):
        bench.run(bench.row(3, [5], 2, []), memory=(RestoreState(KEPT, SLOT),))


@pytest.mark.parametrize("num_accepted", [0, 1, 3])
def test_a_draft_is_checked_position_by_position_and_committed_in_part(num_accepted: int) -> None:
    bench = Bench("hybrid")
    ids, drafted = [1, 2], [7, 8, 9]
    bench.run(bench.row(1, ids[:1], 0, [0, 1], Want()), memory=(ZeroSlot(SLOT),))
    check = Want(sample=SampleWant(GREEDY, 0, 0, 4), top_logprobs=0)
    (result,) = bench.run(bench.row(1, [ids[1], *drafted], 1, [0, 1], check))
    assert result.sampled == tuple(bench.truth(ids + drafted[:n]) for n in range(4))
    assert [score.token_id for score in result.logprobs] == list(result.sampled)
    stands = ids + drafted[:num_accepted]
    commit = CommitDraft(SeqId(1), num_accepted, len(drafted))
    (after,) = bench.run(bench.row(1, [30], len(stands), [0, 1]), memory=(commit,))
    assert after.sampled[0] == bench.truth([*stands, 30])


def test_a_resized_pool_keeps_what_is_in_use() -> None:
    bench = Bench()
    bench.run(bench.row(1, [1, 2, 3, 4], 0, [0]))
    (result,) = bench.run(bench.row(1, [5], 4, [0, 20]), memory=(ResizePool(21),))
    assert result.sampled[0] == bench.truth([1, 2, 3, 4, 5])
    with pytest.raises(PlanViolation, match="does not exist"):
        bench.run(bench.row(1, [6], 5, [0, 20]), memory=(ResizePool(2),))


def test_an_adapter_changes_the_answer() -> None:
    bench = Bench()
    assert bench.backend.add_adapter(Adapter("one", {})) == 1
    logits = [bench.run(bench.row(n, [1], 0, [n], Want(logits="last"), adapter=n))[0].logits for n in (0, 1)]
    assert logits[0] is not None and logits[1] is not None
    assert not np.array_equal(logits[0], logits[1])


def test_every_token_of_an_atomic_row_sees_the_whole_row() -> None:
    bench = Bench()
    (result,) = bench.run(bench.row(1, [1, 2, 3], 0, [0], Want(logits="all"), atomic=True))
    assert result.logits is not None
    assert all(np.array_equal(line, true_logits(bench.backend, [1, 2, 3])) for line in result.logits)


def test_one_row_may_want_a_sample_scores_a_vector_and_logits_at_once() -> None:
    bench = Bench()
    want = Want(SampleWant(GREEDY, 0, 0), 2, (2, 3), 1, "mean", "all")
    (result,) = bench.run(bench.row(1, [1, 2, 3], 0, [0], want))
    assert result.sampled == (bench.truth([1, 2, 3]),)
    assert [score.token_id for score in result.targets] == [2, 3]
    assert result.pooled is not None and result.pooled.shape == (8,)
    assert result.logits is not None and result.logits.shape == (3, VOCAB_SIZE)


def test_an_unfinished_chunk_gives_nothing() -> None:
    bench = Bench()
    assert bench.run(bench.row(1, [1, 2], 0, [0], Want())) == (RowResult(SeqId(1)),)


def test_masks_and_edits_act_on_the_fake_models_logits() -> None:
    bench = Bench()
    mask = np.packbits(np.arange(VOCAB_SIZE) == 9, bitorder="little").tobytes()
    masked = Want(sample=SampleWant(GREEDY, 0, 0, 1, (), (mask,)))
    biased = Want(sample=SampleWant(SamplingParams(), 0, 0, 1, (LogitEdit(33, 1000.0),)))
    one, other = bench.run(bench.row(1, [1], 0, [0], masked), bench.row(2, [1], 0, [1], biased))
    assert (one.sampled, other.sampled) == ((9,), (33,))


def test_answers_may_come_from_a_function_of_what_is_visible() -> None:
    bench = Bench(answer=lambda visible: sum(visible) % VOCAB_SIZE)
    assert bench.run(bench.row(1, [20, 30, 40], 0, [0]))[0].sampled == (90 % VOCAB_SIZE,)


def test_a_closed_backend_takes_nothing() -> None:
    bench = Bench()
    bench.backend.close()
    with pytest.raises(PlanViolation, match="closed"):
        bench.run(bench.row(1, [1], 0, [0]))
