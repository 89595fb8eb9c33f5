"""What a translation of one dialect to another has no use for: passed over and named, or refused by name."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from localllm.errors import InvalidRequest, LocalLLMError
from localllm.server.notes import Notes
from localllm.server.unknowns import IGNORED_HEADER, ignored_header


def over(notes: Notes, name: str, sentence: str, hint: str = "") -> None:
    """Go on without `name`, which the client hears of; InvalidRequest where it must not be passed over."""
    hint = hint or "leave it out, or send the header `Prefer: handling=lenient` to have it ignored"
    error = InvalidRequest(f"{name}: {sentence}", hint=hint, param=name)
    error.code = "unsupported_parameter"
    notes.pass_over(error)


def over_unknown(
    notes: Notes, given: Mapping[str, Any], where: str, known: Container[str], idle: Container[str]
) -> None:
    """`over` for each field of an object that says something and is neither `known` nor `idle`."""
    for name, value in given.items():
        if value is not None and name not in known and name not in idle:
            over(notes, f"{where}.{name[:64]}", "is not supported")


def headers_of(notes: Notes, names: Mapping[str, str]) -> dict[str, str]:
    """Of the answer. What was passed over later is called as the client calls it, see `named_as`."""
    headers = notes.all_headers()
    notes.ignored[:] = [renamed(name, names) for name in notes.ignored]
    found = (notes.headers.get(IGNORED_HEADER), ignored_header(notes.ignored).get(IGNORED_HEADER))
    named = ", ".join(filter(None, found))
    return headers | ({IGNORED_HEADER: named} if named else {})


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about fields of the neutral form name the fields that the client has sent: `names` has those that are
    called differently; `messages[3].content` is found by `messages[3]`, else by `messages`."""
    try:
        yield
    except LocalLLMError as error:
        _rename(error, names)
        raise


def _rename(error: LocalLLMError, names: Mapping[str, str]) -> None:
    param = error.param or ""
    error.param = renamed(param, names) or None
    if param and param != error.param:
        error.message = error.message.replace(param, str(error.param), 1)
        error.hint = error.hint.replace(f"`{param}`", f"`{error.param}`")
        error.args = (error.message,)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """The client's name of a field of the neutral form."""
    whole = max((name for name in names if _leads(name, path)), key=len, default="")
    return names[whole] + path.removeprefix(whole) if whole else path


def _leads(name: str, path: str) -> bool:
    return path.startswith(name) and path[len(name) :][:1] in ("", ".", "[")
