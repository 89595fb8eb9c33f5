"""A validated request, a model and its text side become sequences to run: prompts in ids, sampling settled.

Sampling precedence: the request, then the model's own parameters (preset or Modelfile), then the file's defaults, then
neutral values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from localllm import wire
from localllm.daemon.replies import Ask
from localllm.errors import InvalidRequest
from localllm.runtime.presets import LoadWish, behind_opening, sampling_in_force
from localllm.server.fields import MAX_PROMPTS, ChatRequest, Common, CompletionRequest, stop_strings
from localllm.server.messages import plain_messages
from localllm.settings import Settings
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide
    from localllm.tokens.markup import MarkupSpec
    from localllm.tokens.tokenizer import Tokenizer

_RENDER_ARGUMENTS = frozenset(("self", "messages", "tools", "add_generation_prompt", "continue_final_message"))


def sampling_of(request: Common, params: Mapping[str, Any], file_defaults: Mapping[str, Any]) -> wire.SamplingParams:
    """The parameters in force. InvalidRequest names the field that is out of bounds."""
    given = {name: getattr(request, name, None) for name in wire.SamplingParams.__struct_fields__}
    given["logit_bias"] = _bias(request.logit_bias or {})
    return sampling_in_force(given, params, file_defaults)


def wish_of(request: Common) -> LoadWish:
    """How the request wants its model to be open."""
    return LoadWish(request.backend, request.device, request.kv_type, request.threads, request.quantize)


def _bias(bias: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError:
        raise InvalidRequest("logit_bias must map token ids to numbers", param="logit_bias") from None


def max_new_tokens(request: Common, params: Mapping[str, Any], settings: Settings) -> int | None:
    """The limit on generated tokens; None: what the context holds."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    if request.max_tokens is not None:
        return request.max_tokens
    limit = params.get("num_predict", settings.max_tokens)
    return limit if isinstance(limit, int) and limit > 0 else None


def _ask(request: Common, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> Ask:
    """Everything but the prompt."""
    stops = request.stop if request.stop is not None else entry.params.get("stop")
    stop_ids = set(request.stop_token_ids or ())
    if not request.ignore_eos:
        stop_ids |= set(text.tokenizer.eog_ids)
    sampling = sampling_of(request, entry.params, text.default_sampling)
    _check_ids("logit_bias", list(sampling.logit_bias), vocab_size)
    _check_ids("stop_token_ids", request.stop_token_ids or [], vocab_size)
    return Ask(
        prompt=[],
        sampling=sampling,
        max_tokens=max_new_tokens(request, entry.params, settings),
        stop=stop_strings(stops),
        stop_ids=tuple(sorted(stop_ids)),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
    )


def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"{name} names token {token_id}; the model has {vocab_size} tokens", param=name)


def _copies(ask: Ask, count: int) -> list[Ask]:
    """Choices of one prompt: the same ids, seeds apart, so that a given seed does not give the same text n times."""
    seed = ask.sampling.seed
    if seed is None:
        return [ask] * count
    seeds = ((seed + index + 2**63) % 2**64 - 2**63 for index in range(count))
    return [replace(ask, sampling=msgspec.structs.replace(ask.sampling, seed=each)) for each in seeds]


# ---- chat


def chat_asks(request: ChatRequest, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> list[Ask]:
    """One sequence per choice. Slow (template and tokenizer): not for the event loop."""
    ask = _ask(request, entry, text, settings, vocab_size)
    tools = request.tools if request.tool_choice != "none" else None
    prompt = chat_prompt(
        request.messages, tools, entry, text,
        add_generation_prompt=_opens_answer(request),
        continue_final_message=request.continue_final_message is True,
        variables=request.chat_template_kwargs or {},
    )  # fmt: skip
    ids = text.tokenizer.encode(prompt, add_special=False, parse_special=True)
    top = (request.top_logprobs or 0) if request.logprobs else None
    markup = markup_of(text, prompt, tools)
    keep = _tag_ids(markup.visible_tags(), text.tokenizer) if markup else ()
    ask = replace(ask, prompt=ids, prompt_text=prompt, top_logprobs=top, is_chat=True, markup=markup, keep_special=keep)
    return _copies(ask, request.n or 1)


def _opens_answer(request: ChatRequest) -> bool:
    """An answer begins, unless the last message is one that goes on. InvalidRequest where both are asked for."""
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt begins a new answer, continue_final_message goes on with the last one",
            hint="leave one of them out",
            param="continue_final_message",
        )
    return request.add_generation_prompt is not False and not request.continue_final_message


