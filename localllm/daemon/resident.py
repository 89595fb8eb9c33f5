"""One loaded model: its worker, its text side, and the streams that wait for its tokens."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from localllm import wire
from localllm.daemon.failures import as_ours, error_from, how_it_ended
from localllm.daemon.process import WORKER_COMMAND, WorkerProcess
from localllm.errors import BadModelFile, LocalLLMError, Overloaded, WorkerCrashed
from localllm.runtime.presets import LoadWish, wish_fields
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

logger = logging.getLogger("localllm.daemon")

State = Literal["loading", "ready", "stopping", "failed"]
STUCK_STEP_S = 30.0
STUCK_S_PER_WEIGHT_GB = 15.0
"""A slow machine may need this long for a full step over each gigabyte of weights; it is not stuck."""
SILENCE_S = 30.0
WATCH_EVERY_S = 1.0
ANSWER_S = 10.0
"""A question waits for the end of a step; one who only looks on does not wait longer than this."""
LEAST_PREFILL = 32
"""Tokens: what takes less work says little about how fast prompts are read."""
PREFILL_MEMORY = 0.3
STOP_S = 5.0


class Sink(Protocol):
    """Who waits for the tokens of one sequence."""

    def feed(self, chunk: wire.TokenChunk) -> None: ...

    def flush(self) -> None:
        """A step's chunks have all been fed."""

    def fail(self, error: LocalLLMError) -> None: ...


