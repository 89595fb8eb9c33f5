"""JSON from strangers to Python: no deeper, no larger and no less certain than an honest request.

What is counted is counted in the text, before anything is built of it: sixteen megabytes of `[` cost no memory.
"""

import codecs
import json
import math
import re
from typing import Any

import msgspec

from localllm.errors import LocalLLMError

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
"""Members and items in one body: the longest prompts in token ids that fit a body stay below."""

# possessive, and a string without an end goes to the end: whatever the text, each byte is looked at once
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

_LONG_NUMBERS = re.compile(rb"[0-9]{19}")


class BadJson(LocalLLMError):
    """The text is not JSON, not an object, or nested or repeated beyond reason. The message is a sentence."""

    code = "invalid_json"
    http_status = 400


def decoded_object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`. Raises BadJson, also for a key that an object has twice: readers differ on which one
    counts, and neither may be dropped in silence."""
    text = text.removeprefix(codecs.BOM_UTF8)  # PowerShell's; RFC 8259 allows to pass over it
    if not text.strip():
        raise BadJson("the request has no body", hint="send a JSON object")
    if _is_crowded(text):
        raise BadJson(f"the request body holds more than {MAX_VALUES} values")
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if "out of range" in str(error) and (name := _too_large(text)) is not None:
            raise BadJson(f"{name[:64]!r} has a number that no float of 64 bits holds", param=name) from None
        raise BadJson(f"the request body is not valid JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise BadJson("the request body must be a JSON object")
    num_members, num_colons = _counted(decoded), text.count(b":")
    if num_colons != num_members and _STRINGS.sub(b"", text).count(b":") != num_members:
        raise BadJson(f"the request body has {_repeated(text)} twice in one object", hint="send each key once")
    if _LONG_NUMBERS.search(text):
        _check_numbers(decoded)
    return decoded


def _is_crowded(text: bytes) -> bool:
    """More quick looks than one: marks in strings do not count, but strings themselves take time to find."""
    if text.count(b",") + text.count(b":") <= MAX_VALUES:
        return False
    if text.count(b'"') - text.count(b'\\"') > 4 * MAX_VALUES:
        return True
    bare = _STRINGS.sub(b"", text)
    return bare.count(b",") + bare.count(b":") > MAX_VALUES


def _counted(root: dict[str, Any]) -> int:
    """Members of all objects in it, level by level. BadJson where there are too many levels."""
    num_members = 0
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        num_members += sum(len(value) for value in level if type(value) is dict)
        level = [inner for value in level for inner in _values(value) if type(inner) is dict or type(inner) is list]
        if not level:
            return num_members
    raise BadJson(f"the request body is nested deeper than {MAX_DEPTH} levels")


def _check_numbers(decoded: dict[str, Any]) -> None:
    """BadJson names the field with a whole number that nothing behind here could write down again."""
    for name, value in decoded.items():
        level: list[Any] = [[value]]
        while level:
            inner = [each for container in level for each in _values(container)]
            if any(type(each) is int and not -(2**63) <= each < 2**63 for each in inner):
                sentence = f"{name[:64]!r} has a whole number of more than 64 bits"
                raise BadJson(sentence, hint="it goes from -2**63 to 2**63 - 1", param=name)
            level = [each for each in inner if type(each) is dict or type(each) is list]


def _too_large(text: bytes) -> str | None:
    """The first field with a number beyond all floats. Slow: only for a refusal."""
    try:
        decoded = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None
    fields = decoded.items() if isinstance(decoded, dict) else ()
    return next((name for name, value in fields if _holds_infinity(value)), None)


def _holds_infinity(value: Any) -> bool:
    level = [value]
    while level:
        if any(type(each) is float and math.isinf(each) for each in level):
            return True
        level = [inner for each in level if type(each) is dict or type(each) is list for inner in _values(each)]
    return False


def _values(container: Any) -> Any:
    return container.values() if type(container) is dict else container


def _repeated(text: bytes) -> str:
    """The first key that an object has twice. Slow: only for a refusal."""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                found.append(name)
            seen.add(name)

    json.loads(text, object_pairs_hook=note, parse_int=float)  # Python makes no whole numbers of thousands of digits
    return repr(found[0][:64]) if found else "a key"
