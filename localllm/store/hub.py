"""Models on the Hugging Face hub, kept in its own cache so that other tools share them.

Listing, names and links are huggingface_hub's; the bytes of large files come through `download`, because the library
starts a killed download from nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, DownloadError, LocalLLMError, ModelNotFound
from localllm.formats.safetensors import is_whole_set
from localllm.store.blobs import bytes_to_come, check_space, gigabytes, sha256_of, stamp_of, write_atomic
from localllm.store.catalog import Source
from localllm.store.download import RefusedByServer, Remote, download
from localllm.store.entry import ModelFile
from localllm.store.folder import check_tokenizer, named_shards, picked_in, read_config, with_weights
from localllm.store.hf_cache import hf_cache_dir, repo_dir, snapshot_files
from localllm.store.pick import (
    DEFAULT_TAGS,
    INDEX_NAME,
    Picked,
    available_tags,
    candidates,
    is_only_unsafe,
    pick,
    pick_any,
    pick_safetensors,
    types_of,
)
from localllm.store.plan import Fetched, Plan, SourceUnavailable

DEFAULT_ENDPOINT = "https://huggingface.co"
LARGEST_PLAIN_BYTES = 50 * 10**9  # the hub serves larger files through Xet only


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; `sha256` is "" for small ones, which the hub keeps in git."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at one commit, as listed."""

    name: str
    commit: str
    files: Mapping[str, HubFile]
    architecture: str
    license: str


def fetch_hub(source: Source, plan: Plan) -> Fetched:
    """The model from a repository. SourceUnavailable, within settings.hub_timeout_s, when the hub cannot be reached."""
    reason = unreachable(plan)
    if reason:
        cached = _from_cache(source, plan)
        if cached is not None:
            plan.status(f"Hugging Face hub cannot be reached ({reason}); using its cache on this machine")
            return cached
        raise SourceUnavailable(f"Hugging Face hub cannot be reached ({reason})")
    repo = list_repo(source.repo, plan)
    picked = choose(list(repo.files), source, plan, repo.architecture)
    return _download_all(repo, picked, plan)


def endpoint_of(plan: Plan) -> str:
    return (plan.settings.hub_endpoint or DEFAULT_ENDPOINT).rstrip("/")


def unreachable(plan: Plan) -> str:
    """Why the hub cannot be used, "" when it can. Takes hub_timeout_s at most, even where name resolution hangs."""
    if plan.settings.offline:
        return "offline is set"
    answer: list[str] = []
    # a thread, because getaddrinfo cannot be given a timeout; it is left behind when it hangs
    probe = threading.Thread(
        target=lambda: answer.append(_probe(endpoint_of(plan), plan.settings.hub_timeout_s)), daemon=True
    )
    probe.start()
    probe.join(plan.settings.hub_timeout_s)
    return answer[0] if answer else f"no answer within {plan.settings.hub_timeout_s:g} s"


def _probe(endpoint: str, timeout_s: float) -> str:
    import httpx  # deferred: a tenth of a second that only a pull should pay

    try:
        status = httpx.head(f"{endpoint}/robots.txt", timeout=timeout_s).status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return str(error) or type(error).__name__
    return f"HTTP {status}" if status >= 500 or status == 407 else ""


def list_repo(name: str, plan: Plan) -> Repo:
    """The repository's files at its newest commit. SourceUnavailable, with the reason, when it may not be seen."""
    with hub_errors(name, plan):
        import huggingface_hub  # deferred: half a second

        api = huggingface_hub.HfApi(endpoint=endpoint_of(plan), token=token())
        info = api.model_info(name, files_metadata=True, timeout=30.0)
    commit = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise SourceUnavailable(f"{endpoint_of(plan)} names no commit of {name}")
    files = {file.name: file for file in map(_hub_file, info.siblings or []) if _is_harmless(file.name)}
    return Repo(info.id or name, commit, files, _architecture(info), _license(info))


def token() -> str | bool:
    """The user's hub token for huggingface_hub, or False: never one it finds somewhere else."""
    import huggingface_hub  # deferred: half a second

    return huggingface_hub.get_token() or False


def _hub_file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    digest = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) or ""
    # the digest becomes a file name in the cache
    return HubFile(
        sibling.rfilename, max(0, sibling.size or 0), digest if re.fullmatch(r"[0-9a-f]{64}", digest) else ""
    )


