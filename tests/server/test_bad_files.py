"""Model files that vanished, were cut off, or are of a kind we cannot run: one sentence each, and no wounds."""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from localllm.daemon.sources import Sources
from localllm.settings import load_settings
from localllm.store.entry import Entry, ModelFile
from localllm.store.library import Library
from localllm.store.names import parse_ref
from tests.formats.crafted import STRING, gguf, key, number, tensor, text
from tests.server.world import World, daemon

LLAMA = key("general.architecture", STRING, text("llama"))
SOUND = gguf([LLAMA], [tensor("output.weight", (32, 4))], struct.pack("<128f", *range(128)))
FILES = {
    "empty": b"",
    "prose": b"once upon a time " * 100,
    "header-only": SOUND[:40],
    "cut-off": SOUND[:-100],
    "lacking": SOUND,
    "no-architecture": gguf([number("general.alignment", 32)]),
    "unsupported": gguf([key("general.architecture", STRING, text("mamba"))]),
}
EXPECTED = {
    "empty": (422, "bad_model_file", "is not a model file"),
    "prose": (422, "bad_model_file", "is not a model file"),
    "header-only": (422, "bad_model_file", "header-only.gguf"),
    "cut-off": (422, "bad_model_file", "the file ends at"),
    "lacking": (422, "bad_model_file", "lacks llama."),
    "no-architecture": (422, "bad_model_file", "general.architecture is missing"),
    "unsupported": (422, "unsupported_model", "'mamba'"),
    "vanished": (404, "model_not_found", "vanished.gguf"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon over a real store and real workers; each file lies in the store, but for one that was deleted."""
    home = tmp_path_factory.mktemp("home")
    library = Library(load_settings({"LOCALLLM_HOME": str(home)}))
    for name, content in (FILES | {"vanished": SOUND}).items():
        install(library, name, content)
    (library.settings.store_dir / "files" / "vanished.gguf").unlink()
    with daemon(home, sources=Sources(library=library)) as world:
        yield world


def install(library: Library, name: str, content: bytes) -> None:
    path = library.settings.store_dir / "files" / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    files = (ModelFile(path=str(path), size_bytes=len(content), is_ours=True),)
    library.manifests.put(parse_ref(name), Entry(name=f"{name}:latest", path=str(path), source="url", files=files))


def sound(error: dict[str, Any], name: str) -> None:
    _, code, words = EXPECTED[name]
    assert error["code"] == code and words in error["message"]
    assert "\n" not in error["message"] and "Error" not in error["message"] and "inside" not in error["message"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_file_is_one_sentence(world: World, name: str) -> None:
    answer = world.chat("x", model=name)
    assert answer.status_code == EXPECTED[name][0]
    sound(answer.json()["error"], name)
    assert world.client.get("/health").json()["status"] == "ok", "a bad file is no crash"


@pytest.mark.parametrize("name", ["cut-off", "vanished"])
def test_loading_one_ends_with_the_same_sentence(world: World, name: str) -> None:
    lines = world.client.post("/localllm/v1/load", json={"model": name}).text.splitlines()
    sound(msgspec.json.decode(lines[-1])["error"], name)


def test_a_file_that_vanishes_is_still_listed_and_the_others_answer_for_themselves(world: World) -> None:
    listed = {model["id"] for model in world.client.get("/v1/models").json()["data"]}
    assert {"vanished:latest", "cut-off:latest"} <= listed
