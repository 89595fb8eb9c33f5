import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from localllm.errors import BadModelFile, InvalidRequest, ModelNotFound, StoreError, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_write import write_gguf
from localllm.store.blobs import sha256_of
from localllm.store.catalog import Source
from localllm.store.entry import Entry, ModelFile, PullEvent
from localllm.store.library import Library
from localllm.store.modelfile import parse_modelfile, render_modelfile
from localllm.store.names import parse_ref
from tests.store.worlds import Listener, catalog_of, library_of, tiny_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "models" / "Tiny-F32.gguf")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_of(tmp_path / "home", catalog_of(Source(kind="path", path="/nowhere"), name="known:1b"))


def installed(library: Library, name: str, file: Path, **fields: object) -> Entry:
    """A model of ours whose file lies in the store."""
    own = library.settings.store_dir / "files" / "ab" / file.name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(file.read_bytes())
    record = ModelFile(path=str(own), size_bytes=own.stat().st_size, is_ours=True)
    entry = Entry(name=name, path=str(own), source="url", files=(record,), modified=time.time(), **fields)  # type: ignore[arg-type]
    return library.manifests.put(parse_ref(name), entry)


def test_a_path_is_found_without_being_installed(library: Library, file: Path) -> None:
    entry = library.find(str(file))
    assert (entry.source, entry.path, entry.architecture, entry.context_length) == ("path", str(file), "llama", 128)
    assert library.find(str(file.parent)).path == str(file)
    assert library.entries() == []


