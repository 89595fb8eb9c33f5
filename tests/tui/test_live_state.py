"""What the dashboard knows, from frames: of ordinary days, and of feeds that lose, repeat and reorder things."""

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm import wire
from localllm.daemon.feed import Frame, ModelRow, RequestEvent
from localllm.tui.live.pages import (
    AGE_EVERY_S,
    AGE_STEPS_S,
    LOOK_CACHED,
    LOOK_FREE,
    LOOK_FREED,
    LOOK_PREEMPTED,
    LOOK_SHARED,
    NUM_LOOKS,
    age_of_look,
    common_look,
    held_look,
    slot_of_look,
)
from localllm.tui.live.requests import LINGER_S
from localllm.tui.live.rings import NUM_SAMPLES, Ring, percentile
from localllm.tui.live.slots import NUM_SLOTS, OTHERS, Slots
from localllm.tui.live.state import LiveState
from localllm.tui.live.waterfall import waterfall
from tests.tui.live_frames import FakeEngine


def state_of(engine: FakeEngine) -> LiveState:
    state = LiveState()
    state.apply(engine.frame(), engine.at)
    return state


def step(state: LiveState, engine: FakeEngine, after_s: float = 0.1, **options: Any) -> None:
    state.apply(engine.frame(after_s, **options), engine.at)


# ---- slots


def test_the_lowest_free_slot_is_given_and_kept() -> None:
    slots = Slots()
    assert [slots.take(name) for name in "abc"] == [0, 1, 2]
    slots.leave("b")
    assert (slots.take("c"), slots.take("d"), slots.of("b")) == (2, 1, None)


def test_who_comes_when_all_slots_are_taken_is_one_of_the_others() -> None:
    slots = Slots()
    assert [slots.take(str(number)) for number in range(18)] == [*range(NUM_SLOTS), OTHERS, OTHERS]


# ---- rings


def test_a_ring_has_a_sample_each_tenth_and_gaps_where_nothing_was_heard() -> None:
    ring = Ring()
    for at, value in ((1.0, 1.0), (1.1, 2.0), (1.15, 3.0), (1.4, 4.0), (0.5, 9.0)):
        ring.push(at, value)
    assert ring.values() == [1.0, 3.0, 3.0, 3.0, 4.0]
    ring.push(4.0, 5.0)
    assert ring.values()[5:] == [None] * 25 + [5.0]
    ring.push(1e6, 1.0)
    assert len(ring) == NUM_SAMPLES and ring.columns(3, 200)[-1] == 1.0


def test_columns_are_means_that_stay_while_they_move_to_the_left() -> None:
    ring = Ring()
    for number in range(NUM_SAMPLES):
        ring.push(number / 10 + 0.01, float(number))
    assert ring.columns(3, 250) == [pytest.approx(124.5), pytest.approx(374.5), pytest.approx(549.5)]
    before = ring.columns(4, 10)
    ring.push(60.01, 0.0)
    assert ring.columns(4, 10)[:3] == before[1:]
    ring.push(60.11, 0.0)
    assert ring.columns(4, 10)[:3] == before[1:]
    assert ring.between(10.0, 11.0, 2) == [pytest.approx(102.0), pytest.approx(107.0)]
    assert ring.between(100.0, 101.0, 2) == [None, None]


def test_percentiles_are_samples() -> None:
    assert percentile([], 0.5) is None
    assert (percentile([3.0, 1.0, 2.0], 0.5), percentile([3.0, 1.0, 2.0], 0.95)) == (2.0, 3.0)


# ---- pages


def test_pages_have_the_slots_of_those_who_hold_them_and_grow_old() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    sequence = engine.admit(1, 64)
    step(state, engine)
    looks = state.models[engine.name].board.looks
    assert [looks[page] for page in sequence.pages] == [held_look(0, 0)] * 4
    for passed, age in ((0.6, 1), (1.6, 2), (7.0, 3), (25.0, 4)):
        engine.at += passed
        state.tick(engine.at)
        assert {age_of_look(looks[page]) for page in sequence.pages} == {age}


