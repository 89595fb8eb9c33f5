"""Worlds for the store's tests: tiny model files, a hub on loopback, wheels in a folder, a home of their own."""

import dataclasses
import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gguf
import numpy as np
from safetensors.numpy import save

from localllm.settings import Settings, load_settings
from localllm.store.catalog import Catalog, CatalogEntry, Member, Source
from localllm.store.entry import PullEvent
from localllm.store.library import Library


def tiny_gguf(path: Path, *, kilobytes: int = 8, architecture: str = "llama", seed: int = 0) -> Path:
    """A sound GGUF file of about that size. Its weights mean nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_file_type(0)
    weights = np.random.default_rng(seed).standard_normal((kilobytes * 4, 64), dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_safetensors(*names: str, rows: int = 4) -> bytes:
    """A sound safetensors file with a matrix of 8 columns under each name."""
    weights = np.arange(rows * 8, dtype=np.float16).reshape(rows, 8)
    return save({name: weights + index for index, name in enumerate(names or ("model.embed_tokens.weight",))})


CONFIG = b'{"model_type": "llama", "hidden_size": 64, "max_position_embeddings": 256}'


def tiny_folder(**more: bytes) -> dict[str, bytes]:
    """The files of a model folder in one file of weights; `more` with `__` for dots."""
    files = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": tiny_safetensors()}
    return files | {name.replace("__", "."): content for name, content in more.items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def settings_of(home: Path, **changes: Any) -> Settings:
    """Settings of a home where no neighbour and no hub is found unless a test names them."""
    nowhere = {"ollama_models": str(home / "no-ollama"), "lmstudio_models": str(home / "no-lmstudio")}
    base = load_settings({"LOCALLLM_HOME": str(home)})
    return dataclasses.replace(base, **{"hub_endpoint": "http://127.0.0.1:9", **nowhere, **changes})


def catalog_of(*sources: Source, name: str = "tiny:1m", **fields: Any) -> Catalog:
    return Catalog((CatalogEntry(name=name, sources=sources, latest=True, **{"architecture": "llama", **fields}),))


@dataclass
class Listener:
    """Collects what a pull says."""

    events: list[PullEvent] = field(default_factory=list)

    def __call__(self, event: PullEvent) -> None:
        self.events.append(event)

    def said(self, kind: str) -> str:
        return "\n".join(event.message for event in self.events if event.kind == kind)

    @property
    def resumed_bytes(self) -> int:
        return max((event.resumed_bytes for event in self.events), default=0)


def library_of(home: Path, catalog: Catalog | None = None, **changes: Any) -> Library:
    options = {name: changes.pop(name) for name in ("can_run", "check_config", "free") if name in changes}
    return Library(settings_of(home, **changes), catalog=catalog or Catalog(()), pause=lambda seconds: None, **options)


def wheel_of(folder: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel that pip accepts, with `members` as its files."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **info}.items():
            archive.writestr(name, content)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def package_source(package: str, members: dict[str, bytes], **changes: Any) -> Source:
    pinned = tuple(Member(path=name, sha256=sha256(data), size_bytes=len(data)) for name, data in members.items())
    return Source(
        **{"kind": "package", "package": package, "version": "1.0", "members": pinned, "quant": "F32", **changes}
    )


@dataclass
class FakeHub:
    """What the hub on loopback holds and how it misbehaves. `requests` are (method, path, range, token)."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gguf: dict[str, dict[str, Any]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    served_wrong: dict[str, bytes] = field(default_factory=dict)  # file name to the bytes sent instead
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next downloads break off
    says_instead: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)  # file name, or "listing"
    redirect_to: str = ""
    extra_siblings: list[dict[str, Any]] = field(default_factory=list)
    license: str = "mit"
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    endpoint: str = ""

    def commit_of(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def ranges_of(self, suffix: str) -> list[str]:
        return [part for method, path, part, _ in self.requests if method == "GET" and path.endswith(suffix)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients that were killed hang up in the middle


@contextmanager
def fake_hub(**fields: Any) -> Iterator[FakeHub]:
    hub = FakeHub(**fields)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.hub.requests.append((self.command, path, headers.get("Range", ""), headers.get("Authorization", "")))
        if path == "/api/models":
            return self._send(200, json.dumps([{"id": repo} for repo in self.hub.repos]).encode(), has_body)
        if path.startswith("/api/models/"):
            return self._send_listing(path.removeprefix("/api/models/").partition("/revision/")[0], has_body)
        repo, _, rest = path.strip("/").partition("/resolve/")
        self._send_file(repo, rest.partition("/")[2], has_body)

    def _send(self, status: int, body: bytes, has_body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def _send_instead(self, name: str, has_body: bool) -> None:
        """What a mirror, or a network in between, says: status, body and type."""
        status, body, kind = self.hub.says_instead[name]
        self._send(status, body, has_body, Content_Type=kind, Location=self.path)

    def _send_listing(self, repo: str, has_body: bool) -> None:
        files = self.hub.repos.get(repo)
        if files is None:
            return self._send(404, b"{}", has_body, X_Error_Code="RepoNotFound")
        if "listing" in self.hub.says_instead:
            return self._send_instead("listing", has_body)
        siblings = [_sibling(name, content) for name, content in files.items()] + self.hub.extra_siblings
        listing = {
            "id": repo,
            "modelId": repo,
            "sha": self.hub.commit_of(repo),
            "siblings": siblings,
            "gguf": self.hub.gguf.get(repo),
        }
        listing["cardData"] = {"license": self.hub.license}
        self._send(200, json.dumps(listing).encode(), has_body)

    def _send_file(self, repo: str, name: str, has_body: bool) -> None:
        content = self.hub.repos.get(repo, {}).get(name)
        if repo in self.hub.gated:
            return self._send(403, b"", has_body, X_Error_Code="GatedRepo", X_Error_Message="gated")
        if content is None:
            return self._send(404, b"", has_body, X_Error_Code="EntryNotFound")
        if name in self.hub.says_instead and has_body:
            return self._send_instead(name, has_body)
        if self.hub.redirect_to and has_body:
            return self._send(302, b"", has_body, Location=self.hub.redirect_to + self.path)
        etag = f'"{sha256(content)}"'
        content = self.hub.served_wrong.get(name, content)
        start = _start_of(self.headers.get("Range", ""))
        headers = {
            "ETag": etag,
            "X_Linked_Etag": etag,
            "X_Repo_Commit": self.hub.commit_of(repo),
            "Accept_Ranges": "bytes",
        }
        headers["X_Linked_Size"] = str(len(content))
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if has_body and self.hub.cut_after:
            headers["Content_Length"] = str(len(body))
            body = body[: self.hub.cut_after.pop(0)]
            self.close_connection = True
        self._send(206 if start else 200, body, has_body, **headers)


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if name.endswith((".gguf", ".safetensors", ".bin")):
        found["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
    return found


def _start_of(header: str) -> int:
    return int(header.removeprefix("bytes=").partition("-")[0] or 0) if header else 0
