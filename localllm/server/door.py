"""Requests that are refused for want of room, answered from the bytes of the connection, before anything is made of
them: under overload most requests end here, and each that cost more would slow down those that were let in.

Takes only what cannot be misread: one request, its whole head in one piece, with nothing out of the ordinary in it. Its
body may still be on its way: many clients send it by itself. Everything else goes the long way, which says the same.
The guard's rules come first in both.
"""

import asyncio
import logging
import re
import uuid
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Scope

from localllm.errors import LocalLLMError
from localllm.server.callers import Caller
from localllm.server.desk import ORDER_BYTES, Desk
from localllm.server.fields import GOOD_NAME
from localllm.server.guard import Gate
from localllm.server.http import error_response
from localllm.server.named import HEADER, Answered
from localllm.server.ollama_errors import PATH as OLLAMA
from localllm.server.ollama_errors import in_ollamas_words
from localllm.server.operations import Directory, Operation
from localllm.server.outlet import Refusal

logger = logging.getLogger("localllm.server")

MAX_HEAD_BYTES = 8192
MAX_BODY_BYTES = 2**20
"""What is read and dropped behind a refusal; who sends more goes the long way."""
SAID_EVERY_S = 1.0
"""One line of the log for all that were refused in this time."""
# no quantifier may take what the next one could: a head is read once, however it was made
_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t !-~\x80-\xff]*\r\n)+)\r\n")
_UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"origin", b"content-encoding", b"te", b"trailer"))
_NAME = HEADER.encode()
_SAFE = (b"x-content-type-options: nosniff", b"cross-origin-resource-policy: same-origin")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the head of a request says. The names of headers are in lower case; `num_missing` bytes of the body are
    still to come."""

    path: str
    headers: list[tuple[bytes, bytes]]
    num_bytes: int
    num_missing: int
    is_last: bool


class Door:
    """Refuses while there is no room; `answered` counts, and `num_refused` those that were answered here."""

    def __init__(self, gate: Gate, desk: Desk, directory: Directory, answered: Answered) -> None:
        self._gate = gate
        self._desk = desk
        self._answered = answered
        self._asking = {operation.path: operation for operation in directory.operations if operation.asks}
        self.num_refused = 0
        self._num_said = 0

    def refusal(self, data: bytes) -> Refusal | None:
        """For a connection's next bytes, where no other request is under way on it; None where they are to be read and
        answered as usual."""
        if not self._desk.admission.is_full:
            return None
        asked = _read(data)
        operation = None if asked is None else self._asking.get(asked.path)
        if asked is None or operation is None or (operation.orders and asked.num_bytes <= ORDER_BYTES):
            return None
        caller = self._caller(asked, operation)
        return None if caller is None else self._judged(asked, caller)

    def _caller(self, asked: _Asked, operation: Operation) -> Caller | None:
        """None for one whom the guard has something to say to."""
        scope: Scope = {"type": "http", "method": "POST", "path": asked.path, "headers": asked.headers}
        headers = Headers(raw=asked.headers)
        try:
            self._gate.sender(scope, headers)
            return self._gate.caller(scope, headers, operation)
        except LocalLLMError:
            return None

    def _judged(self, asked: _Asked, caller: Caller) -> Refusal | None:
        try:
            self._desk.check_room(caller.name, asked.num_bytes)
        except LocalLLMError as error:
            self._note(error)
            return Refusal(self._written(asked, error), asked.num_missing, asked.is_last)
        return None

    def _written(self, asked: _Asked, error: LocalLLMError) -> bytes:
        """As the long way writes it: in the dialect of the path, with the request's name, counted."""
        given = dict(asked.headers).get(_NAME, b"").decode("latin-1")
        request_id = given if GOOD_NAME.fullmatch(given) else uuid.uuid4().hex
        told = in_ollamas_words(error) if asked.path.startswith(OLLAMA) else error
        response = error_response(told, asked.path, request_id)
        self._answered.by_route[asked.path, "POST", response.status_code] += 1
        self._answered.refusals[error.code] += 1
        lines = [
            b"HTTP/1.1 %d %b" % (response.status_code, _phrase(response.status_code)),
            *(b"%b: %b" % header for header in response.raw_headers),
            *_SAFE,
            b"%b: %b" % (_NAME, request_id.encode()),
            *([b"connection: close"] if asked.is_last else []),
        ]
        return b"\r\n".join((*lines, b"", bytes(response.body)))

    def _note(self, error: LocalLLMError) -> None:
        if self.num_refused == self._num_said:
            asyncio.get_running_loop().call_later(SAID_EVERY_S, self._say, error.message)
        self.num_refused += 1

    def _say(self, reason: str) -> None:
        logger.info("%d requests were refused: %s", self.num_refused - self._num_said, reason)
        self._num_said = self.num_refused


def _read(data: bytes) -> _Asked | None:
    """None for what is not one plain request."""
    found = _HEAD.match(data, 0, MAX_HEAD_BYTES)
    if found is None:
        return None
    headers = [_header(line) for line in found[2].split(b"\r\n")[:-1]]
    names = [name for name, _ in headers]
    if len(names) != len(set(names)) or not _UNUSUAL.isdisjoint(names):
        return None
    by_name = dict(headers)
    length, connection = by_name.get(b"content-length", b""), by_name.get(b"connection", b"keep-alive").lower()
    if not length.isdigit() or len(length) > 9 or connection not in (b"close", b"keep-alive"):
        return None
    num_bytes = int(length)
    num_missing = num_bytes - (len(data) - found.end())
    if num_bytes > MAX_BODY_BYTES or num_missing < 0:
        return None
    return _Asked(found[1].decode("ascii"), headers, num_bytes, num_missing, connection == b"close")


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")


def _phrase(status: int) -> bytes:
    """Empty for one that only a dialect knows."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
