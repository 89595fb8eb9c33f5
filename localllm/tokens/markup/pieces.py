"""What a parser of markup gives: parts of an answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PieceKind = Literal["content", "reasoning", "tool_call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. For a tool call `name` is the function and `text` its arguments as compact JSON, or their
    beginning; without a name it is more of the arguments of the call before."""

    kind: PieceKind
    text: str
    name: str = ""


def call_piece(name: str, arguments: Mapping[str, Any]) -> Piece:
    """A tool call; half a surrogate pair stays escaped. Raises ValueError for a value that JSON does not have."""
    if not name:
        raise ValueError("a call without a name")
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if not _has_utf8(text):
        text = json.dumps(arguments, separators=(",", ":"), allow_nan=False)
    return Piece("tool_call", text, name if _has_utf8(name) else name.encode("utf-8", "replace").decode())


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
