"""Fields that the table does not have: refused by name, or passed over and said so, never dropped in silence.

`take` makes a struct of a body. Who is strict, who is told in `warnings` and who in a header is decided here alone.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable
from urllib.parse import quote

import msgspec
from msgspec import inspect
from starlette.requests import Request

from localllm.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)
IGNORED_HEADER = "x-localllm-ignored"
MAX_NAMED = 32
MAX_NAME_CHARS = 64

AGENTS = (
    "aider", "anythingllm", "claude-cli", "claude-code", "cline", "codex", "continue", "copilot", "crush", "cursor",
    "goose", "jetbrains", "kilo", "kilocode", "librechat", "litellm", "open-webui", "openwebui", "opencode",
    "qwen-code", "roo", "roo-code", "roocode", "windsurf", "zed",
)  # fmt: skip
"""Programs whose requests grow new fields every month: how their user agents begin."""
_AGENT = re.compile(rf"(?<![a-z0-9-])(?:{'|'.join(map(re.escape, AGENTS))})(?![a-z])")

HINTS: Mapping[str, str] = {
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "audio": "this daemon answers in text",
    "prediction": "leave it out",
    "web_search_options": "this daemon does not search the web",
    "verbosity": "leave it out",
    "n_predict": "use `max_tokens`",
    "max_new_tokens": "use `max_tokens`",
    "n_probs": "use `logprobs` and `top_logprobs`",
    "t_max_predict_ms": "use `timeout_s`",
    "length_penalty": "there is no beam search; leave it out",
    "use_beam_search": "there is no beam search; leave it out",
    "mirostat": "use `min_p` or `top_p`",
    "logit_processors": "use `logit_bias`",
    "documents": "send them in the messages, or in chat_template_kwargs",
    "chat_template": "templates come with models only",
    "mm_processor_kwargs": "this daemon reads text only",
    "id_slot": "there are no slots: pages are shared by all requests",
    "reasoning_format": "reasoning comes as `reasoning`; hide it with include_reasoning: false",
    "structural_tag": "use `tools` with `tool_choice`",
    "guided_decoding_backend": "llguidance holds every form; leave it out",
    "extra_body": "send its fields at the top of the body",
}
"""Fields of other servers that are refused, with what to do instead."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "functions": (None,),
    "function_call": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "length_penalty": (None, 1),
    "use_beam_search": (None, False),
    "mirostat": (None, 0),
    "dynatemp_range": (None, 0),
    "id_slot": (None, -1),
    "n_keep": (None, 0),
    "documents": (None, []),
    "chat_template": (None,),
    "mm_processor_kwargs": (None,),
    "spaces_between_special_tokens": (None, True),
    "reasoning_format": (None, "auto", "deepseek"),
    "vllm_xargs": (None, {}),
    "guided_decoding_backend": (None, "auto", "guidance"),
}
"""Values of refused fields that ask for what happens anyway."""


OBJECTS: Mapping[str, tuple[str, ...]] = {
    "response_format": ("type", "json_schema", "schema", "value"),
    "response_format.json_schema": ("name", "description", "schema", "strict"),
    "text.format": ("type", "name", "description", "schema", "strict"),
    "tool_choice": (
        "type", "function", "allowed_tools", "name", "namespace", "mode", "tools", "disable_parallel_tool_use",
    ),
    "tool_choice.function": ("name",),
    "tool_choice.allowed_tools": ("mode", "tools"),
}  # fmt: skip
"""Objects whose form depends on their type, so that no struct describes them: the names that one of them has."""


class Taken(NamedTuple):
    """A request; `warnings` belong into the answer's body, `headers` into its head."""

    request: Any
    warnings: list[str]
    headers: dict[str, str]


@runtime_checkable
class Checked(Protocol):
    """A struct with bounds of its own."""

    def check(self) -> None:
        """Raises InvalidRequest naming the field that is out of bounds."""


def take(body: Mapping[str, Any], kind: type[msgspec.Struct], request: Request, *, always: bool = False) -> Taken:
    """The body as a `kind`. Unknown fields, at any depth that the structs describe, are passed over and named in the
    header where `always` says so or a known agent sends them; named in warnings where the client asked to be lenient
    with; else the first of them is an InvalidRequest, as is every wrong type."""
    stripped, unknown = split(body, kind)
    warnings: list[str] = []
    headers: dict[str, str] = {}
    if unknown and is_lenient(request):
        warnings = [warning(name) for name in unknown]
    elif unknown and (always or is_agent(request)):
        headers = ignored_header(unknown)
    elif unknown:
        raise refusal(unknown[0])
    return Taken(converted(stripped, kind), warnings, headers)


def is_lenient(request: Request) -> bool:
    return "handling=lenient" in request.headers.get("prefer", "").replace(" ", "").lower()


