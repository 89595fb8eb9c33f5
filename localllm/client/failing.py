"""Errors of the daemon's answers, as the classes of errors.py that it raised."""

import msgspec

from localllm.errors import ContextExceeded, LocalLLMError


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None
    param: str | None = None
    hint: str | None = None


def is_given(error: msgspec.Raw) -> bool:
    """Whether an `error` field was sent, and not null."""
    return bytes(error) not in (b"", b"null")


def error_from(raw: bytes | msgspec.Raw) -> LocalLLMError:
    """The error that a `{"message", "code", "hint"?}` object or a plain string describes, as the class of its code."""
    try:
        body = msgspec.json.decode(raw, type=_ErrorBody | str)
    except msgspec.MsgspecError:
        return LocalLLMError("the daemon reported an error in a form that this version does not understand")
    if isinstance(body, str):
        return LocalLLMError(body)
    kind = _classes_by_code().get(str(body.code), LocalLLMError)
    hint = body.hint or ""
    # for clients that know no `hint`, the daemon repeats it behind the sentence
    message = body.message.removesuffix(f" ({hint})") or "the daemon reported an error"
    return _rebuilt(kind, message, hint, body.param)


def _rebuilt(kind: type[LocalLLMError], message: str, hint: str, param: str | None) -> LocalLLMError:
    if kind is not ContextExceeded:
        return kind(message, hint=hint, param=param)
    # its constructor wants two numbers; the sentence already holds them
    numbers = [int(word) for word in message.replace(",", " ").split() if word.isdigit()]
    error = ContextExceeded(*[*numbers, 0, 0][:2], hint=hint)
    error.message = message
    return error


def _classes_by_code() -> dict[str, type[LocalLLMError]]:
    found: dict[str, type[LocalLLMError]] = {}
    waiting = [LocalLLMError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__ == LocalLLMError.__module__:  # those of other rooms may be made otherwise
            found.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return found


def error_of_status(status: int, body: bytes) -> LocalLLMError:
    """The error of an answer whose status is 400 or more."""
    try:
        return error_from(msgspec.json.decode(body, type=dict[str, msgspec.Raw])["error"])
    except (msgspec.MsgspecError, KeyError):
        return LocalLLMError(
            f"the daemon answered with status {status} and no reason", hint="is this the address of a localllm daemon?"
        )