def _is_harmless(name: str) -> bool:
    """Whether a name of a listing stays inside the snapshot it is put in."""
    return not name.startswith("/") and "\\" not in name and name.isprintable() and ".." not in name.split("/")


def _architecture(info: Any) -> str:
    """Of its GGUF files, as the hub read it; other formats have names of their own, in config.json."""
    gguf = getattr(info, "gguf", None) or {}
    return str(gguf.get("architecture") or "")


def _license(info: Any) -> str:
    card = getattr(info, "card_data", None)
    named = card.get("license") if card else None
    return named if isinstance(named, str) else ""


@contextlib.contextmanager
def hub_errors(repo: str, plan: Plan) -> Iterator[None]:
    """huggingface_hub raises its HTTP library's errors, another library in each major version: told apart here.
    Inside it tells the hub nothing of what else is installed or runs here."""
    try:
        from huggingface_hub import constants  # deferred: half a second; nobody else imports this part of it first

        constants.HF_HUB_DISABLE_TELEMETRY = True
        yield
    except LocalLLMError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a problem of this machine: its HTTP errors are OSErrors too, without a number
        names = {cls.__name__ for cls in type(error).__mro__}
        if "GatedRepoError" in names:
            raise SourceUnavailable(f"{repo} is gated", error=gated(repo)) from None
        if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"}:
            raise SourceUnavailable(f"the hub has no {repo}", error=_no_repo(repo, plan)) from None
        if _status_of(error) == 404:  # mirrors do not name their errors as the hub does
            raise SourceUnavailable(f"the hub has no {repo}", error=_no_repo(repo, plan)) from None
        raise SourceUnavailable(f"Hugging Face hub does not answer for {repo} ({_reason(error, plan)})") from None


def gated(repo: str) -> DownloadError:
    return DownloadError(
        f"{repo} is gated: its owner asks you to accept a licence first",
        hint=f"accept it at {DEFAULT_ENDPOINT}/{repo}, then set HF_TOKEN to a token from your settings there",
    )


def _no_repo(repo: str, plan: Plan) -> ModelNotFound:
    return ModelNotFound(
        f"the hub has no model {repo}, or it is private",
        hint=f"look for it with `localllm search {repo.rpartition('/')[2]}`; private ones need HF_TOKEN",
    )


def _status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception, plan: Plan) -> str:
    if status := _status_of(error):
        return f"HTTP {status}"
    if isinstance(error, (ValueError, TypeError, LookupError, AttributeError, RecursionError)):
        return f"what answers at {endpoint_of(plan)} is no hub: does the network want a login?"
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def choose(listing: list[str], source: Source, plan: Plan, architecture: str = "") -> Picked:
    """The files to fetch: the tag asked for, or the first in the order of preference that this build can run."""
    if not candidates(listing):
        return _choose_folder(listing, source, plan)
    architecture = plan.architecture or architecture
    plan.refuse_unless_runnable(architecture)
    if plan.quant:
        picked = pick(listing, [plan.quant], source.files.get(plan.quant, ""))
        if picked is None:
            tags = ", ".join(available_tags(listing)) or "no tagged file"
            missing = f"{source.repo} has no {plan.quant}; it has {tags}"
            raise SourceUnavailable(missing, error=ModelNotFound(missing, hint="name one of these after a colon"))
        plan.refuse_unless_runnable(architecture, types_of(picked.tag))
        return picked
    return _choose_default(listing, source, plan, architecture)


def _choose_default(listing: list[str], source: Source, plan: Plan, architecture: str) -> Picked:
    tags = list(dict.fromkeys((*plan.default_quants, *DEFAULT_TAGS)))
    found = [picked for tag in tags if (picked := pick(listing, [tag], source.files.get(tag, "")))]
    first = found[0] if found else pick_any(listing)
    if first is None:
        raise ModelNotFound(f"{source.repo} holds no model file")
    for picked in found or [first]:
        if plan.refusal(architecture, types_of(picked.tag)) is None:
            if picked.tag != first.tag:
                plan.warn(f"this build cannot run {first.tag}; taking {picked.tag}")
            return picked
    plan.refuse_unless_runnable(architecture, types_of(first.tag))
    return first