def test_pages_grow_older_together_and_never_by_more_than_half_a_second_late() -> None:
    engine = FakeEngine(num_pages=256)
    state = state_of(engine)
    engine.admit(1, 16)
    changes, board = [], state.models[engine.name].board
    for _ in range(60):
        engine.write(1, 16)
        before = bytes(board.looks)
        step(state, engine)
        aged = [page for page, look in enumerate(board.looks) if age_of_look(look) > age_of_look(before[page])]
        changes.append(bool(aged))
        for page in engine.sequences["r1"].pages:
            late = max(0.0, engine.at - AGE_EVERY_S - (board.written(page) or engine.at))
            assert age_of_look(board.looks[page]) >= sum(step_s < late - 1e-6 for step_s in AGE_STEPS_S)
    assert 8 <= sum(changes) <= 13


def test_a_page_is_young_again_when_it_is_written() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    sequence = engine.admit(1, 40)
    engine.write(1, 1)
    step(state, engine)
    step(state, engine, 10.0)
    engine.write(1, 2)
    step(state, engine)
    board = state.models[engine.name].board
    assert [age_of_look(board.looks[page]) for page in sequence.pages] == [3, 3, 0]
    assert board.written(sequence.pages[2]) == engine.at


def test_what_was_there_before_we_looked_is_old() -> None:
    engine = FakeEngine(num_pages=64)
    sequence = engine.admit(1, 16)
    board = state_of(engine).models[engine.name].board
    assert age_of_look(board.looks[sequence.pages[0]]) == 4 and board.written(sequence.pages[0]) is None


def test_freed_pages_are_marked_for_a_second() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    page = engine.admit(1, 16).pages[0]
    step(state, engine)
    engine.finish(1)
    step(state, engine)
    looks = state.models[engine.name].board.looks
    assert looks[page] == LOOK_FREED
    state.tick(engine.at + 0.9)
    assert looks[page] == LOOK_FREED
    state.tick(engine.at + 1.1)
    assert looks[page] == LOOK_FREE


def test_preempted_pages_are_marked_for_two_seconds_even_where_others_have_them() -> None:
    engine = FakeEngine(num_pages=8)
    state = state_of(engine)
    lost = engine.admit(1, 64).pages
    engine.write(1, 1)
    step(state, engine)
    engine.preempt(1)
    taker = engine.admit(2, 64)
    step(state, engine)
    board = state.models[engine.name].board
    assert set(taker.pages) & set(lost) and all(board.looks[page] == LOOK_PREEMPTED for page in lost)
    assert board.counts().preempted == len(lost)
    state.tick(engine.at + 2.1)
    assert {slot_of_look(board.looks[page]) for page in taker.pages} == {state.slots.of("r2")}
    assert board.counts().preempted == 0


def test_shared_pages_belong_to_nobody_and_say_who_holds_them() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    first = engine.admit(1, 64)
    step(state, engine)
    engine.admit(2, 48, cached=32, shared=first.pages[:2])
    step(state, engine)
    board = state.models[engine.name].board
    page = first.pages[0]
    assert LOOK_SHARED <= board.looks[page] < LOOK_SHARED + 5 and board.references(page) == 2
    assert [(holder.sequence_id, holder.first) for holder in board.holders(first.pages[1], 16)] == [
        ("r1/1-0", 16), ("r2/2-0", 16),
    ]  # fmt: skip
    assert board.counts().shared == 2


def test_pages_of_a_finished_request_stay_cached() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    page = engine.admit(1, 16).pages[0]
    step(state, engine)
    engine.finish(1, stays_cached=True)
    step(state, engine)
    assert state.models[engine.name].board.looks[page] == LOOK_CACHED


