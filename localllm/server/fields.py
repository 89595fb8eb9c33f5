"""The request bodies of the OpenAI API and our extras, field by field. What is not here is refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from localllm.errors import InvalidRequest
from localllm.wire import MAX_LOGPROBS

MAX_NEW_TOKENS = 10_000_000  # the longest context of any model people run
MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_PROMPTS = 512
MAX_PRIORITY = 2**31 - 1


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields that chat and plain completions share. None: not in the request."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # accepted, without effect on the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # extras
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    keep_alive: str | float | None = None
    backend: str | None = None
    device: str | None = None
    kv_type: str | None = None
    threads: int | None = None
    quantize: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    timings: bool | None = None


class ChatRequest(Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Common, kw_only=True):
    """`POST /v1/completions`. `prompt`: a string, strings, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


R = TypeVar("R", bound=Common)
Bound = tuple[str, int, int]
"""A field and the smallest and the largest value it may have. Sampling has its own, beside its parameters."""

BOUNDS: tuple[Bound, ...] = (
    ("n", 1, MAX_CHOICES),
    ("max_tokens", 0, MAX_NEW_TOKENS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("priority", -MAX_PRIORITY, MAX_PRIORITY),
)
CHAT_BOUNDS: tuple[Bound, ...] = (
    ("max_completion_tokens", 0, MAX_NEW_TOKENS),
    ("top_logprobs", 0, MAX_LOGPROBS),
)
COMPLETION_BOUNDS: tuple[Bound, ...] = (("logprobs", 0, MAX_LOGPROBS), ("best_of", 1, MAX_CHOICES))

_UNSUPPORTED: Mapping[str, str] = {
    "functions": "use `tools`",
    "function_call": "use `tools`",
    "audio": "this daemon answers in text",
    "prediction": "leave it out",
    "web_search_options": "this daemon does not search the web",
    "reasoning_effort": "leave it out",
    "verbosity": "leave it out",
}


def parse(body: dict[str, Any], kind: type[R], *, lenient: bool = False) -> tuple[R, list[str]]:
    """The request and, where unknown fields were let through, warnings about them. InvalidRequest names the field."""
    known = set(kind.__struct_fields__)
    unknown = [name for name in body if name not in known]
    if unknown and not lenient:
        raise _unknown(unknown[0])
    try:
        request = msgspec.convert({name: body[name] for name in body if name in known}, kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    _check(request)
    return request, [f"{name!r} is not supported and was ignored" for name in unknown]


def _unknown(name: str) -> InvalidRequest:
    hint = _UNSUPPORTED.get(name, "remove it, or send the header `Prefer: handling=lenient` to have it ignored")
    error = InvalidRequest(f"{name!r} is not supported here", hint=hint, param=name)
    error.code = "unsupported_parameter" if name in _UNSUPPORTED else "unknown_parameter"
    return error


def _wrong_type(text: str) -> InvalidRequest:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`"."""
    complaint, _, path = text.partition(" - at `$")
    field = path.strip("`.")
    if not field and "missing required field" in complaint:
        name = complaint.split("`")[-2]
        return InvalidRequest(f"{name} is required", param=name)
    sentence = complaint.replace("`", "").replace(" | null", "").replace(" | ", " or ")
    shown = field or "the request"
    error = InvalidRequest(f"{shown}: {sentence[0].lower()}{sentence[1:]}", param=field or None)
    error.code = "invalid_type"
    return error


def _check(request: Common) -> None:
    _within(request, BOUNDS)
    _check_stops(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only allowed with `stream`: true", param="stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", hint="send stream: false", param="prompt_logprobs")
    if len(request.cache_salt or "") > 256:
        raise InvalidRequest("cache_salt may have at most 256 characters", param="cache_salt")
    if isinstance(request, ChatRequest):
        _check_chat(request)
    elif isinstance(request, CompletionRequest):
        _check_completion(request)


def _check_stops(request: Common) -> None:
    stops = stop_strings(request.stop)
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise InvalidRequest(
            f"stop may hold at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", param="stop"
        )
    if len(request.stop_token_ids or []) > 64:
        raise InvalidRequest("stop_token_ids may hold at most 64 ids", param="stop_token_ids")


def _check_chat(request: ChatRequest) -> None:
    _within(request, CHAT_BOUNDS)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs `logprobs`: true", param="top_logprobs")
    if not 0 < len(request.messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", param="messages")
    if len(request.tools or []) > MAX_TOOLS:
        raise InvalidRequest(f"tools may hold at most {MAX_TOOLS} tools", param="tools")
    if not all(map(_is_function, request.tools or [])):
        raise InvalidRequest(
            "tools must hold functions with a name",
            hint='for example {"type": "function", "function": {"name": "f", "parameters": {}}}',
            param="tools",
        )
    if request.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice other than none and auto is not supported yet", param="tool_choice")
    if request.tools and request.parallel_tool_calls is False:
        raise InvalidRequest("parallel_tool_calls: false is not supported yet", param="parallel_tool_calls")
    if request.response_format is not None and request.response_format.get("type") != "text":
        raise InvalidRequest("response_format other than text is not supported yet", param="response_format")
    if request.modalities not in (None, ["text"]):
        raise InvalidRequest('modalities may only be ["text"]', param="modalities")


def _is_function(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return tool.get("type") == "function" and isinstance(name, str) and bool(name)


def _check_completion(request: CompletionRequest) -> None:
    _within(request, COMPLETION_BOUNDS)
    if request.suffix:
        raise InvalidRequest("suffix is not supported yet", hint="leave it out", param="suffix")
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise InvalidRequest("best_of must not be smaller than n", param="best_of")
    if request.stream and (request.best_of or 1) > (request.n or 1):
        raise InvalidRequest("best_of greater than n cannot be streamed", param="best_of")


def _within(request: Common, bounds: Iterable[Bound]) -> None:
    for name, low, high in bounds:
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """`stop` as OpenAI allows it, as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
