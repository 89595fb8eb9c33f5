"""Tokenizers explained over HTTP: what is told, what is refused, and that no model is loaded for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm.client import Client
from localllm.daemon.sources import Sources
from localllm.errors import InvalidRequest, ModelNotFound
from localllm.runtime.names import open_library
from localllm.settings import load_settings
from localllm.store.catalog import Catalog, Source, TokenizerEntry
from localllm.store.entry import Entry
from localllm.store.library import Library
from localllm.tokens.tokenizer import Tokenizer
from tests.daemon.toy import WORKER_COMMAND, ToyLibrary, toy_entry, toy_text
from tests.server.json_schema import complaints
from tests.server.world import World, daemon
from tests.tokens import trained
from tests.tokens.worlds import tiny, tiny_spm

LOADERS = {"toy:bpe": tiny, "toy:spm": tiny_spm, "toy:unigram": trained.unigram, "toy:word": trained.wordpiece}
BASE = "/localllm/v1/tokenizers"


class Counting:
    """Opens the small tokenizers and counts how often."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def __call__(self, entry: Entry) -> Tokenizer:
        self.opened.append(entry.name)
        return LOADERS[entry.name]()


@pytest.fixture(scope="module")
def opened() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, opened: Counting) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "tokenizer.json").write_text(trained.unigram().built.core.to_str(), encoding="utf-8")
    home = tmp_path_factory.mktemp("home")
    entries = [
        TokenizerEntry(name=name, title=name.upper(), kind="Unigram", sources=(Source(kind="path", path=str(path)),))
        for name, path in (("cutter", folder), ("late", folder), ("faraway", folder / "nowhere"))
    ]
    library = Library(load_settings({"LOCALLLM_HOME": str(home)}), catalog=Catalog((), tuple(entries)))
    library.pull("cutter", lambda event: None)
    sources = Sources(
        library=ToyLibrary(*map(toy_entry, LOADERS)),
        open_shelf=lambda: library,
        load_text=toy_text,
        load_tokenizer=opened,
        worker_command=WORKER_COMMAND,
    )
    with daemon(home, sources=sources) as world:
        yield world


@pytest.fixture(scope="module")
def client(world: World) -> Client:
    return Client(world.url)


@pytest.fixture(autouse=True)
def no_model_is_loaded(world: World) -> Iterator[None]:
    yield
    assert world.ps() == []


def test_tokenizers_of_models_and_those_that_come_alone_are_listed(client: Client) -> None:
    client.tokens.explain("x", ["toy:spm"])
    rows = {row.name: row for row in client.tokens.tokenizers()}
    assert list(rows) == [*LOADERS, "cutter", "late", "faraway"]
    assert rows["toy:spm"].is_model and rows["toy:spm"].kind == "BPE" and rows["toy:spm"].vocab_size > 0
    assert (rows["cutter"].is_here, rows["faraway"].is_here, rows["cutter"].is_model) == (True, False, False)
    assert (rows["cutter"].title, rows["cutter"].kind) == ("CUTTER", "Unigram")


def test_a_text_is_shown_through_several_tokenizers_side_by_side(client: Client) -> None:
    text = "hello wörld"
    found = client.tokens.explain(text, ["toy:bpe", "toy:word", "cutter", "toy:spm"])
    assert (found.num_chars, found.num_bytes) == (11, 12)
    assert [split.kind for split in found.tokenizers] == ["BPE", "WordPiece", "Unigram", "BPE"]
    bpe = found.tokenizers[0]
    assert [token.id for token in bpe.tokens] == tiny().encode(text, add_special=False)
    assert bytes.fromhex(bpe.tokens[0].bytes) == b"hello"
    assert found.tokenizers[2].title == "CUTTER"


@pytest.mark.parametrize(("name", "part"), [("toy:bpe", "merges"), ("cutter", "lattice"), ("toy:word", "matches")])
def test_a_word_is_traced_in_the_manner_of_its_kind(client: Client, name: str, part: str) -> None:
    trace = client.tokens.trace("the cat", name, 5)
    assert getattr(trace, part) and trace.model == name and trace.start <= 5 < trace.end
    others = {"merges", "lattice", "matches"} - {part}
    assert all(getattr(trace, other) is None for other in others)


def test_tokens_are_looked_up_by_text_by_id_and_by_bytes(client: Client) -> None:
    (by_text, *_) = client.tokens.vocabulary("toy:bpe", text="hello").entries
    assert client.tokens.vocabulary("toy:bpe", token_id=by_text.id).entries == [by_text]
    assert client.tokens.vocabulary("toy:bpe", raw=b"hello").entries == [by_text]
    everything = client.tokens.vocabulary("toy:bpe", offset=3, limit=2)
    assert [entry.id for entry in everything.entries] == [3, 4] and everything.total == everything.vocab_size
    facts = client.tokens.facts("toy:bpe", by_text.id)
    assert [bytes.fromhex(part) for part in facts.merged_from] == [b"hell", b"o"]