def test_by_owner_shared_pages_come_first_then_each_owner_in_one_piece() -> None:
    engine = FakeEngine(num_pages=32)
    state = state_of(engine)
    for number in (1, 2):
        engine.admit(number, 16)
    for _ in range(3):
        for number in (1, 2):
            engine.write(number, 16)
    step(state, engine)
    board = state.models[engine.name].board
    slots = [slot_of_look(board.looks[page]) for page in board.order_by_owner()]
    assert slots == [0] * 4 + [1] * 4 + [None] * 24 and sorted(board.order_by_owner()) == list(range(32))


def test_a_cell_of_several_pages_shows_the_most_common_and_of_equals_the_held_one() -> None:
    assert common_look(bytes([LOOK_FREE, LOOK_FREE, held_look(3, 2)])) == LOOK_FREE
    assert common_look(bytes([LOOK_FREE, held_look(3, 2)])) == held_look(3, 2)
    assert common_look(bytes([held_look(3, 0), held_look(3, 4), LOOK_CACHED])) == held_look(3, 4)


# ---- requests


def test_a_request_is_followed_from_its_arrival_to_a_second_after_its_end() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.tell(7, "queued")
    step(state, engine)
    (row,) = state.ordered()
    assert (row.name, row.source, row.state, row.prompt) == ("7", "curl", "queued", None)
    engine.admit(7, 100, cached=32)
    step(state, engine)
    assert (row.state, row.prompt, row.cached, row.pages) == ("prefill", 100, 32, 7)
    for _ in range(10):
        engine.write(7, 4)
        step(state, engine)
    assert (row.state, row.out) == ("decode", 40) and row.tokens_per_s() == pytest.approx(40)
    assert row.first_token_s == pytest.approx(0.1) and state.slot(row) == 0
    engine.finish(7)
    step(state, engine)
    assert row.state == "done" and state.ordered() == [row] and state.slot(row) == 0
    state.tick(engine.at + LINGER_S)
    assert state.ordered() == [] and state.slots.owners() == {} and state.requests.find("r7") is row


def test_rows_are_ordered_by_slot_then_preempted_then_by_place_in_the_queue() -> None:
    engine = FakeEngine(num_pages=64)
    state = state_of(engine)
    for number in (1, 2, 3):
        engine.admit(number, 100)
        engine.write(number, 1)
    step(state, engine)
    engine.preempt(2)
    for number in (4, 5):
        engine.tell(number, "queued")
        engine.tell(number, "submitted")
        engine.admit(number, 16).state = "waiting"
        engine.events.pop()
    step(state, engine)
    assert [(row.name, row.state) for row in state.ordered()] == [
        ("1", "decode"), ("3", "decode"), ("2", "preempted"), ("4", "waiting"), ("5", "waiting"),
    ]  # fmt: skip
    assert [row.place for row in state.ordered()][-2:] == [2, 3]


def test_requests_whose_events_were_lost_are_known_from_snapshots_and_end_with_them() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(3, 64)
    engine.events.clear()
    step(state, engine, dropped=4)
    (row,) = state.ordered()
    assert (row.name, row.state, row.pages, row.is_known) == ("3", "prefill", 4, False) and state.needs_requests
    engine.sequences.clear()
    for _ in range(25):
        step(state, engine)
    assert row.is_over
    state.tick(engine.at + LINGER_S + 0.1)
    assert state.ordered() == []


def test_a_list_of_requests_settles_what_was_lost() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.tell(1, "queued")
    engine.tell(2, "queued")
    step(state, engine)
    state.reconcile(["r2"])
    assert [row.is_over for row in state.ordered()] == [True, False] and not state.needs_requests


def test_after_a_reconnect_only_what_is_told_again_goes_on() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    for number in (1, 2):
        engine.tell(number, "queued")
        engine.tell(number, "submitted")
    told = list(engine.events)
    step(state, engine)
    state.disconnected()
    engine.events = [event for event in told if event.id == "r2"]
    step(state, engine, 5.0)
    assert {row.name: row.is_over for row in state.ordered()} == {"1": True, "2": False}
    assert len(state.requests.rows["r2"].events) == 2


