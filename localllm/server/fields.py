"""The request bodies of the OpenAI API and our extras, field by field. What is not here is refused by name."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from localllm.daemon.keepalive import keep_alive_seconds
from localllm.daemon.loras import check_lora
from localllm.errors import InvalidRequest
from localllm.server import unknowns
from localllm.server.chat_checks import check_chat
from localllm.wire import MAX_LOGPROBS

MAX_NEW_TOKENS = 10_000_000  # the longest context of any model people run
MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 16_384
MAX_PROMPTS = 512
MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_S = 86_400
MAX_NAME_CHARS = 256
MAX_ALLOWED_IDS = 65_536
MAX_BAD_WORDS = 256
MAX_CHOSEN = 1024
MAX_BREAKERS = 64
GOOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""Of a request, where its client names it."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`continuous_usage_stats`: usage in every chunk. Obfuscation is accepted, and there is none."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's form of a constraint: one of these."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    """How much a model thinks before it answers. `exclude`: and shows nothing of it."""

    effort: Effort | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields that chat and plain completions share. None: not in the request. `user` tells whose share is used."""

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
    logit_bias: dict[str, float | bool] | None = None
    safety_identifier: str | None = None
    user: str | None = None
    response_format: dict[str, Any] | None = None
    # accepted, without effect on the answer
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
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
    timeout_s: float | None = None
    request_id: str | None = None
    cache_prompt: bool | None = None
    repeat_penalty: float | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    lora: str | list[dict[str, Any]] | None = None

    def check(self) -> None:
        """InvalidRequest names the field that is out of bounds, or does not go with another."""
        _check(self)


class ChatRequest(Common, kw_only=True):
    """`POST /v1/chat/completions`. `continue_token_ids`: the answer begins with these, which were said before; only
    what is new is sent, unless `echo` asks for all of it."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    continue_token_ids: list[int] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: int | None = None
    reasoning_budget: int | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class CompletionRequest(Common, kw_only=True):
    """`POST /v1/completions`. `prompt`: a string, strings, token ids, or lists of token ids. `suffix`: the text behind
    the gap that the answer fills, for models that were trained to."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


R = TypeVar("R", bound=Common)
Bound = tuple[str, float, float]
"""A field and the smallest and the largest value it may have. Sampling has its own, beside its parameters."""

BOUNDS: tuple[Bound, ...] = (
    ("n", 1, MAX_CHOICES),
    ("max_tokens", 0, MAX_NEW_TOKENS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("priority", -MAX_PRIORITY, MAX_PRIORITY),
    ("timeout_s", 0.001, MAX_TIMEOUT_S),
    ("truncate_prompt_tokens", -1, MAX_NEW_TOKENS),
)
CHAT_BOUNDS: tuple[Bound, ...] = (
    ("max_completion_tokens", 0, MAX_NEW_TOKENS),
    ("top_logprobs", 0, MAX_LOGPROBS),
    ("thinking_token_budget", 0, MAX_NEW_TOKENS),
    ("reasoning_budget", -1, MAX_NEW_TOKENS),
)
COMPLETION_BOUNDS: tuple[Bound, ...] = (("logprobs", 0, MAX_LOGPROBS), ("best_of", 1, MAX_CHOICES))
TWINS = (
    ("max_completion_tokens", "max_tokens"),
    ("repetition_penalty", "repeat_penalty"),
    ("thinking_token_budget", "reasoning_budget"),
)
"""Two names of one thing: who sends both has to mean the same by them."""


def parse(body: dict[str, Any], kind: type[R]) -> R:
    """The request of a body without strangers in it. InvalidRequest names the field that is wrong or unknown."""
    stripped, unknown = unknowns.split(body, kind)
    if unknown:
        raise unknowns.refusal(unknown[0])
    return unknowns.converted(stripped, kind)


def _check(request: Common) -> None:
    _within(request, BOUNDS)
    _check_stops(request)
    check_lora(request.lora)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only allowed with `stream`: true", param="stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", hint="send stream: false", param="prompt_logprobs")
    for name in ("cache_salt", "user", "prompt_cache_key", "safety_identifier"):
        if len(getattr(request, name) or "") > MAX_NAME_CHARS:
            raise InvalidRequest(f"{name} may have at most {MAX_NAME_CHARS} characters", param=name)
    if request.request_id is not None:
        check_request_id(request.request_id)
    if request.keep_alive is not None:
        keep_alive_seconds(request.keep_alive)
    if isinstance(request, ChatRequest):
        _check_chat(request)
    elif isinstance(request, CompletionRequest):
        _check_completion(request)
    _check_twins(request)
    _check_least(request)


def _check_twins(request: Common) -> None:
    for name, other in TWINS:
        one, two = getattr(request, name, None), getattr(request, other, None)
        if one is not None and two is not None and one != two:
            raise InvalidRequest(f"{other} and {name} differ: {two} and {one}", hint="send one", param=other)


def _check_least(request: Common) -> None:
    """An answer cannot go on until `min_tokens` and end before."""
    limits = (getattr(request, "max_completion_tokens", None), request.max_tokens)
    most = next((limit for limit in limits if limit is not None), None)
    if most is not None and (request.min_tokens or 0) > most:
        raise InvalidRequest(
            f"min_tokens is {request.min_tokens}, and the answer may have {most} tokens", param="min_tokens"
        )


def check_stops(stops: Sequence[str], param: str = "stop") -> None:
    """InvalidRequest where they are too many, or one is empty or too long."""
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise InvalidRequest(
            f"stop may hold at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", param=param
        )


def check_request_id(name: str) -> None:
    """InvalidRequest for what is no good name of a request."""
    if not GOOD_NAME.fullmatch(name):
        raise InvalidRequest(
            "request_id must be 1 to 128 letters, digits, dots, colons, dashes and underscores", param="request_id"
        )


def _check_stops(request: Common) -> None:
    check_stops(stop_strings(request.stop))
    if len(request.stop_token_ids or []) > 64:
        raise InvalidRequest("stop_token_ids may hold at most 64 ids", param="stop_token_ids")
    words = request.bad_words or []
    if len(words) > MAX_BAD_WORDS or any(not 0 < len(word) <= MAX_STOP_CHARS for word in words):
        raise InvalidRequest(
            f"bad_words may hold at most {MAX_BAD_WORDS} strings of 1 to {MAX_STOP_CHARS} characters", param="bad_words"
        )
    breakers = request.dry_sequence_breakers or []
    if len(breakers) > MAX_BREAKERS or any(not 0 < len(breaker) <= MAX_STOP_CHARS for breaker in breakers):
        raise InvalidRequest(
            f"dry_sequence_breakers may hold at most {MAX_BREAKERS} strings of 1 to {MAX_STOP_CHARS} characters",
            param="dry_sequence_breakers",
        )
    if request.allowed_token_ids is not None and not 0 < len(request.allowed_token_ids) <= MAX_ALLOWED_IDS:
        raise InvalidRequest(f"allowed_token_ids must hold 1 to {MAX_ALLOWED_IDS} ids", param="allowed_token_ids")


def _check_chat(request: ChatRequest) -> None:
    _within(request, CHAT_BOUNDS)
    if not 0 < len(request.messages) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", param="messages")
    check_chat(request)


def _check_completion(request: CompletionRequest) -> None:
    _within(request, COMPLETION_BOUNDS)
    if request.suffix and request.echo:
        raise InvalidRequest("echo does not go with suffix", hint="leave one of them out", param="echo")
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