def _choose_folder(listing: list[str], source: Source, plan: Plan) -> Picked:
    picked = pick_safetensors(listing)
    if picked is not None and not plan.quant:
        return picked
    if picked is None and is_only_unsafe(listing):
        raise BadModelFile(
            f"{source.repo} holds only checkpoints that can run code when opened (.bin, .pt)",
            hint="look for the same model as .gguf or .safetensors",
        )
    raise ModelNotFound(f"{source.repo} holds no {plan.quant or 'model'} file", hint="see `localllm search`")


def _download_all(repo: Repo, picked: Picked, plan: Plan) -> Fetched:
    cache = hf_cache_dir(os.environ)
    is_folder = not picked.files[0].lower().endswith(".gguf")
    first: dict[str, ModelFile] = {}
    if is_folder:
        picked = _checked_folder(cache, repo, picked, plan, first)
    files = [repo.files[name] for name in picked.files]
    missing_bytes = sum(bytes_to_come(_blob(cache, repo, file), file.size_bytes) for file in files)
    check_space(cache, missing_bytes, plan.free, moved_by="HF_HOME")
    _announce(repo, files, plan)
    records = tuple(first.get(file.name) or _download_one(cache, repo, file, plan) for file in files)
    _remember_main(cache, repo)
    path = repo_dir(cache, repo.name) / "snapshots" / repo.commit if is_folder else Path(records[0].path)
    # updates are told by the bytes of the weights, which come last in a folder
    origin = {"repo": repo.name, "commit": repo.commit, "file": picked.files[-1 if is_folder else 0]}
    return Fetched(source="hub", path=path, files=records, quant=picked.tag, license=repo.license, origin=origin)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What a tokenizer is published as, the vocabulary first."""


def fetch_tokenizer(source: Source, plan: Plan) -> Fetched:
    """Only the tokenizer of a repository, in the hub's own cache. Errors as those of `fetch_hub`."""
    if reason := unreachable(plan):
        raise SourceUnavailable(f"Hugging Face hub cannot be reached ({reason})")
    repo = list_repo(source.repo, plan)
    if TOKENIZER_FILES[0] not in repo.files:
        missing = f"{source.repo} has no {TOKENIZER_FILES[0]}"
        raise SourceUnavailable(missing, error=ModelNotFound(missing))
    files = [repo.files[name] for name in TOKENIZER_FILES if name in repo.files]
    cache = hf_cache_dir(os.environ)
    check_space(cache, sum(file.size_bytes for file in files), plan.free, moved_by="HF_HOME")
    records = tuple(_download_one(cache, repo, file, plan) for file in files)
    origin = {"repo": repo.name, "commit": repo.commit, "file": TOKENIZER_FILES[0]}
    return Fetched(source="hub", path=Path(records[0].path).parent, files=records, license=repo.license, origin=origin)


def _announce(repo: Repo, files: list[HubFile], plan: Plan) -> None:
    """What will be downloaded, before it is."""
    total = gigabytes(sum(file.size_bytes for file in files))
    large = [file for file in files if file.name.lower().endswith((".gguf", ".safetensors"))]
    plan.status(f"pulling {total} from {repo.name} on the Hugging Face hub")
    if len(files) > 1:
        plan.status(", ".join(f"{file.name} ({gigabytes(file.size_bytes)})" for file in large))


def _checked_folder(cache: Path, repo: Repo, picked: Picked, plan: Plan, first: dict[str, ModelFile]) -> Picked:
    """The files of a model folder once its config.json says that it can be run; the index names the weights. What had
    to be downloaded to know that is put into `first`."""
    first["config.json"] = _download_one(cache, repo, repo.files["config.json"], plan)
    plan.refuse_config(read_config(Path(first["config.json"].path).parent))
    check_tokenizer(picked, repo.name)
    if INDEX_NAME in picked.files:
        first[INDEX_NAME] = _download_one(cache, repo, repo.files[INDEX_NAME], plan)
        return with_weights(picked, named_shards(Path(first[INDEX_NAME].path), repo.files))
    weights = [name for name in picked.files if name.endswith(".safetensors") and "/" not in name]
    if len(weights) > 1 and not is_whole_set(weights):
        raise BadModelFile(f"{repo.name} has several safetensors files, but no {INDEX_NAME} to say which are the model")
    return picked