def test_another_machine_begins_anew() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(1, 64)
    step(state, engine)
    other = FakeEngine("other", num_pages=16)
    other.at = 3.0
    step(state, other)
    assert list(state.models) == ["other"] and state.ordered() == [] and state.now == pytest.approx(3.1)


def test_a_model_that_goes_takes_its_pages_along_and_is_told_of() -> None:
    first, second = FakeEngine("one"), FakeEngine("two")
    state = LiveState()
    state.apply(first.frame(0.1, second), first.at)
    state.apply(first.frame(), first.at)
    assert list(state.models) == ["one"]
    assert [(each.word, each.text) for each in state.happenings] == [("unload", "two")]


def test_a_model_that_was_loaded_again_has_new_pages_and_keeps_its_figures() -> None:
    engine = FakeEngine(num_pages=32)
    engine.admit(1, 64)
    state = state_of(engine)
    samples = len(state.models[engine.name].rings["decode"])
    again = FakeEngine(num_pages=16, pid=2)
    again.at = engine.at
    step(state, again)
    assert len(state.models[engine.name].board) == 16 and len(state.models[engine.name].rings["decode"]) > samples


def test_rates_are_counted_over_the_last_second_and_fall_to_nothing() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(1, 640, cached=320)
    step(state, engine)
    for _ in range(20):
        engine.write(1, 3)
        step(state, engine)
    model = state.models[engine.name]
    assert model.newest("decode") == pytest.approx(30, rel=0.1) and model.newest("hits") == 0.5
    state.tick(engine.at + 2)
    assert model.newest("decode") == pytest.approx(30, rel=0.1)  # a step may take long
    engine.finish(1)
    step(state, engine)
    state.tick(engine.at + 2)
    assert model.newest("decode") == 0.0


def test_happenings_are_told_in_words() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(1, 768, cached=512)
    engine.write(1, 9)
    engine.preempt(1)
    engine.tell(1, "resumed", sequence=0)
    engine.finish(1)
    engine.tell(2, "queued")
    engine.tell(2, "failed", code="client_gone")
    engine.tell(3, "queued")
    engine.tell(3, "failed", code="model_not_found")
    step(state, engine)
    assert [(each.word, each.name, each.text) for each in reversed(state.happenings)] == [
        ("admit", "1", "512 of 768 tokens cached"),
        ("preempt", "1", "its pages go to others, it will resume"),
        ("resume", "1", "its pages are computed again"),
        ("finish", "1", "stop · 9 tokens"),
        ("cancel", "2", "its client left"),
        ("fail", "3", "model not found"),
    ]


def test_what_others_wrote_is_sanitized() -> None:
    event = RequestEvent(
        id="x", model="m\x1b[31m", route="/x", name="queued", at=1.0, time=1.0, source="evil\u202e\x1b]0;x\x07"
    )
    state = LiveState()
    state.apply(Frame(at=1.0, time=1.0, events=[event]), 1.0)
    (row,) = state.ordered()
    assert (row.source, row.model) == ("evil", "m")


# ---- the waterfall


def history(engine: FakeEngine, *steps: tuple[float, str, dict[str, Any]]) -> None:
    for after_s, name, data in steps:
        engine.at += after_s
        engine.tell(9, name, **data)


