"""What `/v1/messages` takes and answers, as structs. Blocks and tools are objects here: their forms depend on their
types, which `anthropic_asking` knows. UNSET: the field may be missing."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from localllm.errors import InvalidRequest
from localllm.server.chat_checks import MAX_TOOLS
from localllm.server.fields import MAX_MESSAGES, MAX_NEW_TOKENS, Bound

# ---- requests

MESSAGE_BOUNDS: tuple[Bound, ...] = (("max_tokens", 1, MAX_NEW_TOKENS), ("temperature", 0, 1))
THINKING_BOUNDS: tuple[Bound, ...] = (("budget_tokens", 1, MAX_NEW_TOKENS),)


class Turn(msgspec.Struct):
    """One message: a text, or blocks."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Metadata(msgspec.Struct):
    """`user_id` tells whose share is used."""

    user_id: str | None = None


class Thinking(msgspec.Struct):
    """With `display` omitted the thinking is not shown."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Counted(msgspec.Struct, kw_only=True):
    """`POST /v1/messages/count_tokens`: what a model is to read."""

    model: str
    messages: list[Turn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: dict[str, Any] | None = None

    def check(self) -> None:
        """InvalidRequest names the field that is out of bounds."""
        if not 0 < len(self.messages) <= MAX_MESSAGES:
            raise InvalidRequest(f"messages must hold 1 to {MAX_MESSAGES} messages", param="messages")
        if len(self.tools or ()) > MAX_TOOLS:
            raise InvalidRequest(f"tools may hold at most {MAX_TOOLS} tools", param="tools")
        thinking = self.thinking
        if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens is None:
            raise InvalidRequest("thinking.budget_tokens is required", param="thinking.budget_tokens")
        if thinking is not None:
            _check_bounds(thinking, THINKING_BOUNDS, "thinking.")


class MessagesRequest(Counted, kw_only=True):
    """`POST /v1/messages`. `cache_control` is taken everywhere: what was computed is kept while there is room."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def check(self) -> None:
        super().check()
        _check_bounds(self, MESSAGE_BOUNDS)


def _check_bounds(asked: msgspec.Struct, bounds: tuple[Bound, ...], before: str = "") -> None:
    for name, low, high in bounds:
        value, shown = getattr(asked, name), before + name
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{shown} must be between {low} and {high}, not {value}", param=shown)


# ---- answers


class ThinkingTokens(msgspec.Struct):
    thinking_tokens: int


class MessageUsage(msgspec.Struct):
    """`input_tokens` are those that were computed; the rest of the prompt was read from the cache. Nothing is charged
    for keeping a prompt, so that `cache_creation_input_tokens` is always 0."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | UnsetType = UNSET


class MessageAnswer(msgspec.Struct, kw_only=True):
    """`content` holds blocks of the types thinking, text and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"] | None
    stop_sequence: str | None
    usage: MessageUsage
    warnings: list[str] | UnsetType = UNSET


class CountedTokens(msgspec.Struct):
    input_tokens: int


class AnthropicErrorObject(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct):
    type: Literal["error"]
    error: AnthropicErrorObject
    request_id: str


class AnthropicModel(msgspec.Struct):
    """What `/v1/models` shows to clients that send the header `anthropic-version`."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModels(msgspec.Struct):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None