def is_agent(request: Request) -> bool:
    return _AGENT.search(request.headers.get("user-agent", "").lower()) is not None


def warning(name: str) -> str:
    return f"{name!r} is not supported and was ignored"


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """`x-localllm-ignored: a, b`; names are the client's own words, so that anything but letters is escaped. Empty
    without names."""
    # a name may be empty, which may not end a header
    shown = [quote(name[:MAX_NAME_CHARS], safe="[]$", errors="replace") or '""' for name in dict.fromkeys(names)]
    rest = len(shown) - MAX_NAMED
    listed = shown[:MAX_NAMED] + ([f"and-{rest}-more"] if rest > 0 else [])
    return {IGNORED_HEADER: ", ".join(listed)} if listed else {}


def refusal(name: str) -> InvalidRequest:
    """The error of a field that is not supported; it names what to use instead where there is something."""
    hint = HINTS.get(name, "remove it, or send the header `Prefer: handling=lenient` to have it ignored")
    error = InvalidRequest(f"{name!r} is not supported here", hint=hint, param=name)
    error.code = "unsupported_parameter" if name in HINTS else "unknown_parameter"
    return error


# ---- which fields are known


def split(body: Mapping[str, Any], kind: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
    """The body without what the struct does not have, and the paths of that, such as `stream_options.speed`."""
    unknown: list[str] = []
    stripped = _without(body, _info(kind), "", unknown)
    return stripped, unknown


@functools.cache
def _info(kind: type[msgspec.Struct]) -> inspect.StructType:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info


def _without(value: Mapping[str, Any], info: inspect.StructType, path: str, unknown: list[str]) -> dict[str, Any]:
    known = {field.encode_name: field.type for field in info.fields}
    stripped: dict[str, Any] = {}
    for name, inner in value.items():
        if name in known:
            stripped[name] = _stripped(inner, known[name], f"{path}{name}", unknown)
        elif name == info.tag_field:
            stripped[name] = inner
        elif not (name in NEUTRAL and not path and _is_neutral(inner, NEUTRAL[name])):
            unknown.append(f"{path}{name}")
    return stripped


def _is_neutral(value: Any, neutral: Iterable[Any]) -> bool:
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def _stripped(value: Any, kind: inspect.Type, path: str, unknown: list[str]) -> Any:
    if isinstance(value, dict):
        info = _struct_for(value, kind)
        return _known_of(value, path, unknown) if info is None else _without(value, info, f"{path}.", unknown)
    if isinstance(value, list):
        item = next((each.item_type for each in _options(kind) if isinstance(each, inspect.ListType)), None)
        if item is None or not any(isinstance(each, inspect.StructType) for each in _options(item)):
            return value
        return [_stripped(inner, item, f"{path}[{number}]", unknown) for number, inner in enumerate(value)]
    return value


def _known_of(value: dict[str, Any], path: str, unknown: list[str]) -> dict[str, Any]:
    """An object without a struct: all of it, but of those in the table."""
    known = OBJECTS.get(path)
    if known is None:
        return value
    unknown += [f"{path}.{name}" for name in value if name not in known]
    return {
        name: _known_of(inner, f"{path}.{name}", unknown) if isinstance(inner, dict) else inner
        for name, inner in value.items()
        if name in known
    }


def _struct_for(value: Mapping[str, Any], kind: inspect.Type) -> inspect.StructType | None:
    """The struct that an object is to become; None where none or no single one is meant."""
    structs = [each for each in _options(kind) if isinstance(each, inspect.StructType)]
    if len(structs) > 1:
        structs = [each for each in structs if each.tag_field and value.get(each.tag_field) == each.tag]
    return structs[0] if len(structs) == 1 else None


def _options(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    types = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return tuple(each.type if isinstance(each, inspect.Metadata) else each for each in types)


# ---- types


def converted(body: Mapping[str, Any], kind: type[S]) -> S:
    """A checked struct of a body without unknown fields. InvalidRequest names the field that is wrong."""
    try:
        request = _built(body, kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    if isinstance(request, Checked):
        request.check()
    return request


def _built(body: Mapping[str, Any], kind: type[S]) -> S:
    """1.0 is a whole number, to JSON schema and to clients whose language has one kind of numbers."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return msgspec.convert(_with_whole_numbers(body), kind)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_whole_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _wrong_type(text: str) -> InvalidRequest:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`"."""
    complaint, _, path = text.partition(" - at `$")
    field = path.strip("`.")
    if "missing required field" in complaint:
        name = ".".join(filter(None, (field, complaint.split("`")[-2])))
        return InvalidRequest(f"{name} is required", param=name)
    sentence = complaint.replace("`", "").replace(" | null", "").replace(" | ", " or ")
    shown = field or "the request"
    error = InvalidRequest(f"{shown}: {sentence[0].lower()}{sentence[1:]}", param=field or None)
    error.code = "invalid_type"
    return error
