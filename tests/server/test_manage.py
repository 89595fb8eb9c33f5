"""What our own CLI and screens use: ps, load, stop, tokenize, live; and the small routes."""

import base64
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

PS_FIELDS = [
    "name",
    "digest",
    "size_bytes",
    "processor",
    "backend",
    "kv_type",
    "quantize",
    "context_length",
    "expires_at",
    "state",
    "progress",
    "pages_used",
    "pages_cached",
    "pages_total",
    "page_size",
    "running",
    "waiting",
    "tokens_per_s",
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:1b"), toy_entry("org/toy:q4"), toy_entry("toy:heavy", "toy:heavy"))
    with daemon(tmp_path, library) as world:
        yield world


def test_loading_tells_its_progress_line_by_line(world: World) -> None:
    answer = world.client.post("/localllm/v1/load", json={"model": "toy:heavy"})
    lines = [msgspec.json.decode(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert {"status": "loading weights", "done_bytes": 0, "total_bytes": 1000} in lines
    assert lines[-1]["status"] == "ready" and lines[-1]["name"] == "toy:heavy"


def test_loading_an_unknown_model_is_a_404(world: World) -> None:
    answer = world.client.post("/localllm/v1/load", json={"model": "nope"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_ps_shows_what_is_loaded(world: World) -> None:
    assert world.ps() == []
    world.client.post("/localllm/v1/load", json={"model": "toy:1b", "keep_alive": -1})
    row = world.ps()[0]
    assert set(PS_FIELDS) <= set(row)
    assert (row["name"], row["state"], row["expires_at"], row["processor"]) == ("toy:1b", "ready", None, "100% CPU")
    assert row["pages_total"] == 512 and row["pages_used"] == 0


def test_a_stopped_model_is_gone(world: World) -> None:
    world.client.post("/localllm/v1/load", json={"model": "toy:1b"})
    assert world.client.post("/localllm/v1/stop", json={"model": "toy:1b"}).json()["stopped"] == "toy:1b"
    assert world.ps() == []


def test_text_and_conversations_can_be_tokenized(world: World) -> None:
    answer = world.client.post("/localllm/v1/tokenize", json={"model": "toy:1b", "prompt": "ab"}).json()
    assert (answer["tokens"], answer["count"]) == ([256, 97, 98], 3)
    messages = [{"role": "user", "content": "x"}]
    answer = world.client.post("/localllm/v1/tokenize", json={"model": "toy:1b", "messages": messages}).json()
    assert bytes(answer["tokens"]) == b"<user>x\n<assistant>"
    assert world.client.post("/localllm/v1/tokenize", json={"model": "toy:1b"}).status_code == 400


def test_the_live_feed_shows_pages_while_they_are_used(world: World) -> None:
    world.client.post("/localllm/v1/load", json={"model": "toy:1b"})
    with world.client.stream("GET", "/localllm/v1/live") as feed:
        events = (msgspec.json.decode(line[6:]) for line in feed.iter_lines() if line.startswith("data: "))
        first = next(events)
        assert first["models"][0]["name"] == "toy:1b"
        world.complete("a" * 100, max_tokens=4)
        counts = [0]
        while counts[-1] < 104:
            snapshots = next(events)["snapshots"]
            if "toy:1b" in snapshots:
                snapshot = snapshots["toy:1b"]
                assert len(base64.b64decode(snapshot["pages"])) == 512
                counts.append(snapshot["num_prompt_tokens"] + snapshot["num_generated_tokens"])
        assert world.on_loop(lambda: len(world.daemon.live._watchers)) == 1
    world.ps()


def test_model_ids_may_hold_slashes_and_colons(world: World) -> None:
    assert world.client.get("/v1/models/org/toy:q4").json()["id"] == "org/toy:q4"
    assert world.client.get("/v1/models/org/none").status_code == 404
    listed = [model["id"] for model in world.client.get("/v1/models").json()["data"]]
    assert listed == ["toy:1b", "org/toy:q4", "toy:heavy"]


def test_the_small_routes_answer(world: World) -> None:
    assert world.client.get("/").text.startswith("localllm is running")
    assert world.client.get("/version").json()["version"]
    health = world.client.get("/health")
    assert health.status_code == 200 and health.json()["status"] == "ok"


def test_a_load_says_how_the_model_is_to_be_open(world: World) -> None:
    wish = {"backend": "torch", "kv_type": "f32", "quantize": "q4_0"}
    lines = world.client.post("/localllm/v1/load", json={"model": "toy:1b", **wish}).text.splitlines()
    assert '"status":"ready"' in lines[-1]
    (row,) = world.ps()
    assert (row["kv_type"], row["quantize"]) == ("f32", "q4_0")
    assert row["notes"] == ["bytes are tokens here"]
    pid = row["pid"]
    assert world.chat("Hello").status_code == 200 and world.ps()[0]["pid"] == pid
    assert world.chat("Hello", quantize="none").status_code == 200
    assert world.ps()[0]["pid"] != pid and world.ps()[0]["quantize"] == ""
    pid = world.ps()[0]["pid"]
    assert world.chat("Hello", threads=3).status_code == 200 and world.ps()[0]["pid"] != pid


@pytest.mark.parametrize(
    "wish", [{"backend": "abacus"}, {"kv_type": "f8"}, {"quantize": "q3"}, {"backend": 3}, {"threads": 257}]
)
def test_a_way_to_load_that_does_not_exist_is_a_plain_400(world: World, wish: dict[str, object]) -> None:
    for refused in (
        world.client.post("/localllm/v1/load", json={"model": "toy:1b", **wish}),
        world.chat("Hello", **wish),
    ):
        assert refused.status_code == 400 and next(iter(wish)) in refused.json()["error"]["message"]
    assert world.ps() == []


@pytest.mark.parametrize("route", ["load", "stop", "tokenize"])
def test_fields_that_these_routes_do_not_have_are_named(world: World, route: str) -> None:
    refused = world.client.post(f"/localllm/v1/{route}", json={"model": "toy:1b", "prompt": "x", "colour": "red"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] in ("colour", "prompt")
