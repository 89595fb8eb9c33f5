"""Pulls of a file at a plain address; the server is the hub of the other tests, asked as any server."""

from pathlib import Path

import httpx
import pytest

from localllm.errors import BadModelFile, DownloadError, NetworkError, UnsupportedModel, UsageError
from localllm.store.blobs import PartialFile
from localllm.store.download import architecture_in, file_name_of
from tests.store.worlds import FakeHub, Listener, library_of, tiny_gguf


@pytest.fixture
def address(hub: FakeHub, tmp_path: Path) -> str:
    hub.repos["org/x"] = {
        "Tiny-F32.gguf": tiny_gguf(tmp_path / "made.gguf", kilobytes=3000).read_bytes(),
        "page.gguf": b"<html>",
    }
    return f"{hub.endpoint}/org/x/resolve/main/Tiny-F32.gguf"


def test_a_file_at_an_address_is_pulled_found_and_removed(tmp_path: Path, hub: FakeHub, address: str) -> None:
    library = library_of(tmp_path / "home")
    entry = library.pull(address)
    assert (entry.source, entry.quantization, entry.name) == ("url", "F32", address)
    assert Path(entry.path).read_bytes() == hub.repos["org/x"]["Tiny-F32.gguf"]
    assert library.find(address) == entry
    library.remove(address)
    assert library.entries() == []
    assert not Path(entry.path).exists()


def test_a_cut_is_resumed_only_for_the_same_version(
    tmp_path: Path, hub: FakeHub, address: str, listener: Listener
) -> None:
    library = library_of(tmp_path / "home")
    hub.cut_after = [100_000, 2_000_000] + [0] * 20  # the first answer is the look at the head
    with pytest.raises((DownloadError, NetworkError)):
        library.pull(address)
    hub.cut_after = []
    newer = tiny_gguf(tmp_path / "newer.gguf", kilobytes=3000, seed=3).read_bytes()
    hub.repos["org/x"]["Tiny-F32.gguf"] = newer
    assert Path(library.pull(address, listener).path).read_bytes() == newer
    assert listener.resumed_bytes == 0


def test_an_architecture_is_read_from_the_first_bytes_and_refused_before_the_rest(
    tmp_path: Path, hub: FakeHub, address: str
) -> None:
    with pytest.raises(UnsupportedModel, match="no llama"):
        library_of(tmp_path / "home", can_run=lambda architecture, types: f"no {architecture}").pull(address)
    assert all(part == "bytes=0-4095" for part in hub.ranges_of(".gguf"))


def test_a_page_is_not_taken_for_a_model(tmp_path: Path, address: str) -> None:
    with pytest.raises(BadModelFile, match="no GGUF file"):
        library_of(tmp_path / "home").pull(address.replace("Tiny-F32", "page"))


def test_a_missing_file_names_the_status(tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadError, match="HTTP 404"):
        library_of(tmp_path / "home").pull(address.replace("Tiny", "Other"))


@pytest.mark.parametrize("end", ["x.bin", "x.pt", "x.ckpt", "x.pkl"])
def test_checkpoints_that_can_run_code_are_refused(tmp_path: Path, end: str) -> None:
    with pytest.raises(BadModelFile, match="can run code"):
        library_of(tmp_path / "home").pull(f"http://127.0.0.1:9/{end}")


@pytest.mark.parametrize("end", ["", "x", "x.zip", "..%2f..%2fx%00.gguf", "-x.gguf"])
def test_addresses_of_something_else_are_refused(end: str) -> None:
    with pytest.raises(UsageError):
        file_name_of(f"https://example.com/{end}")


def test_a_hostile_head_gives_no_architecture() -> None:
    key = b"general.architecture\x08\x00\x00\x00"
    for tail in (b"", b"\xff" * 8, b"\xff" * 8 + b"llama", b"\x05\x00\x00\x00\x00\x00\x00\x00\xff\xfe"):
        assert architecture_in(b"GGUF" + key + tail) in ("", "llama")


def test_what_came_and_is_no_model_leaves_nothing_behind(tmp_path: Path, hub: FakeHub, address: str) -> None:
    library = library_of(tmp_path / "home")
    whole = hub.repos["org/x"]["Tiny-F32.gguf"]
    hub.repos["org/x"]["Tiny-F32.gguf"] = whole[:-4096]  # its last tensor ends outside of it
    with pytest.raises(BadModelFile, match="the file ends at"):
        library.pull(address)
    assert not list((tmp_path / "home" / "store" / "files").rglob("*.gguf*")) and library.entries() == []
    hub.repos["org/x"]["Tiny-F32.gguf"] = whole
    assert Path(library.pull(address).path).read_bytes() == whole


def test_a_server_that_cuts_and_serves_no_ranges_is_given_up(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def cut(client: object, remote: object, partial: PartialFile, *_: object) -> None:
        tries.append(partial.written)
        if partial.written:
            partial.restart()
            raise httpx.ReadError("416, or another version")
        partial.write(b"x" * 100_000)
        raise httpx.ReadError("cut")

    monkeypatch.setattr("localllm.store.download._stream_once", cut)
    with pytest.raises(NetworkError, match="broke off"):
        library_of(tmp_path / "home").pull(address)
    assert 2 < len(tries) < 10
