"""What a benchmark measures, and the rows it gives: plain data, named as llama-bench names them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from localllm.errors import UsageError

MAX_TOKENS = 10_000_000
MAX_PARALLEL = 1024
MAX_REPETITIONS = 1000


@dataclass(frozen=True, slots=True)
class Work:
    """One row's work: `n_parallel` sequences whose cache holds `n_depth` tokens already compute `n_prompt` tokens of a
    prompt, or generate `n_gen` (the other one is 0)."""

    n_prompt: int
    n_gen: int
    n_parallel: int = 1
    n_depth: int = 0

    @property
    def name(self) -> str:
        """`pp512`, `tg128 @ d2048`, `tg64 x8`."""
        amount = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        parallel = f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return amount + parallel + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def num_tokens(self) -> int:
        """Tokens of the timed part, over all sequences."""
        return (self.n_prompt + self.n_gen) * self.n_parallel

    @property
    def length(self) -> int:
        """Tokens that each sequence has in the end: one more than what is timed, which begins or ends it."""
        return self.n_depth + self.n_prompt + self.n_gen + 1


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Every combination is a row; a 0 among prompts or generations is no row. `threads` 0: as the settings say."""

    prompts: tuple[int, ...] = (512,)
    generations: tuple[int, ...] = (128,)
    parallel: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (0,)
    threads: tuple[int, ...] = (0,)
    repetitions: int = 5

    def checked(self) -> BenchPlan:
        """Itself; UsageError names the option that is out of bounds."""
        for option, values, low, high in (
            ("-p", self.prompts, 0, MAX_TOKENS),
            ("-n", self.generations, 0, MAX_TOKENS),
            ("--parallel", self.parallel, 1, MAX_PARALLEL),
            ("-d", self.depths, 0, MAX_TOKENS),
            ("-t", self.threads, 0, 256),
            ("-r", (self.repetitions,), 1, MAX_REPETITIONS),
        ):
            for value in values:
                if not low <= value <= high:
                    raise UsageError(f"{option} must be between {low} and {high}, not {value}")
        if not any(self.works()):
            raise UsageError("there is nothing to measure", hint="give -p or -n a number above 0")
        return self

    def works(self) -> Iterator[Work]:
        """The rows of one number of threads, in order."""
        for depth in dict.fromkeys(self.depths):
            for parallel in dict.fromkeys(self.parallel):
                yield from (Work(count, 0, parallel, depth) for count in dict.fromkeys(self.prompts) if count)
                yield from (Work(0, count, parallel, depth) for count in dict.fromkeys(self.generations) if count)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`128,512` as numbers; UsageError names the option."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} must be whole numbers, not {text!r}", hint=f"for example {option} 128,512"
        ) from None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a benchmark, as it goes to JSON and into saved runs.

    Rates are tokens a second over all sequences; `stddev_ts` is the sample's. `size`: bytes of weights. `read_bytes`:
    what one step of decoding has to read of weights and cache, `memory_bandwidth`: bytes a second that this machine
    reads with as many threads, `bandwidth_share`: the part of it that decoding uses. Null where it says nothing.
    """

    model: str
    size: int
    params: int
    quantization: str
    backend: str
    device: str
    threads: int
    kv_type: str
    speculation: str
    test: str
    n_prompt: int
    n_gen: int
    n_parallel: int
    n_depth: int
    avg_ts: float
    stddev_ts: float
    samples_ts: list[float]
    read_bytes: int | None = None
    memory_bandwidth: float | None = None
    bandwidth_share: float | None = None
    note: str = ""


def mean_and_deviation(samples: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0.0 for a single sample."""
    return statistics.fmean(samples), statistics.stdev(samples) if len(samples) > 1 else 0.0
