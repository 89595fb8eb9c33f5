"""Files over HTTP: ranged, resumable, hashed on the way. Gives credentials to nobody but the address they are for."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from localllm.errors import BadModelFile, DownloadError, UsageError
from localllm.store.blobs import CHUNK_BYTES, PartialFile, bytes_to_come, check_space, gigabytes, stamp_of
from localllm.store.catalog import Source
from localllm.store.entry import ModelFile
from localllm.store.pick import UNSAFE_SUFFIXES, tag_of, types_of
from localllm.store.plan import Fetched, Plan, SourceUnavailable

MAX_TRIES = 5  # in a row without a single new byte
MAX_FILE_BYTES = 2 << 40
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PLAIN = {"Accept-Encoding": "identity", "User-Agent": "localllm"}
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Remote:
    """One file to fetch. `etag` names its version: bytes of another version are never joined. 0 bytes: unknown."""

    url: str
    label: str
    size_bytes: int = 0
    etag: str = ""
    sha256: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedByServer(DownloadError):
    """The server answered, and the answer is no. `status` is the HTTP status."""

    def __init__(self, url: str, status: int) -> None:
        host = urlsplit(url).hostname or ""
        super().__init__(f"{host} answers HTTP {status} to the download")
        self.status = status


def download(remote: Remote, target: Path, plan: Plan) -> str:
    """Fetches into `target` and returns the sha256. Goes on where a killed or cut download stopped."""
    with (
        PartialFile(
            target,
            total_bytes=remote.size_bytes,
            etag=remote.sha256 or remote.etag,
            origin=remote.url,
            label=remote.label,
        ) as partial,
        httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client,
    ):
        resumed = partial.written
        if resumed:
            plan.status(f"resuming {remote.label} after {gigabytes(resumed)}")
        _report(remote, partial, plan, resumed)
        _stream_until_whole(client, remote, partial, plan, resumed)
        return partial.commit(remote.sha256)


def _stream_until_whole(client: httpx.Client, remote: Remote, partial: PartialFile, plan: Plan, resumed: int) -> None:
    tries, furthest = 0, partial.written
    while not remote.size_bytes or partial.written < remote.size_bytes:
        before = partial.written
        try:
            _stream_once(client, remote, partial, plan, resumed)
            if not remote.size_bytes or partial.written == before:
                return
        except (httpx.HTTPError, _TransientAnswer) as error:
            _report(remote, partial, plan, resumed)
            # what is lost and fetched again is no progress, or a server without ranges could keep us for ever
            tries = 1 if partial.written > furthest else tries + 1
            furthest = max(furthest, partial.written)
            if tries >= MAX_TRIES:
                raise DownloadError(
                    f"the download of {remote.label} broke off: {error}", hint="pull again to go on"
                ) from None
            plan.status(f"the connection broke off ({error}); trying again")
            plan.pause(min(2.0**tries, 15.0))


class _TransientAnswer(Exception):
    """A status that may be another one in a moment."""


def _stream_once(client: httpx.Client, remote: Remote, partial: PartialFile, plan: Plan, resumed: int) -> None:
    headers = {**_PLAIN, **remote.headers, **_range_headers(remote, partial.written)}
    with client.stream("GET", remote.url, headers=headers) as response:
        _check_answer(response, remote, partial)
        reported = 0
        for chunk in response.iter_raw():  # as it arrives: what a cut finds in a buffer is lost
            partial.write(chunk)
            if partial.written - reported >= CHUNK_BYTES or partial.written == remote.size_bytes:
                reported = partial.written
                _report(remote, partial, plan, resumed)


def _report(remote: Remote, partial: PartialFile, plan: Plan, resumed: int) -> None:
    done = partial.written
    plan.progress(remote.label, done, remote.size_bytes, min(resumed, done), remote.sha256, str(partial.path))


def _range_headers(remote: Remote, start: int) -> dict[str, str]:
    if not start:
        return {}
    # a weak etag may not stand in If-Range; a pinned sha256 guards the join in any case
    guard = {"If-Range": remote.etag} if remote.etag.startswith('"') else {}
    return {"Range": f"bytes={start}-", **guard}


def _check_answer(response: httpx.Response, remote: Remote, partial: PartialFile) -> None:
    if response.status_code in _TRANSIENT:
        raise _TransientAnswer(f"HTTP {response.status_code}")
    if urlsplit(remote.url).scheme == "https" and response.url.scheme != "https":
        raise DownloadError(f"{remote.url} leads to an address without encryption")
    _refuse_something_else(response, remote)
    if response.status_code == 416 or (response.status_code == 206 and _start_of(response) != partial.written):
        partial.restart()
        raise _TransientAnswer("the server's file has changed")
    if response.status_code == 200:
        partial.restart()
    elif response.status_code != 206:
        raise RefusedByServer(remote.url, response.status_code)


def _refuse_something_else(response: httpx.Response, remote: Remote) -> None:
    """A network that wants a login answers with a page of its own, and mirrors keep old files: neither may take the
    place of what was fetched already."""
    if response.status_code not in (200, 206):
        return
    kind, size = response.headers.get("Content-Type", ""), _total_bytes(response)
    is_page = kind.startswith("text/html")
    if is_page or (remote.size_bytes and size and size != remote.size_bytes):
        found = "a web page" if is_page else f"a file of {size} bytes instead of {remote.size_bytes}"
        raise DownloadError(
            f"{response.url.host} sends {found} for {remote.label}",
            hint="see in a browser whether the network wants a login, then pull again: what was fetched is kept",
        )


def _start_of(response: httpx.Response) -> int:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def fetch_url_source(source: Source, plan: Plan) -> Fetched:
    """A GGUF file at a plain address. Sends no credentials at all."""
    name = file_name_of(source.url)
    try:
        remote, architecture = _look_at(source, name)
    except httpx.HTTPError as error:
        raise SourceUnavailable(f"{urlsplit(source.url).hostname} cannot be reached ({error})") from None
    tag = source.quant or tag_of(name)
    plan.refuse_unless_runnable(plan.architecture or architecture, types_of(tag))
    target = plan.files_dir / (source.sha256 or hashlib.sha256(source.url.encode()).hexdigest()) / name
    check_space(plan.files_dir, bytes_to_come(target, remote.size_bytes), plan.free)
    digest = download(remote, target, plan)
    size = target.stat().st_size
    file = ModelFile(path=str(target), size_bytes=size, sha256=digest, stamp=stamp_of(target), is_ours=True)
    return Fetched(source="url", path=target, files=(file,), quant=tag, origin={"url": source.url, "etag": remote.etag})


def file_name_of(url: str) -> str:
    """The last piece of a URL's path as a file name of ours; refused unless it is a plain .gguf name."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if name.lower().endswith(UNSAFE_SUFFIXES):
        raise BadModelFile(
            f"{name} is a checkpoint that can run code when opened", hint="look for a .gguf of the same model"
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+ -]{0,200}\.gguf", name, re.IGNORECASE):
        raise UsageError(f"{url} does not name a .gguf file", hint="give the address of the file itself")
    return name


