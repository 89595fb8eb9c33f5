"""What clients see when workers die, get stuck or are gone; and that nothing is lost when clients go."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.daemon.toy import ToyLibrary, expected_text, toy_entry
from tests.server.world import World, daemon

KINDS = ("toy:slow", "toy:sick", "toy:broken", "toy:stuck")
LONG = {"model": "toy:slow", "max_tokens": 300, "ignore_eos": True, "stream": True, "temperature": 0}


def library() -> ToyLibrary:
    return ToyLibrary(toy_entry("toy:1b"), *(toy_entry(kind, kind) for kind in KINDS))


def until(claim: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def read_stream(world: World, prompt: str, begun: threading.Semaphore) -> tuple[list[str], float]:
    """All events of a long stream, and when the last one came."""
    with (
        httpx.Client(base_url=world.url, timeout=20, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json={**LONG, "prompt": prompt}) as answer,
    ):
        events = []
        for line in answer.iter_lines():
            if line:
                events.append(line)
                if len(events) == 1:
                    begun.release()
        return events, time.monotonic()


def test_a_killed_worker_ends_every_stream_with_an_error_within_a_second(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world, ThreadPoolExecutor(16) as pool:
        begun = threading.Semaphore(0)
        streams = [pool.submit(read_stream, world, f"prompt {number}", begun) for number in range(16)]
        for _ in streams:
            assert begun.acquire(timeout=20)
        killed = time.monotonic()
        os.kill(world.ps()[0]["pid"], signal.SIGKILL)
        for stream in streams:
            events, ended = stream.result(20)
            assert '"worker_crashed"' in events[-2] and events[-1] == "data: [DONE]"
            assert ended - killed < 5.0  # a second on an idle machine: scripts/storm kills
        health = world.client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "degraded"
        assert "toy:slow" in health.json()["reason"]
        assert world.complete("again", model="toy:slow").status_code == 200
        assert world.client.get("/health").json()["status"] == "ok"


def test_a_killed_worker_fails_a_waiting_answer_with_503(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(world.complete, "a", model="toy:slow", max_tokens=300, ignore_eos=True)
        until(lambda: any(row["running"] for row in world.ps()))
        os.kill(world.ps()[0]["pid"], signal.SIGKILL)
        answer = waiting.result(10)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "worker_crashed"
    assert answer.headers["retry-after"]


def test_a_model_that_keeps_crashing_is_refused_until_it_is_stopped_by_hand(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        messages = [world.complete("a", model="toy:sick").json()["error"]["message"] for _ in range(4)]
        assert "killed by signal 9" in messages[0]
        assert "crashed 3 times" in messages[3]
        assert world.complete("a").status_code == 200, "others are not harmed"
        world.client.post("/localllm/v1/stop", json={"model": "toy:sick"})
        assert "killed by signal 9" in world.complete("a", model="toy:sick").json()["error"]["message"]


def test_a_model_that_cannot_be_loaded_says_why_and_does_not_count_as_a_crash(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        answer = world.complete("a", model="toy:broken")
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == "the toy is broken (pull it again)"
        assert world.client.get("/health").status_code == 200


def test_a_worker_stuck_in_a_step_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.daemon.resident.STUCK_STEP_S", 0.5)
    with daemon(tmp_path, library()) as world:
        error = world.complete("a", model="toy:stuck").json()["error"]
        assert error["code"] == "worker_crashed" and "did not end" in error["message"]


def test_a_worker_that_falls_silent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.daemon.resident.STUCK_STEP_S", 0.5)
    monkeypatch.setattr("localllm.daemon.resident.SILENCE_S", 1.5)
    with daemon(tmp_path, library()) as world:
        world.complete("a")
        os.kill(world.ps()[0]["pid"], signal.SIGSTOP)
        error = world.complete("a").json()["error"]
        assert error["code"] == "worker_crashed" and "silent" in error["message"]
        assert world.complete("a").status_code == 200


def test_a_client_that_goes_away_frees_its_pages(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        with world.client.stream("POST", "/v1/completions", json={**LONG, "prompt": "abc"}) as answer:
            lines = answer.iter_lines()  # kept: httpx hangs up when the iterator goes
            next(lines)
            until(lambda: world.ps()[0]["pages_used"] > 0)
        until(lambda: world.ps()[0]["running"] == 0 and world.ps()[0]["pages_used"] == 0, 2)
        assert world.on_loop(lambda: world.daemon.desk.replies) == set()


def test_a_client_that_stops_waiting_for_a_whole_body_frees_its_pages(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        with httpx.Client(base_url=world.url, timeout=0.5, trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={**LONG, "stream": False, "prompt": "abc"})
        until(lambda: world.ps()[0]["running"] == 0 and world.ps()[0]["pages_used"] == 0, 2)


def test_a_stop_string_cancels_the_rest(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        whole = expected_text(b"abc", 300)
        stop = whole[4:6]
        body = world.complete([97, 98, 99], model="toy:slow", max_tokens=300, stop=stop).json()
        assert body["choices"][0]["text"] == whole[: whole.index(stop)]
        assert body["choices"][0]["finish_reason"] == "stop" and body["choices"][0]["stop_reason"] == stop
        counted = len(whole[: whole.index(stop) + len(stop)].encode())
        assert body["usage"]["completion_tokens"] == counted
        until(lambda: world.ps()[0]["running"] == 0 and world.ps()[0]["pages_used"] == 0, 2)


PROMPTS = [f"{'lorem ipsum ' * (number % 9)}{number}" for number in range(64)]


@pytest.mark.parametrize("kv_pages", [0, 51])
def test_64_mixed_streams_each_say_what_they_say_alone(tmp_path: Path, kv_pages: int) -> None:
    with daemon(tmp_path, library(), kv_pages=kv_pages) as world, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda prompt: streamed_text(world, prompt), PROMPTS))
        assert answers == [expected_text([256, *prompt.encode()], 40) for prompt in PROMPTS]
        until(lambda: world.ps()[0]["running"] == 0 and world.ps()[0]["pages_used"] == 0, 2)


def streamed_text(world: World, prompt: str) -> str:
    import msgspec

    body = {"model": "toy:1b", "prompt": prompt, "max_tokens": 40, "temperature": 0, "stream": True}
    text = ""
    with (
        httpx.Client(base_url=world.url, timeout=30, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += msgspec.json.decode(line[6:])["choices"][0]["text"]
    return text


def test_a_stream_of_one_model_does_not_wait_for_another_model_to_load(tmp_path: Path) -> None:
    with daemon(tmp_path, library()) as world:
        names = [world.complete("a", model=name).json()["model"] for name in ("toy:1b", "toy:slow")]
        assert names == ["toy:1b", "toy:slow"]
        assert {row["name"] for row in world.ps()} == {"toy:1b", "toy:slow"}
