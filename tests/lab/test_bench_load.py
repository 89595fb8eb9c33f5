"""Clients at a scripted server: how many at once, what they send, and what becomes of failures."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError
from localllm.lab.bench_load import LoadPlan, drive, goals
from localllm.lab.bench_stream import Address

EVENTS: list[dict[str, Any]] = [{"choices": [{"text": text}]} for text in ("a", "b", "")]
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


class Server:
    """Answers once `crowd` requests are there (the first one, which warms up, at once); keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.crowd, self.most, self._now = 1, 0, 0
        self.refuse_from = 1_000_000
        self.breaks = False
        self.events: list[dict[str, Any]] = EVENTS
        self.address = Address("127.0.0.1", 0)
        self.listener: asyncio.Server | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def leave(self) -> None:
        """Nobody can connect any more."""
        assert self.listener is not None
        loop = self.listener.get_loop()
        asyncio.run_coroutine_threadsafe(self._leave(), loop).result(10)

    async def _leave(self) -> None:
        assert self.listener is not None
        self.listener.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        number = len(self.bodies)
        self.bodies.append(json.loads(await reader.readexactly(int(fields["content-length"]))))
        self.paths.append(head[0].split(" ")[1])
        self.keys.append(fields.get("authorization", ""))
        await self._gather(number)
        writer.write(self._answer(number))
        await writer.drain()
        writer.close()

    async def _gather(self, number: int) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        if number:
            self._waiting.append(asyncio.get_running_loop().create_future())
            if len(self._waiting) < self.crowd:
                await self._waiting[-1]
            for one in self._waiting:
                if not one.done():
                    one.set_result(None)
            self._waiting.clear()
        self._now -= 1

    def _answer(self, number: int) -> bytes:
        if number >= self.refuse_from:
            body = b'{"error":{"message":"too many"}}'
            return b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*self.events, USAGE])
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        end = b"" if self.breaks else b"0\r\n\r\n"
        return head + b"%x\r\n%s\r\n" % (len(lines), lines) + end


@pytest.fixture
def server() -> Iterator[Server]:
    made, ready, stop = Server(), threading.Event(), []

    async def run() -> None:
        made.listener = listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.address = Address("127.0.0.1", listener.sockets[0].getsockname()[1], "/api")
        ended = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ended))
        ready.set()
        await ended.wait()
        listener.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    yield made
    stop[0][0].call_soon_threadsafe(stop[0][1].set)
    thread.join(10)


def plan_for(server: Server, **fields: Any) -> LoadPlan:
    return LoadPlan(
        server.address, "m", **{"clients": 3, "num_prompts": 6, "input_len": 5, "timeout_s": 20.0, **fields}
    )


def test_the_requests_run_as_many_at_once_as_there_are_clients(server: Server) -> None:
    server.crowd = 3
    load = drive(plan_for(server))
    assert server.most == 3 and len(server.bodies) == 7  # one to warm up
    assert [answer.error for answer in load.answers] == [""] * 6
    assert all(len(answer.event_times) == 2 and answer.usage is not None for answer in load.answers)


def test_no_two_prompts_are_the_same_and_a_seed_gives_them_again(server: Server) -> None:
    drive(plan_for(server, prefix_len=4))
    prompts = [body["prompt"] for body in server.bodies]
    assert len(set(prompts)) == 7 and len({tuple(prompt.split()[:4]) for prompt in prompts}) == 1
    assert all(len(prompt.split()) == 9 for prompt in prompts)
    again, other = plan_for(server, prefix_len=4), plan_for(server, prefix_len=4, seed=1)
    assert again.prompt(3) in prompts and other.prompt(3) not in prompts


def test_requests_are_those_of_openais_api(server: Server) -> None:
    drive(plan_for(server, num_prompts=1, api_key="k"))
    assert server.paths == ["/api/v1/completions"] * 2 and server.keys == ["bearer k"] * 2
    body = server.bodies[1]
    assert {**body, "prompt": ""} == {
        **{"model": "m", "prompt": "", "max_tokens": 64, "temperature": 0.0, "ignore_eos": True},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }


def test_a_chat_is_asked_where_it_is_wanted(server: Server) -> None:
    drive(plan_for(server, num_prompts=1, kind="chat", ignore_eos=False))
    assert server.paths[-1] == "/api/v1/chat/completions" and "ignore_eos" not in server.bodies[-1]
    assert server.bodies[-1]["messages"][0]["role"] == "user" and server.keys[-1] == ""


def test_requests_that_arrive_by_themselves_do_so_in_order(server: Server) -> None:
    plan = plan_for(server, request_rate=1000.0, clients=1)
    drive(plan)
    assert [body["prompt"] for body in server.bodies[1:]] == [plan.prompt(number) for number in range(6)]


def test_failures_are_counted_and_do_not_end_the_load(server: Server) -> None:
    server.refuse_from = 4
    load = drive(plan_for(server, clients=1))
    assert [answer.error for answer in load.answers] == ["", "", "", "too many", "too many", "too many"]


def test_a_first_answer_without_content_ends_it(server: Server) -> None:
    server.events = []
    with pytest.raises(LocalLLMError, match="without content"):
        drive(plan_for(server))


def test_a_first_request_that_fails_ends_it(server: Server) -> None:
    server.refuse_from = 0
    with pytest.raises(LocalLLMError, match="too many"):
        drive(plan_for(server))
    assert len(server.bodies) == 1


def test_an_answer_that_breaks_off_is_an_error(server: Server) -> None:
    server.breaks = True
    with pytest.raises(LocalLLMError, match="broke off"):
        drive(plan_for(server))


def test_a_server_that_goes_away_fails_the_rest(server: Server) -> None:
    plan = plan_for(server, clients=1)

    def leave(done: int, total: int) -> None:
        if done == 2:
            server.leave()

    load = drive(plan, leave)
    assert [bool(answer.error) for answer in load.answers] == [False, False, True, True, True, True]


def test_progress_ends_with_the_last_answer(server: Server) -> None:
    told: list[tuple[int, int]] = []
    drive(plan_for(server), lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)


def test_a_server_that_is_not_there_is_told(server: Server) -> None:
    with pytest.raises(DaemonUnreachable, match=r"nothing answers at http://127\.0\.0\.1:1"):
        drive(LoadPlan(Address("127.0.0.1", 1), "m"))


@pytest.mark.parametrize(
    "fields",
    [
        {"clients": 0},
        {"clients": 1025},
        {"num_prompts": 0},
        {"input_len": 0},
        {"output_len": -1},
        {"prefix_len": -1},
        {"request_rate": 0.0},
        {"request_rate": float("nan")},
    ],
)
def test_plans_out_of_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoadPlan(Address("a", 1), "m", **fields).checked()


def test_goals_are_written_as_vllm_writes_them() -> None:
    assert goals(["ttft:200 tpot:50.5", "e2el:1000"]) == {"ttft": 200.0, "tpot": 50.5, "e2el": 1000.0}
    for word in ("ttft", "ttft:x", "itl:3", "ttft:-1", "ttft:nan"):
        with pytest.raises(UsageError, match="no goal"):
            goals([word])