def test_a_waterfall_has_a_band_for_each_phase_and_the_phases_fill_the_time() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    history(
        engine, (0, "queued", {}), (0.1, "loading", {}), (0.4, "submitted", {}),
        (0.5, "admitted", {"cached": 64, "prompt": 1088}), (0.3, "progress", {"computed": 512}),
        (0.3, "first_token", {}),
        (0.4, "preempted", {}), (0.2, "resumed", {}), (0.8, "finished", {"reason": "stop", "completion": 30}),
    )  # fmt: skip
    step(state, engine)
    row = state.requests.find("r9")
    assert row is not None
    shown = waterfall(state, row, 20)
    spans = {band.phase: [(round(a, 6), round(b, 6)) for a, b in band.spans] for band in shown.bands}
    assert spans == {
        "queued": [(0.0, 0.1), (0.5, 1.0)],
        "load": [(0.1, 0.5)],
        "cached": [(1.0, 1.0)],
        "prefill": [(1.0, 1.3), (1.3, 1.6)],
        "preempted": [(2.0, 2.2)],
        "decode": [(1.6, 2.0), (2.2, 3.0)],
    }
    assert sum(band.total_s for band in shown.bands) == pytest.approx(shown.total_s) and shown.is_over


@pytest.mark.parametrize(
    ("steps", "lead", "advice"),
    [
        ([(0, "queued"), (0.01, "loading"), (3.0, "submitted"), (0.1, "admitted"), (0.1, "first_token")],
         "It waited 3.00 s", "keep_alive"),
        ([(0, "queued"), (0.0, "submitted"), (0.1, "admitted"), (2.0, "first_token")],
         "Reading 768 tokens took 2.00 s:", "unchanged beginning"),
        ([(0, "queued"), (0.0, "submitted"), (0.0, "admitted"), (0.1, "first_token"), (0.1, "preempted"),
          (1.0, "resumed")], "It lost its pages once, for 1.00 s:", "kv_pages"),
        ([(0, "queued"), (0.0, "submitted"), (0.0, "admitted"), (0.02, "first_token")], "Nothing holds it up.", ""),
    ],
)  # fmt: skip
def test_the_verdict_names_what_took_most(steps: list[tuple[float, str]], lead: str, advice: str) -> None:
    engine = FakeEngine()
    state = state_of(engine)
    data = {"admitted": {"cached": 256, "prompt": 1024}}
    history(engine, *((after_s, name, data.get(name, {})) for after_s, name in steps))
    state.apply(engine.frame(0.0, with_snapshot=False), engine.at)
    row = state.requests.find("r9")
    assert row is not None
    verdict = waterfall(state, row, 10).verdict
    assert verdict.lead == lead and advice in verdict.advice and bool(advice) == verdict.is_slow


def test_a_request_that_waits_says_for_whose_prompt() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(4, 8192)
    step(state, engine)
    engine.tell(9, "queued")
    engine.tell(9, "submitted")
    step(state, engine, 2.0)
    row = state.requests.find("r9")
    assert row is not None
    verdict = waterfall(state, row, 10).verdict
    assert (verdict.lead, verdict.rest) == ("It waits 2.00 s:", "4 is prefilling 8,192 tokens in the same batch.")


def test_a_gap_without_tokens_is_a_gap_in_the_waterfall() -> None:
    engine = FakeEngine()
    state = state_of(engine)
    engine.admit(1, 16)
    for after_s in (0.1, 0.1, 2.0):
        step(state, engine, after_s)
        engine.write(1, 1)
        step(state, engine, 0.0)
    row = state.requests.find("r1")
    assert row is not None
    decode = next(band for band in waterfall(state, row, 5).bands if band.phase == "decode")
    assert 0 < decode.total_s < 0.3


# ---- whatever comes


NAMES = ("queued", "loading", "submitted", "admitted", "progress", "first_token", "preempted", "resumed",
         "finished", "failed", "unheard_of")  # fmt: skip