def _look_at(source: Source, name: str) -> tuple[Remote, str]:
    """Size, version and architecture, from the first bytes of the file."""
    with (
        httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client,
        client.stream("GET", source.url, headers={**_PLAIN, "Range": "bytes=0-4095"}) as response,
    ):
        if response.status_code not in (200, 206):
            raise RefusedByServer(source.url, response.status_code)
        head = next(response.iter_raw(4096), b"")
    if head[:4] != b"GGUF":
        raise BadModelFile(f"{source.url} is no GGUF file", hint="give the address of the file itself, not of its page")
    size = _total_bytes(response)
    if size > MAX_FILE_BYTES:
        raise BadModelFile(f"{source.url} says it has {size} bytes: no model is as large as that")
    return Remote(source.url, name, size, response.headers.get("ETag", ""), source.sha256), architecture_in(head)


def _total_bytes(response: httpx.Response) -> int:
    """Of the whole file; 0: the answer does not say."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else 0
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else 0


def architecture_in(head: bytes) -> str:
    """`general.architecture` from the first bytes of a GGUF file, where writers put it; "" when it is not there."""
    key = b"general.architecture" + struct.pack("<I", 8)
    start = head.find(key) + len(key)
    if start < len(key) or start + 8 > len(head):
        return ""
    (length,) = struct.unpack_from("<Q", head, start)
    value = head[start + 8 : start + 8 + min(length, 64)]
    return value.decode("ascii", "replace") if value.isascii() else ""
