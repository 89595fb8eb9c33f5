"""Memory operations of a plan on every backend: pages, state slots, checkpoints, drafts, the size of the pool."""

import numpy as np
import pytest

from localllm.engine.step import (
    CheckpointId,
    CommitDraft,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    MemoryOp,
    PageId,
    ResizePool,
    RestoreState,
    Row,
    SampleWant,
    SaveState,
    SeqId,
    SlotId,
    Want,
    ZeroSlot,
)
from localllm.wire import SamplingParams
from tests.contract.conftest import Host
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, World, plain

ALL = Want(logits="all")
LLAMA, HYBRID, WINDOWS = BY_NAME["llama"], BY_NAME["hybrid"], BY_NAME["windows in some layers"]
SPACES = BY_NAME["state spaces beside attention"]
DELTA_NETS = BY_NAME["delta nets"]
TOKENS = np.random.default_rng(4).integers(0, 80, 24).tolist()


def row(tokens: list[int], start: int, pages: tuple[int, ...], slot: int = -1, seq: int = 1) -> Row:
    return Row(SeqId(seq), tuple(tokens), start, (tuple(map(PageId, pages)),), ALL, SlotId(slot))


def drafts(count: int) -> Want:
    greedy = SamplingParams(temperature=0.0)
    return Want(sample=SampleWant(greedy, seed=0, counter=0, num_positions=count), logits="all")


def test_a_copied_page_holds_what_the_source_held(host: Host) -> None:
    backend, config, source = host.open_world(LLAMA)
    walk = Walk(backend)
    walk.run((row(TOKENS[:6], 0, (5, 9)),))
    # the copy is written on from the middle of its second page; the original goes another way
    other = TOKENS[10:14]
    copied = row(TOKENS[6:10], 6, (5, 2, 7), seq=2)
    results = walk.run((row(other, 6, (5, 9, 4)), copied), [CopyPage(PageId(9), PageId(2))])
    oracle = plain(config, source)
    host.check(results[0].logits, oracle.logits(TOKENS[:6] + other)[6:], LLAMA)
    host.check(results[1].logits, oracle.logits(TOKENS[:10])[6:], LLAMA)


def test_a_page_is_copied_for_all_layers_of_its_group(host: Host) -> None:
    backend, config, source = host.open_world(WINDOWS)
    walk = Walk(backend)
    walk.step((1, TOKENS[:6], ALL))
    held = walk.held[1]
    memory: list[MemoryOp] = []
    for table in held.tables:
        fresh = walk.free_pages.pop()
        memory.append(CopyPage(table[1], fresh))
        table[1] = fresh
    (result,) = walk.step((1, TOKENS[6:], ALL), memory=memory)
    host.check(result.logits, plain(config, source).logits(TOKENS)[6:], WINDOWS)


def test_pages_survive_when_the_pool_grows_and_shrinks(host: Host) -> None:
    backend, config, source = host.open_world(LLAMA)
    walk = Walk(backend, num_pages=4)
    walk.run((row(TOKENS[:8], 0, (3, 1)),))
    walk.run((row(TOKENS[8:12], 8, (3, 1, 30)),), [ResizePool(32)])
    (result,) = walk.run((row(TOKENS[12:16], 12, (3, 1, 5, 2)),), [CopyPage(PageId(30), PageId(5)), ResizePool(6)])
    host.check(result.logits, plain(config, source).logits(TOKENS[:16])[12:], LLAMA)


def test_a_shared_prefix_is_read_by_several_rows_of_one_step(host: Host) -> None:
    backend, config, source = host.open_world(LLAMA)
    walk = Walk(backend)
    walk.run((row(TOKENS[:8], 0, (0, 1)),))
    rows = (row(TOKENS[8:10], 8, (0, 1, 2), seq=2), row(TOKENS[12:16], 8, (0, 1, 3), seq=3))
    first, second = walk.run(rows)
    oracle = plain(config, source)
    host.check(first.logits, oracle.logits(TOKENS[:10])[8:], LLAMA)
    host.check(second.logits, oracle.logits(TOKENS[:8] + TOKENS[12:16])[8:], LLAMA)


def test_a_zeroed_slot_is_a_new_beginning(host: Host) -> None:
    backend, config, source = host.open_world(HYBRID)
    walk = Walk(backend)
    walk.run((row(TOKENS[:6], 0, (0, 1), slot=3),), [ZeroSlot(SlotId(3))])
    (result,) = walk.run((row(TOKENS[6:12], 0, (0, 1), slot=3),), [ZeroSlot(SlotId(3))])
    host.check(result.logits, plain(config, source).logits(TOKENS[6:12]), HYBRID)