def test_a_file_is_opened_again_only_after_a_change(
    library: Library, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library.find(str(file))
    with monkeypatch.context() as patch:
        patch.setattr("localllm.formats.gguf_read.GGUFFile.open", lambda path: pytest.fail("it did not change"))
        assert library.find(str(file)) == first
    tiny_gguf(file, architecture="qwen3", seed=1)
    second = library.find(str(file))
    assert second.architecture == "qwen3" and second.digest != first.digest
    file.unlink()
    with pytest.raises(ModelNotFound):
        library.find(str(file))


def test_paths_that_are_no_model_say_what_they_are(library: Library, tmp_path: Path, file: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        library.find(str(tmp_path / "none.gguf"))
    (tmp_path / "x.bin").write_bytes(b"pickle")
    with pytest.raises(BadModelFile, match="can run code"):
        library.find(str(tmp_path / "x.bin"))
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadModelFile):
        library.find(str(tmp_path / "cut.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModelFile, match="no model"):
        library.find(str(tmp_path / "empty"))


def test_what_is_not_here_is_answered_with_how_to_get_it(library: Library) -> None:
    with pytest.raises(ModelNotFound) as known:
        library.find("known:1b")
    assert "localllm pull known:1b" in known.value.hint
    with pytest.raises(ModelNotFound) as near:
        library.find("knwon:1b")
    assert "known:1b" in near.value.hint
    with pytest.raises(ModelNotFound) as hub:
        library.find("org/repo")
    assert "localllm pull hf.co/org/repo" in hub.value.hint


def test_a_copy_shares_its_files_until_the_last_name_is_gone(library: Library, file: Path) -> None:
    entry = installed(library, "a:1", file)
    copy = library.copy("a:1", "B:2")
    assert (copy.name, copy.digest, copy.path) == ("b:2", entry.digest, entry.path)
    library.remove("a:1")
    assert [found.name for found in library.entries()] == ["b:2"]
    assert Path(entry.path).exists()
    library.remove("b:2")
    assert not Path(entry.path).parent.exists()


def test_removing_never_touches_a_file_we_did_not_bring(library: Library, file: Path) -> None:
    library.create("mine", parse_modelfile(f"FROM {file}"))
    library.remove("mine")
    assert file.exists()
    with pytest.raises(ModelNotFound):
        library.remove("mine")
    with pytest.raises(UsageError, match="is a file"):
        library.remove(str(file))


def test_a_damaged_manifest_is_named_and_hides_nothing(library: Library, file: Path) -> None:
    installed(library, "good:1", file)
    own = installed(library, "bad:1", file)
    path = library.manifests.path_of(parse_ref("bad:1"))
    path.write_bytes(path.read_bytes()[:50])
    assert [entry.name for entry in library.entries()] == ["good:1"]
    assert [str(path) in error.message for error in library.damaged()] == [True]
    with pytest.raises(StoreError, match="is damaged"):
        library.find("bad:1")
    library.remove("bad:1")
    assert library.damaged() == []
    assert Path(own.path).exists()


def test_a_manifest_of_a_later_version_is_refused(library: Library, file: Path) -> None:
    installed(library, "a:1", file)
    path = library.manifests.path_of(parse_ref("a:1"))
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(StoreError, match="version 9"):
        library.find("a:1")


def test_a_home_can_be_moved(library: Library, file: Path, tmp_path: Path) -> None:
    installed(library, "a:1", file)
    library.settings.home.rename(tmp_path / "moved")
    entry = library_of(tmp_path / "moved").find("a:1")
    assert entry.path.startswith(str(tmp_path / "moved"))
    assert Path(entry.path).exists()


def test_a_model_whose_file_is_gone_says_how_to_get_it_again(library: Library, file: Path) -> None:
    Path(installed(library, "known:1b", file, origin={"url": "http://example.com/x.gguf"}).path).unlink()
    with pytest.raises(ModelNotFound, match="is gone") as raised:
        library.find("known:1b")
    assert raised.value.hint == "fetch it again with: localllm pull known:1b"


def test_verify_finds_a_flipped_bit_a_missing_file_and_a_cut_one(library: Library, file: Path) -> None:
    entry = installed(library, "a:1", file)
    path, content = Path(entry.path), file.read_bytes()
    record = msgspec.structs.replace(entry.files[0], sha256=sha256_of(path))
    library.manifests.put(parse_ref("a:1"), msgspec.structs.replace(entry, files=(record,)))
    assert [result.is_good for result in library.verify()] == [True]
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "has the sha256" in library.verify()[0].message
    path.write_bytes(content[:-1])
    assert "has" in library.verify()[0].message
    path.unlink()
    assert library.verify()[0].message == "is missing"


def test_create_takes_weights_in_place_and_keeps_what_the_modelfile_says(
    library: Library, file: Path, listener: Listener
) -> None:
    text = f"FROM ./{file.name}\nPARAMETER temperature 0.3\nSYSTEM Be brief.\nTEMPLATE {{{{ .Prompt }}}}\n"
    entry = library.create("mine:v1", parse_modelfile(text), file.parent, listener)
    assert (entry.path, entry.source, entry.params, entry.system) == (
        str(file),
        "path",
        {"temperature": 0.3},
        "Be brief.",
    )
    assert entry.template_kind == "go"
    assert "Go language" in listener.said("warning")
    again = library.create("mine:v2", parse_modelfile("FROM mine:v1\nPARAMETER top_k 5"))
    assert again.params == {"temperature": 0.3, "top_k": 5}
    assert (again.system, again.parent) == ("Be brief.", "mine:v1")
    third = library.create("mine:v3", parse_modelfile(render_modelfile(again)))
    assert (third.params, third.system, third.template) == (again.params, again.system, again.template)


def test_create_says_what_is_wrong_with_its_parts(library: Library, file: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.bin").write_bytes(b"pickle")
    for text, error in [
        (f"FROM {file}\nADAPTER {tmp_path}/none.gguf", ModelNotFound),
        (f"FROM {file}\nADAPTER {tmp_path}/adapter.bin", BadModelFile),
        (f"FROM {tmp_path}/none.gguf", ModelNotFound),
        ("FROM nothing:here", ModelNotFound),
    ]:
        with pytest.raises(error):
            library.create("mine", parse_modelfile(text))
    with pytest.raises(UsageError, match="cannot be a new name"):
        library.copy(str(file), "org/repo")


def test_create_says_what_will_have_no_effect(library: Library, file: Path) -> None:
    listener = Listener()
    kept = "PARAMETER num_gpu 8\nDRAFT tiny:1m\nREQUIRES 0.14.0\nRENDERER qwen3\nPARSER qwen3"
    text = f"FROM {file}\nPARAMETER num_ctx 512\n{kept}"
    entry = library.create("mine", parse_modelfile(text), progress=listener)
    for word in ("num_gpu", "DRAFT", "REQUIRES", "RENDERER", "PARSER"):
        assert f"{word} is kept but has no effect" in listener.said("warning")
    assert entry.params == {"num_ctx": 512, "num_gpu": 8}


def test_a_template_of_its_own_says_what_a_model_is_able_to_do(library: Library, file: Path) -> None:
    plain = library.create("plain", parse_modelfile(f"FROM {file}"))
    caller = library.create("caller", parse_modelfile('FROM plain\nTEMPLATE """{% for tool in tools %}{% endfor %}"""'))
    heir = library.create(
        "heir", parse_modelfile("FROM caller\nPARAMETER typical_p 0.5"), progress=(heard := Listener())
    )
    assert plain.capabilities == ("completion",)
    assert caller.capabilities == heir.capabilities == ("completion", "tools")
    assert "typical_p" not in heard.said("warning")


@pytest.mark.parametrize("line", ["PARAMETER temperature 200", "PARAMETER repeat_penalty 0", "PARAMETER top_p 3"])
def test_create_refuses_what_no_answer_could_use(library: Library, file: Path, line: str) -> None:
    with pytest.raises(InvalidRequest, match="must be between"):
        library.create("mine", parse_modelfile(f"FROM {file}\n{line}"))
    assert library.entries() == []


def test_an_adapter_comes_with_the_model_and_makes_it_another(library: Library, file: Path, tmp_path: Path) -> None:
    pair = (("blk.0.attn_q.weight.lora_a", (2, 32)), ("blk.0.attn_q.weight.lora_b", (32, 2)))
    raw = np.ones(64, np.float32).view(np.uint8)
    said: dict[str, Any] = {"general.type": "adapter", "general.architecture": "llama"}
    said |= {"adapter.type": "lora", "adapter.lora.alpha": 4.0}
    write_gguf(tmp_path / "lora.gguf", said, [(name, shape, BlockType.F32, raw) for name, shape in pair])
    plain = library.create("plain", parse_modelfile(f"FROM {file}"))
    mine = library.create("mine", parse_modelfile(f"FROM {file}\nADAPTER ./lora.gguf"), tmp_path)
    assert mine.adapters == (str(tmp_path / "lora.gguf"),)
    assert mine.digest != plain.digest
    assert library.create("again", parse_modelfile("FROM mine")).adapters == mine.adapters
    assert f"ADAPTER {tmp_path}/lora.gguf" in render_modelfile(mine)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("ADAPTER ./model.gguf", BadModelFile),
        ("ADAPTER ./empty", BadModelFile),
        ("ADAPTER ./nothing.gguf", ModelNotFound),
        ("ADAPTER ./ia3", UnsupportedModel),
    ],
)
def test_what_is_no_adapter_is_refused_rather_than_left_out(
    library: Library, file: Path, tmp_path: Path, lines: str, error: type[Exception]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "ia3").mkdir()
    (tmp_path / "ia3" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    shutil.copy(file, tmp_path / "model.gguf")
    with pytest.raises(error):
        library.create("mine", parse_modelfile(f"FROM {file}\n{lines}"), tmp_path)
    assert library.entries() == []


def test_a_name_is_not_taken_from_a_download_that_nothing_else_holds(library: Library, file: Path) -> None:
    pulled = installed(library, "pulled:1b", file)
    library.create("mine", parse_modelfile(f"FROM {file}"))
    with pytest.raises(StoreError, match="a download of its own"):
        library.copy("mine", "pulled:1b")
    with pytest.raises(StoreError, match="a download of its own"):
        library.create("pulled:1b", parse_modelfile(f"FROM {file}"))
    assert library.find("pulled:1b").path == pulled.path
    library.create("pulled:1b", parse_modelfile("FROM pulled:1b\nSYSTEM Be brief."))  # its own weights: nothing is lost
    library.copy("pulled:1b", "other")
    library.copy("mine", "pulled:1b")  # `other` holds them now
    assert Path(pulled.path).is_file()


def test_a_name_of_ones_own_is_not_updated(library: Library, file: Path) -> None:
    installed(library, "base:1b", file, origin={"repo": "org/repo", "commit": "0", "file": "x.gguf"})
    library.create("mine", parse_modelfile("FROM base:1b"))
    assert library.outdated() == [] and library.update() == []
    with pytest.raises(UsageError, match="was made from base:1b"):
        library.update("mine")


def test_listing_loads_none_of_the_slow_libraries(library: Library, file: Path) -> None:
    installed(library, "a:1", file)
    script = (
        "import sys\nfrom localllm.settings import load_settings\nfrom localllm.store.library import Library\n"
        "print(len(Library(load_settings()).entries()) > 0)\n"
        "print(sorted({'numpy', 'httpx', 'huggingface_hub', 'tokenizers', 'torch', 'subprocess'} & set(sys.modules)))"
    )
    environment = {**os.environ, "LOCALLLM_HOME": str(library.settings.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines() == ["True", "[]"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modified": 1e308}, "modified"),
        ({"modified": -1e18}, "modified"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"context_length": 10**30}, "context_length"),
        ({"path": ""}, "no path"),
        ({"path": "a\0b"}, "no path"),
        ({"path": "../../etc/passwd"}, "leads out of the store"),
        ({"files": [{"path": "files/../../../etc/passwd", "size_bytes": 1, "is_ours": True}]}, "leads out"),
        ({"messages": [{"role": "user"}]}, "message"),
        ({"name": "\x1b[31m"}, "no name"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_manifest_that_no_calendar_or_disk_could_hold_is_damaged(
    library: Library, file: Path, change: dict[str, Any], said: str
) -> None:
    installed(library, "good", file)
    installed(library, "odd", file)
    path = library.manifests.path_of(parse_ref("odd"))
    told = msgspec.json.decode(path.read_bytes())
    told["entry"] |= change
    path.write_bytes(msgspec.json.encode(told))
    assert [entry.name for entry in library.entries()] == ["good"]
    (error,) = library.damaged()
    assert said in error.message and str(path) in error.message and "localllm rm" in error.hint
    library.remove("odd")
    assert library.damaged() == []


def test_what_is_no_file_among_the_manifests_hides_no_other(library: Library, file: Path) -> None:
    installed(library, "good", file)
    folder = library.manifests.folder
    (folder / "a.json").mkdir()
    os.mkfifo(folder / "b.json")
    (folder / "c.json").symlink_to("/dev/zero")
    (folder / "d.json").symlink_to("d.json")
    (folder / "e.json").symlink_to("gone")
    assert [entry.name for entry in library.entries()] == ["good"]
    assert len(library.damaged()) == 4
    for error in library.damaged():
        assert str(folder) in error.message and error.hint


def test_a_store_that_cannot_be_written_can_be_verified(
    library: Library, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = installed(library, "mine", file)
    record = msgspec.structs.replace(entry.files[0], sha256=sha256_of(file))
    library.manifests.put(parse_ref("mine"), msgspec.structs.replace(entry, files=(record,)))

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("localllm.store.manifests.write_atomic", refuse)
    assert [result.is_good for result in library.verify("mine")] == [True]


@pytest.mark.parametrize("parent", ["", "/home/me/model.gguf", "./model.gguf"])
def test_what_cannot_be_fetched_again_is_not_said_to_be(library: Library, file: Path, parent: str) -> None:
    made = installed(library, "made", file, parent=parent)
    Path(made.path).unlink()
    with pytest.raises(ModelNotFound, match="is gone") as caught:
        library.find("made")
    assert "pull" not in caught.value.hint and "localllm rm made" in caught.value.hint
    said: list[PullEvent] = []
    with pytest.raises(StoreError, match=r"of made is missing or damaged, and there is nowhere to fetch it from") as e:
        library.pull("made", said.append)
    assert "localllm rm made" in e.value.hint
    assert not any("fetching" in event.message for event in said)


def test_a_model_is_removed_also_where_its_file_was_taken_by_a_folder(library: Library, file: Path) -> None:
    made = installed(library, "made", file)
    Path(made.path).unlink()
    Path(made.path).mkdir()
    library.remove("made")
    assert library.entries() == [] and Path(made.path).is_dir()


def test_a_file_that_cannot_be_deleted_is_named(library: Library, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = installed(library, "made", file)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("localllm.store.removal.Path.unlink", refuse)
        patch.setattr(library.manifests, "delete", lambda ref: os.unlink(library.manifests.path_of(ref)))
        with pytest.raises(StoreError, match="is forgotten, but") as caught:
            library.remove("made")
    assert made.path in caught.value.message and library.entries() == []
