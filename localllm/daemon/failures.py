"""Failures of workers as errors for people: what crossed a process comes back as what it was."""

import logging

from localllm import errors
from localllm.errors import InvalidRequest, LocalLLMError

logger = logging.getLogger("localllm.daemon")


def error_from(code: str, message: str, hint: str = "") -> LocalLLMError:
    """The error of this code; a plain LocalLLMError (status 500) for a code nobody knows."""
    if code == errors.ContextExceeded.code:
        error = InvalidRequest(message, hint=hint, param="messages")
        error.code = code  # ContextExceeded itself wants both numbers, which a worker has already put into words
        return error
    return _classes().get(code, LocalLLMError)(message, hint=hint)


def _classes() -> dict[str, type[LocalLLMError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LocalLLMError)]
    return {kind.code: kind for kind in kinds if kind is not errors.ContextExceeded}


def as_ours(error: BaseException) -> LocalLLMError:
    """The error itself, or a sentence about it with the details in the log."""
    if isinstance(error, LocalLLMError):
        return error
    logger.error("something failed that should not", exc_info=error)
    return LocalLLMError(f"something failed inside the daemon: {error!r}", hint="see `localllm daemon logs`")


def how_it_ended(status: int) -> str:
    """A process's status as subprocess gives it, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
