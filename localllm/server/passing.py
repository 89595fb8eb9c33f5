"""What a translation of one dialect to another has no use for: passed over and named, or refused by name."""

from collections.abc import Mapping
from contextlib import contextmanager
from collections.abc import Iterator

from starlette.requests import Request

from localllm.errors import InvalidRequest, LocalLLMError
from localllm.server.unknowns import IGNORED_HEADER, ignored_header, is_agent, is_lenient, warning


class Passing:
    """Of one request. `always`: this dialect's clients add something new every month, so that nothing is refused."""

    def __init__(self, request: Request, *, always: bool = False) -> None:
        self.names: list[str] = []
        self._is_lenient = is_lenient(request)
        self._is_tolerant = always or self._is_lenient or is_agent(request)

    def over(self, name: str, sentence: str, hint: str = "") -> None:
        """Go on without `name`, which the client hears of; InvalidRequest where it must not be passed over."""
        if not self._is_tolerant:
            hint = hint or "leave it out, or send the header `Prefer: handling=lenient` to have it ignored"
            error = InvalidRequest(f"{name}: {sentence}", hint=hint, param=name)
            error.code = "unsupported_parameter"
            raise error
        self.names.append(name)

    @property
    def warnings(self) -> list[str]:
        return [warning(name) for name in self.names] if self._is_lenient else []

    def headers(self, before: Mapping[str, str]) -> dict[str, str]:
        """Of the answer; `before` are those that fields were named in already."""
        if self._is_lenient or not self.names:
            return dict(before)
        named = ", ".join(filter(None, (before.get(IGNORED_HEADER), ignored_header(self.names)[IGNORED_HEADER])))
        return {**before, IGNORED_HEADER: named}


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
    whole = max((name for name in names if _leads(name, param)), key=len, default="")
    if whole:
        renamed = names[whole] + param.removeprefix(whole)
        error.message = error.message.replace(param, renamed, 1) if param in error.message else error.message
        error.args = (error.message,)
        error.param = renamed


def _leads(name: str, path: str) -> bool:
    return path.startswith(name) and path[len(name) :][:1] in ("", ".", "[")
