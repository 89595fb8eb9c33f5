"""Whether a model has room on this machine, for how many tokens, and what would have to go: told before it is loaded.

The plan is the one that is followed when it is loaded; what a file takes is in its header, what a model of the catalog
takes is estimated from its size.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localllm import wire
from localllm.daemon.memory_plan import LEAST_KV_BYTES, Holder, Plan, gigabytes, needed_bytes, plan
from localllm.daemon.shelf_shapes import ModelFit, Verdict
from localllm.errors import LocalLLMError
from localllm.store.entry import Entry

TIGHT_SHARE = 0.10
"""Less than this part of the room to spare is tight: other programs will want some, too."""
KV_SHARE = 0.5
"""As runtime.load.MEMORY_SHARE: the part of the free memory that pages may take."""
BASE_BYTES = 40_000_000
"""Of a worker before it has weights: Python, numpy, our own modules, and the files they are in. Resident memory, as
`scripts/measure_fit` finds it."""
TOKEN_NAME_BYTES = 170
"""What is left of each token's name in a worker's memory once a file's header was read."""
_ESTIMATED_KV_BYTES = 64 * 2**10
"""Of one token in a model of a billion weights, as f16; it grows with the 0.4th power of their number. Grouped heads of
0.6 to 70 billion weights lie within a factor of two of that."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model takes. `needed_bytes`: to be loaded at all; `page_bytes` of each page of `page_size` tokens, of
    which a sequence holds one in each of `num_groups` tables. `base_bytes` of the process, `token_bytes` of each token
    in a step of at most `longest_step`, `state_bytes` of a sequence's recurrent state. `windows`: of tables whose
    pages are given back behind so many tokens. `keeps_no_pages`: sequences end with the step that computes them."""

    weight_bytes: int
    needed_bytes: int
    page_bytes: int
    page_size: int
    num_groups: int
    num_layers: int
    context_length: int
    is_estimate: bool = False
    base_bytes: int = 0
    token_bytes: int = 0
    longest_step: int = 0
    state_bytes: int = 0
    windows: tuple[int, ...] = ()
    keeps_no_pages: bool = False

    def resident_bytes(self, context: int, parallel: int = 1) -> int:
        """Of a worker that has computed so many sequences of so many tokens together."""
        computed = min(self.longest_step, context * parallel)
        together = min(parallel, max(1, self.longest_step // max(1, context))) if self.keeps_no_pages else parallel
        kept = together * (self.held_pages(context) * self.page_bytes + self.state_bytes)
        return self.base_bytes + self.weight_bytes + self.token_bytes * computed + kept

    def held_pages(self, num_tokens: int) -> int:
        """Of a sequence of so many tokens; those behind a window are free again, for others or for itself."""
        every = self.pages_of(num_tokens)
        spared = sum(max(0, num_tokens - window - self.longest_step) // self.page_size for window in self.windows)
        return max(self.num_groups, every - spared)

    @property
    def work_bytes(self) -> int:
        return max(0, self.needed_bytes - self.weight_bytes - LEAST_KV_BYTES)

    def pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size) * self.num_groups

    def tokens_in(self, num_pages: int) -> int:
        return num_pages // max(1, self.num_groups) * self.page_size


def cost_of_file(entry: Entry, load: wire.Load) -> Cost:
    """From the header of the model's file; BadModelFile, UnsupportedModel where it is not for us. Reads no weights."""
    # deferred: numpy comes with them, which a daemon without a model need not load
    from localllm.backends.cpu.sizing import sizes_of
    from localllm.runtime.open_model import open_model

    opened = open_model(Path(entry.path), load.quantize)
    config = opened.config
    sizes = sizes_of(config, opened.source, load.page_size, load.kv_type)
    layout, context_length = sizes.layout, min(config.context_length, load.context_length or config.context_length)
    longest_step = max(load.token_budget, context_length) if config.is_encoder else load.token_budget
    base = BASE_BYTES + TOKEN_NAME_BYTES * config.vocab_size
    work = base + sizes.token_bytes * longest_step + layout.state_bytes
    return Cost(
        weight_bytes=sizes.weight_bytes,
        needed_bytes=sizes.weight_bytes + work + LEAST_KV_BYTES,
        page_bytes=layout.page_bytes,
        page_size=load.page_size,
        num_groups=len(layout.groups),
        num_layers=len(config.layers),
        context_length=context_length,
        base_bytes=base,
        token_bytes=sizes.token_bytes,
        longest_step=longest_step,
        state_bytes=layout.state_bytes,
        windows=tuple(group.window for group in layout.groups if group.window is not None),
        keeps_no_pages=config.is_encoder,
    )


def bytes_to_load(entry: Entry, load: wire.Load) -> int:
    """What has to be free before a model is loaded: counted where its file is there and is for us, else estimated."""
    if entry.path and Path(entry.path).exists():
        with contextlib.suppress(LocalLLMError):  # whoever loads it will say what is wrong
            return cost_of_file(entry, load).needed_bytes
    return needed_bytes(entry, load)


def cost_of_size(entry: Entry, load: wire.Load, num_weights: float) -> Cost:
    """An estimate for a model whose file nobody has seen: by its size in bytes, and the number of its weights."""
    needed = needed_bytes(entry, load)
    per_token = _ESTIMATED_KV_BYTES * max(num_weights / 1e9, 0.01) ** 0.4
    return Cost(
        weight_bytes=entry.size_bytes,
        needed_bytes=needed,
        page_bytes=int(per_token * load.page_size),
        page_size=load.page_size,
        num_groups=1,
        num_layers=0,
        context_length=min(entry.context_length, load.context_length or entry.context_length),
        is_estimate=True,
        base_bytes=max(0, needed - entry.size_bytes - LEAST_KV_BYTES),
        longest_step=load.token_budget,
    )


def fit_of(
    name: str,
    cost: Cost,
    load: wire.Load,
    available: int,
    holders: Sequence[Holder],
    memory_bytes: int,
    context_length: int = 0,
) -> ModelFit:
    """What would happen if the model were loaded now; `context_length`: and one chat of so many tokens had to fit."""
    least_kv = cost.pages_of(min(context_length, cost.context_length)) * cost.page_bytes
    needed = cost.needed_bytes + max(0, least_kv - LEAST_KV_BYTES)
    made = plan(needed, available, holders)
    going = _going(made, holders)
    room = available + sum(holder.num_bytes for holder in holders if holder.name in going)
    num_pages = 0 if made.outcome == "never" else _pages(cost, load, room)
    tokens = cost.tokens_in(num_pages)
    verdict = _verdict(made, room - needed, room, tokens)
    return ModelFit(
        model=name,
        verdict=verdict,
        sentence=_sentence(verdict, made, tokens, room - needed, room, going, is_estimate=cost.is_estimate),
        is_estimate=cost.is_estimate,
        weight_bytes=cost.weight_bytes,
        work_bytes=cost.work_bytes,
        kv_bytes=num_pages * cost.page_bytes,
        page_bytes=cost.page_bytes,
        page_size=cost.page_size,
        tokens=tokens,
        context_bytes=cost.pages_of(cost.context_length) * cost.page_bytes,
        longest_chat=min(tokens, cost.context_length),
        num_layers=cost.num_layers,
        context_length=cost.context_length,
        room_bytes=room,
        memory_bytes=memory_bytes,
        unload=going,
    )


def fit_of_loaded(name: str, cost: Cost, ready: wire.Ready, memory_bytes: int) -> ModelFit:
    """Of a model that is loaded nothing has to be guessed."""
    tokens = cost.tokens_in(ready.num_pages)
    page_bytes = ready.kv_bytes // max(1, ready.num_pages)
    return ModelFit(
        model=name,
        verdict="fits",
        sentence=f"It is loaded, with {tokens:,} tokens for all chats.",
        is_loaded=True,
        weight_bytes=ready.weight_bytes,
        work_bytes=cost.work_bytes,
        kv_bytes=ready.kv_bytes,
        page_bytes=page_bytes,
        page_size=ready.page_size,
        tokens=tokens,
        context_bytes=cost.pages_of(ready.context_length) * page_bytes,
        longest_chat=min(tokens, ready.context_length),
        num_layers=cost.num_layers,
        context_length=ready.context_length,
        room_bytes=ready.weight_bytes + ready.kv_bytes + cost.work_bytes,
        memory_bytes=memory_bytes,
    )


def _going(made: Plan, holders: Sequence[Holder]) -> tuple[str, ...]:
    if made.outcome in ("wait", "never"):
        return tuple(holder.name for holder in holders)
    return made.evict


def _pages(cost: Cost, load: wire.Load, room: int) -> int:
    """As many as the loader would make: a share of what is free beside the weights, and no more than ever used."""
    if load.kv_pages:
        return load.kv_pages
    free = max(0, room - cost.weight_bytes - cost.work_bytes)
    most = cost.pages_of(cost.context_length) * load.max_sequences
    return min(int(free * KV_SHARE) // max(1, cost.page_bytes), most)


def _verdict(made: Plan, spare: int, room: int, tokens: int) -> Verdict:
    if made.outcome == "never":
        return "too large"
    return "tight" if spare < TIGHT_SHARE * room or not tokens else "fits"


def _sentence(
    verdict: Verdict, made: Plan, tokens: int, spare: int, room: int, going: Sequence[str], *, is_estimate: bool
) -> str:
    about = "about " if is_estimate else ""
    if verdict == "too large":
        return f"It needs {about}{gigabytes(made.needed)}, and {gigabytes(room)} can be had here."
    when = f", {_when(made, going)}" if going else ""
    held = f"{about}{tokens:,} tokens for all chats"
    if verdict == "tight":
        return f"It is tight: {held}, with {about}{gigabytes(max(0, spare))} to spare{when}."
    return f"It fits with {held}{when}."


def _when(made: Plan, names: Sequence[str]) -> str:
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if made.outcome == "wait":
        return f"once the answers of {listed} are done"
    return f"after {listed} {'is' if len(names) == 1 else 'are'} unloaded"
