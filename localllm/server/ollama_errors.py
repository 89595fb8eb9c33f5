"""Our errors in the words that Ollama's clients look for. Everything else keeps its own sentence."""

import copy

import msgspec

from localllm.errors import (
    Cancelled,
    ContextExceeded,
    InvalidRequest,
    LocalLLMError,
    ModelNotFound,
    Overloaded,
    StoreError,
)
from localllm.server.http import error_body
from localllm.server.json_text import BadJson
from localllm.server.pump import Form
from localllm.store.names import looks_like_path

PATH = "/api/"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
CANCELED = "request canceled"
NO_BODY = "missing request body"
NO_MODEL = "model is required"


def in_ollamas_words(error: LocalLLMError, model: str = "") -> LocalLLMError:
    """The same error, said as Ollama says it; `model` is the name in the request."""
    sentence = _sentence(error, model)
    if sentence is None:
        return error
    told = copy.copy(error)
    told.message, told.hint = sentence, ""
    return told


def _sentence(error: LocalLLMError, model: str) -> str | None:
    if isinstance(error, ModelNotFound):
        return f"model '{model}' not found" if model else None
    if isinstance(error, Cancelled):
        return CANCELED
    if type(error) is Overloaded and "shutting down" not in error.message:
        return BUSY
    if isinstance(error, BadJson) and "has no body" in error.message:
        return NO_BODY
    return None


def named(model: str) -> str:
    """The name itself. InvalidRequest without one; a path is no name here, so that nobody can ask over the network
    which files there are: it is not found, whatever lies there."""
    if not model:
        raise InvalidRequest(NO_MODEL, param="model")
    if looks_like_path(model):
        raise ModelNotFound(f"model '{model}' not found", param="model")
    return model


def refused_by_store(error: LocalLLMError) -> LocalLLMError:
    """What the store will not do is no failure of ours."""
    if isinstance(error, StoreError):
        error.http_status = 409
    return error


def cannot(model: str, what: str) -> InvalidRequest:
    return InvalidRequest(f'"{model}" does not support {what}', param=_FIELDS.get(what))


_FIELDS = {"thinking": "think", "tools": "tools", "insert": "suffix", "vision": "images"}


def too_long_to_embed() -> InvalidRequest:
    error = InvalidRequest("the input length exceeds the context length", param="input")
    error.code = ContextExceeded.code
    return error


def error_line(error: LocalLLMError) -> bytes:
    """The last line of a stream that failed in the middle."""
    return msgspec.json.encode(error_body(in_ollamas_words(error), PATH)) + b"\n"


def _silence(text: str) -> bytes:
    return b""  # every line is an object to these clients


LINES = Form(error=error_line, waiting=_silence, media_type="application/x-ndjson")
