"""A daemon that answers from a script over real HTTP on loopback, and remembers what it was asked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

TIMINGS = {
    "cache_n": 0,
    "prompt_n": 26,
    "prompt_ms": 130.0,
    "prompt_per_second": 200.0,
    "predicted_n": 298,
    "predicted_ms": 4799.0,
    "predicted_per_second": 62.09,
    "load_ms": 45.1,
    "queue_ms": 0.0,
    "total_ms": 1234.567,
}

VECTORS = [[0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 0], [0.5, -0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 0]]


class FakeDaemon(ThreadingHTTPServer):
    """`answers` are taken in turn: a list of deltas, or an error object. `models` are those that can be loaded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[list[dict[str, Any]]] = []
        self.models = {"tiny"}
        self.loaded: list[dict[str, Any]] = []
        self.under_way: list[dict[str, Any]] = []
        self.ready: dict[str, Any] = {"status": "ready"}
        self.hangs = False
        self.finish_reason = "stop"
        self.client_left = Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves early is part of the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.requests if asked == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeDaemon

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {}))
        replies: dict[str, Any] = {
            "/health": {"status": "ok", "version": "9.9.9"},
            "/localllm/v1/ps": {"models": self.server.loaded},
            "/v1/requests": {"object": "list", "data": self.server.under_way},
            "/v1/models": {"object": "list", "data": [{"id": name} for name in sorted(self.server.models)]},
        }
        if self.path in replies:
            self._json(200, replies[self.path])
        else:
            self._json(404, {"error": {"message": "no such path", "code": "not_found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.server.requests.append((self.path, body))
        if body.get("model") not in {*self.server.models, None}:
            self._json(404, {"error": {"message": f"model '{body['model']}' not found", "code": "model_not_found"}})
        elif self.path == "/localllm/v1/load":
            lines = [{"status": "loading", "done_bytes": 1, "total_bytes": 2}, self.server.ready]
            self._stream([json.dumps(line) + "\n" for line in lines])
        elif self.path == "/v1/chat/completions":
            self._chat()
        elif self.path == "/v1/embeddings":
            made = [{"index": index, "embedding": VECTORS[index % 2]} for index in range(len(body["input"]))]
            self._json(200, {"object": "list", "data": made[::-1]})
        else:
            self._json(200, {})

    def _chat(self) -> None:
        deltas = self.server.answers.pop(0) if self.server.answers else [{"content": "Hello"}, {"content": " there."}]
        events: list[dict[str, Any]] = []
        for delta in deltas:
            if "error" in delta:
                events.append(delta)
            else:
                events.append({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        events.append(
            {"choices": [{"index": 0, "delta": {}, "finish_reason": self.server.finish_reason}], "timings": TIMINGS}
        )
        self._stream([f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"])

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, pieces: list[str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self._chunk(piece.encode())
            if self.server.hangs and "content" in piece:
                self._wait_for_the_client_to_leave()
                return
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _wait_for_the_client_to_leave(self) -> None:
        self.close_connection = True
        if self.connection.recv(1) == b"":
            self.server.client_left.set()


@contextmanager
def fake_daemon() -> Iterator[FakeDaemon]:
    server = FakeDaemon()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
