"""What people type for a model, parsed once: name, hub repository, URL or path. Touches no disk and no network."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from localllm.errors import UsageError

MAX_REF_CHARS = 4096
MAX_PART_CHARS = 96  # the hub's own limit for a repository name
MAX_KEY_BYTES = 200  # a manifest is one file: its name stays below the 255 bytes of common file systems
HUB_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
MODEL_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_REPO_AND_FILE = re.compile(r"[^/:]+/[^/:]+:.+", re.DOTALL)
_HINT = "names look like smollm2:135m, hf.co/org/repo:Q4_K_M, org/repo, ./file.gguf or ./folder"


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed reference. `tag` is a name's tag, or a hub reference's quantization or file ("" when none was typed)."""

    kind: Literal["name", "hub", "url", "path"]
    target: str
    tag: str = ""

    @property
    def display(self) -> str:
        """The canonical form: shown to people, and stable under parsing again."""
        if self.kind == "name":
            return f"{self.target}:{self.tag or 'latest'}"
        if self.kind == "hub":
            return f"hf.co/{self.target}" + (f":{self.tag}" if self.tag else "")
        return self.target

    @property
    def key(self) -> str:
        """Equal for references that mean the same: case-insensitive, and fit to be a file name."""
        return self.display.lower().replace("/", "+").replace(":", "@")


def parse_ref(text: str) -> Ref:
    """`text` as typed to a Ref. UsageError, in one sentence, for anything that is no reference."""
    if not text or text.isspace():
        raise UsageError("the model name is empty", hint=_HINT)
    if len(text) > MAX_REF_CHARS:
        raise UsageError(f"a model name may have {MAX_REF_CHARS} characters, this one has {len(text)}")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text):
        raise UsageError("a model name must not contain control or invisible characters", hint=_HINT)
    text = text.strip()
    if looks_like_path(text):
        return Ref("path", _absolute(text))
    text = unicodedata.normalize("NFC", text)
    if "://" in text:
        return _parse_url(text)
    return _bounded(_parse_name(text))


def looks_like_path(text: str) -> bool:
    """Paths start with `/`, `./`, `../` or `~`, or end like a model file."""
    if text in (".", "..", "~") or text.startswith(("/", "./", "../", "~")):
        return True
    if "://" in text or text.lower().startswith(HUB_HOSTS) or _REPO_AND_FILE.fullmatch(text):
        return False
    return text.lower().endswith(MODEL_SUFFIXES)


def quantized_name(name: str, label: str) -> str:
    """What a model is called that is made of this one: `smollm2:135m-q4_k_m`; a hub's owner is no part of it."""
    base, _, tag = name.rpartition("/")[2].partition(":")
    return f"{base}:{tag}-{label.lower()}" if tag and tag != "latest" else f"{base}:{label.lower()}"


def suggestions(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names nearest to `name`, best first."""
    import difflib  # deferred: only a wrong name needs it

    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.75)
    if not found:  # `lama3` should meet `llama3.1:8b`: compare without tags too
        found = _near_families(name.lower().partition(":")[0], list(by_lower), limit)
    return [by_lower[match] for match in found]


def _near_families(family: str, names: list[str], limit: int) -> list[str]:
    import difflib  # deferred: only a wrong name needs it

    families = {name.partition(":")[0] for name in names}
    near = difflib.get_close_matches(family, families, n=1, cutoff=0.6)
    return [name for name in names if near and name.partition(":")[0] == near[0]][:limit]


def _absolute(text: str) -> str:
    # not Path.resolve(): links stay, a Hugging Face snapshot is a folder of links with the better names
    return os.path.abspath(os.path.expanduser(text))


def _parse_url(text: str) -> Ref:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{text!r} is no http or https address", hint=_HINT)
    if parts.username or parts.password:
        raise UsageError("an address must not carry a user name or a password", hint="set HF_TOKEN for the hub")
    if parts.hostname in HUB_HOSTS:
        return _bounded(_parse_hub_path(parts.path.strip("/")))
    return Ref("url", text)


def _parse_hub_path(path: str) -> Ref:
    """`org/repo`, `org/repo/resolve/REVISION/FILE` or `org/repo/blob/REVISION/FILE`."""
    pieces = path.split("/")
    if len(pieces) > 4 and pieces[2] in ("resolve", "blob"):
        file = "/".join(_part(piece, "file name") for piece in pieces[4:])
        return _hub(f"{pieces[0]}/{pieces[1]}:{file}")
    return _hub(path)


def _parse_name(text: str) -> Ref:
    host, slash, rest = text.partition("/")
    if slash and host.lower() in HUB_HOSTS:
        return _parse_hub_path(rest)
    if slash:
        return _hub(text)
    name, colon, tag = text.partition(":")
    return Ref("name", _part(name, "name").lower(), _part(tag, "tag").lower() if colon else "")


def _hub(text: str) -> Ref:
    repo, colon, quant = text.partition(":")
    pieces = repo.split("/")
    if len(pieces) != 2:
        raise UsageError(f"{text!r} is no repository: it takes one organisation and one name", hint=_HINT)
    org, name = _part(pieces[0], "organisation"), _part(pieces[1], "repository")
    tag = "/".join(_part(piece, "quantization tag") for piece in quant.split("/")) if colon else ""
    return Ref("hub", f"{org}/{name}", tag)


def _part(text: str, what: str) -> str:
    if not _PART.fullmatch(text) or ".." in text:
        raise UsageError(f"{text!r} is no valid {what}: use letters, digits, '.', '-' and '_'", hint=_HINT)
    if len(text) > MAX_PART_CHARS:
        raise UsageError(f"a {what} may have {MAX_PART_CHARS} characters, this one has {len(text)}")
    return text


def _bounded(ref: Ref) -> Ref:
    if len(ref.key.encode()) > MAX_KEY_BYTES:
        raise UsageError(f"the name {ref.display[:40]}… is too long", hint=_HINT)
    return ref
