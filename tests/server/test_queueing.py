"""Who is let in, who waits and is told so, who is given up; and that nothing stays behind."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from localllm import wire
from localllm.daemon.resident import Resident, Sink
from localllm.daemon.sources import Sources
from tests.daemon.toy import WORKER_COMMAND, ToyLibrary, toy_entry
from tests.server.world import World, daemon

KINDS = ("toy:slow", "toy:heavy", "toy:endless", "toy:broken", "toy:mortal")
LONG = {"model": "toy:slow", "prompt": "abc", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def library() -> ToyLibrary:
    return ToyLibrary(toy_entry("toy:1b"), *(toy_entry(kind, kind) for kind in KINDS))


def until(claim: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def is_idle(world: World) -> bool:
    """No request, and no page in use."""
    desk = world.daemon.desk
    left = world.on_loop(lambda: len(desk.leashes) + len(desk.replies) + desk.admission.num_requests)
    return left == 0 and all(row["running"] == row["waiting"] == row["pages_used"] == 0 for row in world.ps())


@contextlib.contextmanager
def under_way(world: World, count: int, **fields: Any) -> Iterator[None]:
    """So many long streams, all submitted; their clients leave with the block."""
    body = {**LONG, "stream": True, **fields}
    world.complete("warm", model=body["model"], max_tokens=1)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", world.port)))
            connection.sendall(_request(world.port, body))
        until(lambda: world.on_loop(lambda: len(world.daemon.desk.replies)) == count)
        yield


def lines_of(world: World, **fields: Any) -> list[str]:
    with world.client.stream("POST", "/v1/completions", json={**LONG, "stream": True, **fields}) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line]


def test_a_request_that_was_not_asked_yet_survives_a_stop_of_its_model(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world, ThreadPoolExecutor(1) as pool:
        world.complete("warm", max_tokens=1)
        held, residency = threading.Event(), world.daemon.residency
        for _ in range(2):  # nobody reads prompts meanwhile
            asyncio.run_coroutine_threadsafe(residency.in_thread(held.wait), world.loop)
        asked = pool.submit(world.complete, "abc")
        until(lambda: world.on_loop(lambda: any(each.num_users for each in residency.residents())))
        first = world.ps()[0]["pid"]
        assert world.client.post("/localllm/v1/stop", json={"model": "toy:1b"}).json()["stopped"]
        held.set()
        assert asked.result(20).status_code == 200 and world.ps()[0]["pid"] != first


# ---- letting in


def test_beyond_the_bound_the_answer_is_503_with_a_time_to_come_back(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_sequences=2, max_queue=1) as world, under_way(world, 3):
        refused = world.complete("a")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert "3 requests are under way already, of 3 that may be" in refused.json()["error"]["message"]


ASKING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate",
    "/v1/embeddings", "/api/embed", "/api/embeddings", "/v1/rerank", "/v1/score",
)  # fmt: skip


@pytest.mark.parametrize("path", ASKING)
def test_every_dialect_refuses_before_it_reads(tmp_path: Path, path: str) -> None:
    """The body never comes: only the headers are there to be answered."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9999")
    with (
        daemon(tmp_path, library(), max_sequences=1, max_queue=1) as world,
        under_way(world, 2),
        socket.create_connection(("127.0.0.1", world.port), timeout=5) as connection,
    ):
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        assert connection.recv(2**16).split()[1] in (b"503", b"529")


def test_a_full_house_can_still_be_told_to_unload_a_model(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_sequences=1, max_queue=1) as world, under_way(world, 2):
        asked = world.client.post("/api/generate", json={"model": "toy:1b", "keep_alive": 0})
        assert asked.status_code == 200 and asked.json()["done_reason"] == "unload"


def test_a_refusal_does_not_wait_behind_busy_tokenizers(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_sequences=1, max_queue=1) as world, under_way(world, 2):
        held = threading.Event()
        for _ in range(8):
            asyncio.run_coroutine_threadsafe(world.daemon.residency.in_thread(held.wait), world.loop)
        took_s = []
        try:
            for _ in range(20):
                started = time.perf_counter()
                assert world.complete("a").status_code == 503
                took_s.append(time.perf_counter() - started)
        finally:
            held.set()
        assert sorted(took_s)[10] < 0.02