IDS = st.sampled_from([f"r{number}" for number in range(20)])
EVENTS = st.builds(
    RequestEvent,
    id=IDS,
    model=st.sampled_from(["one", "two", "gone"]),
    route=st.just("/x"),
    name=st.sampled_from(NAMES),
    at=st.floats(0, 60),
    time=st.just(0.0),
    data=st.fixed_dictionaries({}, optional={"cached": st.integers(0, 99), "prompt": st.integers(0, 99),
                                             "completion": st.integers(0, 99), "computed": st.none()}),
    serial=st.integers(0, 30),
)  # fmt: skip
VIEWS = st.builds(
    wire.SequenceView,
    request_id=st.one_of(IDS.map(lambda name: f"{name}/{name[1:]}-0"), IDS),
    state=st.sampled_from(["waiting", "running"]),
    num_prompt=st.integers(0, 200),
    num_computed=st.integers(0, 300),
    num_generated=st.integers(0, 100),
    num_pages=st.integers(0, 20),
    num_shared_pages=st.integers(0, 20),
    num_preemptions=st.integers(0, 3),
    pages=st.lists(st.integers(0, 50), max_size=12).map(lambda pages: array("I", pages).tobytes()),
)


@st.composite
def snapshots(draw: st.DrawFn) -> wire.Snapshot:
    num_pages = draw(st.sampled_from([0, 24, 24, 24, 48]))
    views = draw(st.lists(VIEWS, max_size=6, unique_by=lambda view: view.request_id))
    return wire.Snapshot(
        time_s=0.0, pages=bytes(draw(st.lists(st.integers(0, 3), min_size=num_pages, max_size=num_pages))),
        num_waiting=draw(st.integers(0, 9)), num_running=draw(st.integers(0, 9)), num_steps=0,
        num_prompt_tokens=draw(st.integers(0, 99)), num_cached_tokens=draw(st.integers(0, 99)),
        num_generated_tokens=draw(st.integers(0, 99)), num_preemptions=0, last_step_s=0.0, last_step_tokens=0,
        sequences=views,
    )  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    names = draw(st.sets(st.sampled_from(["one", "two", "three"])))
    return Frame(
        at=draw(st.floats(0, 60)),
        time=0.0,
        models=[ModelRow(name=name, state=draw(st.sampled_from(["loading", "ready", "failed"])), page_size=16,
                         pid=draw(st.sampled_from([1, 1, 2]))) for name in sorted(names)],
        snapshots=draw(st.dictionaries(st.sampled_from(["one", "two", "three"]), snapshots(), max_size=2)),
        events=draw(st.lists(EVENTS, max_size=8)),
        dropped=draw(st.sampled_from([0, 0, 3])),
    )  # fmt: skip


MOVES = st.lists(
    st.one_of(frames(), st.floats(0, 5), st.just("break"), st.lists(IDS, max_size=3)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(MOVES)
def test_whatever_comes_the_state_stays_whole(moves: list[Any]) -> None:
    state, local = LiveState(), 0.0
    for move in moves:
        if isinstance(move, Frame):
            state.apply(move, local)
        elif isinstance(move, float):
            local += move
            state.tick(local)
        elif isinstance(move, list):
            state.reconcile(move)
        else:
            state.disconnected()
        check(state)


def check(state: LiveState) -> None:
    slots = [slot for slot in state.slots.owners().values() if slot != OTHERS]
    assert len(slots) == len(set(slots)) and all(0 <= slot < NUM_SLOTS for slot in slots)
    assert len(state.happenings) <= 200
    assert sorted(row.id for row in state.ordered()) == sorted(state.requests.rows)
    for row in state.ordered():
        assert row.age_s(state.now) >= 0 and 0 <= row.fraction() <= 1
        assert (row.ended is not None) == row.is_over
        assert row.ended is None or state.now - row.ended < LINGER_S
        shown = waterfall(state, row, 8)
        assert all(0 <= start <= end <= shown.total_s + 1e-9 for band in shown.bands for start, end in band.spans)
    for model in state.models.values():
        board = model.board
        assert len(board.looks) == len(board) and all(look < NUM_LOOKS for look in board.looks)
        assert all(len(ring) <= NUM_SAMPLES for ring in model.rings.values())
        for page, look in enumerate(board.looks):
            if look == LOOK_FREE:
                assert board.state(page) == 0
            slot = slot_of_look(look)
            if slot is not None:
                assert board.state(page) == 2 and 0 <= slot <= OTHERS
