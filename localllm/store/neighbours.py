"""Models that other programs keep on this machine: listed with their source, run in place, never copied or changed.

Their stores are untrusted input: digests and names are checked before they become paths, only regular files count.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from localllm.store.blobs import write_atomic
from localllm.store.entry import Entry, ModelFile
from localllm.store.hf_cache import hf_cache_dir, repo_name, snapshot_files
from localllm.store.manifests import digest_of
from localllm.store.modelfile import template_kind
from localllm.store.pick import candidates, pick_safetensors, tag_of

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,349}")
MAX_TEXT_BYTES = 4 << 20
_LAYER = "application/vnd.ollama.image."
_DEFAULT_HOST = "registry.ollama.ai"


class _Remembered(msgspec.Struct, frozen=True):
    """What one place held when its stamp was taken."""

    stamp: str
    entries: tuple[Entry, ...]


class ListingCache:
    """Entries by place, so that `list` need not read every neighbour again. Losing it costs only time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old = self._load()
        self._new: dict[str, _Remembered] = {}

    def entries(self, place: str, stamp: str, read: Callable[[], Iterable[Entry]]) -> tuple[Entry, ...]:
        known = self._old.get(place)
        if known is None or known.stamp != stamp:
            known = _Remembered(stamp, tuple(read()))
        self._new[place] = known
        return known.entries

    def save(self) -> None:
        if self._new != self._old and self._path.parent.is_dir():
            try:
                write_atomic(self._path, msgspec.json.encode(self._new))
            except OSError:  # a read-only store is no reason not to list
                return

    def _load(self) -> dict[str, _Remembered]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Remembered])
        except (OSError, msgspec.DecodeError):
            return {}


def neighbour_entries(cache: ListingCache, ollama: str, lmstudio: str, env: Mapping[str, str]) -> list[Entry]:
    """All models of the three neighbours. `ollama` and `lmstudio` name their folders; "" means the usual place."""
    found: list[Entry] = []
    for folder in ollama_folders(ollama):
        found += _ollama(folder, cache)
    found += _hugging_face(hf_cache_dir(env), cache)
    for folder in lmstudio_folders(lmstudio):
        found += _lmstudio(folder, cache)
    cache.save()
    return found


