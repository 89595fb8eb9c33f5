"""Load on a server: N clients ask as fast as they get answers, or requests arrive at random, until M have been sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError
from localllm.lab.bench_stream import Address, Answer, exchange

WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so"
)
"""Each is one token, with the blank before it, in nearly every vocabulary."""
MAX_CLIENTS = 1024
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 1_000_000
GOALS = ("ttft", "tpot", "e2el")
Kind = Literal["completions", "chat"]
PATHS: Mapping[Kind, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is asked of a server. `request_rate`: requests a second, arriving as a Poisson process; infinite: as soon as
    a client is free. `goodput`: milliseconds that ttft, tpot or e2el of a good request may take. `prefix_len` words are
    the same in all prompts, behind which `input_len` differ."""

    address: Address
    model: str
    clients: int = 4
    num_prompts: int = 16
    input_len: int = 128
    output_len: int = 64
    prefix_len: int = 0
    request_rate: float = math.inf
    goodput: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "completions"
    ignore_eos: bool = True
    seed: int = 0
    api_key: str = ""
    timeout_s: float = 3600.0

    def checked(self) -> LoadPlan:
        """Itself; UsageError names the option that is out of bounds."""
        for option, value, low, high in (
            ("--clients", self.clients, 1, MAX_CLIENTS),
            ("--num-prompts", self.num_prompts, 1, MAX_REQUESTS),
            ("--input-len", self.input_len, 1, MAX_TOKENS),
            ("--output-len", self.output_len, 1, MAX_TOKENS),
            ("--prefix-len", self.prefix_len, 0, MAX_TOKENS),
        ):
            if not low <= value <= high:
                raise UsageError(f"{option} must be between {low} and {high}, not {value}")
        if not self.request_rate > 0:
            raise UsageError(f"--request-rate must be above 0, not {self.request_rate}", hint="or inf")
        return self

    def body(self, number: int) -> dict[str, Any]:
        """The request of this number: always the same, and like no other's."""
        text = self.prompt(number)
        asked = {"messages": [{"role": "user", "content": text}]} if self.kind == "chat" else {"prompt": text}
        options = {"max_tokens": self.output_len, "temperature": 0.0, "stream": True}
        extras = {"ignore_eos": True} if self.ignore_eos else {}
        return {"model": self.model, **asked, **options, "stream_options": {"include_usage": True}, **extras}

    def prompt(self, number: int) -> str:
        words = WORDS.split()
        shared = Random(f"{self.seed} prefix").choices(words, k=self.prefix_len)
        own = Random(f"{self.seed} prompt {number}").choices(words, k=self.input_len)
        return " ".join([*shared, *own])


def goals(given: list[str]) -> dict[str, float]:
    """`ttft:200 tpot:50`, in one text or several, as milliseconds by name."""
    found: dict[str, float] = {}
    for word in " ".join(given).replace(",", " ").split():
        name, _, value = word.partition(":")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if name not in GOALS or not found[name] >= 0:
            raise UsageError(
                f"{word!r} is no goal for --goodput", hint=f"for example ttft:200; names are {', '.join(GOALS)}"
            )
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a plan: the answers in the order they were asked for, and the seconds from first to last."""

    answers: list[Answer]
    duration_s: float
    client_cpu_s: float
    """Processor time that the clients themselves took of the machine."""


Progress = Callable[[int, int], None]
"""Called now and then with how many answers there are, and how many there will be."""
NUM_PROGRESS = 10


def drive(plan: LoadPlan, progress: Progress | None = None, clock: Callable[[], float] = time.perf_counter) -> Load:
    """Ask once to warm up (it loads the model, and is not counted), then run the plan. Errors of the first answer end
    it; later ones count as failed requests. DaemonUnreachable when nobody answers at the address."""
    return asyncio.run(_drive(plan.checked(), progress or (lambda done, total: None), clock))


async def _drive(plan: LoadPlan, progress: Progress, clock: Callable[[], float]) -> Load:
    path = PATHS[plan.kind]

    async def ask(number: int) -> Answer:
        return await exchange(plan.address, path, plan.body(number), plan.api_key, plan.timeout_s, clock)

    warm = await ask(-1)
    if problem := warm.problem:
        raise LocalLLMError(f"the server refuses: {problem}", hint="check --model, --input-len and --output-len")
    free = asyncio.Semaphore(plan.clients)
    answers: list[Answer | None] = [None] * plan.num_prompts
    num_done, tenth = 0, -(-plan.num_prompts // NUM_PROGRESS)

    async def client(number: int) -> None:
        nonlocal num_done
        async with free:
            answers[number] = await _kept(ask(number), clock)
        num_done += 1
        if num_done % tenth == 0:
            progress(num_done, plan.num_prompts)

    started, cpu_started = clock(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(plan.num_prompts):
            group.create_task(client(number))
            await asyncio.sleep(_pause(plan, number))
    duration = clock() - started
    return Load([answer for answer in answers if answer], duration, time.process_time() - cpu_started)


async def _kept(asked: Awaitable[Answer], clock: Callable[[], float]) -> Answer:
    """A server that is no longer there fails this request, and not the whole load."""
    try:
        return await asked
    except DaemonUnreachable as error:
        return Answer(clock(), error=error.message)


def _pause(plan: LoadPlan, number: int) -> float:
    """Seconds until the next request arrives."""
    if math.isinf(plan.request_rate):
        return 0.0
    return Random(f"{plan.seed} arrival {number}").expovariate(plan.request_rate)
