"""What a request's schema says beyond the types of its struct: lengths, choices, patterns, forms of nested objects.

Structs take what the checks behind them look at more closely; a reader of the description should know it beforehand.
Only what JSON schema can say is here: that two fields do not go together, mostly not.
"""

from collections.abc import Collection, Mapping, Sequence

from localllm.server import fields
from localllm.server.chat_checks import MAX_CONTINUED_IDS, MAX_TOOLS
from localllm.server.metrics import PREFIXES
from localllm.server.ollama_requests import LEVELS
from localllm.server.responses import MAX_PAGE
from localllm.server.schema_anthropic import ANTHROPIC, TURN
from localllm.server.schema_fields import COMMON, EVERYWHERE, FUNCTION, LORA_NAME, SCALE, STOP
from localllm.server.schema_responses import RESPONSE
from localllm.server.schema_words import (
    ANY,
    FLAG,
    NULL,
    OBJECT,
    SOME,
    TEXT,
    TOKEN,
    Schema,
    closed,
    kind,
    list_of,
    object_of,
    one_of,
    or_null,
    sealed,
    whole,
)
from localllm.server.vector_shapes import MAX_INPUTS, MAX_TOKENS
from localllm.wire import MAX_LOGPROBS, SAMPLING_BOUNDS

# ---- chats

_TOOL = kind("function", ("function",), function=FUNCTION)
_CHOSEN = kind("function", ("function",), function=object_of(("name",), name=SOME))
_CHOICE = or_null(
    one_of("none", "auto", "required"),
    sealed(kind("function", ("function",), function=sealed(object_of(("name",), name=SOME)))),
    sealed(kind(
        "allowed_tools", ("allowed_tools",),
        allowed_tools=sealed(
            object_of(("mode", "tools"), mode=one_of("auto", "required"), tools=list_of(_CHOSEN, 1))
        ),
    )),
)  # fmt: skip

_EMPTY: Schema = {"enum": [None, False, 0, "", [], {}]}
_IDLE = {name: ANY for name in ("annotations", "cache_control", "id", "parsed", "provider_specific_fields")}
_PART: Schema = {
    "anyOf": [
        closed(("type", name), type={"const": name}, text=TEXT, refusal=TEXT, **_IDLE) for name in ("text", "refusal")
    ]
}
_CONTENT: Schema = {"anyOf": [TEXT, list_of(_PART)]}
_CALL = object_of(
    ("function",), id=TEXT, type={"const": "function"}, index={"type": "integer"},
    function=object_of(("name",), name=TEXT, arguments=or_null(TEXT, OBJECT)),
)  # fmt: skip


def _message(roles: Sequence[str], content: Schema, *required: str) -> Schema:
    texts = {name: or_null(TEXT) for name in ("name", "tool_call_id", "reasoning", "reasoning_content", "refusal")}
    empty = {name: _EMPTY for name in ("audio", "function_call", "reasoning_details")}
    role = one_of(*roles)
    calls = or_null(list_of(_CALL))
    return closed(("role", *required), role=role, content=content, tool_calls=calls, **texts, **empty, **_IDLE)


_MESSAGE: Schema = OBJECT | {
    "anyOf": [
        _message(("system", "developer", "user", "tool"), _CONTENT, "content"),
        _message(("assistant",), or_null(*_CONTENT["anyOf"])),
    ]
}
_MESSAGES = list_of({"$ref": "#/components/schemas/Message"}, 1, fields.MAX_MESSAGES)

_BEFORE_DRAFT = list_of({"$ref": "#/components/schemas/Message"}, 0, fields.MAX_MESSAGES - 1)

_CHAT: dict[str, Schema] = {
    "messages": _MESSAGES,
    "tools": or_null(list_of(_TOOL, most=MAX_TOOLS)),
    "tool_choice": _CHOICE,
    "modalities": {"enum": [["text"], None]},
    "continue_token_ids": or_null(list_of(TOKEN, 1, MAX_CONTINUED_IDS)),
}

# ---- prompts and inputs in several forms

_PROMPT: Schema = {
    "anyOf": [
        TEXT,
        list_of(TEXT, 1, fields.MAX_PROMPTS),
        list_of(TOKEN, 1),
        list_of(list_of(TOKEN, 1), 1, fields.MAX_PROMPTS),
    ]
}
_INPUT: Schema = {
    "anyOf": [TEXT, list_of(TEXT, 1, MAX_INPUTS), list_of(TOKEN, 1), list_of(list_of(TOKEN, 1), 1, MAX_INPUTS)]
}

# ---- Ollama's

