"""What schemas say of fields that many requests have."""

from collections.abc import Mapping

from localllm.daemon.loras import GOOD_NAME, MAX_LORAS, MAX_SCALE
from localllm.runtime.presets import QUANTIZE
from localllm.server import fields
from localllm.server.schema_words import (
    ANY,
    FLAG,
    OBJECT,
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
from localllm.settings import BACKENDS, KV_TYPES
from localllm.wire import MAX_SEED

DURATION = r"^([+-]?[0-9]+(\.[0-9]+)?|[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d))+)$"
STOP = TEXT | {"minLength": 1, "maxLength": fields.MAX_STOP_CHARS}
NAME = TEXT | {"maxLength": fields.MAX_NAME_CHARS}

EVERYWHERE: Mapping[str, Schema] = {
    "keep_alive": or_null({"type": "number"}, TEXT | {"pattern": DURATION}),
    "backend": or_null(one_of(*BACKENDS)),
    "kv_type": or_null(one_of(*KV_TYPES)),
    "quantize": or_null(one_of(*QUANTIZE)),
    "threads": or_null(whole(0, 256)),
    "seed": or_null(whole(-MAX_SEED - 1, MAX_SEED)),
    "request_id": or_null(TEXT | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"}),
}
"""In every body that has them."""

TRUNCATE = or_null({"const": -1}, whole(1, fields.MAX_NEW_TOKENS))


def bias(*others: Schema) -> Schema:
    """Token ids, in texts, to numbers; or to one of the others."""
    names = {"pattern": "^[0-9]{1,10}$"}
    values = {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100}, *others]}
    return OBJECT | {"propertyNames": names, "additionalProperties": values, "maxProperties": fields.MAX_CHOSEN}


LORA_NAME = TEXT | {"pattern": f"^{GOOD_NAME.pattern}$"}
SCALE = or_null({"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE})
_LORA_BY_ID = closed(("id",), id={"type": "integer", "minimum": 0}, scale=SCALE)
_LORA_BY_NAME = closed(("name",), name=TEXT, scale=SCALE)

_SCHEMA = sealed(object_of(("schema",), schema=OBJECT), name=ANY, description=ANY, strict=ANY)

COMMON: dict[str, Schema] = {
    "stop": or_null(STOP, list_of(STOP, most=fields.MAX_STOPS)),
    "logit_bias": or_null(bias({"const": False})),
    "user": or_null(NAME),
    "cache_salt": or_null(NAME),
    "prompt_cache_key": or_null(NAME),
    "safety_identifier": or_null(NAME),
    "truncate_prompt_tokens": TRUNCATE,
    "repeat_penalty": or_null({"type": "number", "minimum": 0.01, "maximum": 100}),
    "stop_token_ids": or_null(list_of(TOKEN, most=64)),
    "allowed_token_ids": or_null(list_of(TOKEN, 1, fields.MAX_ALLOWED_IDS)),
    "bad_words": or_null(list_of(STOP, most=fields.MAX_BAD_WORDS)),
    "dry_sequence_breakers": or_null(list_of(STOP, most=fields.MAX_BREAKERS)),
    "guided_choice": or_null(list_of(TEXT, 1)),
    "lora": or_null(TEXT, list_of({"anyOf": [_LORA_BY_ID, _LORA_BY_NAME]}, most=MAX_LORAS)),
    "response_format": or_null(
        sealed(kind("text")),
        sealed(kind("json_object", schema=or_null(OBJECT))),
        sealed(kind("json_object", ("value",), value=OBJECT)),
        sealed(kind("json_schema", ("json_schema",), json_schema=_SCHEMA)),
        sealed(kind("json_schema", ("schema",), schema=OBJECT, json_schema=_SCHEMA)),
    ),
}
"""Of chats and plain completions."""

FUNCTION_NAME = TEXT | {"pattern": "^[A-Za-z0-9_.:/-]{1,256}$"}
FUNCTION = object_of(
    ("name",), name=FUNCTION_NAME, parameters=or_null(OBJECT), strict=or_null(FLAG), description=or_null(TEXT)
)
