"""What llama.cpp's and vLLM's clients ask of a server: tokens, templates, properties, slots, readiness."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.toy import BOS, ToyLibrary, toy_entry
from tests.server.world import World, daemon

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:1b"), toy_entry("toy:slow", "toy:slow"))
    with daemon(tmp_path_factory.mktemp("home"), library, default_model="toy:1b", max_sequences=4) as world:
        yield world


def post(world: World, path: str, **body: Any) -> dict[str, Any]:
    answer = world.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_content_is_tokenized_as_llamacpp_does(world: World, prefix: str) -> None:
    assert post(world, prefix + "/tokenize", content="ab") == {"tokens": [97, 98]}
    assert post(world, prefix + "/tokenize", content="ab", add_special=True) == {"tokens": [BOS, 97, 98]}


def test_a_piece_that_is_no_text_on_its_own_is_its_bytes(world: World) -> None:
    tokens = post(world, "/tokenize", content="aé", with_pieces=True)["tokens"]
    assert tokens == [{"id": 97, "piece": "a"}, {"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]}]


def test_a_prompt_is_tokenized_as_vllm_does(world: World) -> None:
    plain = post(world, "/tokenize", prompt="ab", model="toy:1b")
    assert plain == {"tokens": [BOS, 97, 98], "count": 3, "max_model_len": 512, "token_strs": None}
    assert post(world, "/tokenize", prompt="ab", add_special_tokens=False)["tokens"] == [97, 98]
    assert post(world, "/tokenize", prompt="ab", return_token_strs=True)["token_strs"] == ["", "a", "b"]


def test_a_conversation_is_tokenized_as_it_would_be_sent(world: World) -> None:
    shown = post(world, "/tokenize", messages=MESSAGES, return_token_strs=True)
    assert bytes(shown["tokens"]) == b"<user>x\n<assistant>" and "".join(shown["token_strs"]).startswith("<user>")
    shorter = post(world, "/tokenize", messages=MESSAGES, add_generation_prompt=False)
    assert bytes(shorter["tokens"]) == b"<user>x\n"
    assert post(world, "/apply-template", messages=MESSAGES) == {"prompt": "<user>x\n<assistant>"}


def test_tokens_become_text_under_both_names(world: World) -> None:
    assert post(world, "/detokenize", tokens=[97, 98]) == {"content": "ab", "prompt": "ab"}
    assert post(world, "/detokenize", tokens=[], model="toy:1b") == {"content": "", "prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 3}, "content"),
        ("/tokenize", {"content": "a", "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"messages": MESSAGES, "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [260]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": MESSAGES, "flavour": "mint"}, "flavour"),
    ],
)
def test_a_field_that_is_wrong_or_of_the_other_dialect_is_a_400_that_names_it(
    world: World, path: str, body: dict[str, Any], param: str
) -> None:
    answer = world.client.post(path, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_lenient_clients_are_warned_of_what_was_passed_over(world: World) -> None:
    lenient = {"prefer": "handling=lenient"}
    answer = world.client.post("/tokenize", json={"content": "a", "flavour": "mint"}, headers=lenient)
    assert answer.status_code == 200 and "flavour" in answer.json()["warnings"][0]


def test_the_properties_are_those_of_the_loaded_model(world: World) -> None:
    world.complete("x", max_tokens=1)
    shown = world.client.get("/props").json()
    assert (shown["model_alias"], shown["total_slots"], shown["is_sleeping"]) == ("toy:1b", 4, False)
    settings = shown["default_generation_settings"]
    assert settings["n_ctx"] == 512 and settings["params"]["temperature"] == 1.0
    assert (shown["bos_token"], shown["eos_token"]) == ("<bos>", "<eos>")
    assert shown["modalities"] == {"vision": False, "audio": False}


def test_the_properties_of_a_model_on_disk_do_not_load_it(tmp_path: Path) -> None:
    with daemon(tmp_path, default_model="toy:1b") as world:
        assert world.client.get("/props").json()["is_sleeping"] is True
        assert world.client.get("/props?model=nope").status_code == 404
        assert world.ps() == []


def test_special_tokens_are_told_as_vllm_does(world: World) -> None:
    told = world.client.get("/tokenizer_info", params={"model": "toy:1b"}).json()
    props = world.client.get("/props", params={"model": "toy:1b"}).json()
    assert [told[name] or "" for name in ("bos_token", "eos_token")] == [props["bos_token"], props["eos_token"]]
    assert told["chat_template"] == props["chat_template"] and told["model_max_length"] > 0
    assert world.client.get("/tokenizer_info", params={"model": "nope"}).status_code == 404


def test_slots_show_what_runs_and_how(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "abc", "temperature": 0.5, "top_k": 7, "max_tokens": 300, "stream": True}
    with world.client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        slots = world.client.get("/slots").json()
        assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
        assert [slot["is_processing"] for slot in slots] == [True, False, False, False]
        assert (slots[0]["params"]["temperature"], slots[0]["params"]["top_k"]) == (0.5, 7)
        assert slots[0]["next_token"]["n_decoded"] + slots[0]["next_token"]["n_remain"] == 300
        assert slots[0]["id_task"].startswith(stream.headers["x-request-id"])
        assert world.client.get("/slots?fail_on_no_slot=1").status_code == 200


def test_without_a_free_slot_the_answer_may_be_503(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("toy:1b", "toy:slow"))
    with daemon(tmp_path, library, max_sequences=1) as world:
        body = {"model": "toy:1b", "prompt": "abc", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with world.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()  # kept: the stream ends with it
            next(line for line in lines if line.startswith("data:"))
            assert world.client.get("/slots").status_code == 200
            refused = world.client.get("/slots?fail_on_no_slot=1")
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert world.client.get("/load").json() == {"server_load": 1}


def test_a_daemon_is_ready_unless_the_named_model_would_have_to_load(world: World) -> None:
    world.complete("x", max_tokens=1)
    assert world.client.get("/ready").json() == {"status": "ready", "reason": None}
    assert world.client.get("/ready?model=toy:1b").status_code == 200
    unknown = world.client.get("/ready?model=nope")
    assert unknown.status_code == 503 and "nope" in unknown.json()["reason"]
    world.client.post("/localllm/v1/stop", json={"model": "toy:1b"})
    assert world.client.get("/ready?model=toy:1b").json()["reason"] == "the model is not loaded"
    assert world.client.get("/ready").status_code == 200


def test_a_daemon_that_drains_is_not_ready(tmp_path: Path) -> None:
    with daemon(tmp_path) as world:
        world.daemon.desk.is_draining = True
        assert world.client.get("/ready").status_code == 503
        assert world.client.get("/health").status_code == 503


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_is_what_llamacpps_clients_wait_for(world: World, path: str) -> None:
    answer = world.client.get(path)
    assert answer.status_code == 200 and answer.json()["status"] == "ok"


def test_tokenizing_goes_on_beside_running_answers(world: World) -> None:
    body = {"model": "toy:slow", "prompt": "abc", "max_tokens": 20, "ignore_eos": True}
    thread = threading.Thread(target=lambda: world.client.post("/v1/completions", json=body))
    thread.start()
    assert post(world, "/tokenize", content="a", model="toy:slow") == {"tokens": [97]}
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("path", ["/tokenize", "/apply-template"])
@pytest.mark.parametrize(("field", "value"), [("request_id", "two words"), ("keep_alive", "")])
def test_what_is_wrong_is_refused_where_it_has_no_effect_too(world: World, path: str, field: str, value: str) -> None:
    refused = world.client.post(path, json={"messages": [{"role": "user", "content": "x"}], field: value})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(("path", "body"), [("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})])
def test_a_bad_name_of_a_request_is_refused_on_every_route(world: World, path: str, body: dict[str, str]) -> None:
    refused = world.client.post(path, json=body | {"model": "toy:1b", "request_id": ""})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "request_id")