_OPTIONS = ("repeat_penalty", "repetition_penalty")
_SAMPLING = {_OPTIONS[0] if name == _OPTIONS[1] else name: (low, high) for name, low, high in SAMPLING_BOUNDS}
_BARE_MODEL: dict[str, Schema] = {"model": SOME}
_OLLAMA: dict[str, Schema] = {
    **_BARE_MODEL,
    "format": or_null({"enum": ["json", ""]}, OBJECT),
    "think": or_null(FLAG, one_of(*LEVELS)),
    "top_logprobs": or_null(whole(0, MAX_LOGPROBS)),
    "images": {"enum": [[], None]},
    "tools": or_null(list_of(object_of(("function",), type={"const": "function"}, function=FUNCTION), most=MAX_TOOLS)),
    "messages": or_null(list_of({"$ref": "#/components/schemas/OllamaMessage"}, most=fields.MAX_MESSAGES)),
    "context": or_null(list_of(TOKEN)),
}
_EITHER_NAME: Schema = {
    "anyOf": [object_of(("model",), model=SOME), object_of(("name",), name=SOME, model=TEXT | {"maxLength": 0})]
}

# ---- all of them

BY_SHAPE: Mapping[str, Mapping[str, Schema]] = {
    "ChatRequest": COMMON | _CHAT,
    "CompletionRequest": COMMON | {"prompt": _PROMPT},
    "PreviewRequest": COMMON | _CHAT | {"messages": _BEFORE_DRAFT},
    "StructuredOutputs": {"choice": or_null(list_of(TEXT, 1))},
    "Reasoning": {"max_tokens": or_null(whole(0, fields.MAX_NEW_TOKENS))},
    "EmbeddingRequest": {"input": _INPUT, "truncate_prompt_tokens": or_null({"const": -1}, whole(1, MAX_TOKENS))},
    "RerankRequest": {"truncate_prompt_tokens": or_null({"const": -1}, whole(1, MAX_TOKENS))},
    "ScoreRequest": {"truncate_prompt_tokens": or_null({"const": -1}, whole(1, MAX_TOKENS))},
    "ResponseRequest": RESPONSE,
    "CountRequest": RESPONSE,
    "ReasoningOptions": {
        "summary": {"enum": ["auto", "detailed", None]},
        "generate_summary": {"enum": ["auto", "detailed", None]},
        "context": {"enum": ["auto", None]},
        "mode": {"enum": ["standard", None]},
    },
    "TextOptions": {
        "verbosity": {"enum": ["medium", None]},
        "format": or_null(
            sealed(kind("text")),
            sealed(kind("json_object")),
            sealed(kind("json_schema", ("schema",), schema=OBJECT), name=ANY, description=ANY, strict=ANY),
        ),
    },
    "MessagesRequest": ANTHROPIC,
    "Counted": ANTHROPIC,
    "OllamaChatRequest": _OLLAMA,
    "OllamaGenerateRequest": _OLLAMA,
    "OllamaEmbedRequest": _BARE_MODEL
    | {"input": {"anyOf": [TEXT, list_of(TEXT, most=MAX_INPUTS)]}, "dimensions": or_null(whole(1, 2**31 - 1))},
    "OllamaOldEmbedRequest": _BARE_MODEL,
    "OllamaCopyRequest": {"source": SOME, "destination": SOME},
    "OllamaOptions": {
        "seed": EVERYWHERE["seed"],
        "num_ctx": or_null(whole(1, fields.MAX_NEW_TOKENS)),
        "num_predict": or_null(whole(-2, fields.MAX_NEW_TOKENS)),
        "stop": or_null(STOP, list_of(STOP, most=fields.MAX_STOPS)),
    },
    "Ids": {"tokens": list_of(TOKEN)},
    "TokenizeRequest": {"model": SOME, "messages": _MESSAGES},
    "OllamaMessage": {"images": {"enum": [[], None]}},
    "OllamaCreateRequest": {
        **dict.fromkeys(("adapters", "draft_files"), or_null(OBJECT | {"maxProperties": 0})),
        **dict.fromkeys(("quantize", "draft_quantize", "modelfile"), or_null(TEXT | {"maxLength": 0})),
    },
    "LoadRequest": {"model": SOME},
    "StopRequest": {"model": SOME},
    "LoadLora": {"lora_name": LORA_NAME, "lora_path": SOME | {"pattern": "^/"}, "scale": SCALE},
    "UnloadLora": {"lora_name": LORA_NAME},
}  # fmt: skip
"""What stands in for properties of a shape."""

