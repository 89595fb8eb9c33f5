"""From tokens to pieces: a reader that is slow, answers with reasoning and tools, what is counted."""

from dataclasses import replace
from typing import cast

import pytest

from localllm import wire
from localllm.daemon.journal import Journal
from localllm.daemon.replies import Ask, Reply
from localllm.daemon.resident import Resident, Sink
from localllm.errors import ContextExceeded, LocalLLMError, WorkerCrashed
from localllm.tokens.markup import MarkupSpec
from tests.daemon.toy import toy_entry, toy_text

ASK = Ask(prompt=[97, 98], sampling=wire.SamplingParams())


class FakeResident:
    """Records what is submitted; the test plays the worker."""

    context_length = 512

    def __init__(self) -> None:
        self.text = toy_text(toy_entry("toy"))
        self.sinks: dict[str, Sink] = {}
        self.cancelled: list[str] = []

    def submit(self, submit: wire.Submit, sink: Sink) -> None:
        self.sinks[submit.request_id] = sink

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def note_prefill(self, num_tokens: int, seconds: float) -> None: ...

    def say(self, index: int, text: str, **fields: object) -> None:
        request_id = list(self.sinks)[index]
        chunk = wire.TokenChunk(request_id, ids=list(text.encode()), **fields)  # type: ignore[arg-type]  # test data
        self.sinks[request_id].feed(chunk)
        self.sinks[request_id].flush()


def opened(*asks: Ask) -> tuple[FakeResident, Reply]:
    resident = FakeResident()
    return resident, Reply.open(cast(Resident, resident), asks or (ASK,), Journal().open("/test", "toy:1b"))


async def test_a_slow_reader_gets_one_large_piece() -> None:
    resident, reply = opened()
    for _ in range(1000):
        resident.say(0, "word ")
    (piece,) = await reply.gather()
    assert piece.text == "word " * 1000 and len(piece.ids) == 5000
    assert await reply.gather(0) == []


async def test_a_reply_is_done_when_its_last_piece_was_taken() -> None:
    resident, reply = opened()
    resident.say(0, "end", started=True, finish="length")
    assert not reply.is_done
    (piece,) = await reply.gather()
    assert reply.is_done and piece.finish == "length"
    assert reply.stats.completion_tokens == 3


async def test_what_was_said_before_an_error_is_delivered_first() -> None:
    resident, reply = opened()
    resident.say(0, "half")
    next(iter(resident.sinks.values())).fail(WorkerCrashed("it died"))
    assert [piece.text for piece in await reply.gather()] == ["half"]
    with pytest.raises(WorkerCrashed):
        await reply.gather()


async def test_a_reply_is_not_done_before_its_error_was_raised() -> None:
    resident, reply = opened()
    resident.say(0, "half")
    next(iter(resident.sinks.values())).fail(WorkerCrashed("it died"))
    assert [piece.text for piece in await reply.gather()] == ["half"]
    assert not reply.is_done


async def test_an_answer_that_was_whole_is_not_spoilt_by_a_late_cancel() -> None:
    resident, reply = opened()
    resident.say(0, "all", finish="stop", stop_id=257)
    reply.abort(WorkerCrashed("it died"))
    assert [piece.text for piece in await reply.gather()] == ["all"]
    assert reply.is_done


async def test_tokens_past_a_stop_string_are_dropped_and_not_counted() -> None:
    resident, reply = opened(replace(ASK, stop=("lo w",)))
    resident.say(0, "hello world")
    (piece,) = await reply.gather()
    assert (piece.text, piece.finish, piece.stop) == ("hel", "stop", "lo w")
    assert reply.stats.completion_tokens == len("hello w") == len(piece.ids)
    assert resident.cancelled == [next(iter(resident.sinks))]


async def test_what_may_become_a_stop_string_is_held_back_until_the_end() -> None:
    resident, reply = opened(replace(ASK, stop=("###",)))
    resident.say(0, "a##")
    assert [piece.text for piece in await reply.gather()] == ["a"]
    resident.say(0, "", finish="stop", stop_id=257)
    (piece,) = await reply.gather()
    assert (piece.text, piece.stop) == ("##", 257)


@pytest.mark.parametrize(("is_kept", "text"), [(False, "a"), (True, "a<turn>")])
async def test_a_stop_string_that_is_a_special_token_is_named_by_its_text(is_kept: bool, text: str) -> None:
    resident, reply = opened(replace(ASK, stop_ids=(258,), stop_texts={258: "<turn>"}, include_stop=is_kept))
    resident.say(0, "a", finish="stop", stop_id=258)
    (piece,) = await reply.gather()
    assert (piece.text, piece.finish, piece.stop) == (text, "stop", "<turn>")


async def test_half_a_character_is_flushed_once_at_the_end() -> None:
    resident, reply = opened()
    sink = next(iter(resident.sinks.values()))
    sink.feed(wire.TokenChunk(next(iter(resident.sinks)), ids=[97, 0xC3], finish="length"))
    assert [piece.text for piece in await reply.gather()] == ["a�"]


async def test_reasoning_and_tool_calls_are_split_from_the_answer() -> None:
    markup = MarkupSpec(reasoning=("<think>", "</think>"), tools="hermes")
    resident, reply = opened(replace(ASK, is_chat=True, markup=markup))
    resident.say(0, '<think>Hm.</think>Sure.<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>', finish="stop")
    (piece,) = await reply.gather()
    assert (piece.reasoning, piece.text) == ("Hm.", "Sure.")
    (call,) = piece.tool_calls
    assert (call.index, call.name, call.arguments) == (0, "f", '{"x":1}') and call.id.startswith("call_")


async def test_closing_cancels_what_still_runs_and_only_that() -> None:
    resident, reply = opened(ASK, ASK)
    resident.say(0, "done", finish="length")
    reply.close()
    assert resident.cancelled == [list(resident.sinks)[1]]


async def test_a_shared_prompt_is_counted_once() -> None:
    resident, reply = opened(ASK, ASK, replace(ASK, prompt=[1, 2, 3]))
    for index in range(3):
        resident.say(index, "x", started=True, num_cached=1, finish="length")
    assert reply.stats.prompt_tokens == 5
    assert reply.stats.cached_tokens == 2


async def test_an_error_of_the_engine_arrives_with_its_code_and_next_step() -> None:
    resident, reply = opened()
    resident.say(0, "", finish="error", error_code="not_enough_memory", error="no room", error_hint="ask for less")
    with pytest.raises(LocalLLMError, match="no room") as refused:
        await reply.gather()
    assert (refused.value.code, refused.value.hint) == ("not_enough_memory", "ask for less")


@pytest.mark.parametrize(("max_tokens", "longest"), [(None, 511), (1, 511), (0, 512)])
async def test_a_prompt_must_leave_room_for_a_token_if_one_is_wanted(max_tokens: int | None, longest: int) -> None:
    ask = replace(ASK, max_tokens=max_tokens)
    opened(replace(ask, prompt=[97] * longest))
    with pytest.raises(ContextExceeded):
        opened(replace(ask, prompt=[97] * (longest + 1)))
