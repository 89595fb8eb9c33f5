"""A file that no longer holds what was downloaded: found when its model is loaded, named, and repaired by a pull."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.daemon.sources import Sources, check_files
from localllm.errors import BadModelFile
from localllm.store.library import Library
from tests.daemon.toy import WORKER_COMMAND, toy_text
from tests.server.world import World, daemon
from tests.store.worlds import FakeHub, fake_hub, library_of, sha256, tiny_gguf


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_of(tmp_path / "home")


@pytest.fixture
def address(hub: FakeHub, tmp_path: Path) -> str:
    hub.repos["org/x"] = {"Tiny-F32.gguf": tiny_gguf(tmp_path / "made.gguf", kilobytes=300).read_bytes()}
    return f"{hub.endpoint}/org/x/resolve/main/Tiny-F32.gguf"


def flip(path: str, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def status_of(world: World, model: str) -> int:
    return world.complete("a", model=model).status_code


def test_damage_is_named_at_the_next_load_and_a_pull_repairs_it(library: Library, address: str, tmp_path: Path) -> None:
    entry = library.pull(address)
    sources = Sources(library=library, load_text=toy_text, worker_command=WORKER_COMMAND)
    with daemon(tmp_path / "daemon", sources=sources) as world:
        assert status_of(world, address) == 200
        world.client.post("/localllm/v1/stop", json={"model": address})
        flip(entry.path, 100_000)
        refused = world.complete("a", model=address)
        message = refused.json()["error"]["message"]
        assert refused.status_code == 422 and refused.json()["error"]["code"] == "bad_model_file"
        assert entry.path in message and entry.files[0].sha256 in message and "localllm pull" in message
        assert world.client.get("/health").json()["status"] == "ok", "no crash"
        repaired = library.pull(address)
        assert sha256(Path(repaired.path).read_bytes()) == entry.files[0].sha256
        assert status_of(world, address) == 200


def test_damage_that_the_worker_stumbles_over_is_named_as_damage(
    library: Library, address: str, tmp_path: Path
) -> None:
    entry = library.pull(address)
    flip(entry.path, 0)
    with daemon(tmp_path / "daemon", sources=Sources(library=library, load_text=toy_text)) as world:
        message = world.complete("a", model=address).json()["error"]["message"]
        assert entry.files[0].sha256 in message


@pytest.mark.parametrize("place", [0, 1000, 150_000, -1])
def test_any_flipped_byte_is_found(library: Library, address: str, place: int) -> None:
    entry = library.pull(address)
    check_files(entry)
    flip(entry.path, place % entry.files[0].size_bytes)
    with pytest.raises(BadModelFile, match="damaged or gone"):
        check_files(entry)


def test_a_touched_file_with_the_right_bytes_is_no_damage(library: Library, address: str) -> None:
    entry = library.pull(address)
    os.utime(entry.path, (1, 1))
    check_files(entry)
