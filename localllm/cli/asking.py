"""What `--format` and `--think` ask of an answer, as fields of a request. Values that are none end in a UsageError."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from localllm.cli.files import text_of
from localllm.errors import InvalidRequest, UsageError

FORMAT, EFFORT = "response_format", "reasoning_effort"
# Ollama's words. Without a level no bound is set: templates that know levels get the highest, as all know that one
EFFORTS: Mapping[str, str] = {
    "": "high", "true": "high", "false": "none", "low": "low", "medium": "medium", "high": "high", "max": "max",
}  # fmt: skip
LEVELS = tuple(word for word in EFFORTS if word not in ("", "true", "false"))
_SHOWN_CHARS = 40
_FORMAT_HINT = """give json, a schema such as '{"type": "object"}', or a file that holds one"""

FormatWish = Annotated[
    str,
    typer.Option(
        "--format", metavar="SCHEMA", help="Answer in JSON: json, a JSON schema, or a file that holds one.",
        show_default=False,
    ),
]  # fmt: skip
Think = Annotated[
    str | None,
    typer.Option(
        "--think", metavar="[=LEVEL]", help="Think first, or not: true, false, low, medium, high or max.",
        show_default=False,
    ),
]  # fmt: skip


def wish_fields(format_: str, think: str | None) -> dict[str, Any]:
    """Both options; nothing for what was not asked."""
    return {**format_fields(format_), **({} if think is None else thinking_fields(think))}


def thinking_fields(level: str) -> dict[str, Any]:
    """`level` is empty or `true`, `false`, or one of LEVELS."""
    effort = EFFORTS.get(level.strip().lower())
    if effort is None:
        hint = f"say true, false, {', '.join(LEVELS[:-1])} or {LEVELS[-1]}"
        raise UsageError(f"{_clipped(level)} is no level of thinking", hint=hint)
    return {EFFORT: effort}


def format_fields(text: str, option: str = "--format") -> dict[str, Any]:
    """`json`, a schema in place, or a file that has one, with or without an @ before its name. Empty: any text."""
    wanted = text.strip().strip('"').lower()
    if wanted in ("", "json"):
        return {FORMAT: {"type": "json_object"}} if wanted else {}
    from localllm.server.ollama_formats import response_format  # takes a schema as Ollama does; few ask for one

    return {FORMAT: response_format(_schema(text, option))}


def _schema(text: str, option: str) -> dict[str, Any]:
    if text.lstrip().startswith(("{", "[")):
        return _parsed(text, "the schema")
    if text != "@" and (text.startswith("@") or _is_path(text)):
        path = Path(os.path.expanduser(text.removeprefix("@")))
        return _parsed(text_of(path, _FORMAT_HINT), str(path))
    raise UsageError(f"{option} takes `json` or a JSON schema, not {_clipped(text)}", hint=_FORMAT_HINT)


def _is_path(text: str) -> bool:
    return os.path.exists(text) or text.endswith(".json") or "/" in text


def _parsed(text: str, place: str) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(text.removeprefix("\ufeff"))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise UsageError(f"{place} is no JSON: {error}", hint=_FORMAT_HINT) from None
    if not isinstance(schema, dict):
        kind = "a list" if isinstance(schema, list) else repr(schema)[:_SHOWN_CHARS]
        raise UsageError(f"{place} is no schema: a JSON schema is an object, not {kind}", hint=_FORMAT_HINT)
    return schema


def _clipped(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


@contextmanager
def thinking_refused(hint: str) -> Iterator[None]:
    """What the daemon says of a model that does not think, with `hint` instead of the name of a request's field."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == EFFORT:
            error.hint = hint
        raise
