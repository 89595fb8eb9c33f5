"""What the schema of Anthropic's messages says of their fields."""

from localllm.server import fields
from localllm.server.chat_checks import MAX_TOOLS
from localllm.server.schema_fields import FUNCTION_NAME, STOP
from localllm.server.schema_words import FLAG, OBJECT, SOME, TEXT, Schema, kind, list_of, object_of, one_of, or_null

_TEXT_BLOCK = kind("text", ("text",), text=TEXT)
_TEXTS: Schema = {"anyOf": [TEXT, list_of(_TEXT_BLOCK)]}
_DOCUMENT = kind(
    "document", ("source",),
    source={"anyOf": [kind("text", ("data",), data=TEXT), kind("content", ("content",), content=_TEXTS)]},
)  # fmt: skip
_SHOWN: Schema = {"anyOf": [_TEXT_BLOCK, _DOCUMENT, kind("search_result", ("content",), content=list_of(_TEXT_BLOCK))]}
_RESULT = kind("tool_result", ("tool_use_id",), tool_use_id=TEXT, content=or_null(TEXT, list_of(_SHOWN)))
_ASSISTANTS: Schema = {
    "anyOf": [
        _TEXT_BLOCK,
        kind("thinking", ("thinking",), thinking=TEXT),
        kind("tool_use", ("id", "name", "input"), id=SOME, name=SOME, input=OBJECT),
        object_of(("type",), type=TEXT | {"not": {"enum": ["text", "thinking", "tool_use"]}}),
    ]
}


def _turn(role: str, block: Schema) -> Schema:
    return object_of(("role", "content"), role={"const": role}, content={"anyOf": [TEXT, list_of(block)]})


TURN: Schema = OBJECT | {
    "anyOf": [
        _turn("user", {"anyOf": [*_SHOWN["anyOf"], _RESULT]}),
        _turn("assistant", _ASSISTANTS),
        _turn("system", _TEXT_BLOCK),
    ]
}
ANTHROPIC: dict[str, Schema] = {
    "messages": list_of({"$ref": "#/components/schemas/Turn"}, 1, fields.MAX_MESSAGES),
    "system": or_null(TEXT, list_of(_TEXT_BLOCK)),
    "tools": or_null(
        list_of(
            {
                "anyOf": [
                    object_of(
                        ("name", "input_schema"), type={"enum": ["custom", None]}, name=FUNCTION_NAME,
                        input_schema=OBJECT, description=or_null(TEXT), strict=or_null(FLAG),
                    ),
                    object_of(("type",), type=TEXT | {"not": {"const": "custom"}}),
                ]
            },
            most=MAX_TOOLS,
        )
    ),
    "tool_choice": or_null(
        object_of(("type",), type=one_of("auto", "any", "none"), disable_parallel_tool_use=or_null(FLAG)),
        kind("tool", ("name",), name=SOME, disable_parallel_tool_use=or_null(FLAG)),
    ),
    "stop_sequences": or_null(list_of(STOP, most=fields.MAX_STOPS)),
}  # fmt: skip