class Resident:
    """States go loading, ready, stopping; or to failed from either of the first two. `gone` is set at the end.
    `was_stopped`: it was ready, and somebody wanted it to go."""

    def __init__(
        self,
        entry: Entry,
        load: wire.Load,
        load_text: Callable[[Entry], "TextSide"],
        *,
        check: Callable[[Entry], None] = lambda entry: None,
        command: Sequence[str] = WORKER_COMMAND,
        changed: Callable[["Resident"], None],
        started: float,
    ) -> None:
        self.entry = entry
        self.state: State = "loading"
        self.progress: wire.Progress | None = None
        self.ready: wire.Ready | None = None
        self.snapshot: wire.Snapshot | None = None
        self.tokens_per_s = 0.0
        self.prefill_per_s = 0.0
        self.gone = asyncio.Event()
        self.num_users = 0
        self.keep_alive_s: float | None = None
        self.last_used = started
        self.error: LocalLLMError | None = None
        self.crashed = False
        self.was_stopped = False
        self.is_mourned = False
        self.is_watched = False
        self.load = load
        self._load_text = load_text
        self._check = check
        self._command = command
        self._changed = changed
        self._text: TextSide | None = None
        self._sinks: dict[str, Sink] = {}
        self._questions: dict[int, asyncio.Future[wire.Answer]] = {}
        self._num_questions = 0
        self._process: WorkerProcess | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_frame = started
        self._slowest_step_s = 0.0
        self._damage: LocalLLMError | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # ---- what requests use

    @property
    def text(self) -> "TextSide":
        """WorkerCrashed, or what else ended it, where the model is gone by now."""
        if self._text is None:
            assert self.state != "loading", "asked before the model was ready"
            raise self.error or _gone()
        return self._text

    @property
    def text_notes(self) -> tuple[str, ...]:
        """What a person should know of the tokenizer."""
        return self._text.tokenizer.notes if self._text is not None else ()

    @property
    def context_length(self) -> int:
        """Tokens one sequence may have: the model's own bound, or that of the pages there are."""
        assert self.ready is not None, "asked before the model was ready"
        room = self.ready.num_pages * self.ready.page_size or self.ready.context_length  # without attention, no pages
        return min(self.ready.context_length, room)

    def fits(self, wish: LoadWish) -> bool:
        """Whether the model is open as a request wants it; what `auto` became counts, too."""
        became = {"backend": self.ready.backend, "device": self.ready.device.partition(" ")[0]} if self.ready else {}
        return all(value in (getattr(self.load, name), became.get(name)) for name, value in wish_fields(wish).items())

    @property
    def num_streams(self) -> int:
        return len(self._sinks)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def wait_ready(self) -> None:
        """Returns when the model answers; raises what kept it from that."""
        await asyncio.shield(self._loaded)

    def submit(self, submit: wire.Submit, sink: Sink) -> None:
        """Start a sequence; its chunks go to the sink until one has `finish`."""
        if self.state != "ready" or self._process is None:
            raise self.error or _gone()
        self._sinks[submit.request_id] = sink
        self._process.send(submit)

    def set_watched(self, is_watched: bool) -> None:
        """Whether snapshots are to say whose pages are whose; the worker pays for that only while somebody looks."""
        if self.state == "ready" and self._process is not None and is_watched != self.is_watched:
            self.is_watched = is_watched
            self._process.send(wire.Watch(is_watched))

    def cancel(self, request_id: str) -> None:
        """The worker forgets the sequence before its next step; nobody is told any more."""
        if self._sinks.pop(request_id, None) is not None and self._process is not None:
            self._process.send(wire.Cancel(request_id))

    async def ask(self, question: Callable[[int], wire.Question]) -> wire.Answer:
        """The engine's answer; `question` is made with its number. Overloaded where the engine is too busy to answer,
        WorkerCrashed where it is gone."""
        if self.state != "ready" or self._process is None:
            raise self.error or _gone()
        self._num_questions += 1
        number = self._num_questions
        answer: asyncio.Future[wire.Answer] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self._process.send(question(number))
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise Overloaded(f"{self.entry.name} is in a long step", hint="ask again in a few seconds") from None
        finally:
            del self._questions[number]

    def note_prefill(self, num_tokens: int, seconds: float) -> None:
        """A prompt of which so many tokens had to be computed took this long, whatever else was computed beside it."""
        if num_tokens < LEAST_PREFILL or seconds <= 0:
            return
        rate, known = num_tokens / seconds, self.prefill_per_s
        self.prefill_per_s = rate if not known else known + PREFILL_MEMORY * (rate - known)

    async def settled(self, timeout_s: float) -> None:
        """Wait until the snapshot no longer shows sequences of streams that have ended."""
        deadline = time.monotonic() + timeout_s
        while self.state == "ready" and self._shows_ended_streams() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _shows_ended_streams(self) -> bool:
        return self.snapshot is not None and not self._sinks and bool(self.snapshot.sequences)

    # ---- its life

    async def live(self) -> None:
        """Start the worker and follow it to its end. Never raises: the outcome is in `state` and `error`."""
        loop = asyncio.get_running_loop()
        text = loop.run_in_executor(None, self._load_text, self.entry)
        check = loop.run_in_executor(None, self._check, self.entry)  # beside the loading: it may read every byte
        try:
            self._process = await WorkerProcess.start(self.load, self._command, deliver=self._deliver)
            check.add_done_callback(partial(self._stop_if_damaged, self._process))
            watch = asyncio.create_task(self._watch(self._process))
            try:
                await self._follow(self._process, text, check)
            finally:
                watch.cancel()
                status = await self._process.exit_status()
            if isinstance(self.error, BadModelFile):  # perhaps because it is damaged, which says more
                await asyncio.wait({check})
            self._settle(status)
        except Exception as error:
            self._fail(as_ours(error))
        finally:
            for side in (text, check):
                side.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await text
            self._end()

    async def _follow(
        self, process: WorkerProcess, text: "asyncio.Future[TextSide]", check: "asyncio.Future[None]"
    ) -> None:
        async for message in process.messages():
            self._last_frame = time.monotonic()
            match message:
                case wire.Snapshot():
                    self._note_rate(message)
                    self._changed(self)
                case wire.Heartbeat():
                    self._check_step(process, message)
                case wire.Progress():
                    self._note_progress(process, message, text)
                case wire.Ready():
                    await self._become_ready(process, message, text, check)
                case wire.Probed() | wire.PageAnswer():
                    self._take_answer(message)
                case wire.Failed(code, sentence, hint):
                    self.error = error_from(code, sentence, hint)

    def _take_answer(self, answer: wire.Answer) -> None:
        waiting = self._questions.get(answer.question_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _note_progress(self, process: WorkerProcess, progress: wire.Progress, text: "asyncio.Future[TextSide]") -> None:
        """The worker found the weights sound and begins to load them, for which nobody waits without a tokenizer."""
        if self.progress is None:
            text.add_done_callback(partial(self._stop_without_text, process))
        self.progress = progress
        self._changed(self)

    def _stop_without_text(self, process: WorkerProcess, text: "asyncio.Future[TextSide]") -> None:
        error = None if text.cancelled() else text.exception()
        if isinstance(error, Exception) and self.ready is None:
            self.error = as_ours(error)
            process.kill()

    def _stop_if_damaged(self, process: WorkerProcess, check: "asyncio.Future[None]") -> None:
        """What a damaged model would say is worse than nothing; no use in loading the rest of it."""
        error = None if check.cancelled() else check.exception()
        if isinstance(error, Exception):
            self.error = self._damage = as_ours(error)
            process.kill()

    async def _become_ready(
        self, process: WorkerProcess, ready: wire.Ready, text: "Awaitable[TextSide]", check: "Awaitable[None]"
    ) -> None:
        try:
            self._text = await text
            await check
        except Exception as error:
            self.error = as_ours(error)
            process.kill()
            return
        self.ready, self.progress = ready, None
        if self.state == "loading":
            self.state = "ready"
            self._loaded.set_result(None)
        self._changed(self)

    def _deliver(self, chunks: list[wire.TokenChunk]) -> None:
        fed = []
        for chunk in chunks:
            sink = self._sinks.get(chunk.request_id)
            if sink is None:
                continue
            if chunk.finish is not None:
                del self._sinks[chunk.request_id]
            fed.append(sink)
            try:
                sink.feed(chunk)
            except Exception as error:  # one stream's text must not end the others
                self.cancel(chunk.request_id)
                sink.fail(as_ours(error))
        for sink in fed:
            sink.flush()

    def _note_rate(self, snapshot: wire.Snapshot) -> None:
        before, self.snapshot = self.snapshot, snapshot
        if before is not None and snapshot.time_s > before.time_s:
            generated = snapshot.num_generated_tokens - before.num_generated_tokens
            self.tokens_per_s = generated / (snapshot.time_s - before.time_s)
        if snapshot.num_running == 0:
            self.tokens_per_s = 0.0

    def _check_step(self, process: WorkerProcess, beat: wire.Heartbeat) -> None:
        if beat.in_step_s > self._step_limit_s() and self.state != "loading":
            self.error = WorkerCrashed(f"a step of {self.entry.name} did not end for {beat.in_step_s:.0f} s")
            process.kill()
        self._slowest_step_s = max(self._slowest_step_s, self.snapshot.last_step_s if self.snapshot else 0.0)

    def _step_limit_s(self) -> float:
        weight_gb = self.ready.weight_bytes / 1e9 if self.ready else 0.0
        return max(STUCK_STEP_S, 10 * self._slowest_step_s, STUCK_S_PER_WEIGHT_GB * weight_gb)

    async def _watch(self, process: WorkerProcess) -> None:
        """A worker that does not even send its heartbeat is stuck where Python cannot run."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            silent_s = time.monotonic() - self._last_frame
            if self.state == "ready" and silent_s > max(SILENCE_S, self._step_limit_s()):
                self.error = WorkerCrashed(f"the worker of {self.entry.name} has been silent for {silent_s:.0f} s")
                process.kill()

    async def stop(self) -> None:
        """Unload: open streams end with an error, memory is free when this returns."""
        if self.state in ("loading", "ready"):
            was_loading, self.state = self.state == "loading", "stopping"
            self.was_stopped = not was_loading
            self._changed(self)
            if self._process is not None:
                self._process.send(wire.Stop())
                if was_loading:
                    self._process.kill()
                else:
                    self._deadline = asyncio.get_running_loop().call_later(STOP_S, self._process.kill)
        await self.gone.wait()

    # ---- its end

    def _settle(self, status: int) -> None:
        if self.state == "stopping":
            self._fail_streams(self.error or WorkerCrashed(f"{self.entry.name} was unloaded", hint="ask again"))
            return
        if self._damage is not None:
            self._fail(self._damage)
            return
        self.crashed = self.ready is not None or self.error is None
        reason = self.error.message if self.error else how_it_ended(status)
        if self.crashed:
            logger.error("the worker of %s ended: %s (%s)", self.entry.name, reason, how_it_ended(status))
            self.error = WorkerCrashed(
                f"the process that ran {self.entry.name} ended: {reason}",
                hint="ask again: a new one is started; `localllm daemon logs` has the details",
            )
        self._fail(self.error or WorkerCrashed(reason))

    def _fail(self, error: LocalLLMError) -> None:
        self.state, self.error = "failed", error
        self._changed(self)  # while it is still known what ran
        self._fail_streams(error)

    def _fail_streams(self, error: LocalLLMError) -> None:
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(error)

    def _end(self) -> None:
        for waiting in self._questions.values():
            if not waiting.done():
                waiting.set_exception(self.error or _gone())
        if not self._loaded.done():
            self._loaded.set_exception(
                self.error or WorkerCrashed(f"{self.entry.name} was unloaded while it loaded", hint="ask again")
            )
            self._loaded.exception()  # marked as seen: perhaps nobody waits any more
        if self._deadline is not None:
            self._deadline.cancel()  # it would hold on to the tokenizer as long as it is set
            self._deadline = None
        if self._text is not None:
            self._text.template.close()
            self._text = None
        self.gone.set()
        self._changed(self)


def _gone() -> WorkerCrashed:
    return WorkerCrashed("the model was unloaded before it could answer", hint="try again")
