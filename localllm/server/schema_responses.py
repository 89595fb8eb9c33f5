"""What the schema of a response request says of its fields."""

from localllm.server.chat_checks import MAX_TOOLS
from localllm.server.responses_input import IDLE as ITEM_IDLE
from localllm.server.responses_input import MAX_ITEMS
from localllm.server.responses_shapes import INCLUDABLE, MAX_METADATA
from localllm.server.responses_tools import IDLE as TOOL_IDLE
from localllm.server.schema_fields import COMMON, bias
from localllm.server.schema_words import (
    ANY,
    FLAG,
    NULL,
    OBJECT,
    SOME,
    TEXT,
    Schema,
    kind,
    list_of,
    object_of,
    one_of,
    or_null,
    sealed,
    told,
)

_TEXT_PART = {"anyOf": [
    told(object_of(
        ("type", "text"), text=TEXT,
        type=one_of("input_text", "output_text", "text", "summary_text", "reasoning_text"),
    ), "refusal", *ITEM_IDLE),
    told(kind("refusal", ("refusal",), refusal=TEXT), "text", *ITEM_IDLE),
]}  # fmt: skip
_SAID: Schema = {"anyOf": [TEXT, list_of(_TEXT_PART)]}
_THOUGHT = or_null(_SAID)
_ITEM: Schema = {"anyOf": [told(each, *ITEM_IDLE) for each in (
    object_of(
        ("role", "content"), type={"const": "message"}, content=_SAID,
        role=one_of("user", "assistant", "system", "developer"),
    ),
    kind("reasoning", content=_THOUGHT, summary=_THOUGHT, encrypted_content=NULL),
    kind(
        "function_call", ("call_id", "name", "arguments"), call_id=TEXT, name=TEXT, arguments=TEXT, namespace=ANY,
    ),
    kind("custom_tool_call", ("call_id", "name", "input"), call_id=TEXT, name=TEXT, input=TEXT, namespace=ANY),
    kind("function_call_output", ("call_id", "output"), call_id=TEXT, output=_SAID),
    kind("custom_tool_call_output", ("call_id", "output"), call_id=TEXT, output=_SAID),
)]}  # fmt: skip
_TOOL_NAME = TEXT | {"pattern": "^[A-Za-z0-9_.:-]{1,128}$"}
_FLAT_TOOLS = (
    told(kind(
        "function", ("name",), name=_TOOL_NAME, description=or_null(TEXT), parameters=or_null(OBJECT),
        strict=or_null(FLAG),
    ), *TOOL_IDLE),
    kind("custom", ("name",), name=_TOOL_NAME, format=or_null({"const": {"type": "text"}})),
)  # fmt: skip
_RESPONSE_TOOL: Schema = {
    "anyOf": [
        *_FLAT_TOOLS,
        kind("namespace", ("name", "tools"), name=_TOOL_NAME, tools=list_of({"anyOf": list(_FLAT_TOOLS)})),
    ]
}
_NAMED_TOOL = object_of(("name",), name=SOME, namespace=or_null(TEXT))
RESPONSE: dict[str, Schema] = {
    "input": or_null(TEXT, list_of(_ITEM, most=MAX_ITEMS)),
    "conversation": NULL,
    "tools": or_null(list_of(_RESPONSE_TOOL, most=MAX_TOOLS)),
    "tool_choice": or_null(
        one_of("none", "auto", "required"),
        sealed(object_of(("type", "name"), type=one_of("function", "custom"), name=SOME, namespace=or_null(TEXT))),
        sealed(kind("allowed_tools", ("tools",), mode=one_of("auto", "required"), tools=list_of(_NAMED_TOOL, 1))),
    ),
    "truncation": {"enum": ["disabled", None]},
    "background": {"enum": [False, None]},
    "prompt": NULL,
    "include": or_null(list_of(one_of(*INCLUDABLE))),
    "metadata": or_null(OBJECT | {"additionalProperties": TEXT, "maxProperties": MAX_METADATA}),
    **{name: COMMON[name] for name in ("stop", "user", "cache_salt", "safety_identifier", "prompt_cache_key")},
    "logit_bias": or_null(bias()),
}
