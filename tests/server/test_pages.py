"""`GET /localllm/v1/pages/N`: who holds a page, what stands in it, and who may read that."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from localllm.client import Client
from localllm.daemon.feed import page_ids
from localllm.daemon.keys import KeyFile
from localllm.errors import LocalLLMError
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.json_schema import complaints
from tests.server.world import World, daemon

PROMPT = "The same beginning of two conversations, and then"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:slow", "toy:slow"), toy_entry("toy:1b"))
    with daemon(tmp_path_factory.mktemp("home"), library, default_model="toy:slow") as world:
        yield world


@contextlib.contextmanager
def running(world: World, name: str, text: str, **headers: str) -> Iterator[None]:
    """A request that writes while the block runs."""
    body = {
        "model": "toy:slow",
        "prompt": text,
        "stream": True,
        "max_tokens": 400,
        "ignore_eos": True,
        "request_id": name,
    }
    with world.client.stream("POST", "/v1/completions", json=body, headers=headers) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()  # kept: closing it would end the request
        next(lines)
        yield


def pages_of(world: World, request_id: str) -> list[int]:
    def found() -> list[int]:
        (resident,) = world.daemon.residency.residents()
        views = resident.snapshot.sequences if resident.snapshot else []
        return next((page_ids(view) for view in views if view.request_id.startswith(request_id)), [])

    client = Client(world.url, next(iter(world.client.headers.get("authorization", "").split()[1:]), ""))
    with contextlib.closing(client.live()) as feed:
        for _ in itertools.islice(feed, 100):
            if pages := world.on_loop(found):
                return list(pages)
    raise AssertionError(f"nobody saw pages of {request_id}")


def test_a_shared_page_names_all_who_hold_it(world: World) -> None:
    with running(world, "one", PROMPT + " a" * 20), running(world, "two", PROMPT + " b" * 20):
        first, *_, last = pages_of(world, "one")
        shared, own = Client(world.url).looking.page("toy:slow", first), Client(world.url).looking.page("", last)
    assert (shared.state, shared.references, shared.start, shared.end) == ("shared", 2, 0, 16)
    assert {holder.id for holder in shared.holders} == {"one", "two"}
    assert all((holder.start, holder.end) == (0, 16) and holder.serial > 0 for holder in shared.holders)
    assert shared.tokens is not None and "".join(token.text for token in shared.tokens) == PROMPT[:15]  # behind the bos
    assert shared.tokens[1].raw == b"T" and [link.page for link in shared.chain] == [first]
    assert (own.state, own.references, [holder.id for holder in own.holders]) == ("held", 1, ["one"])
    assert own.model == "toy:slow" and own.start % 16 == 0 and own.chain[-1].page == first
    assert set(own.chain[-1].requests) == {"one", "two"} and own.chain[-1].hash == shared.chain[0].hash


def test_a_page_nobody_holds_is_cached_with_its_text_or_free(world: World) -> None:
    with running(world, "gone", "Something that stays behind when its request has left"):
        first = pages_of(world, "gone")[0]
    client = Client(world.url)
    page = client.looking.page("toy:slow", first)
    assert (page.state, page.references, page.holders, page.chain_length) == ("cached", 0, (), 1)
    assert page.tokens and "".join(token.text for token in page.tokens) == "Something that "
    free = client.looking.page("toy:slow", 0)
    if free.state == "free":
        assert (free.tokens, free.chain, free.start, free.end) == ((), (), 0, 0)


@pytest.mark.parametrize("page", ["512", "-1", "x", "1.5", "99999999999999999999", "%20"])
def test_a_page_that_there_is_not_is_refused(world: World, page: str) -> None:
    assert world.client.post("/localllm/v1/load", json={"model": "toy:slow"}).status_code == 200
    answer = world.client.get(f"/localllm/v1/pages/{page}", params={"model": "toy:slow"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "page"


def test_a_model_that_is_not_loaded_has_no_pages(world: World) -> None:
    with pytest.raises(LocalLLMError) as caught:
        Client(world.url).looking.page("toy:1b", 0)
    assert caught.value.code == "model_not_loaded" or "not loaded" in caught.value.message


def test_the_answer_is_as_described(world: World) -> None:
    with running(world, "shape", PROMPT):
        first = pages_of(world, "shape")[0]
        body = world.client.get(f"/localllm/v1/pages/{first}").json()
    document = world.client.get("/openapi.json").json()
    operation = document["paths"]["/localllm/v1/pages/{page}"]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert complaints(body, schema, document) == []


def test_text_is_for_those_who_may_see_the_request(tmp_path: Path) -> None:
    library = ToyLibrary(toy_entry("toy:slow", "toy:slow"))
    with daemon(tmp_path, library, default_model="toy:slow", api_keys="boss") as world:
        own = {name: KeyFile(world.daemon.settings.keys_file).create(name, ("inference",)) for name in ("ann", "bob")}

        def page(key: str, number: int) -> dict[str, Any]:
            answer = httpx.get(
                f"{world.url}/localllm/v1/pages/{number}", headers={"authorization": f"Bearer {key}"}, trust_env=False
            )
            assert answer.status_code == 200, answer.text
            shown: dict[str, Any] = answer.json()
            return shown

        world.client.headers["authorization"] = "Bearer boss"
        with running(world, "anns", PROMPT, authorization=f"Bearer {own['ann']}"):
            number = pages_of(world, "anns")[0]
            mine, theirs, all_of_it = (page(key, number) for key in (own["ann"], own["bob"], "boss"))
        cached = page(own["ann"], number)
    assert mine["tokens"] == all_of_it["tokens"] and mine["holders"][0]["id"] == "anns"
    assert theirs["tokens"] is None and theirs["holders"][0]["id"] is None and theirs["references"] == 1
    assert theirs["chain"][0]["requests"] == [] and theirs["chain"][0]["holders"] == 1
    assert cached["state"] == "cached" and cached["tokens"] is None
