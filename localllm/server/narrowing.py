"""What a request's schema says beyond the types of its struct: lengths, choices, patterns, forms of nested objects.

Structs take what the checks behind them look at more closely; a reader of the description should know it beforehand.
Only what JSON schema can say is here: that two fields do not go together, mostly not.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from localllm.daemon.loras import GOOD_NAME, MAX_LORAS, MAX_SCALE
from localllm.runtime.presets import QUANTIZE
from localllm.server import fields
from localllm.server.chat_checks import MAX_CONTINUED_IDS, MAX_TOOLS
from localllm.server.metrics import PREFIXES
from localllm.server.ollama_requests import LEVELS
from localllm.server.responses import MAX_PAGE
from localllm.server.responses_input import MAX_ITEMS
from localllm.server.responses_shapes import INCLUDABLE, MAX_METADATA
from localllm.server.vector_shapes import MAX_INPUTS, MAX_TOKENS
from localllm.settings import BACKENDS, KV_TYPES
from localllm.wire import MAX_LOGPROBS, MAX_SEED, SAMPLING_BOUNDS

Schema = dict[str, Any]

ANY: Schema = {}
NULL: Schema = {"type": "null"}
OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
SOME: Schema = {"type": "string", "minLength": 1}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _or_null(*options: Schema) -> Schema:
    return {"anyOf": [*options, NULL]}


def _one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def _list(item: Schema, least: int = 0, most: int = 0) -> Schema:
    bounds = ({"minItems": least} if least else {}) | ({"maxItems": most} if most else {})
    return {"type": "array", "items": item, **bounds}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _object(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    return OBJECT | {"properties": properties} | ({"required": list(required)} if required else {})


def _closed(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return _object(required, **properties) | {"additionalProperties": False}


def _kind(name: str, required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object whose `type` is this."""
    return _object(("type", *required), type={"const": name}, **properties)


# ---- fields that are the same wherever they occur

DURATION = r"^(-?[0-9]+(\.[0-9]+)?|-?([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+)$"
STOP = TEXT | {"minLength": 1, "maxLength": fields.MAX_STOP_CHARS}
NAME = TEXT | {"maxLength": fields.MAX_NAME_CHARS}

EVERYWHERE: Mapping[str, Schema] = {
    "keep_alive": _or_null({"type": "number"}, TEXT | {"pattern": DURATION}),
    "backend": _or_null(_one_of(*BACKENDS)),
    "kv_type": _or_null(_one_of(*KV_TYPES)),
    "quantize": _or_null(_one_of(*QUANTIZE)),
    "threads": _or_null(_whole(0, 256)),
    "seed": _or_null(_whole(-MAX_SEED - 1, MAX_SEED)),
    "request_id": _or_null(TEXT | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"}),
}
"""In every body that has them."""

_TRUNCATE = _or_null({"const": -1}, _whole(1, fields.MAX_NEW_TOKENS))


def _bias(*others: Schema) -> Schema:
    """Token ids, in texts, to numbers."""
    names = {"pattern": "^[0-9]{1,10}$"}
    values = {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100}, *others]}
    return OBJECT | {"propertyNames": names, "additionalProperties": values, "maxProperties": fields.MAX_CHOSEN}


