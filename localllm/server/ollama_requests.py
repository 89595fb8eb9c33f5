"""Ollama's requests as our own: fields renamed, options sorted, prompts made with what Ollama promises beside it.

Nothing is cut behind the client's back: a prompt that does not fit is an error, unless `truncate` asks for less.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from localllm.daemon.replies import Ask
from localllm.errors import ContextExceeded, InvalidRequest
from localllm.server import unknowns
from localllm.server.asks import chat_asks, completion_asks
from localllm.server.fields import MAX_MESSAGES, MAX_NEW_TOKENS, ChatRequest, CompletionRequest
from localllm.server.ollama_errors import cannot, named
from localllm.server.ollama_formats import response_format
from localllm.server.ollama_options import DEFAULTS, sampling_fields
from localllm.server.ollama_shapes import OllamaAsked, OllamaChatRequest, OllamaGenerateRequest, OllamaMessage
from localllm.server.passing import named_as
from localllm.settings import Settings
from localllm.store.entry import Entry
from localllm.store.modelfile import template_kind
from localllm.wire import MAX_LOGPROBS

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

R = TypeVar("R", ChatRequest, CompletionRequest)
LEVELS = ("low", "medium", "high", "max")
MAX_TEMPLATE_CHARS = 1 << 20
NAMES: Mapping[str, str] = {
    "response_format": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs": "think",
    "repetition_penalty": "options.repeat_penalty",
    "max_tokens": "options.num_predict",
    **{
        name: f"options.{name}"
        for name in (
            "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "presence_penalty",
            "frequency_penalty", "seed", "stop",
        )
    },
}  # fmt: skip
"""Our own fields as these clients call them."""


# ---- to our own requests


def chat_request(asked: OllamaChatRequest) -> ChatRequest:
    """InvalidRequest names the field that is wrong."""
    check(asked)
    if len(asked.messages or ()) > MAX_MESSAGES:
        raise InvalidRequest(f"messages may hold {MAX_MESSAGES} messages", param="messages")
    messages = [_message(number, message) for number, message in enumerate(asked.messages or ())]
    tools = [{"type": "function", **tool} for tool in asked.tools or ()] or None
    return _converted(_given(asked, messages=messages, tools=tools) | _thought(asked), ChatRequest)


def generate_request(asked: OllamaGenerateRequest) -> ChatRequest | CompletionRequest:
    """A conversation of one message; a plain text where it is `raw` or has a `suffix`."""
    check(asked)
    _check_raw(asked)
    _refuse_images("images", asked.images)
    if asked.raw or asked.suffix:
        return _plain_request(asked)
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    messages = [*system, {"role": "user", "content": asked.prompt or ""}]
    return _converted(_given(asked, messages=messages) | _thought(asked), ChatRequest)


def _plain_request(asked: OllamaGenerateRequest) -> CompletionRequest:
    if asked.think:
        raise InvalidRequest("think needs a chat template: leave out `raw` and `suffix`", param="think")
    fields = _given(asked, prompt=asked.prompt or "", suffix=asked.suffix or None)
    fields["logprobs"] = (asked.top_logprobs or 0) if asked.logprobs else None
    fields.pop("top_logprobs", None)
    return _converted(fields, CompletionRequest)


def _converted(fields: dict[str, Any], kind: type[R]) -> R:
    with named_as(NAMES):
        return unknowns.converted(fields, kind)


def check(asked: OllamaAsked) -> None:
    """InvalidRequest for what neither kind of request may hold."""
    named(asked.model)
    if asked.top_logprobs is not None and not 0 <= asked.top_logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MAX_LOGPROBS}", param="top_logprobs")
    if isinstance(asked.think, str) and asked.think not in LEVELS:
        words = ", ".join(f'"{level}"' for level in LEVELS)
        raise InvalidRequest(
            f'invalid think value: "{asked.think[:40]}" (must be {words}, true, or false)', param="think"
        )


def _check_raw(asked: OllamaGenerateRequest) -> None:
    if asked.raw and (asked.template or asked.context or asked.system):
        raise InvalidRequest("raw mode does not support template, system, or context", param="raw")
    if asked.suffix and (asked.template or asked.context):
        raise InvalidRequest("a suffix goes with neither template nor context", param="suffix")
    if asked.template and template_kind(asked.template) == "go":
        raise InvalidRequest(
            "template is in Ollama's Go language, which does not run here", hint="send one in Jinja", param="template"
        )
    if len(asked.template or "") > MAX_TEMPLATE_CHARS:
        raise InvalidRequest(f"template may have {MAX_TEMPLATE_CHARS} characters", param="template")


def _given(asked: OllamaAsked, **more: Any) -> dict[str, Any]:
    """The fields of a request of ours; nothing where the client said nothing."""
    fields = {
        "model": asked.model,
        "stream": asked.stream is not False,
        "keep_alive": asked.keep_alive,
        "response_format": response_format(asked.format),
        "logprobs": asked.logprobs,
        "top_logprobs": asked.top_logprobs if asked.logprobs else None,
        **(sampling_fields(asked.options) if asked.options else {}),
        **more,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _thought(asked: OllamaAsked) -> dict[str, Any]:
    if asked.think is None:
        return {}
    if isinstance(asked.think, str):
        return {"reasoning_effort": asked.think}
    # the template's switch alone: as long as it likes
    switches = {"enable_thinking": True, "thinking": True}
    return {"chat_template_kwargs": switches} if asked.think else {"reasoning_effort": "none"}


def _message(number: int, message: OllamaMessage) -> dict[str, Any]:
    where = f"messages[{number}]"
    _refuse_images(f"{where}.images", message.images)
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        plain["reasoning_content"] = message.thinking
    if message.tool_name:
        plain["name"] = message.tool_name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id or f"call_{number}_{rank}",
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for rank, call in enumerate(message.tool_calls)
        ]
    return plain


def _arguments(arguments: dict[str, Any] | str | None) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()


def _refuse_images(where: str, images: Sequence[str] | None) -> None:
    if images:
        raise InvalidRequest(f"{where} is not supported: no model here reads images", param=where)


# ---- to sequences


@dataclass(slots=True)
class Prompting:
    """Makes the sequences of one request, off the event loop. `dropped`: how many messages it left out, which the
    client asked for."""

    asked: OllamaAsked
    dropped: int = field(default=0, init=False)

    def __call__(self, wanted: Any, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> list[Ask]:
        asked = self.asked
        self.check_capabilities(entry)
        wanted = _with_defaults(wanted, asked, entry, text, settings)
        if isinstance(wanted, CompletionRequest):
            return self._capped(completion_asks(wanted, entry, text, settings, vocab_size))
        if isinstance(asked, OllamaGenerateRequest):
            return self._capped(_generated(wanted, asked, entry, text, settings, vocab_size))
        limit = _context_length(asked, entry, text, settings)
        make = functools.partial(chat_asks, entry=entry, text=text, settings=settings, vocab_size=vocab_size)
        if not asked.truncate or not limit:
            return self._capped(make(wanted))
        asks, self.dropped = _shortened(wanted, make, limit)
        return self._capped(asks)

    @property
    def wants_much(self) -> bool:
        """More than text, which not every model can give."""
        return bool(self.asked.think or (isinstance(self.asked, OllamaChatRequest) and self.asked.tools))

    def check_capabilities(self, entry: Entry) -> None:
        """InvalidRequest for what the model cannot do. Where nothing is known of a model, most is tried."""
        asked, able = self.asked, entry.capabilities
        is_chat = isinstance(asked, OllamaChatRequest)
        if able and "completion" not in able:
            raise cannot(asked.model, "chat" if is_chat else "generate")
        if asked.think and "thinking" not in able:
            raise cannot(asked.model, "thinking")
        if isinstance(asked, OllamaChatRequest) and asked.tools and "tools" not in able:
            raise cannot(asked.model, "tools")

    def _capped(self, asks: list[Ask]) -> list[Ask]:
        """`num_ctx` holds for this request only: prompt and answer together have no more tokens."""
        num_ctx = self.asked.options.num_ctx if self.asked.options else None
        return asks if num_ctx is None else [_within(ask, num_ctx) for ask in asks]


def _within(ask: Ask, num_ctx: int) -> Ask:
    room = num_ctx - len(ask.prompt)
    if room < 1 and ask.max_tokens != 0:
        raise ContextExceeded(
            len(ask.prompt), num_ctx, hint="shorten the prompt, or raise options.num_ctx, which costs nothing here"
        )
    return replace(ask, max_tokens=room if ask.max_tokens is None else min(room, ask.max_tokens))


def _with_defaults(wanted: Any, asked: OllamaAsked, entry: Entry, text: "TextSide", settings: Settings) -> Any:
    """Ollama's defaults where neither the request nor the model says otherwise, and its limits on length."""
    changes: dict[str, Any] = {
        name: value
        for name, value in DEFAULTS.items()
        if getattr(wanted, name) is None and name not in entry.params and name not in text.default_sampling
    }
    num_predict = asked.options.num_predict if asked.options else None
    if num_predict is not None:
        # a negative one lifts the model's own limit, not the owner's
        changes["max_tokens"] = num_predict if num_predict >= 0 else settings.max_tokens or MAX_NEW_TOKENS
    if asked.think is False and isinstance(wanted, ChatRequest) and "thinking" not in entry.capabilities:
        changes["reasoning_effort"] = None  # there is nothing to keep it from
    return msgspec.structs.replace(wanted, **changes)