def test_a_copied_slot_goes_its_own_way(host: Host) -> None:
    backend, config, source = host.open_world(HYBRID)
    walk = Walk(backend)
    walk.run((row(TOKENS[:8], 0, (0, 1), slot=0),), [ZeroSlot(SlotId(0))])
    rows = (row(TOKENS[8:10], 8, (0, 1, 2), slot=0), row(TOKENS[12:16], 8, (0, 1, 3), slot=5, seq=2))
    first, second = walk.run(rows, [CopySlot(SlotId(0), SlotId(5))])
    oracle = plain(config, source)
    host.check(first.logits, oracle.logits(TOKENS[:10])[8:], HYBRID)
    host.check(second.logits, oracle.logits(TOKENS[:8] + TOKENS[12:16])[8:], HYBRID)


def test_a_checkpoint_is_restored_into_any_slot_until_it_is_dropped(host: Host) -> None:
    backend, config, source = host.open_world(HYBRID)
    walk = Walk(backend)
    mark = CheckpointId(40)
    walk.run((row(TOKENS[:8], 0, (0, 1), slot=0),), [ZeroSlot(SlotId(0))])
    walk.run((row(TOKENS[8:10], 8, (0, 1, 2), slot=0),), [SaveState(SlotId(0), mark)])
    (result,) = walk.run((row(TOKENS[12:16], 8, (0, 1, 3), slot=6, seq=2),), [RestoreState(mark, SlotId(6))])
    host.check(result.logits, plain(config, source).logits(TOKENS[:8] + TOKENS[12:16])[8:], HYBRID)
    # saved again under the same id, the later state counts; dropping frees the id
    memory: list[MemoryOp] = [SaveState(SlotId(0), mark), RestoreState(mark, SlotId(7)), DropCheckpoint(mark)]
    (result,) = walk.run((row(TOKENS[10:13], 10, (0, 1, 2, 4), slot=7, seq=3),), memory)
    host.check(result.logits, plain(config, source).logits(TOKENS[:13])[10:], HYBRID)


@pytest.mark.parametrize("num_accepted", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [LLAMA, HYBRID, DELTA_NETS, SPACES], ids=lambda world: world.name)
def test_rejected_draft_tokens_leave_no_trace(host: Host, world: World, num_accepted: int) -> None:
    backend, config, source = host.open_world(world)
    walk = Walk(backend)
    walk.step((1, TOKENS[:5], ALL))
    kept = TOKENS[5 : 6 + num_accepted]
    wrong = [(token + 1) % 80 for token in TOKENS[6 + num_accepted : 9]]
    (checked,) = walk.step((1, kept + wrong, drafts(4)))
    oracle = plain(config, source)
    host.check(checked.logits, oracle.logits(TOKENS[:5] + kept + wrong)[5:], world)
    assert len(checked.sampled) == 4
    walk.held[1].position = 6 + num_accepted
    commit = CommitDraft(SeqId(1), num_accepted, 3)
    (result,) = walk.step((1, TOKENS[6 + num_accepted : 14], ALL), memory=[commit])
    host.check(result.logits, oracle.logits(TOKENS[:14])[6 + num_accepted :], world)


@pytest.mark.parametrize("num_accepted", [0, 2, 3])
@pytest.mark.parametrize("world", [HYBRID, DELTA_NETS], ids=lambda world: world.name)
def test_where_steps_do_not_matter_going_back_leaves_the_bits_of_never_having_gone(
    host: Host, world: World, num_accepted: int
) -> None:
    backend, _, _ = host.open_world(world)
    if not backend.info.same_in_any_step:
        pytest.skip(f"{host.name} does not promise this")
    walk, straight = Walk(backend), Walk(host.open_world(world)[0])
    walk.step((1, TOKENS[:5], ALL))
    kept = TOKENS[5 : 6 + num_accepted]
    walk.step((1, kept + [(token + 1) % 80 for token in TOKENS[6 + num_accepted : 9]], drafts(4)))
    walk.held[1].position = 6 + num_accepted
    commit = CommitDraft(SeqId(1), num_accepted, 3)
    (result,) = walk.step((1, TOKENS[6 + num_accepted : 14], ALL), memory=[commit])
    straight.step((1, TOKENS[: 6 + num_accepted], ALL))
    (expected,) = straight.step((1, TOKENS[6 + num_accepted : 14], ALL))
    np.testing.assert_array_equal(result.logits, expected.logits)


def test_a_freed_page_below_the_window_is_never_read(host: Host) -> None:
    world = BY_NAME["window on every layer"]
    backend, config, source = host.open_world(world)
    walk = Walk(backend)
    seen = [walk.step((1, [token], ALL))[0].logits for token in TOKENS]
    assert -1 in walk.held[1].tables[0], "the walk frees pages that left the window"
    host.check(np.concatenate([line for line in seen if line is not None]), plain(config, source).logits(TOKENS), world)


def test_a_plan_of_memory_operations_alone_is_a_step(host: Host) -> None:
    backend, _, _ = host.open_world(LLAMA)
    walk = Walk(backend)
    assert walk.run((), [CopyPage(PageId(0), PageId(1))]) == []
