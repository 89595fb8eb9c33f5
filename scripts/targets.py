"""A daemon to be treated badly: a real process in a temporary home, what is asked of it, and what is held against it.
For scripts/storm and scripts/soak."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from localllm.client import Client
from localllm.daemon.home import Address
from localllm.daemon.lifecycle import DAEMON_COMMAND, ensure_daemon, stop_daemon
from localllm.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
TOY = "toy:slow"
TOY_COMMAND = (sys.executable, str(ROOT / "tests/server/toy_daemon.py"))
TRACED_COMMAND = (sys.executable, str(ROOT / "scripts/traced_daemon.py"))
LONGEST_S = 120.0
SETTLED_S = 10.0


@dataclass(slots=True)
class Report:
    """Figures to print, and the promises that were broken."""

    figures: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def promise(self, claim: bool, sentence: str) -> None:
        if not claim and sentence not in self.broken:
            self.broken.append(sentence)

    def print(self) -> None:
        for name, value in self.figures.items():
            print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")
        for sentence in self.broken:
            print(f"BROKEN: {sentence}")

    def write(self, path: Path | None, **names: str) -> None:
        """As JSON, where a file is named; `names` say what was done."""
        if path is not None:
            path.write_text(json.dumps({**names, **self.figures, "broken": self.broken}, indent=2))


@dataclass(frozen=True, slots=True)
class Answer:
    """All that came back, as it came; `seconds` from the opening of the connection to its end."""

    received: bytes
    seconds: float

    @property
    def status(self) -> int:
        """0 where the connection ended without a word."""
        return int(self.received[9:12]) if self.received.startswith(b"HTTP/1.1 ") else 0

    @property
    def body(self) -> Any:
        return json.loads(self.received.partition(b"\r\n\r\n")[2])

    @property
    def says_when(self) -> bool:
        return b"\r\nretry-after: " in self.received.lower()


class Target:
    """The daemon, as its clients see it."""

    def __init__(self, address: Address, model: str, seed: int) -> None:
        self.address = address
        self.model = model
        self.random = random.Random(seed)
        self.process = psutil.Process(address.pid)
        self._client = Client(address.url)

    def body(self, prompt: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        return {
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "stream": stream,
            "temperature": 0, "ignore_eos": True,
        }  # fmt: skip

    def request(
        self,
        body: object,
        path: str = "/v1/completions",
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """A request as bytes. A body of bytes goes as it is; None is no body; `headers` may take the place of ours."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        told = {"Host": f"{self.address.host}:{self.address.port}", "Connection": "close"}
        if body is not None:
            told |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        lines = [f"{name}: {value}\r\n" for name, value in {**told, **(headers or {})}.items()]
        return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + data

    @asynccontextmanager
    async def connected(self, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
        """A connection on which these bytes were sent. It is cut when the block ends."""
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        try:
            writer.write(data)
            yield reader
        finally:
            writer.transport.abort()

    def asked(self, body: dict[str, Any]) -> AbstractAsyncContextManager[asyncio.StreamReader]:
        """As `connected`, with a request for a completion."""
        return self.connected(self.request(body))

    async def answer(self, body: object, path: str = "/v1/completions", **how: Any) -> Answer:
        """All that is said to one request. TimeoutError after LONGEST_S."""
        started = time.perf_counter()
        async with asyncio.timeout(LONGEST_S), self.connected(self.request(body, path, **how)) as reader:
            received = await reader.read(-1)
        return Answer(received, time.perf_counter() - started)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        answered = self._client.send(method, path, body)
        return answered.status, json.loads(answered.body)

    def row(self) -> dict[str, Any]:
        """The model's row of `ps`; empty while it is not loaded."""
        rows = self.call("GET", "/localllm/v1/ps")[1]["models"]
        return rows[0] if rows else {}

    def memory_bytes(self) -> int:
        return self.process.memory_info().rss


@contextmanager
def target(model: Path | None, seed: int, command: Sequence[str] = (), **settings: str) -> Iterator[Target]:
    """A daemon of its own in a temporary home, with its model loaded, or a toy where none is named. `settings` are for
    what the environment does not say, `command` is for another program than the daemon."""
    with tempfile.TemporaryDirectory(prefix="storm-") as home:
        for name, value in {"max_sequences": "64", **settings}.items():
            os.environ.setdefault(f"LOCALLLM_{name.upper()}", value)
        os.environ |= {"LOCALLLM_HOME": home, "LOCALLLM_OFFLINE": "1", "LOCALLLM_KEEP_ALIVE": "-1"}
        loaded = load_settings(port=0)
        address = ensure_daemon(loaded, command=command or (DAEMON_COMMAND if model else TOY_COMMAND))
        try:
            made = Target(address, str(model.absolute()) if model else TOY, seed)
            made.call("POST", "/v1/completions", made.body("warm", 4, stream=False))
            yield made
        finally:
            stop_daemon(loaded)


async def settled(aim: Target, report: Report) -> None:
    """Nothing runs, nothing waits, and every page is free or holds nothing but the cache."""
    deadline = time.monotonic() + SETTLED_S
    row = aim.row()
    while (row["running"] or row["waiting"] or row["pages_used"]) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        row = aim.row()
    for name in ("running", "waiting", "pages_used"):
        report.figures[f"{name} at the end"] = row[name]
        report.promise(row[name] == 0, f"{row[name]} {name} were left over")


def share(ordered: Sequence[float], part: float) -> float:
    """The quantile of numbers in order; 0.0 where there are none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
