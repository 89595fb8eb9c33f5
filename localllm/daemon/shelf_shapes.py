"""What is said of models on the disk, in the catalog and on their way: between the daemon and its client.

Sizes are bytes, times seconds since the epoch; 0 and "" where nobody knows.
"""

from typing import Literal

import msgspec

Verdict = Literal["fits", "tight", "too large", "unknown"]
PullState = Literal["queued", "running", "paused", "checking", "done", "failed"]


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is here. `source` says who brought it, `is_ours` whether we may remove it; `used` is when it was
    last loaded, `tokens_per_s` how fast it last answered while nothing else ran. `path` only for those who manage
    models."""

    name: str
    digest: str = ""
    size_bytes: int = 0
    format: Literal["gguf", "safetensors"] = "gguf"
    quantization: str = ""
    architecture: str = ""
    parameters: str = ""
    context_length: int = 0
    modified: float = 0.0
    used: float = 0.0
    tokens_per_s: float = 0.0
    license: str = ""
    capabilities: tuple[str, ...] = ()
    source: str = ""
    is_ours: bool = False
    file: str = ""
    path: str = ""


class InstalledModels(msgspec.Struct, frozen=True, kw_only=True):
    """The newest first. `store_bytes` is what our own files take on the disk that has `disk_bytes`, of which
    `free_bytes` are free. `damaged`: a sentence for each model that cannot be read."""

    models: tuple[InstalledModel, ...] = ()
    store_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    damaged: tuple[str, ...] = ()


class CatalogQuant(msgspec.Struct, frozen=True, kw_only=True):
    """A quantization of a catalog entry; `model` is the name that asks for it, `size_bytes` about its size."""

    tag: str
    model: str = ""
    size_bytes: int = 0
    is_default: bool = False


class CatalogModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that could be pulled. `refusal` says why this build cannot run it; `repo` is where it comes from,
    `original` whose weights they are: where the terms are found of one that is `gated`."""

    name: str
    source: Literal["catalog", "hub"] = "catalog"
    architecture: str = ""
    parameters: str = ""
    context_length: int = 0
    size_bytes: int = 0
    license: str = ""
    gated: bool = False
    capabilities: tuple[str, ...] = ()
    quants: tuple[CatalogQuant, ...] = ()
    default_quant: str = ""
    repo: str = ""
    original: str = ""
    refusal: str = ""
    is_here: bool = False


class CatalogModels(msgspec.Struct, frozen=True, kw_only=True):
    """In the catalog's order; of a search then the hub's, by downloads. `notice` says why the hub was not asked."""

    models: tuple[CatalogModel, ...] = ()
    notice: str = ""


class ModelFit(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model has room on this machine. `tokens` of all chats together have room in `kv_bytes` of pages, each
    of `page_size` tokens and `page_bytes`; one chat of `context_length` tokens takes `context_bytes` of them, and
    `longest_chat` tokens of one have room; `work_bytes` is what computing takes besides the weights. All of it is to
    come from `room_bytes`, which are free or would be without the models in `unload`; the machine has `memory_bytes`.
    `is_estimate`: nobody has seen the file yet."""

    model: str
    verdict: Verdict = "unknown"
    sentence: str = ""
    is_estimate: bool = False
    is_loaded: bool = False
    weight_bytes: int = 0
    work_bytes: int = 0
    kv_bytes: int = 0
    page_bytes: int = 0
    page_size: int = 0
    tokens: int = 0
    context_bytes: int = 0
    longest_chat: int = 0
    num_layers: int = 0
    context_length: int = 0
    room_bytes: int = 0
    memory_bytes: int = 0
    unload: tuple[str, ...] = ()


class ModelFits(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of the names that were asked for."""

    fits: tuple[ModelFit, ...] = ()


class MetadataItem(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a model's metadata. `value` as text; `left_out` counts characters or items that it lacks."""

    key: str
    value: str = ""
    left_out: int = 0


class TensorItem(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    shape: tuple[int, ...] = ()
    type: str = ""
    size_bytes: int = 0


class InspectedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's own files say. `types`: bytes for each type of tensor, the largest first."""

    name: str
    format: str = ""
    quantization: str = ""
    metadata: tuple[MetadataItem, ...] = ()
    tensors: tuple[TensorItem, ...] = ()
    types: dict[str, int] = {}
    template: str = ""
    license: str = ""
    system: str = ""


class PullError(msgspec.Struct, frozen=True, kw_only=True):
    """`message` is a sentence, `hint` the next step."""

    message: str
    code: str = ""
    hint: str = ""


class PullJob(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its way. `total_bytes` is 0 until it is known; `said` is the last word of the work, `notices` what a
    person should know of it. `error` of one that failed. A quantization makes it of `source`, in the `type` named."""

    id: str
    model: str
    kind: Literal["pull", "quantize"] = "pull"
    source: str = ""
    type: str = ""
    state: PullState = "queued"
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0
    started: float = 0.0
    said: str = ""
    notices: tuple[str, ...] = ()
    error: PullError | None = None


class PullJobs(msgspec.Struct, frozen=True, kw_only=True):
    """In the order in which they were asked for."""

    pulls: tuple[PullJob, ...] = ()


class QuantizedSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a model would take in a type."""

    type: str
    size_bytes: int = 0
    bits_per_weight: float = 0.0


class QuantizedSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Types of fewer bits than the model has, the largest first. `refusal` says why it is not to be quantized."""

    model: str
    size_bytes: int = 0
    types: tuple[QuantizedSize, ...] = ()
    refusal: str = ""


class RemovedModel(msgspec.Struct, frozen=True, kw_only=True):
    """`freed_bytes` of the disk came free."""

    removed: str
    freed_bytes: int = 0
