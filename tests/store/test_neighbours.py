"""Models of other programs: an Ollama store, the Hugging Face cache, LM Studio's folder, each made by hand here."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from localllm.errors import StoreError
from localllm.store import neighbours
from localllm.store.library import Library
from tests.store.worlds import library_of, tiny_folder, tiny_gguf

IMAGE = "application/vnd.ollama.image."


class OllamaStore:
    """Writes manifests and blobs as Ollama does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def blob(self, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def add(self, name: str, model: bytes, host: str = "registry.ollama.ai", **layers: object) -> Path:
        config = {"model_family": "llama", "model_type": "1M", "file_type": "F32", "context_length": 128}
        texts = {kind: value if isinstance(value, str) else json.dumps(value) for kind, value in layers.items()}
        found = [{"mediaType": IMAGE + "model", **self.blob(model)}]
        found += [{"mediaType": IMAGE + kind, **self.blob(text.encode())} for kind, text in texts.items()]
        manifest = {"schemaVersion": 2, "config": self.blob(json.dumps(config).encode()), "layers": found}
        path = self.root / "manifests" / host / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        return path


@pytest.fixture
def ollama(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "ollama")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_of(
        tmp_path / "home", ollama_models=str(tmp_path / "ollama"), lmstudio_models=str(tmp_path / "studio")
    )


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "made.gguf").read_bytes()


def test_a_model_of_ollama_is_listed_and_found_in_place_with_its_settings(
    library: Library, ollama: OllamaStore, model: bytes
) -> None:
    ollama.add(
        "library/tiny/1m", model, params={"stop": ["<|end|>"], "num_ctx": 64}, template="{{ .Prompt }}", system="Hi."
    )
    entry = library.find("TINY:1m")
    assert [found.name for found in library.entries()] == ["tiny:1m"]
    assert (entry.source, entry.params["stop"], entry.template_kind) == ("ollama", ["<|end|>"], "go")
    assert (entry.system, entry.quantization, entry.architecture) == ("Hi.", "F32", "llama")
    assert Path(entry.path).parent == ollama.root / "blobs"
    assert [result.is_good for result in library.verify("tiny:1m")] == [True]
    with pytest.raises(StoreError, match="belongs to Ollama"):
        library.remove("tiny:1m")


def test_names_of_ollama_are_shown_as_ollama_shows_them(library: Library, ollama: OllamaStore, model: bytes) -> None:
    ollama.add("library/a/latest", model)
    ollama.add("user/b/1", model)
    ollama.add("org/c/q8_0", model, host="hf.co")
    assert sorted(entry.name for entry in library.entries()) == ["a:latest", "hf.co/org/c:q8_0", "user/b:1"]
    assert {library.find(name).source for name in ("a", "user/b:1", "hf.co/org/c:q8_0")} == {"ollama"}


DIGESTS = [
    "sha256:../../etc/passwd",
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 63,
    "sha256-" + "a" * 64,
    "",
    None,
    7,
    ["sha256"],
]


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_that_is_none_never_becomes_a_path(
    library: Library, ollama: OllamaStore, model: bytes, digest: object
) -> None:
    path = ollama.add("library/tiny/1m", model)
    manifest = json.loads(path.read_text())
    manifest["layers"][0]["digest"] = digest
    path.write_text(json.dumps(manifest))
    assert library.entries() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"layers": 3}', '{"layers": [1]}', "[" * 100_000, '{"layers": null, "config": []}']
)
def test_a_damaged_manifest_hides_only_itself(library: Library, ollama: OllamaStore, model: bytes, text: str) -> None:
    ollama.add("library/good/1m", model)
    ollama.add("library/bad/1m", model).write_text(text)
    assert [entry.name for entry in library.entries()] == ["good:1m"]


def test_hostile_fields_of_a_config_do_no_harm(library: Library, ollama: OllamaStore, model: bytes) -> None:
    path = ollama.add("library/tiny/1m", model, params=[1, 2], messages={"no": "list"})
    manifest = json.loads(path.read_text())
    config = {"model_family": 3, "context_length": "many", "capabilities": 5, "embedding_length": True}
    manifest["config"] = ollama.blob(json.dumps(config).encode())
    path.write_text(json.dumps(manifest))
    assert [(entry.params, entry.context_length) for entry in library.entries()] == [({}, 0)]


def cached(root: Path, repo: str, files: dict[str, bytes], commit: str = "abc123") -> Path:
    """A repository in a Hugging Face cache: blobs, links in a snapshot, refs/main."""
    folder = root / ("models--" + repo.replace("/", "--"))
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return folder


def test_models_of_the_hugging_face_cache_are_listed_by_repository_and_tag(
    library: Library, model: bytes, tmp_path: Path
) -> None:
    files = {"Tiny-F32.gguf": model, "sub/Tiny-F16.gguf": model + b"x", "mmproj-F16.gguf": b"no"}
    cached(tmp_path / "hf", "org/Tiny-GGUF", files)
    cached(tmp_path / "hf", "org/Folder", tiny_folder())
    names = sorted(entry.name for entry in library.entries())
    assert names == ["hf.co/org/Folder", "hf.co/org/Tiny-GGUF:F16", "hf.co/org/Tiny-GGUF:F32"]
    entry = library.find("org/tiny-gguf:f32")
    assert (entry.source, entry.architecture) == ("huggingface", "llama")
    assert library.find("org/Tiny-GGUF").path.endswith("sub/Tiny-F16.gguf")
    assert library.find("hf.co/org/Folder").architecture == "llama"


def test_an_unfinished_download_of_another_tool_is_not_listed(library: Library, model: bytes, tmp_path: Path) -> None:
    folder = cached(tmp_path / "hf", "org/Tiny-GGUF", {"Tiny-F32.gguf": model})
    next((folder / "blobs").iterdir()).unlink()
    assert library.entries() == []


def test_models_of_lm_studio_are_listed(library: Library, model: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "studio" / "publisher" / "Tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "Tiny-F32.gguf").write_bytes(model)
    assert [(entry.name, entry.source) for entry in library.entries()] == [("publisher/Tiny-GGUF:F32", "lmstudio")]
    copied = library.copy("publisher/Tiny-GGUF:F32", "mine")
    library.remove("mine")
    assert Path(copied.path).exists()


def test_the_listing_is_read_again_only_where_something_changed(
    library: Library, ollama: OllamaStore, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.settings.store_dir.mkdir(parents=True)
    ollama.add("library/a/1", model)
    cached(tmp_path / "hf", "org/Tiny-GGUF", {"Tiny-F32.gguf": model + b"1"})
    before = library.entries()
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "_json", lambda path: pytest.fail("a manifest was read again"))
        assert library.entries() == before
    ollama.add("library/b/1", model)
    assert len(library.entries()) == 3
    (library.settings.store_dir / "neighbours.json").write_text("[damaged")
    assert len(library.entries()) == 3


def test_a_model_of_ours_in_the_cache_is_listed_once(library: Library, model: bytes, tmp_path: Path) -> None:
    cached(tmp_path / "hf", "org/Tiny-GGUF", {"Tiny-F32.gguf": model})
    library.copy("org/Tiny-GGUF:F32", "mine")
    assert [entry.name for entry in library.entries()] == ["mine:latest"]
