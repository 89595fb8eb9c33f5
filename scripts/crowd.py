"""Very many clients in one thread, each with one request on a connection of its own. They share the machine with the
daemon that they measure, so they cost as little as they can: plain sockets, nothing parsed before the end."""

from __future__ import annotations

import gc
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.targets import Answer


@dataclass(slots=True)
class _Client:
    """`first_at` is 0.0 until the first byte of the answer is there."""

    connection: socket.socket
    sent_at: float
    first_at: float = 0.0
    received: list[bytes] = field(default_factory=list)


class Crowd:
    """`answers` tell the seconds from the sending of a request's last byte until the first byte of its answer was
    read, by a clock that also runs while nobody lets us read."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._waiting = selectors.DefaultSelector()
        self.answers: list[Answer] = []

    def run(self, request: Callable[[int], bytes], per_s: float, seconds: float, watch: Callable[[], None]) -> None:
        """Send as many requests as are due, however late we are; `request` makes one of its number, `watch` is called
        some times a second. Returns when all are answered; TimeoutError where one hangs."""
        started, num_sent, watched = time.perf_counter(), 0, 0.0
        with _uncollected():
            while (now := time.perf_counter() - started) < seconds:
                if num_sent <= now * per_s:
                    self._send(request(num_sent))
                    num_sent += 1
                    self._read(0.0)
                else:
                    self._read(num_sent / per_s - now)
                if now > watched + 0.25:
                    watch()
                    watched = now

    def finish(self, within_s: float) -> None:
        """Read what is still to come. TimeoutError where something does not."""
        deadline = time.perf_counter() + within_s
        while self._waiting.get_map():
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(self._waiting.get_map())} requests have no answer")
            self._read(0.1)

    def _send(self, data: bytes) -> None:
        connection = socket.create_connection(self._address)
        client = _Client(connection, time.perf_counter())
        connection.sendall(data)
        connection.setblocking(False)
        self._waiting.register(connection, selectors.EVENT_READ, client)

    def _read(self, patience_s: float) -> None:
        for key, _ in self._waiting.select(max(0.0, patience_s)):
            client: _Client = key.data
            try:
                data = client.connection.recv(2**16)
            except ConnectionResetError:
                data = b""
            client.first_at = client.first_at or time.perf_counter()
            client.received.append(data)
            if not data:
                self._waiting.unregister(client.connection)
                client.connection.close()
                self.answers.append(Answer(b"".join(client.received), client.first_at - client.sent_at))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Our own search for garbage would be measured as the daemon's delay."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
