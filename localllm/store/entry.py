"""The plain records that the store hands out: an installed model, a step of a pull, the result of a check."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from localllm.quantize.receipt import Receipt

SourceKind = Literal["hub", "package", "url", "path", "ollama", "lmstudio", "huggingface"]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""What every reader of JSON can hold."""
Time = Annotated[float, msgspec.Meta(ge=0, lt=253_370_764_800)]
"""Seconds since the epoch, up to the year 9999: what a calendar has a date for, in every time zone."""
NEIGHBOURS: frozenset[str] = frozenset({"ollama", "lmstudio", "huggingface"})


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model. `stamp` is size, time and inode when its sha256 was last known to be right, "" if never."""

    path: str
    size_bytes: Count
    sha256: str = ""
    stamp: str = ""
    is_ours: bool = False  # we put it there: `rm` may take it away when nothing else of ours needs it


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is here. Small enough that a hundred of them are read in a few milliseconds.

    `path` is the first GGUF shard or the folder of a safetensors model; `digest` is 64 hex digits that change with the
    model's content or parameters; `params` holds default sampling and PARAMETER values under Ollama's names; `template`
    is a chat template that overrides the file's own, in the language of `template_kind`; `origin` says where an update
    would come from; `receipt` what was done when it was quantized here, and what it cost.
    """

    name: str
    path: str
    source: SourceKind
    files: tuple[ModelFile, ...] = ()
    digest: str = ""
    size_bytes: Count = 0
    modified: Time = 0.0
    architecture: str = ""
    parameters: str = ""
    quantization: str = ""
    context_length: Count = 0
    embedding_length: Count = 0
    capabilities: tuple[str, ...] = ()
    params: dict[str, Any] = {}
    template: str = ""
    template_kind: Literal["", "jinja", "go"] = ""
    system: str = ""
    license: str = ""
    messages: tuple[dict[str, str], ...] = ()
    adapters: tuple[str, ...] = ()
    projector: str = ""
    draft: str = ""
    parent: str = ""
    origin: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    receipt: Receipt | None = None

    @property
    def jinja_template(self) -> str | None:
        """The overriding template where it is one that can be rendered here."""
        return self.template if self.template_kind == "jinja" else None


class PullEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull says while it works. Sizes are bytes; `resumed_bytes` of `completed_bytes` were there before.
    `sha256` is what the file will have, "" where nobody knows; `partial` is where it grows until it is whole, "" for
    what does not come over the network, and for what cannot go on where it stopped."""

    kind: Literal["status", "progress", "done", "warning"]
    message: str = ""
    completed_bytes: int = 0
    total_bytes: int = 0
    resumed_bytes: int = 0
    file: str = ""
    sha256: str = ""
    partial: str = ""


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one file holds what it should; `message` says what is wrong, or that nothing is known to compare with."""

    name: str
    path: str
    is_good: bool
    message: str = ""
    size_bytes: int = 0


class UpdateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the source of an installed model has something newer. `message` says why nobody can tell."""

    name: str
    is_outdated: bool = False
    current: str = ""
    newest: str = ""
    message: str = ""


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """One model that could be pulled, from the catalog or the hub. `refusal` says why this build cannot run it."""

    name: str
    source: Literal["catalog", "hub"]
    architecture: str = ""
    parameters: str = ""
    context_length: int = 0
    size_bytes: int = 0
    license: str = ""
    capabilities: tuple[str, ...] = ()
    is_here: bool = False
    refusal: str = ""
