"""What goes over the wire besides the two big requests, as structs: the source of the API description.

Answers are built as dictionaries where they arise; tests hold them against these. UNSET: the field may be missing.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

# ---- requests


class TextPart(msgspec.Struct):
    type: Literal["text", "refusal"]
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET


class CalledFunction(msgspec.Struct):
    """`arguments`: JSON in a string; in requests an object too."""

    name: str
    arguments: str | dict[str, Any] | UnsetType | None = UNSET


class ToolCall(msgspec.Struct):
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Message(msgspec.Struct):
    """One turn of the conversation. Only an assistant's content may be null or missing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET
    tool_call_id: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET


class LoadRequest(msgspec.Struct):
    """A model that is loaded with another backend, device, KV type, threads or quantization is loaded again."""

    model: str | UnsetType = UNSET
    keep_alive: str | float | UnsetType | None = UNSET
    backend: str | UnsetType | None = UNSET
    device: str | UnsetType | None = UNSET
    kv_type: str | UnsetType | None = UNSET
    threads: int | UnsetType | None = UNSET
    quantize: str | UnsetType | None = UNSET


class StopRequest(msgspec.Struct):
    model: str | UnsetType = UNSET


class TokenizeRequest(msgspec.Struct):
    """`prompt` as it is, or `messages` through the model's chat template."""

    model: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[Message] | UnsetType = UNSET
    add_special_tokens: bool | UnsetType = UNSET


# ---- errors


class ErrorObject(msgspec.Struct):
    """`message` is a sentence that ends with the hint in parentheses; `param` names the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str
    hint: str | UnsetType = UNSET
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    error: ErrorObject


# ---- answers


class CachedDetails(msgspec.Struct):
    """`continued_tokens`: of the prompt's tokens those that the answer goes on with."""

    cached_tokens: int
    continued_tokens: int | UnsetType = UNSET


class ReasonedDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails
    completion_tokens_details: ReasonedDetails | UnsetType = UNSET


class Timings(msgspec.Struct):
    """llama.cpp's names; milliseconds and tokens per second."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float
    load_ms: float
    queue_ms: float
    total_ms: float


class TokenLogprob(msgspec.Struct, kw_only=True):
    """`token_id` with `return_token_ids`."""

    token: str
    logprob: float
    bytes: list[int]
    token_id: int | UnsetType = UNSET


class ScoredToken(TokenLogprob, kw_only=True):
    """With `return_token_ids` also whether it is one of reasoning, and the entropy at its place in nats."""

    top_logprobs: list[TokenLogprob]
    reasoning: bool | UnsetType = UNSET
    entropy: float | UnsetType | None = UNSET


class ChatLogprobs(msgspec.Struct):
    content: list[ScoredToken]
    refusal: None


class RankedToken(msgspec.Struct):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, RankedToken] | None]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


class Answered(msgspec.Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: Answered
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatAnswer(msgspec.Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    truncated_prompt_tokens: int | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET


class TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextAnswer(msgspec.Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    timings: Timings | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    truncated_prompt_tokens: int | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET


class Model(msgspec.Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | UnsetType = UNSET
    parent: str | UnsetType = UNSET


class Models(msgspec.Struct):
    object: Literal["list"]
    data: list[Model]


class ModelState(msgspec.Struct):
    name: str
    state: str


class Health(msgspec.Struct):
    """`models` and `reason` only where the daemon asks for no API key."""

    status: Literal["ok", "degraded", "draining"]
    version: str
    instance: str
    uptime_s: float
    models: list[ModelState] | UnsetType = UNSET
    reason: str | UnsetType | None = UNSET


class Version(msgspec.Struct):
    version: str


class LoadProgress(msgspec.Struct):
    stage: str
    done_bytes: int
    total_bytes: int


class LoadedModel(msgspec.Struct):
    """Pages are of KV memory, `page_size` tokens each; `expires_at` is in seconds since the epoch, null: never."""

    name: str
    digest: str
    size_bytes: int
    processor: str
    backend: str
    kv_type: str
    quantize: str
    context_length: int
    expires_at: float | None
    state: str
    progress: LoadProgress | None
    pages_used: int
    pages_cached: int
    pages_total: int
    page_size: int
    running: int
    waiting: int
    tokens_per_s: float
    pid: int | UnsetType | None = UNSET
    device: str | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    load_s: float | UnsetType = UNSET
    vocab_size: int | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Eviction(msgspec.Struct):
    """A model that had to go for another. `at` is in seconds since the epoch."""

    name: str
    why: str
    at: float


class LoadedModels(msgspec.Struct):
    """What is loaded, and the last models that had to go, oldest first."""

    models: list[LoadedModel]
    evictions: list[Eviction]


class Stopped(msgspec.Struct):
    stopped: str
    was_loaded: bool


class Tokens(msgspec.Struct):
    tokens: list[int]
    count: int
    max_model_len: int


class ShuttingDown(msgspec.Struct):
    status: str
