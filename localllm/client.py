"""The near end of the HTTP wire: typed calls to a running daemon. Loads in milliseconds: no HTTP library."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from localllm.errors import ContextExceeded, DaemonUnreachable, LocalLLMError

if TYPE_CHECKING:
    from localllm.daemon.feed import Frame

CONNECT_TIMEOUT_S = 5.0
# a prompt may take minutes before its first token; the daemon says so itself when a worker dies
ANSWER_TIMEOUT_S = 3600.0

T = TypeVar("T")
NO_WISH: Mapping[str, str] = MappingProxyType({})


class Health(msgspec.Struct, frozen=True):
    """What `GET /health` says of the daemon."""

    status: str = ""
    version: str = ""


class LoadStage(msgspec.Struct, frozen=True):
    """How far a model has loaded."""

    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def fraction(self) -> float:
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `ps`. `expires_at` is in seconds since the epoch, None for never; `progress` is set while loading."""

    name: str
    digest: str = ""
    size_bytes: int = 0
    processor: str = ""
    backend: str = ""
    device: str = ""
    kv_type: str = ""
    quantize: str = ""
    context_length: int = 0
    expires_at: str | float | None = None
    state: str = ""
    progress: LoadStage | None = None
    pages_used: int = 0
    pages_cached: int = 0
    pages_total: int = 0
    page_size: int = 0
    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0


class LoadProgress(msgspec.Struct, frozen=True):
    """One line while a model loads; the last one has status `ready`."""

    status: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    notes: tuple[str, ...] = ()
    """What a person should know of the backend that was chosen; with the last line."""


class Timings(msgspec.Struct, frozen=True):
    """Where the time of one answer went. Counts are tokens; `cache_n` prompt tokens were found in the prefix cache."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    load_ms: float = 0.0
    queue_ms: float = 0.0
    total_ms: float = 0.0


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatChunk(msgspec.Struct, frozen=True):
    """A piece of a streamed answer. The last ones carry why it ended, how long it was and where the time went."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Answered(msgspec.Struct, frozen=True):
    """What the daemon said to a request, whatever its status. Names of `headers` are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _ChatEvent(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = msgspec.Raw()


class _LoadLine(msgspec.Struct, frozen=True):
    status: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    notes: tuple[str, ...] = ()
    error: msgspec.Raw = msgspec.Raw()


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None
    param: str | None = None
    hint: str | None = None


class _Models(msgspec.Struct, frozen=True):
    models: list[LoadedModel] = []


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request as `ps --requests` lists it. `verdict` says where its time went; `created` is in seconds since the
    epoch."""

    id: str
    route: str = ""
    model: str = ""
    caller: str = ""
    state: str = ""
    created: float = 0.0
    age_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    verdict: str = ""


class _Requests(msgspec.Struct, frozen=True):
    data: list[RequestRow] = []


class _Cancelled(msgspec.Struct, frozen=True):
    cancelled: bool = True


class _Stopped(msgspec.Struct, frozen=True):
    was_loaded: bool = True


class _Card(msgspec.Struct, frozen=True):
    id: str


class _Cards(msgspec.Struct, frozen=True):
    data: list[_Card] = []


