"""Whose fault a dead worker was."""

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest

from localllm import wire
from localllm.daemon.quarantine import Quarantine, fingerprint_of, fingerprint_of_body
from localllm.daemon.replies import Ask
from localllm.errors import Quarantined


async def enter(quarantine: Quarantine, name: str) -> AsyncExitStack:
    stack = AsyncExitStack()
    await stack.enter_async_context(quarantine.running("model", ["body-" + name, name]))
    return stack


async def dies_with(quarantine: Quarantine, *names: str) -> None:
    stacks = [await enter(quarantine, name) for name in names]
    quarantine.note_death("model")
    for stack in stacks:
        await stack.aclose()


def is_refused(quarantine: Quarantine, name: str) -> bool:
    try:
        quarantine.check("model", name)
    except Quarantined as error:
        assert error.http_status == 422 and name in error.message
        return True
    return False


async def test_whoever_kills_twice_is_not_tried_again() -> None:
    quarantine = Quarantine()
    await dies_with(quarantine, "poison")
    assert not is_refused(quarantine, "poison") and quarantine.is_empty
    await dies_with(quarantine, "poison")
    assert is_refused(quarantine, "poison") and is_refused(quarantine, "body-poison")
    with pytest.raises(Quarantined):
        await enter(quarantine, "poison")
    quarantine.check("another model", "poison")


async def test_who_was_in_the_same_batch_is_not_blamed_though_it_comes_back_at_once() -> None:
    quarantine = Quarantine()
    await dies_with(quarantine, "innocent", "poison", "other")
    # all three clients try again at the same time
    first = await enter(quarantine, "innocent")
    waiting = [asyncio.create_task(enter(quarantine, name)) for name in ("poison", "other")]
    newcomer = await enter(quarantine, "newcomer")
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting), "suspects run one at a time"
    quarantine.clear("model", ["body-innocent", "innocent"])
    await first.aclose()
    poison = await waiting[0]
    quarantine.note_death("model")
    await poison.aclose()
    await newcomer.aclose()
    await (await waiting[1]).aclose()
    assert [name for name in ("innocent", "poison", "other", "newcomer") if is_refused(quarantine, name)] == ["poison"]


async def test_a_request_that_finishes_is_cleared() -> None:
    quarantine = Quarantine()
    await dies_with(quarantine, "unlucky")
    quarantine.clear("model", ["body-unlucky", "unlucky"])
    await dies_with(quarantine, "unlucky")
    assert not is_refused(quarantine, "unlucky")


async def test_suspicion_does_not_last_for_ever() -> None:
    now = [0.0]
    quarantine = Quarantine(lambda: now[0])
    await dies_with(quarantine, "unlucky")
    now[0] = 601.0
    await dies_with(quarantine, "unlucky")
    assert not is_refused(quarantine, "unlucky")


async def test_unloading_the_model_by_hand_forgives() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        await dies_with(quarantine, "poison")
    quarantine.forgive("model")
    await (await enter(quarantine, "poison")).aclose()


async def test_a_suspect_whose_client_leaves_while_it_waits_holds_nobody_up() -> None:
    quarantine = Quarantine()
    await dies_with(quarantine, "a", "b", "c")
    first = await enter(quarantine, "a")
    gone = asyncio.create_task(enter(quarantine, "b"))
    await asyncio.sleep(0)
    gone.cancel()
    await first.aclose()
    await (await asyncio.wait_for(enter(quarantine, "c"), 1)).aclose()


def test_a_fingerprint_is_of_what_is_computed_and_of_nothing_else() -> None:
    ask = Ask(prompt=[1, 2], sampling=wire.SamplingParams(temperature=0.5))
    same = Ask(prompt=[1, 2], sampling=wire.SamplingParams(temperature=0.5), owner="x", priority=3, stop=("a",))
    other = Ask(prompt=[1, 2], sampling=wire.SamplingParams(temperature=0.6))
    assert fingerprint_of([ask]) == fingerprint_of([same]) != fingerprint_of([other])


def test_a_body_is_the_same_streamed_or_not() -> None:
    class Body(msgspec.Struct):
        prompt: str
        stream: bool = False

    assert fingerprint_of_body(Body("a")) == fingerprint_of_body(Body("a", True)) != fingerprint_of_body(Body("b"))
