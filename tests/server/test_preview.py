"""`POST /localllm/v1/preview`: what a request would cost, without doing anything of it."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon.toy import CONTEXT_LENGTH, ToyLibrary, toy_entry
from tests.server.json_schema import complaints
from tests.server.world import World, daemon

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you."}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    library = ToyLibrary(
        toy_entry("toy:1b"), toy_entry("toy:other", context_length=300), toy_entry("toy:slow", "toy:slow")
    )
    with daemon(tmp_path_factory.mktemp("home"), library, default_model="toy:1b", context_length=256) as world:
        assert world.chat("load").status_code == 200
        yield world


def post(world: World, **body: Any) -> httpx.Response:
    return world.client.post("/localllm/v1/preview", json={"model": "toy:1b"} | body)


def preview(world: World, **body: Any) -> dict[str, Any]:
    answer = post(world, **body)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def test_the_parts_of_a_prompt_are_counted_apart(world: World) -> None:
    shown = preview(world, messages=[SYSTEM, *TURNS], draft="And now?", max_tokens=9)
    system, history = len("<system>Be brief.\n"), len("<user>Hello\n<assistant>Hello to you.\n")
    draft = len("<user>And now?\n<assistant>")
    assert shown["parts"] == {"system": system, "history": history, "draft": draft, "continued": 0}
    assert shown["prompt_tokens"] == system + history + draft == shown["compute_tokens"] + shown["cached_tokens"]
    assert shown["context_length"] == CONTEXT_LENGTH and shown["max_tokens"] == 9
    assert shown["left_tokens"] == CONTEXT_LENGTH - shown["prompt_tokens"]
    assert (shown["state"], shown["model"], shown["page_size"]) == ("ready", "toy:1b", 16)


def test_what_was_said_before_is_cached_and_the_draft_is_not(world: World) -> None:
    question = {"role": "user", "content": "A long question " * 8}
    fresh = preview(world, messages=[question])
    assert fresh["cached_tokens"] == 0
    answer = world.client.post(
        "/v1/chat/completions", json={"model": "toy:1b", "messages": [question], "temperature": 0, "max_tokens": 1}
    ).json()
    assert preview(world, messages=[question])["cached_tokens"] == answer["usage"]["prompt_tokens"] // 16 * 16
    turn = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
    longer = preview(world, messages=[question, turn], draft="more")
    assert longer["cached_tokens"] == answer["usage"]["prompt_tokens"] // 16 * 16
    assert longer["compute_s"] is not None and longer["compute_s"] >= 0
    assert preview(world, messages=[question], cache_salt="mine")["cached_tokens"] == 0


def test_a_preview_takes_no_page_and_starts_no_request(world: World) -> None:
    before = world.ps()
    requests = world.client.get("/v1/requests").json()["data"]
    for _ in range(5):
        preview(world, messages=TURNS, draft="Something that nobody has said before " * 4)
    assert world.client.get("/v1/requests").json()["data"] == requests
    after = world.ps()
    for name in ("pages_used", "pages_cached", "running", "waiting", "expires_at"):
        assert [row[name] for row in after] == pytest.approx([row[name] for row in before], abs=60)
    assert [row["pages_cached"] for row in after] == [row["pages_cached"] for row in before]


def test_a_draft_alone_is_a_conversation(world: World) -> None:
    shown = preview(world, draft="Hi")
    assert shown["parts"] == {"system": 0, "history": 0, "draft": len("<user>Hi\n<assistant>"), "continued": 0}
    assert preview(world, messages=[SYSTEM], draft="")["parts"]["draft"] == 0


def test_what_the_answer_goes_on_with_is_a_part(world: World) -> None:
    shown = preview(world, draft="Hi", continue_token_ids=[97, 98, 99])
    assert shown["parts"]["continued"] == 3 and shown["prompt_tokens"] == sum(shown["parts"].values())


def test_a_model_that_is_not_loaded_stays_so(world: World) -> None:
    shown = preview(world, model="toy:other", messages=TURNS, draft="And now?")
    assert (shown["state"], shown["cached_tokens"], shown["compute_s"]) == ("not loaded", 0, None)
    assert shown["prompt_tokens"] == preview(world, messages=TURNS, draft="And now?")["prompt_tokens"]
    assert shown["context_length"] == 256  # the setting's, which is less than the model's
    assert [row["name"] for row in world.ps()] == ["toy:1b"]


def test_the_sampling_in_force_is_told(world: World) -> None:
    shown = preview(world, draft="x", top_p=0.9, top_k=40)
    assert shown["sampling"] == {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.0}


def test_too_long_a_prompt_leaves_nothing_for_the_answer(world: World) -> None:
    shown = preview(world, draft="x" * 2000)
    assert shown["left_tokens"] == 0 and shown["prompt_tokens"] > CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"draft": 5}, "draft"),
        ({"draft": "x", "messages": "y"}, "messages"),
        ({"draft": "x", "temperature": 1000}, "temperature"),
        ({"draft": "x", "speed": 1}, "speed"),
        ({"draft": "x", "continue_token_ids": [999]}, "continue_token_ids"),
        ({"draft": "x", "model": "nobody"}, "model"),
    ],
)
def test_a_bad_field_is_refused_by_name(world: World, body: dict[str, Any], param: str) -> None:
    answer = post(world, **body)
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param


def test_the_answer_and_the_request_are_as_described(world: World) -> None:
    document = world.client.get("/openapi.json").json()
    operation = document["paths"]["/localllm/v1/preview"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert complaints({"draft": "x"}, request, document) == [] and complaints({}, request, document)
    assert complaints(preview(world, draft="x"), answer, document) == []


def test_a_busy_engine_answers_between_its_steps(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("toy:slow", "toy:slow"))
    with daemon(tmp_path, library, default_model="toy:slow") as world:
        body = {
            "messages": [{"role": "user", "content": "go on " * 20}],
            "stream": True,
            "max_tokens": 100,
            "ignore_eos": True,
        }
        with world.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()  # kept: closing it would end the request
            for _ in lines:  # pages can be found from the step after them on
                shown = preview(world, model="toy:slow", messages=body["messages"])
                if shown["cached_tokens"] == shown["prompt_tokens"] // 16 * 16:
                    return
    raise AssertionError("the prompt was not found while its answer was written")


def test_a_worker_that_dies_before_it_answers_leaves_counts_without_a_cache(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(toy_entry("toy:1b")), default_model="toy:1b") as world:
        assert world.chat("load").status_code == 200
        (resident,) = world.daemon.residency.residents()
        assert resident.pid is not None
        os.kill(resident.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(preview, world, draft="Hi")
            while not world.on_loop(lambda: dict(resident._questions)):
                assert not asked.done(), asked.result()
            os.kill(resident.pid, signal.SIGKILL)
            shown = asked.result(20)
    assert (shown["state"], shown["cached_tokens"], shown["prompt_tokens"]) == (
        "not loaded",
        0,
        len("<user>Hi\n<assistant>"),
    )
