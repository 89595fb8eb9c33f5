"""One way to the daemon for every group of calls: a connection per call, and errors as those of errors.py."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from localllm.client.failing import error_of_status
from localllm.client.shapes import Answered
from localllm.errors import DaemonUnreachable, LocalLLMError

CONNECT_TIMEOUT_S = 5.0
# a prompt may take minutes before its first token; the daemon says so itself when a worker dies
ANSWER_TIMEOUT_S = 3600.0
HEALTH_TIMEOUT_S = 10.0
"""A daemon says at once how it is; a program that says nothing is none."""

T = TypeVar("T")
NOTHING: Mapping[str, str] = MappingProxyType({})


class Transport:
    """Requests to the daemon at `url`. Safe to use from several threads: nothing is kept between calls."""

    def __init__(self, url: str, api_key: str = "") -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = {"Content-Type": "application/json", "User-Agent": "localllm"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str, kind: type[T], **query: str | int) -> T:
        """The answer to `GET path?query` as `kind`."""
        return self.call("GET", f"{path}?{urlencode(query)}" if query else path, None, kind)

    def post(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """The answer to `POST path` as `kind`."""
        return self.call("POST", path, body, kind)

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        kind: type[T],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> T:
        """One request and its whole answer as `kind`."""
        with self.answer(method, path, body, timeout_s) as response:
            return self.decoded(self.whole(response), kind)

    def send(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] = NOTHING
    ) -> Answered:
        """Any request, and any answer to it as it is. DaemonUnreachable where there is none."""
        with self._exchange(method, path, body, headers) as response:
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, names, self.whole(response))

    @contextmanager
    def answer(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to one request, with a status below 400; the connection is closed when the block ends."""
        with self._exchange(method, path, body, NOTHING, timeout_s) as response:
            if response.status >= 400:
                raise error_of_status(response.status, self.whole(response))
            yield response

    def whole(self, response: http.client.HTTPResponse) -> bytes:
        """The body of a response, read to its end."""
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self.broken_off(error) from None

    def lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The lines of a response as they come, without the empty ones."""
        try:
            for line in response:
                if stripped := line.strip():
                    yield stripped
        except (OSError, http.client.HTTPException) as error:
            raise self.broken_off(error) from None

    def events(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The documents of a server-sent stream up to `[DONE]`; a stream that ends without it was broken off."""
        is_complete = False
        for line in self.lines(response):  # to the very end, so that the daemon sees no early goodbye
            if line == b"data: [DONE]":
                is_complete = True
            elif line.startswith(b"data:"):
                yield line[5:].strip()
        if not is_complete:
            raise self.broken_off(None)

    def decoded(self, body: bytes, kind: type[T]) -> T:
        """`body` as `kind`; LocalLLMError where whatever answered speaks otherwise."""
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise LocalLLMError(
                f"what answers at {self.url} is not a daemon of this version ({error})",
                hint="check LOCALLLM_HOST, or restart the daemon with `localllm daemon restart`",
            ) from None

    def broken_off(self, error: Exception | None) -> DaemonUnreachable:
        """The error for an answer that ended too early."""
        detail = f" ({error})" if error else ""
        return DaemonUnreachable(
            f"the daemon at {self.url} closed the connection before the answer was complete{detail}",
            hint="see `localllm daemon logs`",
        )

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: Mapping[str, str],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        encoded = None if body is None else msgspec.json.encode(body)
        with closing(http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)) as connection:
            try:
                connection.connect()
                connection.sock.settimeout(timeout_s)
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
