"""Which models stay and which go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localllm import wire
from localllm.daemon.residency import Residency, Wait, key_of
from localllm.daemon.resident import Resident
from localllm.daemon.sources import Sources
from localllm.errors import (
    BadModelFile,
    InvalidRequest,
    LocalLLMError,
    ModelNotFound,
    NotEnoughMemory,
    Overloaded,
    UnsupportedModel,
)
from localllm.runtime.load import TextSide
from localllm.runtime.presets import NO_WISH, LoadWish
from localllm.settings import load_settings
from localllm.store.entry import Entry
from tests.daemon.toy import WORKER_COMMAND, ToyLibrary, toy_entry, toy_text

NAMES = ("a", "b", "c")


def text_of(entry: Entry) -> TextSide:
    if entry.name == "endless":
        raise BadModelFile("the folder has no tokenizer")
    return toy_text(entry)


@asynccontextmanager
async def residency(home: Path, *, free_bytes: int = 10**12, **settings: Any) -> AsyncIterator[Residency]:
    entries = [toy_entry(name) for name in NAMES]
    entries += [toy_entry("broken", "toy:broken"), toy_entry("heavy", "toy:heavy"), toy_entry("slow", "toy:slow")]
    entries.append(toy_entry("endless", "toy:endless"))
    entries.append(toy_entry("huge").__class__(**{**_fields(toy_entry("huge")), "size_bytes": 5 * 10**9}))
    entries.append(entries[0].__class__(**{**_fields(entries[0]), "name": "alias of a"}))
    sources = Sources(
        library=ToyLibrary(*entries),
        load_text=text_of,
        worker_command=WORKER_COMMAND,
        available_memory_bytes=lambda: free_bytes,
        backend_problem=lambda backend: "MLX is not installed" if backend == "metal" else "",
    )
    made = Residency(load_settings({"LOCALLLM_HOME": str(home)}, **settings), sources)
    try:
        yield made
    finally:
        await made.close()


def _fields(entry: Any) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


def loaded(residency: Residency) -> list[str]:
    return sorted(resident.entry.name for resident in residency.residents())


async def use(
    residency: Residency, name: str, keep_alive: str | float | None = None, wish: LoadWish = NO_WISH
) -> Resident:
    async with residency.using(name, keep_alive, wish) as resident:
        assert resident.state == "ready"
        return resident


async def test_requests_for_a_loading_model_wait_together(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        residents = await asyncio.gather(*(use(models, "heavy") for _ in range(8)))
        assert len({id(resident) for resident in residents}) == 1
        assert len({resident.pid for resident in residents}) == 1


async def test_two_names_of_the_same_content_share_a_worker(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        assert await use(models, "a") is await use(models, "alias of a")


async def test_an_unknown_model_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        with pytest.raises(ModelNotFound):
            await use(models, "nope")
        assert loaded(models) == []


async def test_the_least_recently_used_idle_model_makes_room(tmp_path: Path) -> None:
    async with residency(tmp_path, max_loaded_models=2) as models:
        for name in ("a", "b", "a", "c"):
            await use(models, name)
        assert loaded(models) == ["a", "c"]


async def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    async with residency(tmp_path, max_loaded_models=1) as models:
        async with models.using("a"):
            waiting = asyncio.create_task(use(models, "b"))
            await asyncio.wait({waiting}, timeout=0.3)
            assert not waiting.done() and loaded(models) == ["a"]
        await waiting
        assert loaded(models) == ["b"]


async def test_others_are_served_while_one_waits_for_room(tmp_path: Path) -> None:
    async with residency(tmp_path, max_loaded_models=1) as models, models.using("a"):
        waiting = asyncio.create_task(use(models, "b"))
        await asyncio.wait({waiting}, timeout=0.05)
        await use(models, "a")
        waiting.cancel()


async def test_nobody_waits_behind_one_who_was_promised_an_answer(tmp_path: Path) -> None:
    """Such a wait has no end of its own, and others may hear at once what becomes of them."""
    async with residency(tmp_path) as models, models.using("a"):
        short_of_memory(models, room_for=1)
        told = Wait(is_told=True)
        waiting = asyncio.create_task(held(models, "b", told))
        while told.text != "waiting for a place for b":
            await asyncio.sleep(0.005)
        with pytest.raises(NotEnoughMemory):
            async with asyncio.timeout(2):
                await use(models, "huge")
        waiting.cancel()


async def test_idle_models_go_when_memory_is_short_and_it_is_said(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        short_of_memory(models, room_for=2)
        for name in ("a", "b", "c"):
            wait = Wait()
            async with models.using(name, wait=wait):
                pass
        assert loaded(models) == ["b", "c"]
        assert wait.evicted == ["a"] and [(each.name, each.why) for each in models.evictions] == [
            ("a", "c needs its memory")
        ]


async def test_what_fits_in_no_case_is_refused_with_numbers_before_anybody_goes(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        short_of_memory(models, room_for=2)
        await use(models, "a")
        with pytest.raises(NotEnoughMemory, match=r"huge needs about 5\.\d GB of memory; 0\.0 MB is free"):
            await use(models, "huge")
        assert loaded(models) == ["a"]


async def test_what_fits_once_others_are_done_waits_for_them(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        short_of_memory(models, room_for=1)
        wait = Wait()
        async with models.using("a"):
            waiting = asyncio.create_task(held(models, "b", wait))
            await asyncio.wait({waiting}, timeout=0.1)
            assert not waiting.done() and loaded(models) == ["a"]
            assert wait.text == "waiting for a place for b"
        await waiting
        assert loaded(models) == ["b"] and wait.evicted == ["a"]


async def test_whoever_waits_is_told_how_far_the_model_has_loaded(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        wait = Wait()
        waiting = asyncio.create_task(held(models, "heavy", wait))
        while wait.text != "loading weights 0 %":
            await asyncio.sleep(0.005)
        await waiting
        assert wait.text is None


async def held(models: Residency, name: str, wait: Wait) -> None:
    async with models.using(name, wait=wait):
        pass


def short_of_memory(models: Residency, *, room_for: int) -> None:
    """Free memory is what the loaded models leave of a room for so many of them, with a little to spare."""

    def free() -> int:
        return 1150 * (room_for - len(models.residents())) + 10

    models._sources = replace(models._sources, available_memory_bytes=free)


async def test_damage_found_while_a_model_runs_ends_it_and_names_the_file(tmp_path: Path) -> None:
    def check(entry: Entry) -> None:
        if entry.name == "heavy":
            raise BadModelFile("/models/heavy.gguf is damaged: its sha256 is not abc", hint="pull it")

    async with residency(tmp_path) as models:
        models._sources = replace(models._sources, check_files=check)
        with pytest.raises(BadModelFile, match=r"heavy\.gguf is damaged"):
            await use(models, "heavy")
        assert models.crashes.wounds() == []


async def test_a_crowd_before_a_model_is_turned_away(tmp_path: Path) -> None:
    async with residency(tmp_path, max_queue=2, max_loaded_models=1) as models, models.using("a"):
        waiting = [asyncio.create_task(use(models, "b")) for _ in range(2)]
        await asyncio.wait(waiting, timeout=0.05)
        with pytest.raises(Overloaded):
            await use(models, "b")
        for task in waiting:
            task.cancel()


async def test_where_nobody_may_wait_a_model_comes_all_the_same(tmp_path: Path) -> None:
    async with residency(tmp_path, max_queue=0) as models:
        first, second = await asyncio.gather(use(models, "a"), use(models, "b"), return_exceptions=True)
        assert isinstance(first, Resident) and isinstance(second, Overloaded)
        assert isinstance(await use(models, "b"), Resident)


async def test_keep_alive_0_unloads_at_once(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        resident = await use(models, "a", 0)
        await asyncio.wait_for(resident.gone.wait(), 5)
        await asyncio.wait_for(until_empty(models), 5)


async def test_keep_alive_counts_from_the_last_use(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        resident = await use(models, "a", "30s")
        left_s = models.expires_in_s(resident)
        assert left_s is not None and 29 < left_s <= 30
        assert await use(models, "a", -1) is resident
        assert models.expires_in_s(resident) is None


async def test_the_keep_alive_setting_holds_where_no_request_says_otherwise(tmp_path: Path) -> None:
    async with residency(tmp_path, keep_alive="0") as models:
        await use(models, "a")
        await asyncio.wait_for(until_empty(models), 5)


async def test_a_keep_alive_of_once_does_not_outlive_the_loaded_model(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        await use(models, "a", 0)
        await asyncio.wait_for(until_empty(models), 5)
        left_s = models.expires_in_s(await use(models, "a"))
        assert left_s is not None and left_s > 200


async def until_empty(models: Residency) -> None:
    while models.residents():
        await asyncio.sleep(0.01)


async def test_a_model_that_fails_to_load_tells_all_who_wait_and_is_tried_again(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        outcomes = await asyncio.gather(*(use(models, "broken") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, BadModelFile) for outcome in outcomes)
        with pytest.raises(BadModelFile):
            await use(models, "broken")
        assert models.crashes.wounds() == []


async def test_weights_are_not_waited_for_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        async with asyncio.timeout(30):  # the toy takes ten minutes to load
            with pytest.raises(BadModelFile, match="no tokenizer"):
                await use(models, "endless")


async def test_a_client_that_gives_up_does_not_stop_the_loading(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(use(models, "heavy"), 0.05)
        first = models.residents()[0]
        assert await use(models, "heavy") is first


async def test_a_model_stopped_while_it_loads_tells_who_waits(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        waiting = asyncio.create_task(use(models, "heavy"))
        while not models.residents():
            await asyncio.sleep(0.01)
        assert await models.stop("heavy")
        with pytest.raises(LocalLLMError, match="unloaded while it loaded"):
            await waiting
        assert models.crashes.wounds() == []


async def test_stopping_a_model_ends_its_streams_with_an_error(tmp_path: Path) -> None:
    class Sink:
        def __init__(self) -> None:
            self.errors: list[LocalLLMError] = []

        def feed(self, chunk: wire.TokenChunk) -> None: ...

        def flush(self) -> None: ...

        def fail(self, error: LocalLLMError) -> None:
            self.errors.append(error)

    async with residency(tmp_path) as models, models.using("slow") as resident:
        resident.submit(wire.Submit(request_id="r", prompt=[97]), sink := Sink())
        assert await models.stop("slow")
        assert [str(error) for error in sink.errors] == ["slow was unloaded"]
        assert not await models.stop("slow")


async def test_a_model_whose_file_is_gone_is_stopped_by_the_short_name_too(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("a:latest"))
    sources = Sources(library=library, load_text=toy_text, worker_command=WORKER_COMMAND)
    models = Residency(load_settings({"LOCALLLM_HOME": str(tmp_path)}), sources)
    async with models.using("a:latest"):
        pass
    library.by_name.clear()
    assert await models.stop("a") and not models.residents()
    await models.close()


async def test_a_model_that_has_left_the_store_can_still_be_stopped(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("a"))
    sources = Sources(library=library, load_text=toy_text, worker_command=WORKER_COMMAND)
    models = Residency(load_settings({"LOCALLLM_HOME": str(tmp_path)}), sources)
    await use(models, "a")
    library.by_name.clear()
    assert await models.stop("a")
    with pytest.raises(ModelNotFound):
        await models.stop("a")
    await models.close()


async def test_a_sink_that_fails_harms_no_other(tmp_path: Path) -> None:
    class Sick:
        failures = 0

        def feed(self, chunk: wire.TokenChunk) -> None:
            raise RuntimeError("cannot show this token")

        def flush(self) -> None: ...

        def fail(self, error: LocalLLMError) -> None:
            self.failures += 1

    class Well:
        def __init__(self) -> None:
            self.done = asyncio.Event()

        def feed(self, chunk: wire.TokenChunk) -> None:
            if chunk.finish:
                self.done.set()

        def flush(self) -> None: ...

        def fail(self, error: LocalLLMError) -> None: ...

    async with residency(tmp_path) as models, models.using("a") as resident:
        resident.submit(wire.Submit(request_id="sick", prompt=[97]), sick := Sick())
        resident.submit(wire.Submit(request_id="well", prompt=[98], max_tokens=5), well := Well())
        await asyncio.wait_for(well.done.wait(), 5)
        assert sick.failures == 1
        assert resident.num_streams == 0


async def test_another_backend_loads_the_model_again_and_no_wish_takes_it_as_it_is(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        first = await use(models, "a")
        assert await use(models, "a", wish=LoadWish(device="cpu")) is first  # what `auto` became
        second = await use(models, "a", wish=LoadWish(backend="torch", quantize="q4_0"))
        assert second is not first and first.gone.is_set()
        assert (second.load.backend, second.load.quantize) == ("torch", "q4_0")
        assert await use(models, "a") is second
        assert await use(models, "a", wish=LoadWish(quantize="none")) is not second
        assert loaded(models) == ["a"]


async def test_answers_under_way_are_not_cut_off_by_a_wish_for_another_backend(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        async with models.using("a") as first:
            waiting = asyncio.create_task(use(models, "a", wish=LoadWish(kv_type="f32")))
            await asyncio.wait({waiting}, timeout=0.2)
            assert not waiting.done() and first.state == "ready"
        assert (await waiting).load.kv_type == "f32"


async def test_a_wish_for_what_is_not_installed_leaves_the_loaded_model_alone(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        first = await use(models, "a")
        with pytest.raises(UnsupportedModel, match="MLX is not installed") as refused:
            await use(models, "a", wish=LoadWish(backend="metal"))
        assert refused.value.param == "backend" and refused.value.hint
        assert await use(models, "a") is first


async def test_requests_that_wish_the_same_share_what_is_loaded_for_the_first(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        wish = LoadWish(backend="torch")
        residents = await asyncio.gather(*(use(models, "heavy", wish=wish) for _ in range(4)))
        assert len({id(resident) for resident in residents}) == 1


async def test_a_wish_that_cannot_be_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        with pytest.raises(InvalidRequest, match="one of auto, cpu, torch, metal, reference"):
            await use(models, "a", wish=LoadWish(backend="abacus"))
        assert loaded(models) == []


async def test_who_comes_in_the_moment_that_a_models_time_is_up_keeps_it(tmp_path: Path) -> None:
    async with residency(tmp_path) as models:
        resident = await use(models, "a")
        models._expire(key_of(resident.entry), resident)
        held = await models._hold(resident.entry, NO_WISH, Wait())
        for _ in range(3):
            await asyncio.sleep(0)
        assert held is resident and held.state == "ready"
        models._release(key_of(resident.entry), held)


async def test_models_that_are_kept_for_no_time_answer_all_who_ask(tmp_path: Path) -> None:
    async def ask(models: Residency) -> None:
        for _ in range(20):
            async with models.using("a", 0) as resident:
                await asyncio.sleep(0)
                assert resident.state == "ready"
            await asyncio.sleep(0)

    async with residency(tmp_path) as models:
        await asyncio.gather(*(ask(models) for _ in range(3)))