def ollama_folders(named: str) -> list[Path]:
    if named:
        return [Path(named).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def lmstudio_folders(named: str) -> list[Path]:
    if named:
        return [Path(named).expanduser()]
    return [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]


def _folders(path: Path) -> list[Path]:
    """The sub-folders whose names are harmless; none when it cannot be read."""
    try:
        with os.scandir(path) as items:
            return sorted(Path(item.path) for item in items if _NAME_PART.fullmatch(item.name) and item.is_dir())
    except OSError:
        return []


def _stamp(*paths: Path) -> str:
    stamps = []
    for path in paths:
        try:
            stamps.append(str(path.stat().st_mtime_ns))
        except OSError:
            stamps.append("-")
    return ".".join(stamps)


# Ollama


def _ollama(root: Path, cache: ListingCache) -> list[Entry]:
    found: list[Entry] = []
    for host in _folders(root / "manifests"):
        for namespace in _folders(host):
            for model in _folders(namespace):
                for tag in sorted(
                    path for path in model.iterdir() if _NAME_PART.fullmatch(path.name) and path.is_file()
                ):
                    found += cache.entries(str(tag), _stamp(tag), partial(_ollama_entry, root, tag))
    return found


def _ollama_entry(root: Path, manifest_path: Path) -> list[Entry]:
    """The entry of one manifest; none when it is damaged, remote, or its weights are not here."""
    manifest = _json_object(manifest_path)
    layers = [layer for layer in _items(manifest.get("layers")) if isinstance(layer, dict)]
    by_type = {str(layer.get("mediaType", "")).removeprefix(_LAYER): layer for layer in layers}
    blob = _blob(root, by_type.get("model"))
    if blob is None:
        return []
    config = _json_object(_blob(root, manifest.get("config")))
    projector = _blob(root, by_type.get("projector"))
    template = _blob_text(root, by_type.get("template"))
    params = _json_object(_blob(root, by_type.get("params")))
    messages = _json_list(_blob(root, by_type.get("messages")))
    info = manifest_path.stat()
    file = ModelFile(path=str(blob), size_bytes=blob.stat().st_size, sha256=blob.name.removeprefix("sha256-"))
    adapters = [_blob(root, layer) for layer in layers if layer.get("mediaType") == _LAYER + "adapter"]
    return [
        Entry(
            name=_ollama_name(manifest_path),
            path=str(blob),
            source="ollama",
            files=(file,),
            digest=hashlib.sha256(_bounded_bytes(manifest_path)).hexdigest(),  # the ID that Ollama shows
            size_bytes=sum(int(layer.get("size") or 0) for layer in layers if isinstance(layer.get("size"), int)),
            modified=info.st_mtime,
            architecture=str(config.get("model_family") or ""),
            parameters=str(config.get("model_type") or ""),
            quantization=str(config.get("file_type") or ""),
            context_length=_whole(config.get("context_length")),
            embedding_length=_whole(config.get("embedding_length")),
            capabilities=tuple(str(item) for item in _items(config.get("capabilities"))),
            params=params,
            template=template,
            template_kind=_kind(template),
            system=_blob_text(root, by_type.get("system")),
            license=_blob_text(root, by_type.get("license")),
            messages=tuple(message for message in map(_message, messages) if message),
            adapters=tuple(str(path) for path in adapters if path),
            projector=str(projector or ""),
        )
    ]


def _ollama_name(manifest_path: Path) -> str:
    host, namespace, model, tag = manifest_path.parts[-4:]
    if host != _DEFAULT_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def _blob(root: Path, layer: Any) -> Path | None:
    """The file of a layer. The digest comes from a foreign file: nothing but 64 hex digits may become a path."""
    digest = layer.get("digest") if isinstance(layer, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    path = root / "blobs" / digest.replace(":", "-")
    return path if path.is_file() else None


def _blob_text(root: Path, layer: Any) -> str:
    return _bounded_bytes(_blob(root, layer)).decode("utf-8", "replace")


def _bounded_bytes(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_TEXT_BYTES)
    except OSError:
        return b""


def _json_object(path: Path | None) -> dict[str, Any]:
    loaded = _json(path)
    return loaded if isinstance(loaded, dict) else {}


def _json_list(path: Path | None) -> list[Any]:
    return _items(_json(path))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(path: Path | None) -> Any:
    try:
        return json.loads(_bounded_bytes(path) or b"null")
    except (ValueError, RecursionError):
        return None


def _message(message: Any) -> dict[str, str] | None:
    if not isinstance(message, dict):
        return None
    return {"role": str(message.get("role", "user")), "content": str(message.get("content", ""))}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _kind(template: str) -> Literal["", "jinja", "go"]:
    found = template_kind(template)
    return "go" if found == "go" else "jinja" if found else ""


# the Hugging Face cache


def _hugging_face(cache_dir: Path, cache: ListingCache) -> list[Entry]:
    found: list[Entry] = []
    for folder in _folders(cache_dir):
        if repo := repo_name(folder):
            stamp = _stamp(
                folder / "refs" / "main", folder / "snapshots", folder / "blobs", *_folders(folder / "snapshots")
            )
            found += cache.entries(str(folder), stamp, partial(_cached_repo, folder, repo))
    return found


def _cached_repo(folder: Path, repo: str) -> list[Entry]:
    cached = snapshot_files(folder)
    return _models_in(*cached, f"hf.co/{repo}", "huggingface") if cached else []


def _models_in(root: Path, listing: list[str], name: str, source: Literal["huggingface", "lmstudio"]) -> list[Entry]:
    models = candidates(listing)
    found = [_gguf_entry(root, files, _tagged(name, files, models), source) for files in models]
    picked = pick_safetensors(listing)
    if picked is not None:
        files = _records(root, picked.files)
        found.append(_entry(name, str(root), files, source))
    return found


def _tagged(name: str, files: tuple[str, ...], models: list[tuple[str, ...]]) -> str:
    """`name:TAG`, or `name:FILE` where two files share a tag or it has none."""
    tag = tag_of(files[0])
    is_unique = sum(tag_of(other[0]) == tag for other in models) == 1
    return f"{name}:{tag}" if tag and is_unique else f"{name}:{files[0]}"


def _gguf_entry(root: Path, files: tuple[str, ...], name: str, source: Literal["huggingface", "lmstudio"]) -> Entry:
    return _entry(name, str(root / files[0]), _records(root, files), source, tag_of(files[0]))


def _entry(
    name: str, path: str, files: tuple[ModelFile, ...], source: Literal["huggingface", "lmstudio"], quant: str = ""
) -> Entry:
    entry = Entry(
        name=name,
        path=path,
        source=source,
        files=files,
        size_bytes=sum(file.size_bytes for file in files),
        modified=max((os.stat(file.path).st_mtime for file in files), default=0.0),
        quantization=quant,
    )
    return msgspec.structs.replace(entry, digest=digest_of(entry))


def _records(root: Path, files: tuple[str, ...]) -> tuple[ModelFile, ...]:
    return tuple(_record(root / name) for name in files)


def _record(path: Path) -> ModelFile:
    # a blob of the cache is named after its sha256 when it is a large file
    blob = os.path.basename(os.path.realpath(path))
    digest = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else ""
    return ModelFile(path=str(path), size_bytes=path.stat().st_size, sha256=digest)


# LM Studio


def _lmstudio(root: Path, cache: ListingCache) -> list[Entry]:
    found: list[Entry] = []
    for publisher in _folders(root):
        for folder in _folders(publisher):
            name = f"{publisher.name}/{folder.name}"
            found += cache.entries(str(folder), _stamp(folder), partial(_studio_repo, folder, name))
    return found


def _studio_repo(folder: Path, name: str) -> list[Entry]:
    listing = sorted(path.name for path in folder.iterdir() if path.is_file())
    return _models_in(folder, listing, name, "lmstudio")
