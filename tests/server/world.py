"""A daemon in this process on a free port, over toy models; `with daemon(...) as world:` and talk HTTP to it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from localllm.daemon.sources import Sources
from localllm.server.app import Daemon
from localllm.server.outlet import HttpProtocol
from localllm.settings import load_settings
from tests.daemon.toy import WORKER_COMMAND, ToyLibrary, toy_text
from tests.tokens.worlds import tiny


class World:
    """The running daemon and a client for it."""

    def __init__(self, daemon: Daemon, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.daemon = daemon
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.loop = loop
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "toy:1b", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 16}
        return self.client.post("/v1/chat/completions", json=body | fields)

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        body = {"model": "toy:1b", "prompt": prompt, "temperature": 0, "max_tokens": 16}
        return self.client.post("/v1/completions", json=body | fields)

    def ps(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = self.client.get("/localllm/v1/ps").json()["models"]
        return models

    def on_loop(self, work: Callable[[], Any]) -> Any:
        """Run something on the daemon's own thread."""

        async def call() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)


@contextlib.contextmanager
def daemon(
    home: Path, library: ToyLibrary | None = None, *, sources: Sources | None = None, **settings: Any
) -> Iterator[World]:
    """A daemon whose home is `home`, over toy models or other sources; more settings as keywords."""
    env = {"LOCALLLM_HOME": str(home)}
    toys = Sources(
        library=library or ToyLibrary(),
        load_text=toy_text,
        load_tokenizer=lambda entry: tiny(),
        worker_command=WORKER_COMMAND,
        backend_problem=lambda backend: "",
    )
    ready, worlds, stop = threading.Event(), [], []

    async def main() -> None:
        # named as TCP, as the real listener is: otherwise asyncio leaves Nagle's algorithm on, 40 ms for each answer
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(256)
            listener.setblocking(False)
            made = Daemon(load_settings(env, **settings), sources or toys)
            config = uvicorn.Config(
                made.application(), lifespan="on", log_config=None, access_log=False, ws="none", http=HttpProtocol
            )
            server = uvicorn.Server(config)
            stop.append(server)
            worlds.append(World(made, listener.getsockname()[1], asyncio.get_running_loop()))
            ready.set()
            await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20), "the daemon did not start"
    try:
        with worlds[0].client:
            yield worlds[0]
    finally:
        stop[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the daemon did not stop"
