"""`batch run`: every request gets its answer once, however often the work is interrupted."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from localllm.client import Client
from localllm.errors import DaemonUnreachable
from tests.cli.conftest import ROOT, Cli

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves early is part of the tests


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append(dict(self.headers))
        status, headers, value = self.server.answer(body)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


def echo(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    return 200, {"x-request-id": "req"}, {"said": body["prompt"]}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, answer: Answer = echo) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("localllm.cli.batch.started_client", lambda settings: Client(url))
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def line(name: str, **changes: Any) -> str:
    body = {"model": "m", "prompt": f"prompt {name}"}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body} | changes)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(line(str(number)) for number in range(20)) + "\n")
    return source, tmp_path / "out.jsonl"


def written(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows), "an answer came twice"
    return {row["custom_id"]: row for row in rows}


def test_every_line_gets_its_answer_in_openais_form(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as server:
        outcome = cli("batch", "run", *map(str, files))
    assert (outcome.code, outcome.out) == (0, "20 requests: 20 answered, 0 failed\n")
    rows = written(files[1])
    assert set(rows) == {str(number) for number in range(20)}
    assert rows["7"].pop("id").startswith("batch_req_")
    assert rows["7"] == {
        "custom_id": "7",
        "response": {"status_code": 200, "request_id": "req", "body": {"said": "prompt 7"}},
        "error": None,
    }
    assert {headers["X-Request-Priority"] for headers in server.headers} == {"batch"}


def test_a_batch_goes_on_where_it_stopped_and_repairs_a_torn_line(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as server:
        cli("batch", "run", *map(str, files))
        rows = files[1].read_bytes().splitlines(keepends=True)
        files[1].write_bytes(b"".join(rows[:7]) + rows[7][:20])
        server.asked.clear()
        outcome = cli("batch", "run", *map(str, files), "--resume")
    assert outcome.code == 0 and len(server.asked) == 13
    assert len(written(files[1])) == 20


def test_a_last_line_that_only_lacks_its_end_counts(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as server:
        cli("batch", "run", *map(str, files))
        files[1].write_bytes(files[1].read_bytes().rstrip(b"\n"))
        server.asked.clear()
        assert cli("batch", "run", *map(str, files), "--resume").code == 0
    assert not server.asked and len(written(files[1])) == 20


def test_answers_are_not_overwritten_unasked(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[1].write_text("precious\n")
    outcome = cli("batch", "run", *map(str, files))
    assert outcome.code == 2 and "--resume" in outcome.err
    outcome = cli("batch", "run", *map(str, files), "--resume")
    assert outcome.code == 2 and "line 1 is no answer" in outcome.err
    assert files[1].read_text() == "precious\n"


def test_a_busy_daemon_is_asked_again_when_it_says(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: dict[str, int] = {}

    def busy(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        tries[body["prompt"]] = tries.get(body["prompt"], 0) + 1
        if tries[body["prompt"]] < 3:
            return (429, 503)[tries[body["prompt"]] - 1], {"Retry-After": "7"}, {"error": {"message": "busy"}}
        return echo(body)

    paused: list[float] = []
    monkeypatch.setattr("localllm.cli.batch._Crew._pause", lambda crew, seconds: paused.append(seconds))
    with serving(monkeypatch, busy):
        assert cli("batch", "run", *map(str, files)).code == 0
    assert set(tries.values()) == {3} and set(paused) == {7.0} and len(paused) == 40


def test_a_refused_line_is_told_and_the_others_are_answered(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if body["prompt"].endswith("3"):
            return 400, {}, {"error": {"message": "no threes"}}
        return (200, {}, b"no json") if body["prompt"].endswith("5") else echo(body)

    with serving(monkeypatch, picky):
        outcome = cli("batch", "run", *map(str, files))
    assert outcome.code == 1 and "16 answered, 4 failed" in outcome.out
    rows = written(files[1])
    assert rows["3"]["response"]["status_code"] == 400 and rows["3"]["error"] is None
    assert rows["5"]["response"] is None and rows["5"]["error"]["code"] == "bad_answer"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "GET"}, "method must be POST"),
        ({"url": "/api/chat"}, "below /v1"),
        ({"url": "/v1/../metrics"}, "below /v1"),
        ({"url": "/v1/models\r\nX: y"}, "below /v1"),
        ({"body": {"stream": True}}, "stream must not"),
        ({"custom_id": "first"}, "is that of line 1"),
        ({"custom_id": 3}, "is no request"),
    ],
)
def test_a_line_that_makes_no_sense_is_named_before_anything_is_sent(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(line("first") + "\n\n" + line("second", **changes))
    with serving(monkeypatch) as server:
        outcome = cli("batch", "run", str(source), str(tmp_path / "out.jsonl"))
    assert outcome.code == 2 and said in outcome.err and "line 3" in outcome.err
    assert not server.asked


def test_a_daemon_that_is_gone_ends_the_batch_and_keeps_what_there_is(
    cli: Cli, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("localllm.cli.batch.started_client", lambda settings: Client(url))
    monkeypatch.setattr("localllm.cli.batch._Crew._pause", lambda crew, seconds: None)
    assert cli("batch", "run", *map(str, files)).code == DaemonUnreachable.exit_code
    assert files[1].read_bytes() == b""


def test_ctrl_c_leaves_whole_lines_behind(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    answered, blocked = threading.Semaphore(0), threading.Event()

    def slow(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if int(body["prompt"].split()[1]) >= 4:
            answered.release()
            blocked.wait(20)
        return echo(body)

    with serving(monkeypatch, slow) as server:
        code = (
            "import sys; from localllm.cli import batch, app; from localllm.client import Client;"
            f"batch.started_client = lambda settings: Client('http://127.0.0.1:{server.server_address[1]}');"
            "app.main()"
        )
        command = [sys.executable, "-c", code, "batch", "run", *map(str, files), "--concurrency", "2"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert answered.acquire(timeout=20)
        assert answered.acquire(timeout=20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        blocked.set()
    assert process.returncode == 130 and b"Traceback" not in said
    assert set(written(files[1])) == {"0", "1", "2", "3"}
