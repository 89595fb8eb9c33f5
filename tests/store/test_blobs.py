import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import BadModelFile, DiskFull, DownloadError
from localllm.store.blobs import PartialFile, check_space, free_bytes, model_lock, sha256_of, write_atomic


def test_a_file_appears_only_when_it_is_whole_and_right(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.gguf"
    content = b"a" * 5000
    with PartialFile(target, total_bytes=5000, etag="v1") as partial:
        partial.write(content[:3000])
        assert not target.exists()
        partial.write(content[3000:])
        assert partial.commit(hashlib.sha256(content).hexdigest()) == sha256_of(target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["x.gguf"]


def test_what_was_written_is_found_again_and_hashed(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with PartialFile(target, total_bytes=6, etag="v1") as partial:
        partial.write(b"abc")
    with PartialFile(target, total_bytes=6, etag="v1") as partial:
        assert partial.written == 3
        partial.write(b"def")
        assert partial.commit() == hashlib.sha256(b"abcdef").hexdigest()
    assert target.read_bytes() == b"abcdef"


@pytest.mark.parametrize("change", [{"etag": "v2"}, {"total_bytes": 7}, {"origin": "elsewhere"}])
def test_bytes_of_another_version_are_never_joined(tmp_path: Path, change: dict[str, str | int]) -> None:
    first: dict[str, str | int] = {"total_bytes": 6, "etag": "v1", "origin": "here"}
    with PartialFile(tmp_path / "x", **first) as partial:  # type: ignore[arg-type]  # one dictionary for three types
        partial.write(b"abc")
    with PartialFile(tmp_path / "x", **{**first, **change}) as partial:  # type: ignore[arg-type]
        assert partial.written == 0


@pytest.mark.parametrize(
    "state", [b"", b"{}", b"[", b'{"done_bytes": -1, "total_bytes": 6, "etag": "v1", "origin": ""}']
)
def test_a_damaged_state_means_starting_again(tmp_path: Path, state: bytes) -> None:
    with PartialFile(tmp_path / "x", total_bytes=6, etag="v1") as partial:
        partial.write(b"abc")
    (tmp_path / "x.partial.json").write_bytes(state)
    with PartialFile(tmp_path / "x", total_bytes=6, etag="v1") as partial:
        assert partial.written == 0


def test_too_much_too_little_and_wrong_bytes_are_refused(tmp_path: Path) -> None:
    with PartialFile(tmp_path / "x", total_bytes=3) as partial:
        with pytest.raises(DownloadError, match="more than"):
            partial.write(b"abcd")
        with pytest.raises(DownloadError, match="0 of 3"):
            partial.commit()
        partial.write(b"abc")
        with pytest.raises(DownloadError, match="does not verify"):
            partial.commit("0" * 64)
    assert not (tmp_path / "x").exists()


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "x.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), PartialFile(tmp_path / "x", total_bytes=3):
        pass
    assert (tmp_path / "precious").read_bytes() == b"keep"


def test_a_disk_that_fills_up_is_one_sentence_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with PartialFile(tmp_path / "x", total_bytes=6, etag="v1") as partial:
        partial.write(b"abc")
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DiskFull, match="filled up"), PartialFile(tmp_path / "x", total_bytes=6, etag="v1"):
        pass
    monkeypatch.undo()
    with PartialFile(tmp_path / "x", total_bytes=6, etag="v1") as partial:
        assert partial.written == 3


def test_space_is_checked_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"5\.00 GB are needed in .*, 1\.00 GB are free"):
        check_space(tmp_path, 5 * 10**9, lambda folder: 10**9)
    check_space(tmp_path / "not" / "yet", 1, free_bytes)


def test_a_replaced_file_is_old_or_new_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "m.json", b"old")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "m.json", b"new")
    assert (tmp_path / "m.json").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_is_held_by_one_and_a_left_file_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("left behind by a process that is gone")
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with model_lock(tmp_path, "a", waited.set):
            order.append("second")

    with model_lock(tmp_path, "a"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(5)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadModelFile, match="no regular file"):
            sha256_of(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("partial")


@given(st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=4), min_size=1, max_size=4))
def test_any_number_of_interruptions_gives_the_same_file(folder: Path, sittings: list[list[bytes]]) -> None:
    content = b"".join(chunk for chunks in sittings for chunk in chunks)
    target = folder / "x"
    for index, chunks in enumerate(sittings):
        with PartialFile(target, total_bytes=len(content), etag="v") as partial:
            for chunk in chunks:
                partial.write(chunk)
            if index == len(sittings) - 1:
                assert partial.commit() == hashlib.sha256(content).hexdigest()
    assert target.read_bytes() == content
