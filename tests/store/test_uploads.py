"""Files that are sent: kept under their digest only, taken over by models, forgotten when nobody takes them."""

import os
from pathlib import Path

import pytest

from localllm.errors import BadModelFile, DiskFull, InvalidRequest
from localllm.store import uploads
from localllm.store.modelfile import Modelfile
from localllm.store.uploads import Uploads
from tests.store.worlds import library_of, sha256, tiny_gguf

NOTHING = Modelfile(from_=("",))


def send(sent_to: Uploads, content: bytes) -> str:
    digest = f"sha256:{sha256(content)}"
    with sent_to.receive(digest, len(content)) as upload:
        upload.write(content)
        upload.commit()
    return digest


def test_two_who_send_one_file_at_once_both_succeed(tmp_path: Path) -> None:
    sent_to = Uploads(tmp_path)
    digest = f"sha256:{sha256(b'same')}"
    with sent_to.receive(digest) as first, sent_to.receive(digest) as second:
        for upload in (first, second):
            upload.write(b"same")
            upload.commit()
    assert os.listdir(sent_to.folder) == [digest.replace(":", "-")]


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    sent_to = Uploads(tmp_path)
    with pytest.raises(ConnectionError), sent_to.receive(f"sha256:{'0' * 64}") as upload:
        upload.write(b"half")
        raise ConnectionError
    assert os.listdir(sent_to.folder) == []


def test_a_disk_that_fills_up_is_noticed_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SPACE_CHECK_BYTES", 4)
    free = iter((10**12, 10**12, 0))
    sent_to = Uploads(tmp_path, lambda folder: next(free))
    with pytest.raises(DiskFull), sent_to.receive(f"sha256:{'0' * 64}") as upload:
        upload.write(b"12345")
        upload.write(b"67890")
    assert os.listdir(sent_to.folder) == []


def test_a_file_beyond_any_models_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 4)
    sent_to = Uploads(tmp_path)
    with pytest.raises(InvalidRequest):
        sent_to.receive(f"sha256:{'0' * 64}", 5)
    with pytest.raises(InvalidRequest), sent_to.receive(f"sha256:{'0' * 64}") as upload:
        upload.write(b"12345")


def test_what_nobody_took_for_a_week_is_forgotten(tmp_path: Path) -> None:
    sent_to = Uploads(tmp_path)
    old, new = send(sent_to, b"old"), send(sent_to, b"new")
    os.utime(sent_to.folder / old.replace(":", "-"), (0, 0))
    send(sent_to, b"newest")
    assert sent_to.find(old, ()) is None and sent_to.find(new, ()) is not None


def test_links_are_not_followed(tmp_path: Path) -> None:
    sent_to = Uploads(tmp_path)
    digest = send(sent_to, b"x")
    place = sent_to.folder / digest.replace(":", "-")
    place.unlink()
    place.symlink_to("/etc/passwd")
    assert sent_to.find(digest, ()) is None


def test_where_files_have_one_name_only_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    library = library_of(tmp_path / "home")
    content = tiny_gguf(tmp_path / "m.gguf").read_bytes()
    entry = library.create("mine", NOTHING, files={"m.gguf": send(library.uploads, content)})
    assert Path(entry.path).read_bytes() == content


def test_what_no_model_could_be_made_of_waits_for_another_try(tmp_path: Path) -> None:
    library = library_of(tmp_path / "home")
    digest = send(library.uploads, b"no model")
    for _ in range(2):
        with pytest.raises(BadModelFile):
            library.create("mine", NOTHING, files={"m.gguf": digest})
    assert library.has_upload(digest) and library.entries() == []


def test_models_that_share_a_file_keep_it_until_the_last_is_gone(tmp_path: Path) -> None:
    library = library_of(tmp_path / "home")
    content = tiny_gguf(tmp_path / "m.gguf").read_bytes()
    digest = send(library.uploads, content)
    for name in ("one", "two"):
        library.create(name, NOTHING, files={f"{name}.gguf": digest})
    assert os.stat(library.find("one").path).st_ino == os.stat(library.find("two").path).st_ino, "one file, two names"
    library.remove("one")
    assert library.has_upload(digest) and Path(library.find("two").path).read_bytes() == content
    library.remove("two")
    assert not library.has_upload(digest)
