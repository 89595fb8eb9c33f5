"""A request for a response becomes a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localllm.errors import InvalidRequest
from localllm.server import fields
from localllm.server.fields import ChatRequest
from localllm.server.notes import Notes
from localllm.server.passing import named_as, over
from localllm.server.responses_input import Conversation, check_fields
from localllm.server.responses_shapes import LOGPROBS, Asked, ReasoningOptions, ResponseRequest, TextOptions
from localllm.server.responses_tools import Toolbox, choice_of, toolbox_of

Where = tuple[str, dict[str, Any]]
"""An item and its name in error messages."""

_SAME = (
    "temperature", "top_p", "user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention",
    "service_tier", "stop", "seed", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "chat_template_kwargs", "keep_alive", "priority", "timeout_s", "cache_salt", "stream",
)  # fmt: skip
"""Fields that a chat has, too."""
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "reasoning_effort": "reasoning.effort",
}


@dataclass(frozen=True, slots=True)
class Translated:
    """`names`: how the client calls the chat's fields."""

    chat: ChatRequest
    box: Toolbox
    notes: Notes
    names: dict[str, str]


def translated(wanted: Asked, earlier: Sequence[Where], own: Sequence[Where], notes: Notes) -> Translated:
    """`earlier` are the items of the responses before, `own` those of the request. InvalidRequest names the field."""
    box = toolbox_of(wanted.tools or [], notes)
    talk = Conversation(notes)
    if wanted.instructions:
        talk.instruct(wanted.instructions, "instructions")
    for where, item in own:
        check_fields(item, where, notes)
    for where, item in (*earlier, *own):
        talk.add(item, where)
    if not talk.messages:
        raise InvalidRequest("input must hold at least one item", param="input")
    names = _NAMES | talk.names
    body = {"model": wanted.model, "messages": talk.messages, **_shared(wanted, box, notes)}
    if isinstance(wanted, ResponseRequest):
        body |= _of_response(wanted)
    with named_as(names):
        return Translated(fields.parse(body, ChatRequest), box, notes, names)


def _shared(wanted: Asked, box: Toolbox, notes: Notes) -> dict[str, Any]:
    """What changes the prompt."""
    body: dict[str, Any] = {}
    functions = box.functions
    if wanted.tool_choice is not None and (functions or wanted.tool_choice not in ("auto", "none")):
        body["tool_choice"], functions = choice_of(wanted.tool_choice, box)
    if functions:
        body["tools"] = functions
        if wanted.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = wanted.parallel_tool_calls
    if wanted.text is not None:
        body |= _format(wanted.text, notes)
    if wanted.reasoning is not None:
        body |= _effort(wanted.reasoning, notes)
    return body


def _of_response(wanted: ResponseRequest) -> dict[str, Any]:
    body = {name: value for name in _SAME if (value := getattr(wanted, name)) is not None}
    if wanted.max_output_tokens is not None:
        body["max_completion_tokens"] = wanted.max_output_tokens
    if LOGPROBS in (wanted.include or ()) or wanted.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": wanted.top_logprobs or 0}
    return body


def _format(text: TextOptions, notes: Notes) -> dict[str, Any]:
    if text.verbosity not in (None, "medium"):
        over(notes, "text.verbosity", "models here cannot be told how much to say", "say it in the instructions")
    form = text.format
    if form is None or form.get("type") == "text":
        return {}
    if form.get("type") == "json_object":
        return {"response_format": {"type": "json_object"}}
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise InvalidRequest(
            "text.format must have the type text, json_object, or json_schema with a schema",
            hint='for example {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}',
            param="text.format",
        )
    schema = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", **schema}}}


def _effort(reasoning: ReasoningOptions, notes: Notes) -> dict[str, Any]:
    if "concise" in (reasoning.summary, reasoning.generate_summary):
        over(notes, "reasoning.summary", "reasoning is not made shorter here", "use auto or detailed")
    if reasoning.context not in (None, "auto"):
        over(notes, "reasoning.context", "templates decide which reasoning they show", "leave it out")
    if reasoning.mode not in (None, "standard"):
        over(notes, "reasoning.mode", "there is only the standard mode", "leave it out")
    return {} if reasoning.effort is None else {"reasoning_effort": reasoning.effort}