class Client:
    """Calls to the daemon at `url`. Every call opens one connection; errors come back as those of errors.py."""

    def __init__(self, url: str, api_key: str = "") -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def health(self) -> Health:
        return self._call("GET", "/health", None, Health)

    def model_names(self) -> list[str]:
        """Names that requests may use."""
        return [card.id for card in self._call("GET", "/v1/models", None, _Cards).data]

    def ps(self) -> list[LoadedModel]:
        """The models that are loaded or loading."""
        return self._call("GET", "/localllm/v1/ps", None, _Models).models

    def stop(self, model: str) -> bool:
        """Unloads a model; False when it was not loaded."""
        return self._call("POST", "/localllm/v1/stop", {"model": model}, _Stopped).was_loaded

    def shutdown(self) -> None:
        """Asks the daemon to finish its answers and end."""
        self._call("POST", "/localllm/v1/shutdown", {}, msgspec.Raw)

    def load(
        self, model: str, keep_alive: str | None = None, wish: Mapping[str, str | int] = NO_WISH
    ) -> Iterator[LoadProgress]:
        """Makes a model resident; ends with the line whose status is `ready`. `wish`: backend, device, kv_type,
        threads, quantize; a model that is loaded otherwise is loaded again."""
        body = {"model": model, **wish} | ({"keep_alive": keep_alive} if keep_alive is not None else {})
        with self._answer("POST", "/localllm/v1/load", body) as response:
            status = ""
            for line in self._lines(response):
                found = _decode(line, _LoadLine, self.url)
                if _is_given(found.error):
                    raise error_from(found.error)
                status = found.status
                yield LoadProgress(found.status, found.done_bytes, found.total_bytes, found.notes)
            if status != "ready":
                raise self._broken_off(None)

    def chat(self, body: dict[str, Any]) -> Iterator[ChatChunk]:
        """Streams an answer; `body` is a request of `/v1/chat/completions`, to which usage and timings are added.

        Closing the iterator closes the connection, and the daemon frees what the answer held.
        """
        extras = {"stream": True, "stream_options": {"include_usage": True}, "timings": True}
        with self._answer("POST", "/v1/chat/completions", {**body, **extras}) as response:
            for event in self._events(response):
                yield _chat_chunk(_decode(event, _ChatEvent, self.url))

    def live(self) -> "Iterator[Frame]":
        """The live feed, frame by frame, until the daemon ends or the iterator is closed."""
        from localllm.daemon.feed import Frame  # deferred: few commands watch

        with self._answer("GET", "/live", None) as response:
            for line in self._lines(response):
                if line.startswith(b"data: "):
                    yield _decode(line[6:], Frame, self.url)

    def requests(self) -> list[RequestRow]:
        """Requests under way, the oldest first; then those that are over, the latest first."""
        return self._call("GET", "/v1/requests", None, _Requests).data

    def cancel(self, request_id: str) -> bool:
        """Ends a request; False when it was over before."""
        path = f"/v1/requests/{quote(request_id, safe='')}/cancel"
        return self._call("POST", path, {}, _Cancelled).cancelled

    def send(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] = NO_WISH
    ) -> Answered:
        """Any request, and any answer to it as it is. DaemonUnreachable where there is none."""
        with self._exchange(method, path, body, headers) as response:
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, names, self._read(response))

    def _call(self, method: str, path: str, body: dict[str, Any] | None, kind: type[T]) -> T:
        with self._answer(method, path, body) as response:
            return _decode(self._read(response), kind, self.url)

    @contextmanager
    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        """The response to one request, with a status below 400; the connection is closed when the block ends."""
        with self._exchange(method, path, body, NO_WISH) as response:
            if response.status >= 400:
                raise _error_of_status(response.status, self._read(response))
            yield response

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        encoded = None if body is None else msgspec.json.encode(body)
        with closing(http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)) as connection:
            try:
                connection.connect()
                connection.sock.settimeout(ANSWER_TIMEOUT_S)
                connection.request(method, path, encoded, {**self._headers, **headers})
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from None
            with closing(response):
                yield response

    def _unreachable(self, error: Exception) -> DaemonUnreachable:
        return DaemonUnreachable(
            f"the daemon at {self.url} does not answer ({error or type(error).__name__})",
            hint="start it with `localllm serve` or `localllm daemon start`",
        )

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken_off(error) from None

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            for line in response:
                if stripped := line.strip():
                    yield stripped
        except (OSError, http.client.HTTPException) as error:
            raise self._broken_off(error) from None

    def _events(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The documents of a server-sent stream up to `[DONE]`; a stream that ends without it was broken off."""
        is_complete = False
        for line in self._lines(response):  # to the very end, so that the daemon sees no early goodbye
            if line == b"data: [DONE]":
                is_complete = True
            elif line.startswith(b"data:"):
                yield line[5:].strip()
        if not is_complete:
            raise self._broken_off(None)

    def _broken_off(self, error: Exception | None) -> DaemonUnreachable:
        detail = f" ({error})" if error else ""
        return DaemonUnreachable(
            f"the daemon at {self.url} closed the connection before the answer was complete{detail}",
            hint="see `localllm daemon logs`",
        )


def _is_given(error: msgspec.Raw) -> bool:
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
        found.setdefault(kind.code, kind)
        waiting.extend(kind.__subclasses__())
    return found


def _error_of_status(status: int, body: bytes) -> LocalLLMError:
    try:
        return error_from(msgspec.json.decode(body, type=dict[str, msgspec.Raw])["error"])
    except (msgspec.MsgspecError, KeyError):
        return LocalLLMError(
            f"the daemon answered with status {status} and no reason", hint="is this the address of a localllm daemon?"
        )


def _decode(body: bytes, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise LocalLLMError(
            f"what answers at {url} is not a daemon of this version ({error})",
            hint="check LOCALLLM_HOST, or restart the daemon with `localllm daemon restart`",
        ) from None


def _chat_chunk(event: _ChatEvent) -> ChatChunk:
    if _is_given(event.error):
        raise error_from(event.error)
    choice = event.choices[0] if event.choices else _Choice()
    delta = choice.delta
    reasoning = delta.reasoning or delta.reasoning_content or ""
    return ChatChunk(delta.content or "", reasoning, choice.finish_reason, event.usage, event.timings)
