"""A validated request, a model and its text side become sequences to run: prompts in ids, sampling settled.

Sampling precedence: the request, then the model's own parameters (preset or Modelfile), then the file's defaults, then
neutral values.
"""

import functools
import re
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from localllm import wire
from localllm.daemon.formats import Format
from localllm.daemon.grammars import lark_text
from localllm.daemon.replies import Ask
from localllm.errors import InvalidRequest
from localllm.runtime.presets import LoadWish, sampling_in_force
from localllm.server.chat_checks import ToolUse, tool_use
from localllm.server.fields import MAX_PROMPTS, ChatRequest, Common, CompletionRequest, stop_strings
from localllm.server.forced_calls import calls_draft, strict_calls
from localllm.server.notes import Notes
from localllm.server.prompts import chat_prompt, knows_tools
from localllm.server.reasoning import Thinking, budget_of, thinking_of
from localllm.server.wanted_format import wanted_format
from localllm.settings import Settings
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide
    from localllm.tokens.markup import MarkupSpec
    from localllm.tokens.tokenizer import Tokenizer

_DIGITS = re.compile(r"-?[0-9]{1,10}")
DRY_BREAKERS = ("\n", ":", '"', "*")


def sampling_of(
    request: Common, params: Mapping[str, Any], file_defaults: Mapping[str, Any], **sequences: list[Any]
) -> wire.SamplingParams:
    """The parameters in force, those that are made of tokens beside. InvalidRequest names the field that is out of
    bounds."""
    given = {name: getattr(request, name, None) for name in wire.SamplingParams.__struct_fields__}
    given["logit_bias"] = _bias(request.logit_bias or {})
    given |= sequences
    if request.repetition_penalty is None:
        given["repetition_penalty"] = request.repeat_penalty  # as llama.cpp calls it
    return sampling_in_force(given, params, file_defaults)


def wish_of(request: Common) -> LoadWish:
    """How the request wants its model to be open."""
    return LoadWish(request.backend, request.device, request.kv_type, request.threads, request.quantize)


def _bias(bias: Mapping[str, float | bool]) -> dict[int, float]:
    """Without the tokens that are never to be said, whose bias is false."""
    ids = {_token_id(name): value for name, value in bias.items() if value is not False}
    if True in (value for value in ids.values() if isinstance(value, bool)):
        raise InvalidRequest("logit_bias must be a number, or false for never", param="logit_bias")
    return {token_id: float(value) for token_id, value in ids.items()}


def _token_id(name: str) -> int:
    """Objects in JSON have texts for keys: digits, no more than any vocabulary needs."""
    if not _DIGITS.fullmatch(name):
        raise InvalidRequest("logit_bias must map token ids to numbers", param="logit_bias")
    return int(name)


def _bad_sequences(request: Common, tokenizer: "Tokenizer") -> list[list[int]]:
    """Every way in which a banned word may begin: at a text's start, and behind a space."""
    spelled = [text for word in request.bad_words or () for text in dict.fromkeys((word, " " + word.lstrip(" ")))]
    encoded = [tokenizer.encode(text, add_special=False, parse_special=False) for text in spelled]
    never = [[_token_id(name)] for name, value in (request.logit_bias or {}).items() if value is False]
    return [*filter(None, encoded), *never]


def _breakers(request: Common, tokenizer: "Tokenizer") -> list[int]:
    """The tokens with which a sequence breaker ends: alone, twice, in a word, behind a space."""
    if not request.dry_multiplier:
        return []
    texts = DRY_BREAKERS if request.dry_sequence_breakers is None else request.dry_sequence_breakers
    spelled = [form for text in texts for form in (text, text + text, "a" + text, " " + text)]
    encoded = [tokenizer.encode(form, add_special=False, parse_special=False) for form in spelled]
    return sorted({ids[-1] for ids in encoded if ids})


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
    spelled = _special_stops(stop_strings(stops), text.tokenizer, stop_ids)
    bad = _bad_sequences(request, text.tokenizer)
    breakers = _breakers(request, text.tokenizer)
    sampling = sampling_of(request, entry.params, text.default_sampling, bad_sequences=bad, dry_breakers=breakers)
    _check_ids("logit_bias", [*sampling.logit_bias, *(each[0] for each in bad)], vocab_size)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    _check_ids("stop_token_ids", request.stop_token_ids or [], vocab_size)
    return Ask(
        prompt=[],
        sampling=sampling,
        max_tokens=max_new_tokens(request, entry.params, settings),
        stop=stop_strings(stops),
        stop_ids=tuple(sorted(stop_ids | spelled.keys())),
        stop_texts=spelled,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority or 0,
        cache_salt=_salt(request),
        owner=request.user or request.safety_identifier or "",
        format=wanted_format(request),
    )