REQUIRED: Mapping[str, Sequence[str]] = {
    "OllamaChatRequest": ("model",),
    "OllamaGenerateRequest": ("model",),
    "OllamaEmbedRequest": ("model", "input"),
    "OllamaOldEmbedRequest": ("model",),
    "OllamaCopyRequest": ("source", "destination"),
    "PreviewRequest": (),
}
"""What a struct has a default for so that its check can say in the dialect's words that it is missing."""

CLOSED = (
    "ChatRequest", "CompletionRequest", "PreviewRequest", "EmbeddingRequest", "RerankRequest", "ScoreRequest",
    "ResponseRequest", "CountRequest", "ReasoningOptions", "TextOptions", "ResponseStreamOptions", "LoadRequest",
    "StopRequest", "TokenizeRequest", "LoadLora", "UnloadLora",
)  # fmt: skip
"""Shapes whose unknown fields are refused."""

BESIDES: Mapping[str, Schema] = {
    "OllamaShowRequest": _EITHER_NAME,
    "OllamaPullRequest": _EITHER_NAME,
    "OllamaCreateRequest": _EITHER_NAME,
    "OllamaDeleteRequest": _EITHER_NAME,
    "RerankRequest": {
        "anyOf": [
            object_of(("documents",), documents={"type": "array"}, texts=NULL, return_text=NULL, truncate=NULL),
            object_of(("texts",), texts={"type": "array"}, documents=NULL, top_n=NULL, return_documents=NULL),
        ]
    },
    "CountRequest": {"anyOf": [object_of(("input",), input={"not": NULL}), object_of(
        ("previous_response_id",), previous_response_id=TEXT)]},
    "ResponseRequest": {"anyOf": [object_of(("input",), input={"not": NULL}), object_of(
        ("previous_response_id",), previous_response_id=TEXT)]},
    "TokenizeRequest": {
        "anyOf": [object_of(("prompt",), prompt=TEXT), object_of(("messages",), messages={"type": "array"})]
    },
    "PreviewRequest": {
        "anyOf": [
            object_of(("draft",), draft=SOME),
            object_of(("messages",), messages={"type": "array", "minItems": 1}),
        ]
    },
    "Thinking": {
        "anyOf": [
            object_of(type=one_of("disabled", "adaptive", "between_tools")),
            object_of(("budget_tokens",), type={"const": "enabled"}, budget_tokens={"type": "integer"}),
        ]
    },
}  # fmt: skip
"""What holds for the whole of a shape, beside its properties."""

INSTEAD: Mapping[str, Schema] = {"Message": _MESSAGE, "Turn": TURN}
"""Shapes whose forms depend on one of their fields."""

PARAMETERS: Mapping[str, Schema] = {
    "limit": whole(1, MAX_PAGE),
    "order": one_of("asc", "desc"),
    "prefix": one_of(*PREFIXES),
    "digest": TEXT | {"pattern": "^sha256[:-][0-9a-f]{64}$"},
}
"""Of paths and queries; all others are strings."""


def narrow(schemas: dict[str, Schema], bodies: Collection[str]) -> None:
    """Say in the schemas of shapes what is said here; `bodies` are the names of those that are sent."""
    for name, schema in schemas.items():
        properties = schema.get("properties", {})
        own = {**(EVERYWHERE if name in bodies else {}), **BY_SHAPE.get(name, {})}
        for field in properties.keys() & own.keys():
            said = {key: value for key, value in properties[field].items() if key in ("default", "description")}
            properties[field] = said | own[field]
        if name in REQUIRED:
            schema["required"] = list(REQUIRED[name])
        if name in CLOSED:
            schema["additionalProperties"] = False
        schema |= BESIDES.get(name, {})
    for name in INSTEAD.keys() & schemas.keys():
        schemas[name] = {"title": name} | INSTEAD[name]
    _describe_tokenizing(schemas)


def _describe_tokenizing(schemas: dict[str, Schema]) -> None:
    """Three forms in one path: the keys of the body say which one it is."""
    flag, model = {"type": "boolean"}, or_null(TEXT)
    chat = schemas["ChatRequest"]["properties"] | {"return_token_strs": flag}
    schemas["TokenizeBody"] = OBJECT | {
        "title": "TokenizeBody",
        "anyOf": [
            closed(("content",), content=TEXT, model=model, add_special=flag, parse_special=flag,
                with_pieces=flag,
            ),
            closed(("prompt",), prompt=TEXT, model=model, add_special_tokens=flag, return_token_strs=flag
            ),
            OBJECT | {"properties": chat, "required": ["messages"], "additionalProperties": False},
        ],
    }  # fmt: skip


def option_bounds() -> Sequence[fields.Bound]:
    """Of Ollama's options, under their names there."""
    return [(name, low, high) for name, (low, high) in _SAMPLING.items()]
