"""JSON objects from files and headers that others wrote: bounded in size, no key twice."""

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile
from localllm.formats.mapped import file_size, read_prefix

MAX_FILE_BYTES = 1 << 26


def read_json_object(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """The object in a JSON file; raises ModelNotFound, or BadModelFile if it is too large, broken or no object.

    The mark that some editors put before UTF-8 is passed over.
    """
    size = file_size(path)
    if size > max_bytes:
        raise BadModelFile(f"{path} is larger than the {max_bytes} bytes that are read of such a file")
    return parse_json_object(read_prefix(path, size).removeprefix(BOM_UTF8), str(path))


def parse_json_object(text: bytes, source: str) -> dict[str, Any]:
    """The object in UTF-8 JSON text; BadModelFile, naming the source, for anything else or for a key that is twice."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{source} {_why_not(error)}") from None
    if not isinstance(value, dict):
        raise BadModelFile(f"{source} is JSON, but not an object")
    return value


def _why_not(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"is not valid JSON: byte {error.start} is no UTF-8"
    if isinstance(error, json.JSONDecodeError | _Twice):
        return f"is not valid JSON: {error}"
    return "is not valid JSON: it has a number with thousands of digits"  # what else Python refuses, in words of ours


class _Twice(ValueError):
    """A key is there twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in result if keys.count(key) > 1)
        raise _Twice(f"key {twice[:100]!r} is there twice")
    return result