def _special_stops(stops: Sequence[str], tokenizer: "Tokenizer", known: Set[int]) -> dict[int, str]:
    """Stop strings that spell a special token, as Modelfiles have them (`<|start_header_id|>`), by its id: a special
    token is not shown, so that its text would never be met."""
    encoded = [(stop, tokenizer.encode(stop, add_special=False, parse_special=True)) for stop in stops]
    whole = {ids[0]: stop for stop, ids in encoded if len(ids) == 1 and ids[0] in tokenizer.special_ids - known}
    # what a vocabulary cannot spell is one special token too, the unknown one
    return {token_id: stop for token_id, stop in whole.items() if tokenizer.token_bytes(token_id) == stop.encode()}


def _salt(request: Common) -> str:
    """Without the cache, a salt that nobody else has."""
    own = request.cache_salt or ""
    return f"{own} {uuid.uuid4().hex}" if request.cache_prompt is False else own


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


def chat_asks(
    request: ChatRequest,
    entry: Entry,
    text: "TextSide",
    settings: Settings,
    vocab_size: int,
    *,
    notes: Notes | None = None,
) -> list[Ask]:
    """One sequence per choice. `notes` hears of what was passed over and cut. Slow (template, tokenizer): not for the
    event loop."""
    notes = notes or Notes()
    ask = _ask(request, entry, text, settings, vocab_size)
    told = told_by(request, entry, text, notes)
    prompt, use, spec, thinking = told.prompt, told.use, told.spec, told.thinking
    encoded = text.tokenizer.encode(prompt, add_special=request.add_special_tokens is True, parse_special=True)
    given = _continued(request, ask, vocab_size)
    ids = notes.truncate(encoded, request.truncate_prompt_tokens)
    if not ids:
        raise InvalidRequest("nothing is left of the prompt", param="truncate_prompt_tokens")
    markup = replace(spec.for_prompt(prompt), one_call=not use.is_parallel)
    marked = markup if markup.reasoning or markup.tools or markup.is_harmony else None
    ask = replace(
        ask,
        prompt=[*ids, *given],
        num_given=len(given),
        shows_given=bool(given and request.echo),
        prompt_text=prompt,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        is_chat=True,
        markup=marked,
        keep_special=_tag_ids(markup.visible_tags(), text.tokenizer) if marked else (),
        thinking=budget_of(thinking.max_tokens, marked, prompt, text.tokenizer),
        format=_format(request, use, markup, prompt, text.tokenizer),
    )
    return _copies(ask, request.n or 1)


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation as its model reads it, and what that says of the answer."""

    prompt: str
    use: ToolUse
    spec: "MarkupSpec"
    thinking: Thinking


def told_by(request: ChatRequest, entry: Entry, text: "TextSide", notes: Notes) -> Told:
    """Only the template's part of `chat_asks`."""
    use = tool_use(request)
    spec = spec_of(text, use.listed)
    thinking = thinking_of(
        request, text.template.source, can_reason=bool(spec.reasoning or spec.is_harmony), notes=notes, name=entry.name
    )
    prompt = chat_prompt(
        request.messages, use.listed, entry, text,
        add_generation_prompt=_opens_answer(request),
        continue_final_message=request.continue_final_message is True,
        variables=thinking.variables,
        pass_over=notes.pass_over,
    )  # fmt: skip
    return Told(prompt, use, spec, thinking)


def _continued(request: ChatRequest, ask: Ask, vocab_size: int) -> list[int]:
    """What the answer begins with. InvalidRequest where a token of it is none, or ends the answer."""
    ids = request.continue_token_ids or []
    _check_ids("continue_token_ids", ids, vocab_size)
    end = next((token_id for token_id in ids if token_id in ask.stop_ids), None)
    if end is not None:
        raise InvalidRequest(
            f"continue_token_ids holds token {end}, which ends an answer",
            hint="leave it out, and what stands behind it; or send ignore_eos",
            param="continue_token_ids",
        )
    return ids


def _opens_answer(request: ChatRequest) -> bool:
    """An answer begins, unless the last message is one that goes on. InvalidRequest where both are asked for."""
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt begins a new answer, continue_final_message goes on with the last one",
            hint="leave one of them out",
            param="continue_final_message",
        )
    return request.add_generation_prompt is not False and not request.continue_final_message


def spec_of(text: "TextSide", tools: Sequence[Mapping[str, Any]] | None) -> "MarkupSpec":
    """How answers of this model are marked up. A model that knows no tools is told to write calls as Hermes does."""
    from localllm.tokens.markup import detect_markup  # deferred: the text side of the first model has brought it

    built = text.tokenizer.built
    specials = {built.texts[token_id] for token_id in text.tokenizer.special_ids}
    spec = detect_markup(text.template.source, specials)
    if not knows_tools(text.template.source) or (spec.tools is None and not spec.is_harmony):
        spec = replace(spec, tools="hermes")
    return spec.for_tools(tools)


