"""A plan as arrays, and answers from taken logits."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from localllm.backends.batch import NOT_USABLE, Batch, Flattener, answer
from localllm.engine.sampling import logit_positions
from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    NOTHING,
    SAMPLED_LAST,
    CommitDraft,
    LogitEdit,
    PageId,
    Row,
    RowResult,
    SampleWant,
    SeqId,
    SlotId,
    StepPlan,
    Want,
    plain_row,
)
from localllm.wire import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
PICK = Want(sample=SampleWant(GREEDY, 0, 0))
DRAWN = Want(sample=SampleWant(SamplingParams(), 0, 0))


def flat(*rows: Row, num_groups: int = 1) -> Batch:
    return Flattener(num_groups).flatten(StepPlan(0, rows))


def test_rows_lie_one_after_another() -> None:
    batch = flat(plain_row(7, (5, 6, 7), 10, (0, 1, 4)), plain_row(8, (9,), 2, (3,), PICK))
    assert batch.token_ids.tolist() == [5, 6, 7, 9]
    assert batch.positions.tolist() == [10, 11, 12, 2]
    assert batch.row_of.tolist() == [0, 0, 0, 1]
    assert batch.row_starts.tolist() == [0, 3, 4]
    assert batch.tables[0].tolist() == [[0, 1, 4], [3, NO_PAGE, NO_PAGE]]
    assert batch.taken.tolist() == [3] and batch.taken_starts.tolist() == [0, 0, 1]
    assert batch.slots.tolist() == [NO_SLOT, NO_SLOT] and not batch.atomic.any()
    assert (batch.num_tokens, batch.num_rows, batch.only_argmax, batch.wants_hidden) == (4, 2, True, False)


def test_every_group_has_its_tables_and_rows_their_slots() -> None:
    tables = ((PageId(1), PageId(2)), (NO_PAGE, PageId(3)))
    row = Row(SeqId(1), (5,), 20, tables, slot=SlotId(6), atomic=True)
    batch = flat(row, num_groups=2)
    assert [table.tolist() for table in batch.tables] == [[[1, 2]], [[-1, 3]]]
    assert batch.slots.tolist() == [6] and batch.atomic.tolist() == [True]


def test_arrays_are_what_native_code_can_take() -> None:
    batch = flat(plain_row(7, (5, 6), 10, (0, 1), PICK), plain_row(8, (9,), 2, (3,), NOTHING))
    arrays = (batch.token_ids, batch.positions, batch.row_of, batch.row_starts, *batch.tables, batch.slots, batch.taken)
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in (*arrays, batch.taken_starts))


def test_an_empty_plan_is_an_empty_batch() -> None:
    batch = flat()
    assert (batch.num_tokens, batch.num_rows, len(batch.taken)) == (0, 0, 0)
    assert answer(StepPlan(0, ()), batch, None) == ()


@st.composite
def wants(draw: st.DrawFn, num_tokens: int) -> Want:
    return Want(
        sample=draw(
            st.none() | st.integers(1, num_tokens).map(lambda count: SampleWant(GREEDY, 0, 0, num_positions=count))
        ),
        targets=tuple(range(draw(st.integers(0, num_tokens)))),
        logits=draw(st.sampled_from([None, "last", "all"])),
        pooled=draw(st.sampled_from([None, "mean"])),
    )


@given(st.data())
def test_what_is_taken_is_what_sampling_expects(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), max_size=4))
    rows = [plain_row(seq, range(size), 0, (seq,), data.draw(wants(size))) for seq, size in enumerate(sizes)]
    batch = flat(*rows)
    expected = [
        first + index for first, row in zip(batch.row_starts, rows, strict=False) for index in logit_positions(row)
    ]
    assert batch.taken.tolist() == expected
    assert batch.taken_starts[-1] == len(expected) == len(batch.needs_logits)
    logits = np.random.default_rng(0).standard_normal((len(expected), 16)).astype(np.float32)
    hidden = np.ones((batch.num_tokens, 3), np.float32)
    plan = StepPlan(0, tuple(rows))
    argmax = logits.argmax(axis=1).astype(np.int32)
    argmax_only = np.where(batch.needs_logits[:, None], logits, np.float32(np.nan))
    for full, thin in zip(
        answer(plan, batch, logits, hidden), answer(plan, batch, argmax_only, hidden, argmax), strict=True
    ):
        assert not full.error and not thin.error
        assert (full.seq, full.sampled, full.targets) == (thin.seq, thin.sampled, thin.targets)


def test_greedy_rows_need_no_logits_on_the_host_and_others_do() -> None:
    edited = Want(sample=SampleWant(GREEDY, 0, 0, edits=(LogitEdit(3),)))
    masked = Want(sample=SampleWant(GREEDY, 0, 0, masks=(b"\xff",)))
    scored = Want(sample=SampleWant(GREEDY, 0, 0), top_logprobs=0)
    rows = [
        plain_row(seq, (1,), 0, (seq,), want) for seq, want in enumerate([PICK, DRAWN, edited, masked, scored, PICK])
    ]
    batch = flat(*rows)
    assert batch.needs_logits.tolist() == [False, True, True, True, True, False]
    assert not batch.only_argmax


def test_a_greedy_row_is_answered_by_its_argmax() -> None:
    drafts = Want(sample=SampleWant(GREEDY, 0, 0, num_positions=2))
    plan = StepPlan(
        0, (plain_row(1, (5, 6, 7), 0, (0,), drafts), plain_row(2, (8,), 0, (1,)), plain_row(3, (9,), 0, (2,), PICK))
    )
    batch = Flattener(1).flatten(plan)
    results = answer(plan, batch, None, argmax=np.array([11, 12, 13], np.int32))
    assert [result.sampled for result in results] == [(11, 12), (), (13,)]


def test_a_row_without_usable_logits_carries_the_error_alone() -> None:
    plan = StepPlan(0, tuple(plain_row(seq, (5,), 0, (seq,), want) for seq, want in enumerate([PICK, PICK, DRAWN])))
    batch = Flattener(1).flatten(plan)
    logits = np.full((3, 8), np.nan, np.float32)
    bad, good, drawn = answer(plan, batch, logits, argmax=np.array([NOT_USABLE, 4, NOT_USABLE], np.int32))
    assert (bad.error_code, drawn.error_code) == ("bad_logits", "bad_logits")
    assert good.sampled == (4,) and not good.error


@given(st.data())
def test_steps_that_only_decode_are_flattened_as_any_other(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    with_slots = data.draw(st.booleans())
    flattener = Flattener(2)
    for _ in range(2):
        rows = tuple(
            Row(
                SeqId(seq),
                (data.draw(st.sampled_from([5, SAMPLED_LAST])),),
                seq + 3,
                (tuple(PageId(page) for page in range(pages)), (NO_PAGE,) * pages),
                data.draw(st.sampled_from([PICK, DRAWN])),
                SlotId(seq) if with_slots else NO_SLOT,
            )
            for seq, pages in enumerate(sizes)
        )
        flattener.remember(tuple(RowResult(row.seq, (data.draw(st.integers(0, 99)),)) for row in rows))
        quick, plain = flattener._decoding(rows), flattener._any(rows)
        assert quick is not None
        for field in dataclasses.fields(Batch):
            mine, expected = getattr(quick, field.name), getattr(plain, field.name)
            for one, other in zip(*((a if isinstance(a, tuple) else (a,)) for a in (mine, expected)), strict=True):
                assert np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype, field.name


def test_what_was_sampled_last_takes_the_place_of_its_sign() -> None:
    flattener = Flattener(1)
    flattener.remember((RowResult(SeqId(1), (40,)), RowResult(SeqId(2), (50, 51)), RowResult(SeqId(3))))
    rows = (plain_row(2, (SAMPLED_LAST, 7), 4, (0,)), plain_row(1, (SAMPLED_LAST,), 9, (1,)))
    assert flattener.flatten(StepPlan(1, rows)).token_ids.tolist() == [51, 7, 40]


def test_committing_a_draft_changes_what_was_sampled_last() -> None:
    flattener = Flattener(1)
    flattener.remember((RowResult(SeqId(1), (40, 41, 42, 43)),))
    flattener.commit_draft(CommitDraft(SeqId(1), 1, 3))
    assert flattener.flatten(StepPlan(1, (plain_row(1, (SAMPLED_LAST,), 4, (0,)),))).token_ids.tolist() == [41]


def test_a_table_that_changed_is_seen() -> None:
    flattener = Flattener(1)
    for pages in ((4, 5), (4, 6), (4, 6, 7), (4,)):
        assert flattener.flatten(StepPlan(0, (plain_row(1, (3,), 0, pages),))).tables[0].tolist() == [list(pages)]