def _context_length(asked: OllamaAsked, entry: Entry, text: "TextSide", settings: Settings) -> int:
    wanted = entry.params.get("num_ctx")
    limits = (
        asked.options.num_ctx if asked.options else None,
        settings.context_length or (wanted if isinstance(wanted, int) else 0),
        text.context_length,
    )
    return min((limit for limit in limits if limit), default=0)


def _shortened(wanted: ChatRequest, make: Any, limit: int) -> tuple[list[Ask], int]:
    """The newest messages that fit, with every system message; the last one is never dropped."""
    asks = make(wanted)
    droppable = [
        index for index, message in enumerate(wanted.messages[:-1]) if message["role"] not in ("system", "developer")
    ]
    if len(asks[0].prompt) < limit or not droppable:
        return asks, 0
    low, high = 1, len(droppable)  # the least number to drop is between them, if any is enough
    best = make(_without(wanted, droppable[:high]))
    while low < high:
        middle = (low + high) // 2
        tried = make(_without(wanted, droppable[:middle]))
        if len(tried[0].prompt) < limit:
            best, high = tried, middle
        else:
            low = middle + 1
    return best, len(wanted.messages) - len(_without(wanted, droppable[:high]).messages)


def _without(wanted: ChatRequest, dropped: Sequence[int]) -> ChatRequest:
    """Results of tools go with the calls that asked for them."""
    gone = set(dropped)
    kept = [message for index, message in enumerate(wanted.messages) if index not in gone]
    first = next((index for index, message in enumerate(kept) if message["role"] not in ("system", "developer")), 0)
    while len(kept) > first + 1 and kept[first]["role"] == "tool":
        del kept[first]
    return msgspec.structs.replace(wanted, messages=kept)


