"""Repositories and folders of safetensors: what is taken, what is left, and what is refused before its weights come."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import BadModelFile, DownloadError, LocalLLMError, ModelNotFound, UnsupportedModel
from localllm.models.hf_facts import check_config
from localllm.store.library import Library
from localllm.store.pick import INDEX_NAME
from tests.store.worlds import (
    CONFIG,
    FakeHub,
    Listener,
    library_of,
    tiny_folder,
    tiny_gguf,
    tiny_safetensors,
)

REPO = "org/Tiny"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def library_at(tmp_path: Path, hub: FakeHub, **changes: Any) -> Library:
    return library_of(tmp_path / "home", hub_endpoint=hub.endpoint, check_config=check_config, **changes)


def sharded(weight_map: dict[str, str] | None = None) -> dict[str, bytes]:
    """Two shards and their index."""
    index = {"weight_map": weight_map or {"a": SHARDS[0], "b": SHARDS[1]}}
    return {
        "config.json": CONFIG,
        "tokenizer.model": b"pieces",
        "model.safetensors.index.json": json.dumps(index).encode(),
        SHARDS[0]: tiny_safetensors("a"),
        SHARDS[1]: tiny_safetensors("b"),
    }


def names_in(folder: str | Path) -> list[str]:
    root = Path(folder)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def fetched(hub: FakeHub) -> set[str]:
    return {path.rpartition("/resolve/")[2].partition("/")[2] for method, path, *_ in hub.requests if method == "GET"}


def test_the_model_comes_as_a_folder_without_pickles_and_other_layouts_of_its_weights(
    tmp_path: Path, hub: FakeHub, listener: Listener
) -> None:
    wanted = tiny_folder(chat_template__jinja=b"{{ tools }}", generation_config__json=b"{}")
    wanted["additional_chat_templates/rag.jinja"] = b"x"
    unwanted = (
        "pytorch_model.bin",
        "original/model.safetensors",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "a.md",
    )
    hub.repos[REPO] = wanted | dict.fromkeys(unwanted, b"no") | {"extra.safetensors": tiny_safetensors("x")}
    library = library_at(tmp_path, hub)
    entry = library.pull(REPO, listener)
    assert names_in(entry.path) == sorted(wanted)
    assert not fetched(hub) & {*unwanted, "extra.safetensors"}
    assert (entry.name, entry.architecture, entry.context_length) == (f"hf.co/{REPO}", "llama", 256)
    assert (entry.quantization, entry.capabilities) == ("F16", ("completion", "tools"))
    assert "model.safetensors (" in listener.said("status")
    assert library.find(REPO).path == entry.path and [one.name for one in library.entries()] == [entry.name]


def test_it_verifies_is_repaired_and_is_removed_like_any_other(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = sharded()
    library = library_at(tmp_path, hub)
    entry = library.pull(REPO)
    assert len(entry.files) == 5 and all(result.is_good for result in library.verify(REPO))
    blob = Path(os.path.realpath(Path(entry.path) / SHARDS[1]))
    sound = blob.read_bytes()
    blob.write_bytes(bytes(len(sound)))
    assert [Path(result.path).name for result in library.verify(REPO) if not result.is_good] == [SHARDS[1]]
    library.pull(REPO)
    assert (Path(entry.path) / SHARDS[1]).read_bytes() == sound
    library.remove(REPO)
    assert not Path(entry.path).exists() and library.entries() == []


def test_newer_weights_are_told_by_their_bytes_and_a_new_card_is_not_news(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = sharded()
    library = library_at(tmp_path, hub)
    library.pull(REPO)
    hub.repos[REPO]["README.md"] = b"# New"
    assert [check.is_outdated for check in library.outdated()] == [False]
    hub.repos[REPO][SHARDS[1]] = tiny_safetensors("b", rows=5)
    assert [check.is_outdated for check in library.outdated()] == [True]
    (updated,) = library.update(REPO)
    assert (Path(updated.path) / SHARDS[1]).read_bytes() == hub.repos[REPO][SHARDS[1]]


def test_the_index_says_which_weights_are_the_model(tmp_path: Path, hub: FakeHub) -> None:
    stray = "model-00001-of-00009.safetensors"
    hub.repos[REPO] = {**sharded(), stray: tiny_safetensors("c")}
    entry = library_at(tmp_path, hub).pull(REPO)
    assert stray not in names_in(entry.path) and set(SHARDS) <= set(names_in(entry.path))


@pytest.mark.parametrize(
    "name", ["../../evil.safetensors", "/etc/passwd", "sub/model.safetensors", "missing.safetensors", "config.json"]
)
def test_a_name_of_the_index_that_is_no_weight_file_of_the_repository_is_refused_before_any_weight(
    tmp_path: Path, hub: FakeHub, name: str
) -> None:
    hub.repos[REPO] = sharded({"a": SHARDS[0], "b": name})
    with pytest.raises(BadModelFile, match="no weight file beside it"):
        library_at(tmp_path, hub).pull(REPO)
    assert not any(one.endswith(".safetensors") for one in fetched(hub))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba9"}, "cannot run the architecture 'mamba9'"),
        ({"model_type": "odd", "auto_map": {"AutoModel": "code.Odd"}}, "code"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "aqlm"}}, "AQLM"),
    ],
)
def test_what_cannot_run_is_refused_by_its_config_before_any_weight(
    tmp_path: Path, hub: FakeHub, config: dict[str, Any], said: str
) -> None:
    hub.repos[REPO] = tiny_folder(config__json=json.dumps(config).encode())
    with pytest.raises(UnsupportedModel, match=said) as refused:
        library_at(tmp_path, hub).pull(REPO)
    assert "no weights were downloaded" in refused.value.hint
    assert "model.safetensors" not in fetched(hub)


def test_a_repository_without_a_tokenizer_is_refused_before_any_weight(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = {"config.json": CONFIG, "model.safetensors": tiny_safetensors()}
    with pytest.raises(UnsupportedModel, match="no tokenizer"):
        library_at(tmp_path, hub).pull(REPO)
    assert "model.safetensors" not in fetched(hub)


def test_weights_in_several_files_without_an_index_are_not_guessed_at(tmp_path: Path, hub: FakeHub) -> None:
    files = sharded()
    del files["model.safetensors.index.json"]
    files["one.safetensors"], files["other.safetensors"] = (files.pop(shard) for shard in SHARDS)
    hub.repos[REPO] = files
    with pytest.raises(BadModelFile, match="several safetensors files"):
        library_at(tmp_path, hub).pull(REPO)


def test_a_whole_set_of_shards_needs_no_index(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = {name: content for name, content in sharded().items() if "index" not in name}
    library_at(tmp_path, hub).pull(REPO)
    assert set(SHARDS) <= set(fetched(hub))


def test_a_repository_with_gguf_gives_that(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = tiny_folder() | {"Tiny-F32.gguf": tiny_gguf(tmp_path / "made.gguf").read_bytes()}
    assert library_at(tmp_path, hub).pull(REPO).path.endswith("Tiny-F32.gguf")


def test_wrong_bytes_of_a_shard_are_refused(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = sharded()
    hub.served_wrong[SHARDS[1]] = bytes(len(hub.repos[REPO][SHARDS[1]]))
    library = library_at(tmp_path, hub)
    with pytest.raises(DownloadError, match="does not verify"):
        library.pull(REPO)
    assert library.entries() == []


def test_what_another_tool_cached_is_used_when_the_hub_is_away(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = sharded()
    fetched_path = library_at(tmp_path, hub).pull(REPO).path
    away = library_of(tmp_path / "another", check_config=check_config)
    assert away.pull(REPO).path == fetched_path
    (Path(fetched_path) / "config.json").unlink()
    with pytest.raises(LocalLLMError):
        library_of(tmp_path / "third", check_config=check_config).pull(REPO)


# ---- folders on disk


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def test_a_folder_and_a_file_in_it_are_models(tmp_path: Path) -> None:
    library = library_of(tmp_path / "home")
    folder = folder_of(tmp_path / "model", tiny_folder())
    for path in (folder, folder / "model.safetensors"):
        entry = library.find(str(path))
        assert (entry.path, entry.architecture, entry.quantization) == (str(path), "llama", "F16")
        assert {Path(file.path).name for file in entry.files} == set(tiny_folder())


def test_in_a_folder_gguf_goes_before_safetensors_unless_the_file_is_named(tmp_path: Path) -> None:
    library = library_of(tmp_path / "home")
    folder = folder_of(tmp_path / "model", tiny_folder())
    tiny_gguf(folder / "Tiny-F32.gguf")
    assert library.find(str(folder)).path.endswith("Tiny-F32.gguf")
    assert library.find(str(folder / "model.safetensors")).path.endswith("model.safetensors")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": tiny_safetensors()}, "has no config.json"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"pickle"}, "can run code"),
        ({"config.json": CONFIG, "model.pth": b"pickle"}, "can run code"),
        ({"config.json": CONFIG, "model.safetensors": b"cut off"}, "header length is missing"),
        ({"config.json": CONFIG}, "holds no model"),
        (
            {"config.json": CONFIG, INDEX_NAME: b'{"weight_map": {"a": "../evil"}}'},
            "names '../evil', which is no weight",
        ),
        ({"config.json": CONFIG, INDEX_NAME: b'{"weight_map": {"a": "b.safetensors"}}'}, "names 'b.safetensors'"),
        ({"config.json": CONFIG, INDEX_NAME: b"{", "model-00001-of-00002.safetensors": b""}, "index.json is not valid"),
        ({"config.json": CONFIG, INDEX_NAME: b"{}", "model-00001-of-00002.safetensors": b""}, "weight_map is missing"),
    ],
)
def test_a_folder_that_is_no_model_says_what_is_wrong(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(BadModelFile, match=said):
        library_of(tmp_path / "home").find(str(folder_of(tmp_path / "model", files)))


def test_a_name_that_is_not_there_is_not_found(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound):
        library_at(tmp_path, hub).pull("org/other")
