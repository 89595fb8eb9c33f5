"""`localllm batch run`: many requests from a file, answered as fast as the daemon finds room and behind everybody else.

What was answered is kept at once, so that a batch that was interrupted goes on where it stopped.
"""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from localllm.cli.batch_lines import Item, Output, check, enumerate_items
from localllm.cli.connect import started_client
from localllm.cli.files import check_target
from localllm.cli.invocation import Invocation
from localllm.cli.output import print_text
from localllm.client import Answered, Client
from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError

MAX_TRIES = 60
MAX_SILENT_TRIES = 6
LONGEST_PAUSE_S = 60.0
BAR_COLUMNS = 24
POLL_S = 0.2
BATCH_HEADERS = {"X-Request-Priority": "batch"}


def run(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests in OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Where the answers go.")],
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests under way at the same time.")] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
) -> None:
    """Answer the requests of a file. Ends with 1 when one of them got no good answer."""
    invocation = Invocation.of(ctx)
    ids = _checked(source, target, resume)
    output = Output(target)
    try:
        left = [name for name in ids if name not in output.done]
        client = started_client(invocation.settings()) if left else None
        if client is not None:
            _answer_all(client, source, output, len(ids), concurrency, is_quiet=invocation.is_quiet)
    except KeyboardInterrupt:
        if not invocation.is_quiet:
            sys.stderr.write(f"stopped with {len(output.done)} of {len(ids)} answered; go on with --resume\n")
        raise
    finally:
        output.close()
    num_failed = sum(not output.done[name] for name in ids)
    if not invocation.is_quiet:
        print_text(f"{len(ids)} requests: {len(ids) - num_failed} answered, {num_failed} failed")
        if num_failed:
            sys.stderr.write(f"{target} says why, in the lines whose `error` or status tells of one\n")
    if num_failed:
        raise typer.Exit(1)


def _checked(source: Path, target: Path, resume: bool) -> list[str]:
    if "-" in (str(source), str(target)):
        raise UsageError("a batch goes from a file to a file, not through pipes", hint="a file called - is ./-")
    if not source.is_file():
        raise UsageError(f"there is no file {source}", hint="name one that has a request in each line")
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UsageError(f"{target} keeps no answers", hint="name a file: --resume goes on with it after a stop")
    if target.exists() and target.samefile(source):
        raise UsageError("requests and answers cannot be in the same file", hint="name another file for the answers")
    check_target(target)
    if target.exists() and target.stat().st_size and not resume:
        raise UsageError(f"{target} has answers already", hint="go on with --resume, or name another file")
    return check(source)


def _answer_all(client: Client, source: Path, output: Output, total: int, concurrency: int, *, is_quiet: bool) -> None:
    """Until every line has its answer. Raises what makes it pointless to go on, such as a daemon that is gone; what
    was answered until then is kept."""
    todo = (item for _, item in enumerate_items(source) if item.custom_id not in output.done)
    crew = _Crew(client, todo, concurrency)
    bar = _Bar(total, is_shown=sys.stderr.isatty() and not is_quiet)
    try:
        for item, response, error in crew.outcomes():
            output.write(item.custom_id, response, error)
            bar.draw(len(output.done), sum(not is_good for is_good in output.done.values()))
    finally:
        crew.stop()  # requests under way are given up with their connections
        bar.end()


Outcome = tuple[Item, dict[str, Any] | None, dict[str, str] | None]


class _Crew:
    """Threads that each send one request at a time. Answers are handed to whoever iterates; files are not theirs."""

    def __init__(self, client: Client, todo: Iterator[Item], size: int) -> None:
        self._client = client
        self._todo = todo
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._told: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]

    def outcomes(self) -> Iterator[Outcome]:
        """All of them, as they come. Raises what ended a thread."""
        for thread in self._threads:
            thread.start()
        num_working = len(self._threads)
        while num_working:
            try:
                told = self._told.get(timeout=POLL_S)  # so that Ctrl-C is heard at once
            except queue.Empty:
                continue
            if isinstance(told, BaseException):
                raise told
            if told is None:
                num_working -= 1
            else:
                yield told

    def stop(self) -> None:
        self._stopped.set()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set() and (item := self._next()) is not None:
                self._told.put(self._outcome(item))
        except BaseException as error:
            self._told.put(error)
            return
        self._told.put(None)

    def _next(self) -> Item | None:
        with self._taking:
            return next(self._todo, None)

    def _outcome(self, item: Item) -> Outcome:
        answered = self._sent(item)
        try:
            body = msgspec.json.decode(answered.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return item, None, {"code": "bad_answer", "message": f"the daemon's answer is not JSON: {error}"}
        request_id = answered.headers.get("x-request-id") or (body.get("id", "") if isinstance(body, dict) else "")
        return item, {"status_code": answered.status, "request_id": request_id, "body": body}, None

    def _sent(self, item: Item) -> Answered:
        """What the daemon says in the end; a daemon that is busy or restarts is asked again."""
        num_silent = 0
        for number in range(1, MAX_TRIES + 1):
            try:
                answered = self._client.send("POST", item.url, item.body, BATCH_HEADERS)
            except DaemonUnreachable:
                num_silent += 1
                if num_silent >= MAX_SILENT_TRIES:
                    raise
                self._pause(2.0**num_silent / 2)
                continue
            if answered.status not in (429, 503) or number == MAX_TRIES:
                return answered
            self._pause(_seconds(answered.headers.get("retry-after")))
        raise LocalLLMError("the daemon was busy for too long", hint="go on later with --resume")

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(min(seconds, LONGEST_PAUSE_S)):
            raise LocalLLMError("the batch was stopped", hint="go on with --resume")


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdecimal() else 2.0


class _Bar:
    """How many are done, on a terminal only."""

    def __init__(self, total: int, *, is_shown: bool) -> None:
        self._total = total
        self._is_shown = is_shown
        self._drawn_at = 0.0

    def draw(self, done: int, failed: int) -> None:
        now = time.monotonic()
        if self._is_shown and (done == self._total or now - self._drawn_at > 0.1):
            self._drawn_at = now
            filled = BAR_COLUMNS * done // max(1, self._total)
            bar = "█" * filled + " " * (BAR_COLUMNS - filled)
            sys.stderr.write(f"\r▕{bar}▏ {done}/{self._total}" + (f", {failed} failed" if failed else "") + "\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_shown and self._drawn_at:
            sys.stderr.write("\n")