def _blob(cache: Path, repo: Repo, file: HubFile) -> Path:
    return repo_dir(cache, repo.name) / "blobs" / (file.sha256 or "-")


def _download_one(cache: Path, repo: Repo, file: HubFile, plan: Plan) -> ModelFile:
    blob = _blob(cache, repo, file)
    was_there = blob.is_file()
    if was_there and not _is_whole(blob, file, plan):
        plan.warn(f"{file.name} in the Hugging Face cache is damaged; fetching it again")
        blob.unlink()
        was_there = False
    if file.sha256 and not was_there and file.size_bytes < LARGEST_PLAIN_BYTES:
        _download_blob(blob, repo, file, plan)
    pointer = _link(cache, repo, file, plan)
    return ModelFile(
        path=str(pointer),
        size_bytes=pointer.stat().st_size,
        sha256=file.sha256,
        stamp=stamp_of(pointer) if file.sha256 else "",
        is_ours=not was_there or os.path.realpath(blob) in plan.owned,
    )


def _is_whole(blob: Path, file: HubFile, plan: Plan) -> bool:
    plan.status(f"{file.name} is in the Hugging Face cache; verifying it")
    return blob.stat().st_size == file.size_bytes and sha256_of(blob) == file.sha256


def _download_blob(blob: Path, repo: Repo, file: HubFile, plan: Plan) -> None:
    import huggingface_hub  # deferred: half a second

    url = huggingface_hub.hf_hub_url(repo.name, file.name, revision=repo.commit, endpoint=endpoint_of(plan))
    secret = token()
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        download(Remote(url, file.name, file.size_bytes, sha256=file.sha256, headers=headers), blob, plan)
    except RefusedByServer as error:
        if error.status in (401, 403):
            raise SourceUnavailable(f"{repo.name} is gated", error=gated(repo.name)) from None
        raise SourceUnavailable(error.message) from None


def _link(cache: Path, repo: Repo, file: HubFile, plan: Plan) -> Path:
    """The file's place in the cache's snapshot; what is not in `blobs` yet (small files) is fetched on the way."""
    with hub_errors(repo.name, plan):
        import huggingface_hub  # deferred: half a second

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings are not ours to print
        return Path(
            huggingface_hub.hf_hub_download(
                repo.name, file.name, revision=repo.commit, cache_dir=cache, endpoint=endpoint_of(plan), token=token()
            )
        )


def _remember_main(cache: Path, repo: Repo) -> None:
    """Other tools look for `main` when they are offline."""
    ref = repo_dir(cache, repo.name) / "refs" / "main"
    if not ref.is_file() or ref.read_text() != repo.commit:
        write_atomic(ref, repo.commit.encode())


def _from_cache(source: Source, plan: Plan) -> Fetched | None:
    """What an earlier download of any tool left in the cache, if it is the right model and whole."""
    folder = snapshot_files(repo_dir(hf_cache_dir(os.environ), source.repo))
    if folder is None:
        return None
    root, listing = folder
    try:
        picked = choose(listing, source, plan)
        if not picked.files[0].lower().endswith(".gguf"):
            plan.refuse_config(read_config(root))
            check_tokenizer(picked, source.repo)
            picked = picked_in(root, listing) or picked
    except (ModelNotFound, BadModelFile, SourceUnavailable):
        return None
    files = tuple(ModelFile(path=str(root / name), size_bytes=(root / name).stat().st_size) for name in picked.files)
    path = root / picked.files[0] if picked.files[0].lower().endswith(".gguf") else root
    origin = {"repo": source.repo, "commit": root.name, "file": picked.files[0 if path != root else -1]}
    return Fetched(source="hub", path=path, files=files, quant=picked.tag, origin=origin)


def search_hub(query: str, plan: Plan, limit: int = 20) -> list[str]:
    """Names of GGUF repositories that match, most downloaded first; empty when the hub cannot be reached."""
    if reason := unreachable(plan):
        if not plan.settings.offline:
            plan.warn(f"Hugging Face hub cannot be reached ({reason}); only the catalog was searched")
        return []
    with hub_errors(query, plan):
        import huggingface_hub  # deferred: half a second

        api = huggingface_hub.HfApi(endpoint=endpoint_of(plan), token=token())
        return [model.id for model in api.list_models(search=query, filter="gguf", sort="downloads", limit=limit)]