_LORA_NAME = TEXT | {"pattern": f"^{GOOD_NAME.pattern}$"}
_SCALE = _or_null({"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE})
_LORA_BY_ID = _closed(("id",), id={"type": "integer", "minimum": 0}, scale=_SCALE)
_LORA_BY_NAME = _closed(("name",), name=TEXT, scale=_SCALE)

_COMMON: dict[str, Schema] = {
    "stop": _or_null(STOP, _list(STOP, most=fields.MAX_STOPS)),
    "logit_bias": _or_null(_bias({"const": False})),
    "user": _or_null(NAME),
    "cache_salt": _or_null(NAME),
    "prompt_cache_key": _or_null(NAME),
    "safety_identifier": _or_null(NAME),
    "truncate_prompt_tokens": _TRUNCATE,
    "repeat_penalty": _or_null({"type": "number", "minimum": 0.01, "maximum": 100}),
    "stop_token_ids": _or_null(_list(TOKEN, most=64)),
    "allowed_token_ids": _or_null(_list(TOKEN, 1, fields.MAX_ALLOWED_IDS)),
    "bad_words": _or_null(_list(STOP, most=fields.MAX_BAD_WORDS)),
    "dry_sequence_breakers": _or_null(_list(STOP, most=fields.MAX_BREAKERS)),
    "guided_choice": _or_null(_list(TEXT, 1)),
    "lora": _or_null(TEXT, _list({"anyOf": [_LORA_BY_ID, _LORA_BY_NAME]}, most=MAX_LORAS)),
    "response_format": _or_null(
        _kind("text"),
        _kind("json_object", schema=_or_null(OBJECT)),
        _kind("json_schema", ("json_schema",), json_schema=_object(("schema",), schema=OBJECT)),
        _kind("json_schema", ("schema",), schema=OBJECT, json_schema=_object(("schema",), schema=OBJECT)),
    ),
}
"""Of chats and plain completions."""

# ---- chats

_FUNCTION_NAME = TEXT | {"pattern": "^[A-Za-z0-9_.:/-]{1,256}$"}
_FUNCTION = _object(
    ("name",), name=_FUNCTION_NAME, parameters=_or_null(OBJECT), strict=_or_null(FLAG), description=_or_null(TEXT)
)
_TOOL = _kind("function", ("function",), function=_FUNCTION)
_CHOSEN = _kind("function", ("function",), function=_object(("name",), name=SOME))
_CHOICE = _or_null(
    _one_of("none", "auto", "required"),
    _CHOSEN,
    _kind(
        "allowed_tools", ("allowed_tools",),
        allowed_tools=_object(("mode", "tools"), mode=_one_of("auto", "required"), tools=_list(_CHOSEN, 1)),
    ),
)  # fmt: skip

_EMPTY: Schema = {"enum": [None, False, 0, "", [], {}]}
_IDLE = {name: ANY for name in ("annotations", "cache_control", "id", "parsed", "provider_specific_fields")}
_PART: Schema = {
    "anyOf": [
        _closed(("type", name), type={"const": name}, text=TEXT, refusal=TEXT, **_IDLE) for name in ("text", "refusal")
    ]
}
_CONTENT: Schema = {"anyOf": [TEXT, _list(_PART)]}
_CALL = _object(
    ("function",), id=TEXT, type={"const": "function"}, index={"type": "integer"},
    function=_object(("name",), name=TEXT, arguments=_or_null(TEXT, OBJECT)),
)  # fmt: skip


def _message(roles: Sequence[str], content: Schema, *required: str) -> Schema:
    texts = {name: _or_null(TEXT) for name in ("name", "tool_call_id", "reasoning", "reasoning_content", "refusal")}
    empty = {name: _EMPTY for name in ("audio", "function_call", "reasoning_details")}
    role = _one_of(*roles)
    calls = _or_null(_list(_CALL))
    return _closed(("role", *required), role=role, content=content, tool_calls=calls, **texts, **empty, **_IDLE)


_MESSAGE: Schema = OBJECT | {
    "anyOf": [
        _message(("system", "developer", "user", "tool"), _CONTENT, "content"),
        _message(("assistant",), _or_null(*_CONTENT["anyOf"])),
    ]
}
_MESSAGES = _list({"$ref": "#/components/schemas/Message"}, 1, fields.MAX_MESSAGES)

_BEFORE_DRAFT = _list({"$ref": "#/components/schemas/Message"}, 0, fields.MAX_MESSAGES - 1)

_CHAT: dict[str, Schema] = {
    "messages": _MESSAGES,
    "tools": _or_null(_list(_TOOL, most=MAX_TOOLS)),
    "tool_choice": _CHOICE,
    "modalities": {"enum": [["text"], None]},
    "continue_token_ids": _or_null(_list(TOKEN, 1, MAX_CONTINUED_IDS)),
}

# ---- prompts and inputs in several forms

_PROMPT: Schema = {
    "anyOf": [
        TEXT,
        _list(TEXT, 1, fields.MAX_PROMPTS),
        _list(TOKEN, 1),
        _list(_list(TOKEN, 1), 1, fields.MAX_PROMPTS),
    ]
}
_INPUT: Schema = {"anyOf": [TEXT, _list(TEXT, 1, MAX_INPUTS), _list(TOKEN, 1), _list(_list(TOKEN, 1), 1, MAX_INPUTS)]}

# ---- responses

_TEXT_PART = {"anyOf": [
    _object(
        ("type", "text"), text=TEXT,
        type=_one_of("input_text", "output_text", "text", "summary_text", "reasoning_text"),
    ),
    _kind("refusal", ("refusal",), refusal=TEXT),
]}  # fmt: skip
_SAID: Schema = {"anyOf": [TEXT, _list(_TEXT_PART)]}
_THOUGHT = _or_null(_SAID)
_ITEM: Schema = {
    "anyOf": [
        _object(
            ("role", "content"), type={"const": "message"}, content=_SAID,
            role=_one_of("user", "assistant", "system", "developer"),
        ),
        _kind("reasoning", content=_THOUGHT, summary=_THOUGHT, encrypted_content=NULL),
        _kind("function_call", ("call_id", "name", "arguments"), call_id=TEXT, name=TEXT, arguments=TEXT),
        _kind("custom_tool_call", ("call_id", "name", "input"), call_id=TEXT, name=TEXT, input=TEXT),
        _kind("function_call_output", ("call_id", "output"), call_id=TEXT, output=_SAID),
        _kind("custom_tool_call_output", ("call_id", "output"), call_id=TEXT, output=_SAID),
    ]
}  # fmt: skip
_TOOL_NAME = TEXT | {"pattern": "^[A-Za-z0-9_.:-]{1,128}$"}
_FLAT_TOOLS = (
    _kind(
        "function", ("name",), name=_TOOL_NAME, description=_or_null(TEXT), parameters=_or_null(OBJECT),
        strict=_or_null(FLAG),
    ),
    _kind("custom", ("name",), name=_TOOL_NAME, format=_or_null({"const": {"type": "text"}})),
)  # fmt: skip
_RESPONSE_TOOL: Schema = {
    "anyOf": [
        *_FLAT_TOOLS,
        _kind("namespace", ("name", "tools"), name=_TOOL_NAME, tools=_list({"anyOf": list(_FLAT_TOOLS)})),
    ]
}
_NAMED_TOOL = _object(("name",), name=SOME, namespace=_or_null(TEXT))
_RESPONSE: dict[str, Schema] = {
    "input": _or_null(TEXT, _list(_ITEM, most=MAX_ITEMS)),
    "conversation": NULL,
    "tools": _or_null(_list(_RESPONSE_TOOL, most=MAX_TOOLS)),
    "tool_choice": _or_null(
        _one_of("none", "auto", "required"),
        _object(("type", "name"), type=_one_of("function", "custom"), name=SOME, namespace=_or_null(TEXT)),
        _kind("allowed_tools", ("tools",), mode=_one_of("auto", "required"), tools=_list(_NAMED_TOOL, 1)),
    ),
    "truncation": {"enum": ["disabled", None]},
    "background": {"enum": [False, None]},
    "prompt": NULL,
    "include": _or_null(_list(_one_of(*INCLUDABLE))),
    "metadata": _or_null(OBJECT | {"additionalProperties": TEXT, "maxProperties": MAX_METADATA}),
    **{name: _COMMON[name] for name in ("stop", "user", "cache_salt", "safety_identifier", "prompt_cache_key")},
    "logit_bias": _or_null(_bias()),
}

# ---- messages of Anthropic's

_TEXT_BLOCK = _kind("text", ("text",), text=TEXT)
_TEXTS: Schema = {"anyOf": [TEXT, _list(_TEXT_BLOCK)]}
_DOCUMENT = _kind(
    "document", ("source",),
    source={"anyOf": [_kind("text", ("data",), data=TEXT), _kind("content", ("content",), content=_TEXTS)]},
)  # fmt: skip
_SHOWN: Schema = {"anyOf": [_TEXT_BLOCK, _DOCUMENT, _kind("search_result", ("content",), content=_list(_TEXT_BLOCK))]}
_RESULT = _kind("tool_result", ("tool_use_id",), tool_use_id=TEXT, content=_or_null(TEXT, _list(_SHOWN)))
_ASSISTANTS: Schema = {
    "anyOf": [
        _TEXT_BLOCK,
        _kind("thinking", ("thinking",), thinking=TEXT),
        _kind("tool_use", ("id", "name", "input"), id=SOME, name=SOME, input=OBJECT),
        _object(("type",), type=TEXT | {"not": {"enum": ["text", "thinking", "tool_use"]}}),
    ]
}


def _turn(role: str, block: Schema) -> Schema:
    return _object(("role", "content"), role={"const": role}, content={"anyOf": [TEXT, _list(block)]})


_TURN: Schema = OBJECT | {
    "anyOf": [
        _turn("user", {"anyOf": [*_SHOWN["anyOf"], _RESULT]}),
        _turn("assistant", _ASSISTANTS),
        _turn("system", _TEXT_BLOCK),
    ]
}
_ANTHROPIC: dict[str, Schema] = {
    "messages": _list({"$ref": "#/components/schemas/Turn"}, 1, fields.MAX_MESSAGES),
    "system": _or_null(TEXT, _list(_TEXT_BLOCK)),
    "tools": _or_null(
        _list(
            {
                "anyOf": [
                    _object(
                        ("name", "input_schema"), type={"enum": ["custom", None]}, name=_FUNCTION_NAME,
                        input_schema=OBJECT, description=_or_null(TEXT), strict=_or_null(FLAG),
                    ),
                    _object(("type",), type=TEXT | {"not": {"const": "custom"}}),
                ]
            },
            most=MAX_TOOLS,
        )
    ),
    "tool_choice": _or_null(
        _object(("type",), type=_one_of("auto", "any", "none"), disable_parallel_tool_use=_or_null(FLAG)),
        _kind("tool", ("name",), name=SOME, disable_parallel_tool_use=_or_null(FLAG)),
    ),
    "stop_sequences": _or_null(_list(STOP, most=fields.MAX_STOPS)),
}  # fmt: skip

# ---- Ollama's

_OPTIONS = ("repeat_penalty", "repetition_penalty")
_SAMPLING = {_OPTIONS[0] if name == _OPTIONS[1] else name: (low, high) for name, low, high in SAMPLING_BOUNDS}
_BARE_MODEL: dict[str, Schema] = {"model": SOME}
_OLLAMA: dict[str, Schema] = {
    **_BARE_MODEL,
    "format": _or_null({"enum": ["json", ""]}, OBJECT),
    "think": _or_null(FLAG, _one_of(*LEVELS)),
    "top_logprobs": _or_null(_whole(0, MAX_LOGPROBS)),
    "images": {"enum": [[], None]},
    "tools": _or_null(_list(_object(("function",), type={"const": "function"}, function=_FUNCTION), most=MAX_TOOLS)),
    "messages": _or_null(_list({"$ref": "#/components/schemas/OllamaMessage"}, most=fields.MAX_MESSAGES)),
    "context": _or_null(_list(TOKEN)),
}
_EITHER_NAME: Schema = {
    "anyOf": [_object(("model",), model=SOME), _object(("name",), name=SOME, model=TEXT | {"maxLength": 0})]
}

# ---- all of them

BY_SHAPE: Mapping[str, Mapping[str, Schema]] = {
    "ChatRequest": _COMMON | _CHAT,
    "CompletionRequest": _COMMON | {"prompt": _PROMPT},
    "PreviewRequest": _COMMON | _CHAT | {"messages": _BEFORE_DRAFT},
    "StructuredOutputs": {"choice": _or_null(_list(TEXT, 1))},
    "Reasoning": {"max_tokens": _or_null(_whole(0, fields.MAX_NEW_TOKENS))},
    "EmbeddingRequest": {"input": _INPUT, "truncate_prompt_tokens": _or_null({"const": -1}, _whole(1, MAX_TOKENS))},
    "RerankRequest": {"truncate_prompt_tokens": _or_null({"const": -1}, _whole(1, MAX_TOKENS))},
    "ScoreRequest": {"truncate_prompt_tokens": _or_null({"const": -1}, _whole(1, MAX_TOKENS))},
    "ResponseRequest": _RESPONSE,
    "CountRequest": _RESPONSE,
    "ReasoningOptions": {
        "summary": {"enum": ["auto", "detailed", None]},
        "generate_summary": {"enum": ["auto", "detailed", None]},
        "context": {"enum": ["auto", None]},
        "mode": {"enum": ["standard", None]},
    },
    "TextOptions": {
        "verbosity": {"enum": ["medium", None]},
        "format": _or_null(_kind("text"), _kind("json_object"), _kind("json_schema", ("schema",), schema=OBJECT)),
    },
    "MessagesRequest": _ANTHROPIC,
    "Counted": _ANTHROPIC,
    "OllamaChatRequest": _OLLAMA,
    "OllamaGenerateRequest": _OLLAMA,
    "OllamaEmbedRequest": _BARE_MODEL
    | {"input": {"anyOf": [TEXT, _list(TEXT, most=MAX_INPUTS)]}, "dimensions": _or_null(_whole(1, 2**31 - 1))},
    "OllamaOldEmbedRequest": _BARE_MODEL,
    "OllamaCopyRequest": {"source": SOME, "destination": SOME},
    "OllamaOptions": {
        "seed": EVERYWHERE["seed"],
        "num_ctx": _or_null(_whole(1, fields.MAX_NEW_TOKENS)),
        "num_predict": _or_null(_whole(-2, fields.MAX_NEW_TOKENS)),
        "stop": _or_null(STOP, _list(STOP, most=fields.MAX_STOPS)),
    },
    "Ids": {"tokens": _list(TOKEN)},
    "TokenizeRequest": {"model": SOME, "messages": _MESSAGES},
    "OllamaMessage": {"images": {"enum": [[], None]}},
    "OllamaCreateRequest": {
        **dict.fromkeys(("adapters", "draft_files"), _or_null(OBJECT | {"maxProperties": 0})),
        **dict.fromkeys(("quantize", "draft_quantize", "modelfile"), _or_null(TEXT | {"maxLength": 0})),
    },
    "LoadRequest": {"model": SOME},
    "StopRequest": {"model": SOME},
    "LoadLora": {"lora_name": _LORA_NAME, "lora_path": SOME | {"pattern": "^/"}, "scale": _SCALE},
    "UnloadLora": {"lora_name": _LORA_NAME},
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
            _object(("documents",), documents={"type": "array"}, texts=NULL, return_text=NULL, truncate=NULL),
            _object(("texts",), texts={"type": "array"}, documents=NULL, top_n=NULL, return_documents=NULL),
        ]
    },
    "CountRequest": {"anyOf": [_object(("input",), input={"not": NULL}), _object(
        ("previous_response_id",), previous_response_id=TEXT)]},
    "ResponseRequest": {"anyOf": [_object(("input",), input={"not": NULL}), _object(
        ("previous_response_id",), previous_response_id=TEXT)]},
    "TokenizeRequest": {
        "anyOf": [_object(("prompt",), prompt=TEXT), _object(("messages",), messages={"type": "array"})]
    },
    "PreviewRequest": {
        "anyOf": [
            _object(("draft",), draft=SOME),
            _object(("messages",), messages={"type": "array", "minItems": 1}),
        ]
    },
    "Thinking": {
        "anyOf": [
            _object(type=_one_of("disabled", "adaptive", "between_tools")),
            _object(("budget_tokens",), type={"const": "enabled"}, budget_tokens={"type": "integer"}),
        ]
    },
}  # fmt: skip
"""What holds for the whole of a shape, beside its properties."""

INSTEAD: Mapping[str, Schema] = {"Message": _MESSAGE, "Turn": _TURN}
"""Shapes whose forms depend on one of their fields."""

PARAMETERS: Mapping[str, Schema] = {
    "limit": _whole(1, MAX_PAGE),
    "order": _one_of("asc", "desc"),
    "prefix": _one_of(*PREFIXES),
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
    flag, model = {"type": "boolean"}, _or_null(TEXT)
    chat = schemas["ChatRequest"]["properties"] | {"return_token_strs": flag}
    schemas["TokenizeBody"] = OBJECT | {
        "title": "TokenizeBody",
        "anyOf": [
            _closed(("content",), content=TEXT, model=model, add_special=flag, parse_special=flag,
                with_pieces=flag,
            ),
            _closed(("prompt",), prompt=TEXT, model=model, add_special_tokens=flag, return_token_strs=flag
            ),
            OBJECT | {"properties": chat, "required": ["messages"], "additionalProperties": False},
        ],
    }  # fmt: skip


def option_bounds() -> Sequence[fields.Bound]:
    """Of Ollama's options, under their names there."""
    return [(name, low, high) for name, (low, high) in _SAMPLING.items()]
