"""Times an engine as its callers see it: from the first `step` of the work to the last. Knows no models and no files.

Tokens are random but the same in every run; answers are greedy and end nowhere.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from random import Random

from localllm.engine.engine import Engine
from localllm.errors import BadLogits, LocalLLMError, NotEnoughMemory, UsageError
from localllm.lab.bench_rows import Work
from localllm.wire import SamplingParams, Submit, TokenChunk

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed repetition. `num_tokens` were computed or generated in it, which may be a few more than asked for: the
    cache keeps whole pages only, and a step may give several tokens."""

    num_tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


class Stopwatch:
    """Runs works on one engine. `clock` gives seconds and only rises."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine = engine
        self._clock = clock
        self._random = Random(0)
        self._numbers = itertools.count()

    def check(self, work: Work) -> None:
        """UsageError or NotEnoughMemory for a work that this engine cannot do in one go."""
        engine, memory = self._engine, self._engine.memory
        if work.length > engine.context_length:
            raise UsageError(
                f"{work.name} needs a context of {work.length} tokens, but it holds {engine.context_length}",
                hint="choose a smaller -p, -n or -d",
            )
        if work.n_parallel > engine.scheduler.max_sequences:
            raise UsageError(
                f"{work.name} runs {work.n_parallel} sequences, but {engine.scheduler.max_sequences} are allowed",
                hint=f"set more with `localllm config set max_sequences {work.n_parallel}`",
            )
        wanted = memory.pages_for(work.length, engine.scheduler.token_budget) * work.n_parallel
        if wanted > memory.pool.num_pages:
            raise NotEnoughMemory(
                f"{work.name} needs {wanted} pages of memory, but there are {memory.pool.num_pages}",
                hint="choose a smaller -p, -n, -d or --parallel",
            )

    def time(self, work: Work) -> Sample:
        """One repetition. The tokens of the depth are in the cache before the clock starts."""
        num_preemptions = self._engine.scheduler.num_preemptions
        sample = self._time_prompt(work) if work.n_prompt else self._time_generation(work)
        if self._engine.scheduler.num_preemptions != num_preemptions:
            raise NotEnoughMemory(f"{work.name}: sequences had to wait for memory", hint="choose a smaller --parallel")
        return sample

    def _time_prompt(self, work: Work) -> Sample:
        """Until every prompt has its first token, which comes with the prompt's last step."""
        prefixes = self._cached_prefixes(work)
        running = {self._submit([*prefix, *self._ids(work.n_prompt)], 1) for prefix in prefixes}
        num_computed = (work.n_depth + work.n_prompt) * work.n_parallel
        started = ended = self._clock()
        for chunks in self._steps(running):
            num_computed -= sum(chunk.num_cached for chunk in chunks)
            ended = self._clock()
        return Sample(num_computed, ended - started)

    def _time_generation(self, work: Work) -> Sample:
        """From an empty cache: from the only token of the prompt on. Else from the first token of all sequences on, so
        that each timed step computes one token behind `n_depth` others. Who began first goes on until all are done."""
        most, running = work.n_gen, set[str]()
        for prefix in self._cached_prefixes(work):
            most = work.n_gen if not prefix else work.n_gen + 1 + self._most_steps(work)
            running.add(self._submit(prefix or self._ids(1), most))
        unstarted = running.copy() if work.n_depth else set[str]()
        num_tokens = 0
        started = ended = self._clock()
        with closing(self._steps(running)) as steps:
            for chunks in steps:
                ended = self._clock()
                if unstarted:
                    unstarted -= {chunk.request_id for chunk in chunks if chunk.ids}
                    started = ended
                else:
                    num_tokens += sum(len(chunk.ids) for chunk in chunks)
                if num_tokens >= work.num_tokens:
                    break
        return Sample(num_tokens, ended - started)

    def _most_steps(self, work: Work) -> int:
        """Steps in which all prompts are computed, even where nothing of them is in the cache."""
        return -(-work.n_depth * work.n_parallel // self._engine.scheduler.token_budget) + 2

    def _cached_prefixes(self, work: Work) -> list[list[int]]:
        """The same tokens every time, so that only the first repetition has to compute them."""
        count = self._engine.limits.vocab_size
        draws = [Random(f"depth of sequence {number}") for number in range(work.n_parallel)]
        prefixes = [draw.choices(range(count), k=work.n_depth) for draw in draws]
        if work.n_depth:
            deque(self._steps({self._submit(prefix, 0) for prefix in prefixes}), maxlen=0)
        return prefixes

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(range(self._engine.limits.vocab_size), k=count)

    def _submit(self, prompt: list[int], max_tokens: int) -> str:
        request_id = f"bench-{next(self._numbers)}"
        self._engine.add(Submit(request_id=request_id, prompt=prompt, sampling=GREEDY, max_tokens=max_tokens))
        return request_id

    def _steps(self, running: set[str]) -> Generator[list[TokenChunk], None, None]:
        """What each step gives, until all sequences have finished; once closed, none of them stays in the engine."""
        unfinished = running.copy()
        try:
            while unfinished:
                chunks = self._engine.step()
                for chunk in chunks:
                    if chunk.finish == "error":
                        raise (BadLogits if chunk.error_code == BadLogits.code else LocalLLMError)(chunk.error)
                unfinished.difference_update(chunk.request_id for chunk in chunks if chunk.finish is not None)
                yield chunks
        finally:
            for request_id in unfinished:
                self._engine.abort(request_id)
