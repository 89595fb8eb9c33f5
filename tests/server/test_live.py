"""The live feed: frames as our client reads them, whose pages are whose, and readers that do not read."""

import asyncio
import base64
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localllm import wire
from localllm.backends.fake import FakeBackend
from localllm.client import Client
from localllm.daemon.feed import Frame, RequestEvent, page_ids, page_owners
from localllm.daemon.journal import Journal, record_id_of
from localllm.engine.engine import Engine
from localllm.server import live
from localllm.server.callers import ANYBODY, Caller
from localllm.server.live import FRAME_S, MAX_EVENTS, MAX_WATCHERS, _Watcher
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

GREEDY = wire.SamplingParams(temperature=0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:1b"), toy_entry("toy:slow", "toy:slow"), toy_entry("toy:heavy", "toy:heavy"))
    with daemon(tmp_path, library) as world:
        yield world


def until(frames: Iterator[Frame], name: str) -> list[RequestEvent]:
    """All events up to one of this name."""
    events: list[RequestEvent] = []
    while not any(event.name == name for event in events):
        events += next(frames).events
    return events


def num_watchers(world: World) -> int:
    return int(world.on_loop(lambda: len(world.daemon.live._watchers)))


@pytest.mark.parametrize("path", ["/live", "/localllm/v1/live"])
def test_the_first_frame_comes_at_once_and_shows_what_is_loaded(world: World, path: str) -> None:
    world.complete("a" * 100, max_tokens=4)
    with world.client.stream("GET", path) as feed:
        line = next(line for line in feed.iter_lines() if line.startswith("data: "))
        frame = msgspec.json.decode(line[6:], type=Frame)
        raw = msgspec.json.decode(line[6:])
    assert frame.models[0].name == "toy:1b" and frame.models[0].resident_bytes > 0
    assert frame.models[0].max_sequences > 0
    assert len(frame.snapshots["toy:1b"].pages) == 512
    assert base64.b64decode(raw["snapshots"]["toy:1b"]["pages"]) == frame.snapshots["toy:1b"].pages
    assert frame.machine.total_bytes > frame.machine.available_bytes > 0 and frame.machine.daemon_bytes > 0


def test_a_request_can_be_followed_from_its_arrival_to_its_end(world: World) -> None:
    frames = Client(world.url).live()
    next(frames)
    world.complete("ab" * 30, max_tokens=5, ignore_eos=True)
    events = until(frames, "finished")
    frames.close()  # type: ignore[attr-defined]  # a generator
    names = [event.name for event in events if event.name != "progress"]
    assert names == ["queued", "loading", "submitted", "admitted", "first_token", "finished"]
    assert len({event.id for event in events}) == 1 and events[-1].route == "/v1/completions"
    assert events[-1].data == {"reason": "length", "prompt": 61, "cached": 0, "completion": 5}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert all(abs((event.time - event.at) - (events[0].time - events[0].at)) < 1e-3 for event in events)


def test_events_say_who_asked_and_in_which_lane(world: World) -> None:
    frames = Client(world.url).live()
    next(frames)
    headers = {"user-agent": "curl/8.5.0 (x)", "x-request-priority": "batch"}
    body = {"model": "toy:1b", "prompt": "a", "max_tokens": 1}
    for sent in (headers, {"user-agent": "Mozilla/5.0 (X11)"}, {"user-agent": "\x1b[31m"}):
        assert world.client.post("/v1/completions", json=body, headers=sent).status_code == 200
    events: list[RequestEvent] = []
    while sum(event.name == "finished" for event in events) < 3:
        events += next(frames).events
    frames.close()  # type: ignore[attr-defined]  # a generator
    first, second, third = (event for event in events if event.name == "finished")
    assert (first.source, first.priority) == ("curl", -10)
    assert (second.source, second.priority, third.source) == ("browser", 0, "")
    assert [event.serial for event in (first, second, third)] == [1, 2, 3]


def test_a_request_that_loses_its_memory_says_so(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(toy_entry("toy:1b", "toy:slow")), kv_pages=14) as world:
        frames = Client(world.url).live()
        next(frames)
        body = {"model": "toy:1b", "max_tokens": 100, "ignore_eos": True, "prompt": ["a" * 60, "b" * 60]}
        answer = world.client.post("/v1/completions", json=body)
        events = until(frames, "finished")
        frames.close()  # type: ignore[attr-defined]  # a generator
        assert answer.status_code == 200
        shown = world.client.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    lost = [(event.name, event.data["sequence"]) for event in events if event.name in ("preempted", "resumed")]
    assert lost == [("preempted", 1), ("resumed", 1)]
    assert "gave its memory to others once" in shown["verdict"]


def test_pages_have_owners_and_steps_have_rows_while_somebody_watches(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "x" * 100, "max_tokens": 400, "ignore_eos": True, "stream": True}
    headers = {"x-request-id": "painted"}
    frames = Client(world.url).live()
    next(frames)
    with world.client.stream("POST", "/v1/completions", json=body, headers=headers) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        for frame in frames:
            shot = frame.snapshots.get("toy:slow")
            if shot is not None and shot.rows and shot.rows[0].kind == "decode":
                break
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert shot is not None
    (view,) = shot.sequences
    assert record_id_of(view.request_id) == "painted"
    owners = page_owners(shot)
    assert sorted(owners) == [page for page, state in enumerate(shot.pages) if state >= 2]
    assert set(map(tuple, owners.values())) == {(view.request_id,)} and len(page_ids(view)) == view.num_pages
    assert (shot.rows[0].num_tokens, shot.rows[0].request_id) == (1, view.request_id)
    assert shot.rows[0].start >= view.num_prompt == 101


def test_workers_say_less_when_nobody_watches_any_more(world: World) -> None:
    frames = Client(world.url).live()
    next(frames)
    world.complete("a", max_tokens=1)
    until(frames, "finished")
    (resident,) = world.daemon.residency.residents()
    assert resident.is_watched
    frames.close()  # type: ignore[attr-defined]  # a generator
    while num_watchers(world):
        world.ps()
    assert not resident.is_watched
    world.complete("a" * 50, max_tokens=3)
    while (shot := resident.snapshot) is None or shot.num_prompt_tokens < 2 + 51:
        world.ps()
    assert shot.rows == [] and not any(view.pages for view in shot.sequences)


def test_a_reader_who_comes_late_hears_of_what_is_under_way(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with world.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        frames = Client(world.url).live()
        names = [event.name for event in next(frames).events]
        frames.close()  # type: ignore[attr-defined]  # a generator
    assert names[0] == "queued" and names[-1] == "first_token"


def test_frames_come_at_most_ten_times_a_second(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    frames = Client(world.url).live()
    with world.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        times = [next(frames).at for _ in range(8)]
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert min(later - earlier for earlier, later in pairwise(times[1:])) > FRAME_S * 0.95


def test_loading_is_told_in_models_before_there_is_a_snapshot(world: World) -> None:
    frames = Client(world.url).live()
    next(frames)
    with world.client.stream("POST", "/localllm/v1/load", json={"model": "toy:heavy"}) as loading:
        states: list[str] = []
        while "ready" not in states:
            states += [row.state for row in next(frames).models]
        loading.read()
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert states[0] == "loading"


def test_rates_are_those_between_two_snapshots(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "x" * 64, "max_tokens": 300, "ignore_eos": True, "stream": True}
    frames = Client(world.url).live()
    with world.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        rates = next(found for frame in frames for found in frame.rates.values() if found.generated_tokens_per_s)
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert 0 < rates.generated_tokens_per_s < 60 and rates.steps_per_s == pytest.approx(
        rates.generated_tokens_per_s, rel=0.5
    )


# ---- readers that do not read


def test_a_watcher_keeps_so_many_events_and_says_how_many_it_lost() -> None:
    journal, watcher = Journal(), _Watcher(ANYBODY)
    journal.watch(watcher.note_event)
    for _ in range(MAX_EVENTS + 10):
        journal.open("/x", "toy")
    _, events, dropped = watcher.take()
    assert (len(events), dropped) == (MAX_EVENTS, 10)
    assert watcher.take() == (set(), [], 0)


def test_a_watcher_hears_only_of_requests_that_its_key_may_see() -> None:
    journal, watcher = Journal(), _Watcher(Caller("anna", frozenset(("inference",))))
    journal.watch(watcher.note_event)
    journal.open("/x", "toy", caller="ben")
    mine = journal.open("/x", "toy", caller="anna")
    assert [event.id for event in watcher.take()[1]] == [mine.id]


def test_a_reader_that_never_reads_costs_nobody_anything(world: World) -> None:
    def watch_without_reading() -> socket.socket:
        reader = socket.create_connection(("127.0.0.1", world.port))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return reader

    readers = [watch_without_reading() for _ in range(4)]
    world.complete("a", max_tokens=1)
    while num_watchers(world) < 4:
        world.ps()
    for number in range(150):
        answer = world.complete("ab" * 100, max_tokens=4, ignore_eos=True, cache_salt=str(number))
        assert answer.status_code == 200
    sizes = world.on_loop(lambda: [len(watcher._events) for watcher in world.daemon.live._watchers])
    assert all(size <= MAX_EVENTS for size in sizes)
    began = time.monotonic()
    frame = next(Client(world.url).live())
    assert frame.models[0].name == "toy:1b" and time.monotonic() - began < 5
    for reader in readers:
        reader.close()
    while num_watchers(world):
        world.ps()


def test_a_slow_reader_gets_the_latest_state_and_the_number_of_events_it_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_EVENTS", 20)
    frames = world.daemon.live._frames(_Watcher(ANYBODY))

    def pull() -> Frame:
        line = asyncio.run_coroutine_threadsafe(anext(frames), world.loop).result(10)  # type: ignore[arg-type]
        return msgspec.json.decode(line.removeprefix(b"data: "), type=Frame)

    pull()
    for number in range(10):
        world.complete("ab", max_tokens=2, ignore_eos=True, cache_salt=str(number))
    events = [event for record in world.daemon.journal.recent for event in record.events]
    frame = pull()
    assert len(frame.events) == 20 and frame.dropped == len(events) - 20
    assert [event.id for event in frame.events][-1] == world.daemon.journal.recent[-1].id
    while (shot := world.daemon.residency.residents()[0].snapshot) is None or shot.num_generated_tokens < 20:
        world.ps()
    frame = pull()
    assert frame.snapshots["toy:1b"].num_generated_tokens == 20 and frame.dropped == 0
    asyncio.run_coroutine_threadsafe(frames.aclose(), world.loop).result(10)  # type: ignore[attr-defined]


def test_only_so_many_may_watch(world: World) -> None:
    watchers = world.daemon.live._watchers
    world.on_loop(lambda: watchers.update(_Watcher(ANYBODY) for _ in range(MAX_WATCHERS)))
    assert world.client.get("/live").status_code == 503
    world.on_loop(watchers.clear)


def test_a_feed_ends_when_the_daemon_drains(world: World) -> None:
    with world.client.stream("GET", "/live") as feed:
        lines = feed.iter_lines()
        next(lines)
        world.on_loop(world.daemon.live.end)
        assert list(lines) is not None and feed.is_stream_consumed


# ---- what the engine tells


def engine(**changes: Any) -> Engine:
    backend = FakeBackend(vocab_size=64, page_size=4, answer=lambda visible: 1 + visible[-1] % 60)
    settings: dict[str, Any] = {"context_length": 64, "num_pages": 12, "page_size": 4, "token_budget": 16}
    return Engine(backend, **(settings | changes))


def submit(name: str, prompt: list[int], max_tokens: int = 20) -> wire.Submit:
    return wire.Submit(request_id=name, prompt=prompt, max_tokens=max_tokens, sampling=GREEDY)


def test_rows_tell_chunks_from_decoded_tokens() -> None:
    world = engine(num_pages=64)
    world.add(submit("long", list(range(1, 40))))
    world.add(submit("short", [5, 6]))
    kinds: dict[str, list[tuple[str, int, int]]] = {"long": [], "short": []}
    for _ in range(5):
        world.step()
        for row in world.snapshot(detailed=True).rows:
            kinds[row.request_id].append((row.kind, row.start, row.num_tokens))
    assert kinds["long"][:3] == [("chunk", 0, 16), ("chunk", 16, 16), ("chunk", 32, 7)]
    assert kinds["long"][3] == ("decode", 39, 1) and kinds["short"][0][0] == "chunk"
    assert {kind for kind, _, _ in kinds["short"][1:]} == {"decode"}
    assert world.snapshot().rows == [] and world.snapshot().sequences[0].pages == b""


def test_a_sequence_that_loses_its_memory_is_told_so_and_no_other() -> None:
    world = engine()
    world.add(submit("old", list(range(1, 17)), 30))
    world.add(submit("young", list(range(20, 36)), 30))
    lost: list[str] = []
    while world.has_work:
        lost += [chunk.request_id for chunk in world.step() if chunk.preempted]
    assert set(lost) == {"young"} and len(lost) == world.snapshot().num_preemptions


def test_a_chunk_says_how_long_its_sequence_waited_for_a_step() -> None:
    now = [0.0]
    world = engine(clock=lambda: now[0], max_sequences=1, num_pages=64)
    world.add(submit("first", [1, 2, 3], 2))
    world.add(submit("second", [1, 2, 3], 2))
    waited: dict[str, float] = {}
    while world.has_work:
        now[0] += 1
        waited |= {chunk.request_id: chunk.waited_s for chunk in world.step() if chunk.started}
    assert waited == {"first": 1.0, "second": 3.0}


def test_steps_are_counted_by_their_size() -> None:
    world = engine(num_pages=64)
    world.add(submit("a", list(range(1, 18)), 3))
    while world.has_work:
        world.step()
    shot = world.snapshot()
    assert (sum(shot.step_sizes), shot.num_step_tokens) == (shot.num_steps, 17 + 2)
    assert shot.step_sizes[:3] == [3, 0, 1]  # 16 tokens, then one at a time


def test_a_detailed_snapshot_of_a_large_engine_takes_less_than_a_millisecond() -> None:
    backend = FakeBackend(vocab_size=64, page_size=16, answer=lambda visible: 1)
    world = Engine(backend, context_length=2048, num_pages=4096, page_size=16, token_budget=8192, max_sequences=64)
    for number in range(64):
        prompt = [1 + (number * 7 + place) % 60 for place in range(1000)]
        world.add(submit(f"{number:032x}/{number}-0", prompt, 500))
    while len(world.snapshot(detailed=True).rows) < 64:
        world.step()
    best_s = 1.0
    for _ in range(20):
        began = time.perf_counter()
        frame = wire.encode_frame(world.snapshot(detailed=True))
        best_s = min(best_s, time.perf_counter() - began)
    assert best_s < 1e-3 and len(frame) > 4096 + 64 * 62 * 4
