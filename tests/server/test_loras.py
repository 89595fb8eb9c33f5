"""Adapters over HTTP: told to the daemon, named by requests, and every wrong field a 400 that names it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.formats.blocks import BlockType
from localllm.formats.gguf_write import write_gguf
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

PROMPT = "The adapters of this test share a beginning that is a few pages long, and nothing but that."


def write_adapter(path: Path) -> Path:
    """A file that says that it is an adapter; toy models need no more."""
    pair = (("blk.0.attn_q.weight.lora_a", (2, 8)), ("blk.0.attn_q.weight.lora_b", (8, 2)))
    raw = np.ones(16, np.float32).view(np.uint8)
    said = {
        "general.type": "adapter", "general.architecture": "toy", "adapter.type": "lora", "adapter.lora.alpha": 4.0,
    }  # fmt: skip
    write_gguf(path, said, [(name, shape, BlockType.F32, raw) for name, shape in pair])
    return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    given = [write_adapter(tmp_path / f"{name}.gguf") for name in ("red", "blue", "other")]
    library = ToyLibrary(toy_entry("toy:1b"), toy_entry("toy:adapted", adapters=(str(given[0]),)))
    with daemon(tmp_path / "home", library, lora=f"red={given[0]}:0.5,{given[1]},other={given[2]}") as made:
        yield made


def cached(answer: Any) -> int:
    """Prompt tokens that were there already."""
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    return int((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0))


def test_adapters_are_named_in_three_ways_and_share_pages_with_themselves_only(world: World) -> None:
    assert cached(world.complete(PROMPT)) == 0
    assert cached(world.complete(PROMPT, lora="red")) == 0
    assert cached(world.complete(PROMPT, model="toy:1b+red")) > 0
    assert cached(world.complete(PROMPT, lora=[{"id": 0}])) > 0
    assert cached(world.complete(PROMPT, lora=[{"id": 0, "scale": 0.5}, {"id": 1, "scale": 0}])) > 0
    assert cached(world.complete(PROMPT, lora=[{"name": "red", "scale": 0.25}])) == 0
    assert cached(world.complete(PROMPT, lora="blue")) == 0
    for none in (None, "", [], [{"id": 0, "scale": 0}]):
        assert cached(world.complete(PROMPT, lora=none)) > 0


def test_a_model_that_comes_with_an_adapter_has_it_until_a_request_says_otherwise(world: World) -> None:
    assert cached(world.complete(PROMPT, model="toy:adapted")) == 0
    assert cached(world.complete(PROMPT, model="toy:adapted", lora="")) == 0
    assert cached(world.complete(PROMPT, model="toy:adapted", lora=[{"name": "red", "scale": 1}])) > 0


def test_an_answer_is_under_the_name_that_was_asked_for_and_the_list_has_it(world: World) -> None:
    assert world.chat("hello", model="toy:1b+blue").json()["model"] == "toy:1b+blue"
    listed = {model["id"]: model for model in world.client.get("/v1/models").json()["data"]}
    assert listed["toy:1b+blue"]["parent"] == "toy:1b"
    assert world.client.get("/v1/models/toy:1b+blue").json()["id"] == "toy:1b+blue"
    assert world.client.get("/v1/models/toy:1b+green").status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        "green", 7, {"id": 0}, [3], [{}], [{"id": 0, "name": "red"}], [{"id": -1}], [{"id": 9}], [{"id": True}],
        [{"id": "0"}], [{"name": 3}], [{"name": "green"}], [{"id": 0, "scale": "big"}], [{"id": 0, "scale": 101}],
        [{"id": 0, "scale": True}], [{"id": 0, "size": 1}], [{"id": 0}, {"id": 1}],
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_wrong_lora_is_a_400_that_names_it(world: World, wrong: Any) -> None:
    for answer in (world.complete(PROMPT, lora=wrong), world.chat("hello", lora=wrong)):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("lora"), answer.text


def test_a_model_with_an_adapter_and_a_lora_beside_it_is_one_too_many(world: World) -> None:
    answer = world.complete(PROMPT, model="toy:1b+red", lora="blue")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora")


def test_an_adapter_of_another_model_is_the_requests_fault(world: World) -> None:
    answer = world.complete(PROMPT, lora="other")
    assert answer.status_code == 400, answer.text
    assert "another model" in answer.json()["error"]["message"]
    assert world.complete(PROMPT).status_code == 200


def test_adapters_come_and_go_while_the_daemon_runs(world: World, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "green.gguf")
    order = {"lora_name": "green", "lora_path": str(path)}
    loaded = world.client.post("/v1/load_lora_adapter", json=order)
    assert loaded.status_code == 200
    assert loaded.json() == {
        "id": 3, "name": "green", "path": str(path), "scale": 1.0, "base": "", "rank": 2, "targets": ["attn_q"],
    }  # fmt: skip
    assert world.client.post("/v1/load_lora_adapter", json=order | {"scale": 2}).json()["scale"] == 2
    assert [each["name"] for each in world.client.get("/lora-adapters").json()] == ["red", "blue", "other", "green"]
    assert world.complete(PROMPT, lora="green").status_code == 200
    assert world.client.post("/v1/unload_lora_adapter", json={"lora_name": "green"}).json() == {"unloaded": "green"}
    assert world.complete(PROMPT, lora="green").status_code == 400


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"lora_name": "new"}, "lora_path"),
        ({"lora_name": "new", "lora_path": "relative/path"}, "lora_path"),
        ({"lora_name": "new", "lora_path": "~nobody of this name/path"}, "lora_path"),
        ({"lora_name": "new", "lora_path": "/nowhere/at/all"}, "lora_path"),
        ({"lora_name": "new", "lora_path": "/"}, "lora_path"),
        ({"lora_name": "new", "lora_path": "/x\0y"}, "lora_path"),
        ({"lora_name": "a b", "lora_path": "RED"}, "lora_name"),
        ({"lora_name": "", "lora_path": "RED"}, "lora_name"),
        ({"lora_name": "red", "lora_path": "BLUE"}, "lora_name"),
        ({"lora_name": 3, "lora_path": "RED"}, "lora_name"),
        ({"lora_name": "new", "lora_path": "RED", "scale": 1000}, "scale"),
        ({"lora_name": "new", "lora_path": "RED", "rank": 4}, "rank"),
    ],
)
def test_a_wrong_order_is_a_400_that_names_the_field(
    world: World, tmp_path: Path, order: dict[str, Any], param: str
) -> None:
    if "lora_path" in order:
        order = order | {
            "lora_path": {"RED": str(tmp_path / "red.gguf"), "BLUE": str(tmp_path / "blue.gguf")}.get(
                order["lora_path"], order["lora_path"]
            )
        }
    answer = world.client.post("/v1/load_lora_adapter", json=order)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert world.client.post("/v1/unload_lora_adapter", json={"lora_name": "nobody"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": PROMPT}], "stream": False}),
        ("/api/generate", {"prompt": PROMPT, "stream": False}),
        ("/v1/messages", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}),
        ("/v1/responses", {"input": PROMPT, "max_output_tokens": 16}),
        ("/v1/embeddings", {"input": PROMPT}),
    ],
)
def test_every_dialect_knows_a_model_with_an_adapter(world: World, path: str, body: dict[str, Any]) -> None:
    answer = world.client.post(path, json={"model": "toy:1b+blue", **body})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "toy:1b+blue"
