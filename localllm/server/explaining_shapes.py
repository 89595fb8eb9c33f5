"""What is asked of tokenizers. What is answered stands in `told.py`, where the client and the command find it, too."""

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TEXT_CHARS = 1 << 18
MAX_LISTED = 1 << 16
MAX_SIDE_BY_SIDE = 4
MAX_PAGE = 500
MAX_MESSAGES = 64

Name = Annotated[str, Meta(min_length=1, max_length=512)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class ExplainTextRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text for one to four tokenizers. `most` tokens of each are listed; counts are of the whole text."""

    text: Text
    models: Annotated[list[Name], Meta(min_length=1, max_length=MAX_SIDE_BY_SIDE)]
    add_special: bool = False
    parse_special: bool = True
    most: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 4096


class TraceWordRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The word around the character `at` of a text."""

    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
    model: Name
    at: Annotated[int, Meta(ge=0, le=MAX_TEXT_CHARS)] = 0
    parse_special: bool = True


class TokenFactsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: Name
    id: TokenId


class VocabularyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Entries by `text`, by `id` or by `bytes` (hexadecimal); else all. Pages of `limit` from `offset` on."""

    model: Name
    text: Annotated[str, Meta(max_length=256)] | None = None
    id: TokenId | None = None
    bytes: Annotated[str, Meta(max_length=512, pattern="^([0-9a-fA-F]{2})*$")] | None = None
    offset: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 50


class ShownMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: Text


class TemplateViewRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be shown as the model reads it."""

    model: Name
    messages: Annotated[list[ShownMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    add_generation_prompt: bool = True