def _format(
    request: ChatRequest, use: ToolUse, markup: "MarkupSpec", prompt: str, tokenizer: "Tokenizer"
) -> Format | None:
    """What the answer has to look like; with tools it may be calls instead, and where they are required it is."""
    wanted = wanted_format(request)
    is_required = use.mode == "required"
    if wanted is None and use.mode == "none":
        return None
    from localllm.tokens.markup.forcing import lead_of  # deferred, as above

    say = functools.partial(lark_text, control_ids=_control_ids(tokenizer))
    lead = lead_of(markup, prompt, say)
    if wanted is None and not is_required:
        return strict_calls(use, markup, say, _control_ids(tokenizer), lead)
    calls = calls_draft(use, markup, say, _control_ids(tokenizer)) if use.mode != "none" else None
    if is_required or wanted is None:
        return Format(None, "tools", lead, calls)
    return replace(wanted, lead=lead, calls=calls)


def _control_ids(tokenizer: "Tokenizer") -> dict[str, int]:
    """Tokens that no text can mean, by their spelling."""
    texts = tokenizer.built.texts
    return {texts[token_id]: token_id for token_id in tokenizer.special_ids | tokenizer.eog_ids}


def _tag_ids(tags: Sequence[str], tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Tags that are tokens of their own."""
    encoded = [tokenizer.encode(tag, add_special=False, parse_special=True) for tag in tags]
    return tuple(ids[0] for ids in encoded if len(ids) == 1)


# ---- plain completions


def completion_asks(
    request: CompletionRequest,
    entry: Entry,
    text: "TextSide",
    settings: Settings,
    vocab_size: int,
    *,
    notes: Notes | None = None,
) -> list[Ask]:
    """Sequences prompt by prompt, choice by choice. `notes` hears of what was cut. Slow: not for the event loop."""
    notes = notes or Notes()
    ask = replace(_ask(request, entry, text, settings, vocab_size), top_logprobs=request.logprobs)
    if request.echo and request.logprobs is not None:
        ask = replace(ask, prompt_logprobs=max(request.logprobs, request.prompt_logprobs or 0))
    if (request.best_of or 1) > (request.n or 1) and ask.top_logprobs is None:
        ask = replace(ask, top_logprobs=0)  # needed to tell which are best
    count = request.best_of or request.n or 1
    asks: list[Ask] = []
    for prompt in _prompts(request.prompt):
        ids, shown = _ids_and_text(prompt, request, text, vocab_size, notes)
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
    prompt: str | list[int], request: CompletionRequest, text: "TextSide", vocab_size: int, notes: Notes
) -> tuple[list[int], str]:
    """What the model reads, and the prompt as a text for those who want its echo."""
    tokenizer = text.tokenizer
    if request.suffix:
        ids, shown = fill_in_ids(prompt, request.suffix, text, add_special=request.add_special_tokens is not False), ""
    elif isinstance(prompt, list):
        ids, shown = prompt, tokenizer.decode(prompt) if request.echo else ""
    else:
        add_special = request.add_special_tokens is not False
        ids, shown = tokenizer.encode(prompt, add_special=add_special, parse_special=True), prompt
    _check_ids("prompt", ids, vocab_size)
    kept = notes.truncate(ids, request.truncate_prompt_tokens)
    if not kept:
        raise InvalidRequest("the prompt is empty: it has no tokens", hint="send some text", param="prompt")
    return kept, shown if len(kept) == len(ids) or not request.echo else tokenizer.decode(kept)


def fill_in_ids(before: str | list[int], behind: str, text: "TextSide", *, add_special: bool = True) -> list[int]:
    """The ids of a text with a gap. InvalidRequest names `suffix` for a model that cannot fill one.

    What is around the gap is text and nothing else: a token's name in it does not become the token.
    """
    if text.fill_in is None:
        raise InvalidRequest(
            "this model was not trained to fill in: it has no tokens for prefix, suffix and middle",
            hint="leave suffix out, or take a code model",
            param="suffix",
        )
    tokenizer = text.tokenizer
    first = tokenizer.encode(before, add_special=False, parse_special=False) if isinstance(before, str) else before
    second = tokenizer.encode(behind, add_special=False, parse_special=False)
    start = [tokenizer.bos_id] if add_special and tokenizer.add_bos and tokenizer.bos_id is not None else []
    return [*start, *text.fill_in.prompt(first, second)]