def test_a_conversation_is_shown_as_the_model_reads_it(client: Client) -> None:
    view = client.tokens.template("toy:bpe", [{"role": "user", "content": "hello"}])
    assert "".join(part.text for part in view.parts) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert {part.kind for part in view.parts} == {"special", "role", "frame", "content", "opening"}
    assert view.is_exact and "no chat template" in view.note
    assert "without a chat template" in client.tokens.template("cutter", [{"role": "user", "content": "x"}]).note


def test_what_is_not_here_says_how_to_get_it(client: Client) -> None:
    with pytest.raises(ModelNotFound, match="not here") as caught:
        client.tokens.explain("x", ["faraway"])
    assert "localllm pull faraway" in caught.value.hint
    with pytest.raises(ModelNotFound, match="there is no model"):
        client.tokens.explain("x", ["nobody"])


def test_a_tokenizer_is_pulled_like_a_model_and_can_be_asked_then(client: Client) -> None:
    job = client.library.pull("late")
    deadline = time.monotonic() + 20
    while job.state not in ("done", "failed") and time.monotonic() < deadline:
        (job,) = [each for each in client.library.pulls() if each.id == job.id]
    assert job.state == "done", job
    assert {row.name: row.is_here for row in client.tokens.tokenizers()}["late"]
    assert client.tokens.explain("the cat", ["late"]).tokenizers[0].kind == "Unigram"
    assert "late" not in [model.name for model in client.library.installed().models]


def test_tokenizers_stay_open_but_not_more_than_four(client: Client, opened: Counting) -> None:
    for name in [*LOADERS, "cutter"]:
        client.tokens.explain("x", [name])
    before = len(opened.opened)
    client.tokens.explain("x", ["toy:word", "toy:unigram"])
    assert len(opened.opened) == before
    client.tokens.explain("x", ["toy:bpe"])
    assert opened.opened[before:] == ["toy:bpe"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("explain", {"text": "x", "models": []}, "models"),
    ("explain", {"text": "x", "models": ["toy:bpe"] * 5}, "models"),
    ("explain", {"text": "x", "models": "toy:bpe"}, "models"),
    ("explain", {"text": "x" * (2**18 + 1), "models": ["toy:bpe"]}, "text"),
    ("explain", {"text": 1, "models": ["toy:bpe"]}, "text"),
    ("explain", {"models": ["toy:bpe"]}, "text"),
    ("explain", {"text": "x", "models": ["toy:bpe"], "most": 0}, "most"),
    ("explain", {"text": "x", "models": ["toy:bpe"], "model": "x"}, "model"),
    ("trace", {"text": "x", "model": "toy:bpe", "at": -1}, "at"),
    ("trace", {"text": "x", "model": "toy:bpe", "at": 1}, "at"),
    ("trace", {"text": "", "model": "toy:bpe"}, "text"),
    ("token", {"model": "toy:bpe", "id": -1}, "id"),
    ("token", {"model": "toy:bpe", "id": 99999}, "id"),
    ("token", {"model": "toy:bpe"}, "id"),
    ("vocabulary", {"model": "toy:bpe", "id": 99999}, "id"),
    ("vocabulary", {"model": "toy:bpe", "id": 1, "text": "x"}, "id"),
    ("vocabulary", {"model": "toy:bpe", "bytes": "e2 80"}, "bytes"),
    ("vocabulary", {"model": "toy:bpe", "limit": 501}, "limit"),
    ("vocabulary", {"model": ""}, "model"),
    ("template", {"model": "toy:bpe", "messages": []}, "messages"),
    ("template", {"model": "toy:bpe", "messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
    ("template", {"model": "toy:bpe", "messages": [{"role": "user", "content": None}]}, "messages[0].content"),
]


@pytest.mark.parametrize(("route", "body", "field"), BAD)
def test_every_bad_field_is_named(world: World, route: str, body: dict[str, Any], field: str) -> None:
    answer = world.client.post(f"{BASE}/{route}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field, answer.text


def test_errors_come_back_through_the_client_as_they_are(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="ids from 0"):
        client.tokens.facts("toy:bpe", 10**6)


def test_answers_are_as_they_are_described(world: World) -> None:
    document = world.client.get("/openapi.json").json()
    bodies = {
        "explain": {"text": "héllo", "models": ["toy:bpe", "toy:word"]},
        "trace": {"text": "hello", "model": "toy:unigram"},
        "token": {"model": "toy:bpe", "id": 5},
        "vocabulary": {"model": "toy:bpe", "text": "h"},
        "template": {"model": "toy:bpe", "messages": [{"role": "user", "content": "x"}]},
    }
    for route, body in bodies.items():
        answer = world.client.post(f"{BASE}/{route}", json=body)
        described = document["paths"][f"{BASE}/{route}"]["post"]["responses"]["200"]["content"]["application/json"]
        assert answer.status_code == 200 and complaints(answer.json(), described["schema"], document) == [], route


def test_the_real_store_knows_tokenizers_alone(tmp_path: Path) -> None:
    shelf = open_library(load_settings({"LOCALLLM_HOME": str(tmp_path)}))
    assert "gpt-4o" in [entry.name for entry in shelf.tokenizers.entries()]