def markup_of(text: "TextSide", prompt: str, tools: Sequence[Mapping[str, Any]] | None) -> "MarkupSpec | None":
    """How answers to this prompt are marked up; None where all of it is content."""
    from localllm.tokens.markup import detect_markup  # deferred: the text side of the first model has brought it

    built = text.tokenizer.built
    specials = {built.texts[token_id] for token_id in text.tokenizer.special_ids}
    spec = detect_markup(text.template.source, specials).for_tools(tools).for_prompt(prompt)
    return spec if spec.reasoning or spec.tools or spec.is_harmony else None


def _tag_ids(tags: Sequence[str], tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Tags that are tokens of their own."""
    encoded = [tokenizer.encode(tag, add_special=False, parse_special=True) for tag in tags]
    return tuple(ids[0] for ids in encoded if len(ids) == 1)


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    entry: Entry,
    text: "TextSide",
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The conversation as the model wants to read it, with the entry's own system prompt and opening messages."""
    for name in _RENDER_ARGUMENTS.intersection(variables):
        raise InvalidRequest(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")
    plain = plain_messages(messages)
    if tools and "tools" not in entry.capabilities:
        raise InvalidRequest(f"{entry.name} does not support tools", hint="leave `tools` out", param="tools")
    return text.template.render(
        behind_opening(entry, plain),
        tools=tools or None,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        **variables,
    )


# ---- plain completions


def completion_asks(
    request: CompletionRequest, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int
) -> list[Ask]:
    """Sequences prompt by prompt, choice by choice. Slow: not for the event loop."""
    ask = replace(_ask(request, entry, text, settings, vocab_size), top_logprobs=request.logprobs)
    if request.echo and request.logprobs is not None:
        ask = replace(ask, prompt_logprobs=request.logprobs)
    if (request.best_of or 1) > (request.n or 1) and ask.top_logprobs is None:
        ask = replace(ask, top_logprobs=0)  # needed to tell which are best
    count = request.best_of or request.n or 1
    asks: list[Ask] = []
    for prompt in _prompts(request.prompt):
        ids, shown = _ids_and_text(prompt, request, text.tokenizer, vocab_size)
        asks += _copies(replace(ask, prompt=ids, prompt_text=shown), count)
    return asks


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not len(prompt) > 0:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    strings = [item for item in prompt if isinstance(item, str)]
    numbers = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(numbers) == len(prompt):
        return [numbers]
    if len(strings) != len(prompt) and len(lists) != len(prompt):
        raise InvalidRequest("prompt must not mix strings, token ids and lists of token ids", param="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt may hold at most {MAX_PROMPTS} prompts", param="prompt")
    return [*strings, *lists]


def _ids_and_text(
    prompt: str | list[int], request: CompletionRequest, tokenizer: "Tokenizer", vocab_size: int
) -> tuple[list[int], str]:
    if isinstance(prompt, list):
        _check_ids("prompt", prompt, vocab_size)
        ids, shown = prompt, tokenizer.decode(prompt) if request.echo else ""
    else:
        add_special = request.add_special_tokens is not False
        ids, shown = tokenizer.encode(prompt, add_special=add_special, parse_special=True), prompt
    if not ids:
        raise InvalidRequest("the prompt is empty: it has no tokens", hint="send some text", param="prompt")
    return ids, shown