def test_a_caller_with_too_much_under_way_gets_429(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_requests_per_key=2) as world:
        with under_way(world, 2):
            refused = world.complete("a")
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        until(lambda: is_idle(world))
        assert world.complete("a").status_code == 200


def test_prompts_are_counted_in_tokens_too(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_queue_tokens=150) as world, under_way(world, 1, prompt="a" * 99):
        refused = world.complete("b" * 60)
        assert refused.status_code == 503 and "of 150 that may be" in refused.json()["error"]["message"]
        assert world.complete("b" * 20).status_code == 200


# ---- priorities and shares


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[wire.Submit]:
    seen: list[wire.Submit] = []
    submit = Resident.submit

    def noting(resident: Resident, order: wire.Submit, sink: Sink) -> None:
        seen.append(order)
        submit(resident, order, sink)

    monkeypatch.setattr(Resident, "submit", noting)
    return seen


def test_batch_work_gives_way(tmp_path: Path, submitted: list[wire.Submit]) -> None:
    with daemon(tmp_path, library()) as world:
        world.complete("a")
        world.complete("a", service_tier="flex", user="ann")
        world.complete("a", priority=5, service_tier="flex")
        body = {"model": "toy:1b", "prompt": "a", "max_tokens": 1}
        world.client.post("/v1/completions", json=body, headers={"x-request-priority": "batch"})
        refused = world.client.post("/v1/completions", json=body, headers={"x-request-priority": "urgent"})
    assert [order.priority for order in submitted] == [0, -10, 5, -10]
    assert [order.owner for order in submitted] == ["", "ann", "", ""]
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-request-priority"


# ---- deadlines and ceilings


@pytest.mark.parametrize("how", ["body", "header", "setting"])
def test_a_deadline_ends_a_whole_answer_with_408(tmp_path: Path, how: str) -> None:
    settings = {"request_timeout_s": 0.3} if how == "setting" else {}
    headers = {"x-request-timeout": "0.3"} if how == "header" else {}
    body = {**LONG, "timeout_s": 0.3} if how == "body" else LONG
    with daemon(tmp_path, library(), **settings) as world:
        world.complete("warm", model="toy:slow", max_tokens=1)
        started = time.monotonic()
        answer = world.client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 408 and answer.json()["error"]["code"] == "deadline_exceeded"
        assert answer.headers["x-should-retry"] == "false"
        assert time.monotonic() - started < 2
        until(lambda: is_idle(world), 2)