# ---- what only `generate` has


def _generated(
    wanted: ChatRequest,
    asked: OllamaGenerateRequest,
    entry: Entry,
    text: "TextSide",
    settings: Settings,
    vocab_size: int,
) -> list[Ask]:
    before = asked.context or []
    _check_context(before, vocab_size)
    if before:  # it opened with what the Modelfile puts first
        entry = msgspec.structs.replace(entry, system="", messages=())
    asks = _rendered(wanted, asked.template or "", entry, text, settings, vocab_size)
    return [replace(ask, prompt=[*before, *_continuing(ask.prompt, before)]) for ask in asks] if before else asks


def _rendered(
    wanted: ChatRequest, template: str, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int
) -> list[Ask]:
    if not template:
        return chat_asks(wanted, entry, text, settings, vocab_size)
    own = text.tokenizer.chat_template(source=template, isolated=True)  # a child of its own, with limits, for this once
    try:
        return chat_asks(wanted, entry, replace(text, template=own), settings, vocab_size)
    finally:
        own.close()


def _check_context(context: Sequence[int], vocab_size: int) -> None:
    for token_id in context:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"context names token {token_id}; the model has {vocab_size} tokens",
                hint="send back the context of an answer of this model",
                param="context",
            )


def _continuing(prompt: list[int], before: Sequence[int]) -> list[int]:
    """A text begins once."""
    return prompt[1:] if prompt[:1] == list(before[:1]) and len(prompt) > 1 else prompt
