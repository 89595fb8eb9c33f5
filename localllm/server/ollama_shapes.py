"""What goes over the wire in Ollama's native API, as structs: requests are decoded into them, answers tested against.

UNSET: the field may be missing. Durations are whole nanoseconds, times RFC 3339.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

KeepAlive = str | float | None
Format = str | dict[str, Any] | None
Think = bool | str | None

# ---- requests


class OllamaOptions(msgspec.Struct, kw_only=True):
    """What may stand in `options` and changes an answer. `num_ctx` caps one request; nothing is loaded again for it.
    The other options of Ollama are accepted and named in the header of what had no effect."""

    num_ctx: int | None = None
    seed: int | None = None
    num_predict: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: list[str] | None = None


class OllamaFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any]
    index: int | UnsetType = UNSET


class OllamaCall(msgspec.Struct):
    function: OllamaFunction
    id: str | UnsetType = UNSET


class OllamaSentFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | str | None = None
    index: int | None = None
    description: str | None = None


class OllamaSentCall(msgspec.Struct):
    function: OllamaSentFunction
    id: str | None = None
    type: str | None = None


class OllamaMessage(msgspec.Struct):
    """One turn. Only an assistant's content may be missing."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaSentCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaAsked(msgspec.Struct, kw_only=True):
    """What generating and chatting share. `truncate` true drops the oldest messages that do not fit, and says so."""

    model: str = ""
    stream: bool | None = None
    format: Format = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive = None
    think: Think = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaGenerateRequest(OllamaAsked, kw_only=True):
    """`POST /api/generate`. Without a prompt the model is only loaded, or unloaded where `keep_alive` is 0."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class OllamaChatRequest(OllamaAsked, kw_only=True):
    """`POST /api/chat`. Without messages the model is only loaded, or unloaded where `keep_alive` is 0."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaEmbedRequest(msgspec.Struct, kw_only=True):
    """`truncate` true cuts texts that do not fit, and says so; without it they are refused."""

    model: str = ""
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive = None


class OllamaOldEmbedRequest(msgspec.Struct, kw_only=True):
    model: str = ""
    prompt: str | None = None
    options: OllamaOptions | None = None
    keep_alive: KeepAlive = None


class OllamaShowRequest(msgspec.Struct, kw_only=True):
    """`name` is the older word for `model`. `system` stands in for the model's own in what is shown."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None
    system: str | None = None
    options: OllamaOptions | None = None


class OllamaPullRequest(msgspec.Struct, kw_only=True):
    """`insecure` is accepted: names that are pulled here lead to encrypted places, and stay there."""

    model: str = ""
    name: str = ""
    insecure: bool | None = None
    stream: bool | None = None


class OllamaCreateMessage(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str


class OllamaCreateRequest(msgspec.Struct, kw_only=True):
    """`files` are names with the digests of blobs that were sent before: one GGUF file, its shards, or the files of a
    safetensors folder."""

    model: str = ""
    name: str = ""
    from_: str | None = msgspec.field(name="from", default=None)
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[OllamaCreateMessage] | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    quantize: str | None = None
    draft_quantize: str | None = None
    modelfile: str | None = None
    stream: bool | None = None


class OllamaCopyRequest(msgspec.Struct, kw_only=True):
    source: str = ""
    destination: str = ""


class OllamaDeleteRequest(msgspec.Struct, kw_only=True):
    model: str = ""
    name: str = ""


# ---- answers


class OllamaError(msgspec.Struct):
    """`error` is a sentence, in Ollama's words where it has some."""

    error: str


class OllamaVersion(msgspec.Struct):
    version: str


class OllamaDetails(msgspec.Struct):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int | UnsetType = UNSET
    embedding_length: int | UnsetType = UNSET


class OllamaListedModel(msgspec.Struct):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaTags(msgspec.Struct):
    models: list[OllamaListedModel]


class OllamaRunningModel(msgspec.Struct):
    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaRunning(msgspec.Struct):
    models: list[OllamaRunningModel]


class OllamaTensor(msgspec.Struct):
    name: str
    type: str
    shape: list[int]


class OllamaShown(msgspec.Struct):
    """Arrays of `model_info` with more than five items are null, and `tensors` missing, unless `verbose`."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str | UnsetType = UNSET
    system: str | UnsetType = UNSET
    messages: list[OllamaCreateMessage] | UnsetType = UNSET
    renderer: str | UnsetType = UNSET
    parser: str | UnsetType = UNSET
    requires: str | UnsetType = UNSET
    tensors: list[OllamaTensor] | UnsetType = UNSET


class OllamaStatus(msgspec.Struct):
    """`warnings`: what of a request has no effect, where the answer is no stream, whose lines say so."""

    status: str
    warnings: list[str] | UnsetType = UNSET


class OllamaTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class OllamaScored(OllamaTokenLogprob):
    top_logprobs: list[OllamaTokenLogprob]


class OllamaCounted(msgspec.Struct, kw_only=True):
    """What the last line, or the only one, has. Counts and durations that are 0 are left out. `truncated_messages`:
    how many of the oldest were dropped because the client asked for that."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_cached_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    truncated_messages: int | UnsetType = UNSET
    logprobs: list[OllamaScored] | UnsetType = UNSET


class OllamaGenerated(OllamaCounted, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class OllamaSaid(msgspec.Struct):
    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaChatted(OllamaCounted, kw_only=True):
    message: OllamaSaid


class OllamaEmbedded(msgspec.Struct):
    """`truncated_inputs`: numbers of the texts that were cut because the client asked for that."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    truncated_inputs: list[int] | UnsetType = UNSET


class OllamaOldEmbedded(msgspec.Struct):
    embedding: list[float]


NUMBERS: Mapping[str, type] = {
    "num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "num_thread": int, "draft_num_predict": int,
    "num_keep": int, "seed": int, "num_predict": int, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repeat_last_n": int, "temperature": float, "repeat_penalty": float, "presence_penalty": float,
    "frequency_penalty": float, "use_mmap": bool, "stop": list,
    # of older versions
    "tfs_z": float, "mirostat": int, "mirostat_tau": float, "mirostat_eta": float, "numa": bool, "low_vram": bool,
    "f16_kv": bool, "logits_all": bool, "vocab_only": bool, "use_mlock": bool, "penalize_newline": bool,
    "embedding_only": bool,
}  # fmt: skip
"""Ollama's options and their types."""