def test_a_deadline_ends_a_stream_with_an_event(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        world.complete("warm", model="toy:slow", max_tokens=1)
        lines = lines_of(world, timeout_s=0.5)
        assert '"deadline_exceeded"' in lines[-2] and lines[-1] == "data: [DONE]" and len(lines) > 3
        until(lambda: is_idle(world), 2)


def test_a_deadline_holds_while_the_model_loads(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        answer = world.complete("a", model="toy:endless", timeout_s=0.2)
        assert answer.status_code == 408
        assert world.on_loop(lambda: len(world.daemon.desk.leashes)) == 0


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_deadline_that_makes_no_sense_is_named(tmp_path: Path, given: str) -> None:
    with daemon(tmp_path) as world:
        answer = world.client.post(
            "/v1/completions", json={"model": "toy:1b", "prompt": "a"}, headers={"x-request-timeout": given}
        )
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "x-request-timeout"


def test_nobody_gets_more_tokens_than_the_ceiling(tmp_path: Path) -> None:
    with daemon(tmp_path, max_tokens_ceiling=20) as world:
        refused = world.complete("a", max_tokens=21)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "max_tokens"
        assert "at most 20 tokens" in refused.json()["error"]["message"]
        body = {"model": "toy:1b", "prompt": "a", "temperature": 0, "ignore_eos": True}
        answer = world.client.post("/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 20 and answer["choices"][0]["finish_reason"] == "length"


# ---- models that load


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.server.patience.PATIENCE_S", 0.05)
    monkeypatch.setattr("localllm.server.patience.WORD_EVERY_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_stream_for_a_loading_model_tells_how_far_it_is_then_answers(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        lines = lines_of(world, model="toy:heavy", max_tokens=5)
        assert ": loading weights 0 %" in lines
        words = [line for line in lines if line.startswith(":")]
        assert lines[: len(words)] == words, "first the loading, then the answer"
        assert lines[-1] == "data: [DONE]" and not any('"error"' in line for line in lines)
        until(lambda: is_idle(world))


@pytest.mark.usefixtures("impatient")
def test_an_error_after_the_status_line_is_an_event(tmp_path: Path) -> None:
    def slow_to_fail(entry: Any) -> Any:
        time.sleep(0.3)
        raise ValueError("no text")

    sources = Sources(library(), slow_to_fail, worker_command=WORKER_COMMAND, backend_problem=lambda backend: "")
    with daemon(tmp_path, sources=sources) as world:
        lines = lines_of(world, model="toy:1b")
        assert lines[0].startswith(": ") and '"error"' in lines[-2] and lines[-1] == "data: [DONE]"
        until(lambda: is_idle(world))


def test_an_error_within_the_first_second_keeps_its_own_status(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        answer = world.client.post("/v1/completions", json={**LONG, "model": "toy:broken", "stream": True})
        assert answer.status_code == 422


def test_whoever_does_not_stream_just_waits(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        assert world.complete("a", model="toy:heavy").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("impatient")
def test_a_client_that_leaves_while_its_model_loads_leaves_nothing_behind(tmp_path: Path, stream: bool) -> None:
    with daemon(tmp_path, library()) as world:
        with httpx.Client(base_url=world.url, timeout=0.4, trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={**LONG, "model": "toy:endless", "stream": stream})
        until(lambda: world.on_loop(lambda: len(world.daemon.desk.leashes)) == 0, 2)
        assert world.on_loop(lambda: world.daemon.desk.admission.num_requests) == 0
        assert world.on_loop(lambda: world.daemon.journal.running) == {}
        assert world.on_loop(lambda: [resident.num_users for resident in world.daemon.residency.residents()]) == [0]


def test_what_had_to_go_for_a_model_is_told(tmp_path: Path) -> None:
    with daemon(tmp_path, library(), max_loaded_models=1) as world:
        for model in ("toy:1b", "toy:slow"):
            assert world.complete("a", model=model, max_tokens=1).status_code == 200
        told = world.client.get("/localllm/v1/ps").json()
        assert [(each["name"], each["why"]) for each in told["evictions"]] == [("toy:1b", "toy:slow needs its place")]
        noted = world.on_loop(lambda: [event.data for event in world.daemon.journal.recent[-1].events])
        assert {"evicted": ["toy:1b"]} in noted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("impatient")
def test_a_request_can_be_cancelled_while_its_model_loads(tmp_path: Path, stream: bool) -> None:
    with daemon(tmp_path, library()) as world, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(world.complete, "a", model="toy:endless", stream=stream)
        journal = world.daemon.journal
        until(lambda: world.on_loop(lambda: len(world.daemon.desk.leashes)) == 1)
        until(lambda: bool(world.ps()))
        assert world.on_loop(lambda: [journal.cancel(name) for name in list(journal.running)]) == [True]
        assert "request_cancelled" in waiting.result(5).text
        until(lambda: is_idle_at_the_desk(world), 2)


def is_idle_at_the_desk(world: World) -> bool:
    desk = world.daemon.desk
    return bool(world.on_loop(lambda: not desk.leashes and not desk.admission.num_requests))


# ---- leaving


def test_a_cancel_while_another_prompt_is_read_hangs_nobody(tmp_path: Path) -> None:
    """llama.cpp #27604: there the server hung for good."""
    with daemon(tmp_path, library(), token_budget=16) as world, ThreadPoolExecutor(1) as pool:
        world.complete("warm", model="toy:slow", max_tokens=1)
        with under_way(world, 1):
            reading = pool.submit(world.complete, "p" * 480, model="toy:slow", max_tokens=4)
            until(lambda: any(row["running"] + row["waiting"] > 1 for row in world.ps()))
        assert reading.result(10).status_code == 200
        assert world.complete("after", model="toy:slow").status_code == 200
        until(lambda: is_idle(world), 2)


@pytest.mark.parametrize("number", range(4))
def test_aborts_at_any_moment_free_everything(tmp_path: Path, number: int) -> None:
    """In the queue, while the prompt is read, while tokens come; streaming or not."""
    with daemon(tmp_path, library(), token_budget=16, max_sequences=4) as world:
        world.complete("warm", model="toy:slow", max_tokens=1)

        def abort(index: int) -> None:
            body = {**LONG, "prompt": f"{index} " * (1 + 37 * index % 120), "stream": (index + number) % 2 == 0}
            request = _request(world.port, body)
            with socket.create_connection(("127.0.0.1", world.port)) as connection:
                connection.sendall(request)
                connection.settimeout(0.01 + index % 7 * 0.03)
                with contextlib.suppress(TimeoutError):
                    connection.recv(4096)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(abort, range(48)))
        until(lambda: is_idle(world), 5)
        assert world.complete("after", model="toy:slow").status_code == 200


def _request(port: int, body: dict[str, Any]) -> bytes:
    import json

    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.skipif(sys.platform != "linux", reason="counts sockets in /proc")
def test_a_client_that_does_not_read_is_hung_up_on_and_others_notice_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localllm.server.http.STALLED_WRITE_S", 0.3)
    body = {
        "model": "toy:1b", "messages": [{"role": "user", "content": "a"}], "max_tokens": 450, "n": 16,
        "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "stream": True,
    }  # fmt: skip
    with daemon(tmp_path) as world, socket.socket() as slow:
        world.complete("warm")
        before = num_sockets()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", world.port))
        slow.sendall(_request(world.port, body).replace(b"/v1/completions", b"/v1/chat/completions"))
        until(lambda: world.on_loop(lambda: len(world.daemon.desk.leashes)) == 1)
        assert world.complete("other").status_code == 200
        until(lambda: is_idle(world), 15)
        until(lambda: num_sockets() == before, 2)  # though much still waits to be sent


def num_sockets() -> int:
    """Of this process, connected or not."""
    return sum(os.readlink(f"/proc/self/fd/{each}").startswith("socket:") for each in _descriptors())


def _descriptors() -> list[str]:
    return [each for each in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{each}")]


# ---- poison


def test_a_request_that_kills_its_worker_twice_is_not_tried_again(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        poison = {"model": "toy:mortal", "max_tokens": 50}
        codes = [world.complete("an X", **poison).status_code for _ in range(2)]
        assert codes == [503, 503]
        refused = world.complete("an X", **poison)
        assert refused.status_code == 422 and refused.json()["error"]["code"] == "request_quarantined"
        assert world.ps()[0]["state"] == "failed", "no worker is started for it"
        assert world.complete("a Y", **poison).status_code == 200


def test_who_ran_beside_a_poison_is_not_blamed(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world, ThreadPoolExecutor(8) as pool:
        world.complete("warm", model="toy:mortal", max_tokens=1)

        def insistent(prompt: str) -> tuple[int, int]:
            """The last status, and how many tries it took."""
            statuses = []
            while len(statuses) < 8 and (not statuses or statuses[-1] in (429, 503)):
                answer = world.complete(prompt, model="toy:mortal", max_tokens=30, ignore_eos=True)
                statuses.append(answer.status_code)
            return statuses[-1], len(statuses)

        innocents = [pool.submit(insistent, f"good {number}") for number in range(4)]
        until(lambda: any(row["running"] == 4 for row in world.ps()))
        guilty = pool.submit(insistent, "bad X")
        assert guilty.result(30) == (422, 3)
        assert [future.result(30)[0] for future in innocents] == [200] * 4
