"""The self-test of one backend, in a process of its own: `python -m localllm.backends.measure BACKEND KINDS THREADS`.

Tells right from wrong (logits against numpy's) and fast from slow, and prints one JSON list of speeds. A backend that
crashes, hangs or eats memory takes nobody with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from localllm.backends.select import BackendOptions, open_backend
from localllm.backends.speeds import Speed
from localllm.backends.trial import OVERHEAD, VOCAB, WEIGHTS, Trial, TrialSource
from localllm.engine.step import Backend, StepPlan, Want, plain_row, run_step
from localllm.errors import LocalLLMError
from localllm.formats.blocks import BlockType

CHUNK = 32
PAGE_SIZE = 16
MAX_STEPS = 12
BUDGET_S = 0.3
"""Seconds that one figure may take; at least one step is always measured."""
TOLERANCE = {"Q4_0": 1e-1, "Q8_0": 1e-1}
"""Of the largest logit. Some backends round what goes into products of blocks to 8 bits; wrong ones are off by 1."""
FLOAT_TOLERANCE = 2e-2


def speed_of(backend: str, device: str, kind: str, threads: int) -> Speed:
    """What one backend does on one device; never raises: what goes wrong is in `problem`."""
    try:
        error = logit_error(backend, device, kind, threads)
        if not error <= TOLERANCE.get(kind, FLOAT_TOLERANCE):
            return Speed(backend, device, problem=f"its logits are off by {error:.2g} of the largest one")
        small, large = (timed(trial, backend, device, kind, threads) for trial in (OVERHEAD, WEIGHTS))
        return Speed(backend, device, small[0], large[0], small[1], large[1])
    except LocalLLMError as error:
        return Speed(backend, device, problem=error.message)
    except Exception as error:  # the libraries beneath raise whatever they like, and the point is to find out
        return Speed(backend, device, problem=f"{type(error).__name__}: {error}"[:300])


def logit_error(backend: str, device: str, kind: str, threads: int) -> float:
    """The largest difference from the numpy reference, over its largest logit, after a prompt and one more token."""
    ours = _logits(backend, device, kind, threads)
    theirs = _logits("reference", "", kind, threads)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _logits(backend: str, device: str, kind: str, threads: int) -> NDArray[np.float32]:
    opened = _open(OVERHEAD, backend, device, kind, threads)
    try:
        answers = [
            _step(opened, tokens, start, Want(logits="last")) for tokens, start in ((_prompt(), 0), ((7,), CHUNK))
        ]
        return np.concatenate(answers)
    finally:
        opened.close()


def timed(trial: Trial, backend: str, device: str, kind: str, threads: int) -> tuple[float, float]:
    """Seconds of a step that decodes one token, and of a step that reads CHUNK tokens of a prompt."""
    opened = _open(trial, backend, device, kind, threads)
    try:
        prompt_s = _fastest(lambda index: _step(opened, _prompt(), 0, Want(logits="last")))
        decode_s = _fastest(lambda index: _step(opened, (index % VOCAB,), CHUNK + index, Want(logits="last")))
        return decode_s, prompt_s
    finally:
        opened.close()


def _open(trial: Trial, backend: str, device: str, kind: str, threads: int) -> Backend:
    options = BackendOptions(page_size=PAGE_SIZE, threads=threads, max_tokens_per_step=CHUNK, device=device)
    opened = open_backend(backend, trial.config, TrialSource(trial, BlockType[kind]), options)
    opened.allocate(2 * CHUNK // PAGE_SIZE, 0)
    return opened


def _prompt() -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(1).integers(0, VOCAB, CHUNK))


def _step(backend: Backend, tokens: Sequence[int], start: int, want: Want) -> NDArray[np.float32]:
    row = plain_row(0, tokens, start, range(2 * CHUNK // PAGE_SIZE), want)
    logits = run_step(backend, StepPlan(start, (row,))).rows[0].logits
    assert logits is not None, "logits were asked for"
    return logits


def _fastest(step: Callable[[int], object]) -> float:
    """Seconds of the fastest of a few steps: the first one warms up, and what else the machine does only adds."""
    spent: list[float] = []
    while len(spent) < MAX_STEPS and sum(spent) < BUDGET_S:
        started = time.perf_counter()
        step(len(spent))
        spent.append(time.perf_counter() - started)
    return min(spent)


def devices_of(backend: str) -> list[str]:
    """The devices worth measuring: the first of each kind that torch sees; other backends have one."""
    if backend != "torch":
        return [""]
    from localllm.backends.torch.library import device_names  # deferred: imports torch

    firsts = {name.partition(":")[0]: name for name in reversed(device_names())}
    return list(reversed(firsts.values()))


def main(argv: Sequence[str]) -> int:
    backend, kinds, threads = argv
    table = {
        kind: [speed_of(backend, device, kind, int(threads)) for device in devices_of(backend)]
        for kind in kinds.split(",")
    }
    print(msgspec.json.encode(table).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
