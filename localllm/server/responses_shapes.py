"""What `/v1/responses` takes and answers, as structs. Items and tools are objects here: their forms depend on their
types, which `responses_input` and `responses_tools` know. UNSET: the field may be missing."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from localllm.errors import InvalidRequest
from localllm.server.fields import MAX_NEW_TOKENS, Bound, Effort
from localllm.wire import MAX_LOGPROBS, MAX_SEED

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
INCLUDABLE = (
    LOGPROBS, ENCRYPTED, "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip
"""What `include` may name. There are no searches, images and programs here whose results could be included."""
MAX_METADATA = 16
RESPONSE_BOUNDS: tuple[Bound, ...] = (
    ("max_output_tokens", 1, MAX_NEW_TOKENS),
    ("max_tool_calls", 0, MAX_NEW_TOKENS),
    ("top_logprobs", 0, MAX_LOGPROBS),
    ("seed", -MAX_SEED - 1, MAX_SEED),
)

# ---- requests


class ReasoningOptions(msgspec.Struct):
    """With `summary` the reasoning, all of it, comes as the summary, else as content."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: str | None = None
    mode: str | None = None


class TextOptions(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseStreamOptions(msgspec.Struct):
    """Accepted; there is no obfuscation."""

    include_obfuscation: bool | None = None


class Asked(msgspec.Struct, kw_only=True):
    """Fields of what a model is to read, which can be counted, too."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def check(self) -> None:
        """InvalidRequest names the field that asks for what there is not."""
        if self.conversation is not None:
            hint = "use previous_response_id, or send all of it as `input`"
            raise _not_here("conversation", "conversations are not kept as such", hint)
        if self.truncation == "auto":
            raise _not_here("truncation", "nothing is cut here: truncation may only be disabled", "shorten the input")
        if self.input is None and self.previous_response_id is None:
            raise InvalidRequest("input is required", param="input")


class CountRequest(Asked, kw_only=True):
    """`POST /v1/responses/input_tokens`."""


class ResponseRequest(Asked, kw_only=True):
    """`POST /v1/responses`."""

    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    # accepted, without effect on the answer; `user` tells whose share is used
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    # extras
    stop: str | list[str] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    keep_alive: str | float | None = None
    priority: int | None = None
    timeout_s: float | None = None
    cache_salt: str | None = None

    def check(self) -> None:
        super().check()
        if self.background:
            raise _not_here("background", "responses do not run in the background", "leave it out, and stream")
        if self.prompt is not None:
            raise _not_here("prompt", "no prompts are kept here", "send the text as `instructions` and `input`")
        for name, low, high in RESPONSE_BOUNDS:
            _within(name, getattr(self, name), low, high)
        for number, name in enumerate(self.include or ()):
            if name not in INCLUDABLE:
                known = ", ".join(INCLUDABLE)
                raise InvalidRequest(f"include[{number}] must be one of {known}", param=f"include[{number}]")
        if len(self.metadata or ()) > MAX_METADATA:
            raise InvalidRequest(f"metadata may have at most {MAX_METADATA} keys", param="metadata")


def _within(name: str, value: int | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)


def _not_here(name: str, sentence: str, hint: str) -> InvalidRequest:
    error = InvalidRequest(f"{name}: {sentence}", hint=hint, param=name)
    error.code = "unsupported_parameter"
    return error


# ---- answers


class CachedInput(msgspec.Struct):
    """`cache_write_tokens` is always 0: nothing is charged for keeping a prompt."""

    cached_tokens: int
    cache_write_tokens: int = 0


class ReasonedOutput(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasonedOutput
    total_tokens: int


class ResponseFailure(msgspec.Struct):
    code: str
    message: str


class Incomplete(msgspec.Struct):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response. `output` holds messages, reasoning and calls in the order they came."""

    id: str
    object: Literal["response"]
    created_at: float
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    completed_at: float | None
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    warnings: list[str] | UnsetType = UNSET


class DeletedResponse(msgspec.Struct):
    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(msgspec.Struct):
    """`has_more`: ask again with `after` = `last_id`."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(msgspec.Struct):
    object: Literal["response.input_tokens"]
    input_tokens: int
