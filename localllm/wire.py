"""Messages between the daemon and its workers, and the frames of the live feed. Frozen plain data, msgpack on a socket.

Text never travels here: the daemon tokenizes and detokenizes, a worker sees ids only. Frames are length-prefixed
(4 bytes, little-endian) msgpack of one tagged struct.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from localllm.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1

FinishReason = Literal["stop", "length", "cancelled", "error"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one token is chosen. Order: bias and penalties, top-n-sigma, temperature, top-k, typical, top-p, min-p, XTC,
    draw.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and the neutral penalties are off. `repeat_last_n` bounds
    the window of `repetition_penalty` in tokens (prompt included); -1 is the whole sequence. `presence_penalty` and
    `frequency_penalty` count generated tokens only, as OpenAI's do. `seed` None: drawn when the sequence is added.

    `typical_p` 1, `top_n_sigma` 0 and less, `xtc_probability` 0 and `dry_multiplier` 0 are off. DRY lowers the logit of
    a token that would make a repetition of more than `dry_allowed_length` tokens longer; `dry_breakers` are tokens that
    no repetition goes over, `dry_penalty_last_n` bounds where it looks (-1: everywhere). With `allowed_token_ids`
    nothing else is said, stop tokens included; the last token of one of `bad_sequences` never follows the others of it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    seed: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_breakers: list[int] = []
    allowed_token_ids: list[int] = []
    bad_sequences: list[list[int]] = []

    def checked(self) -> SamplingParams:
        """Itself when every value is in bounds; InvalidRequest naming the field otherwise."""
        for name, low, high in SAMPLING_BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:  # also false for NaN
                raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)
        if len(self.logit_bias) > 1024:
            raise InvalidRequest("logit_bias may name at most 1024 tokens", param="logit_bias")
        if any(not -100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise InvalidRequest("logit_bias values must be between -100 and 100", param="logit_bias")
        if self.seed is not None and not -MAX_SEED - 1 <= self.seed <= MAX_SEED:
            raise InvalidRequest("seed must fit in 64 bits", param="seed")
        if not all(self.bad_sequences):
            raise InvalidRequest("bad_words must not be empty", param="bad_words")
        return self


SAMPLING_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 100.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("repeat_last_n", -1, 2**31 - 1),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("min_tokens", 0, 2**31 - 1),
    ("typical_p", 0.0, 1.0),
    ("top_n_sigma", -1.0, 1000.0),
    ("xtc_probability", 0.0, 1.0),
    ("xtc_threshold", 0.0, 1.0),
    ("dry_multiplier", 0.0, 100.0),
    ("dry_base", 1.0, 100.0),
    ("dry_allowed_length", 1, 2**31 - 1),
    ("dry_penalty_last_n", -1, 2**31 - 1),
)


# ---- daemon to worker


class Load(msgspec.Struct, frozen=True, tag="load", kw_only=True):
    """The first frame: open this model. Paths are absolute. Zeros and empty texts mean "choose".

    `quantize`: the block type that float weights are rounded to while they load; empty: as they are. `cache_dir` is
    where the speeds of backends are remembered; empty: nobody measures.
    """

    path: str
    backend: str = "auto"
    device: str = ""
    kv_type: Literal["auto", "f16", "f32", "q8_0"] = "auto"
    quantize: str = ""
    cache_dir: str = ""
    threads: int = 0
    kv_pages: int = 0
    page_size: int = 16
    token_budget: int = 512
    max_sequences: int = 256
    context_length: int = 0
    speculation: Literal["auto", "off", "4", "8", "16", "32"] = "auto"


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a sequence may say: `grammar` is one of llguidance, as JSON. With `after` it holds from behind the first
    time that text was generated (the end of reasoning), without it from the first token on. The sequence may not end
    before, unless it is `lazy` (a tool call that need not come)."""

    grammar: str
    after: str = ""
    lazy: bool = False


class ThinkingBudget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most so many tokens of reasoning, then `end_ids` are forced. Reasoning begins behind the text `start` (empty:
    with the first token) and ends with the text `end`."""

    max_tokens: int
    start: str = ""
    end: str
    end_ids: list[int]


Pooling = Literal["mean", "last", "first"]
Pooled = Literal["mean", "last", "first", "rank"]
"""`rank`: what the model's head makes of a pair of texts."""


class Submit(msgspec.Struct, frozen=True, tag="submit", kw_only=True):
    """One sequence to run. `max_tokens` None: until the context is full; 0: compute the prompt only.

    The last `num_given` tokens of the prompt are the beginning of its answer, said before: they count as generated, for
    penalties, constraints, limits on thinking and the random numbers; `max_tokens` counts only what is new.

    `top_logprobs` None: none wanted; k: the sampled token's and the k best. `prompt_logprobs` likewise for every
    prompt token (such a sequence reads no cached prefix). Greater `priority` runs first; within a priority the owners
    (empty: nobody in particular) get equal shares. Sequences share cached pages only within one `cache_salt`. With
    `pooled` the prompt is computed and nothing generated: its last chunk carries the vector. From `second_from` on the
    prompt is the second text of a pair; 0: there is only one. `lora` is the absolute path of an adapter, empty: none;
    what it adds is multiplied by `lora_scale`. Cached pages are shared only within one adapter and scale.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop_ids: list[int] = []
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    owner: str = ""
    constraint: Constraint | None = None
    thinking: ThinkingBudget | None = None
    pooled: Pooled | None = None
    num_given: int = 0
    second_from: int = 0
    lora: str = ""
    lora_scale: float = 1.0


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget the sequence and free its pages before the next step; unknown ids are ignored."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Finish nothing more: free everything and exit with status 0."""


class Watch(msgspec.Struct, frozen=True, tag="watch"):
    """Whether somebody looks on: from now on snapshots say whose pages are whose and what the last step computed."""

    is_on: bool


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """How much of this prompt is in the prefix cache? Answered with Probed, between two steps; nothing changes."""

    question_id: int
    prompt: list[int]
    cache_salt: str = ""
    lora: str = ""
    lora_scale: float = 1.0


class AskPage(msgspec.Struct, frozen=True, tag="ask_page"):
    """What is in this page, and who holds it? Answered with PageAnswer, between two steps; nothing changes."""

    question_id: int
    page: int


Question = Probe | AskPage
ToWorker = Load | Submit | Cancel | Watch | Probe | AskPage | Stop


# ---- worker to daemon


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """While a model loads: `stage` in words, bytes done and in all."""

    stage: str
    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready", kw_only=True):
    """The model answers from now on. `state_bytes`: what recurrent states may take, running and kept ones."""

    backend: str
    device: str
    native: bool
    context_length: int
    vocab_size: int
    num_pages: int
    page_size: int
    weight_bytes: int
    kv_bytes: int
    load_s: float
    threads: int
    state_bytes: int = 0
    notes: list[str] = []


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot go on; it exits after this frame. Fields of the LocalLLMError that ended it."""

    code: str
    message: str
    hint: str


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of `token_id`, the alternatives, best first, and the entropy in nats (NaN: unknown)."""

    token_id: int
    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []
    entropy: float = float("nan")


class TokenChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step gave one sequence. `started` comes once, with or before the first token.

    `num_cached` are prompt tokens found in the prefix cache. `prompt_logprobs` holds one entry per prompt token from
    the second on. `stop_id` is the id that ended the sequence (it is not in `ids`). `vector` is a pooled vector of
    little-endian float32. A refused or failed sequence has `finish="error"` with `error_code`, `error` and perhaps
    `error_hint`. `waited_s`, with `started`, is the time between submission and the first step. A chunk that is
    `preempted` says nothing else: the sequence lost its memory to others and will be computed again.
    """

    request_id: str
    ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    started: bool = False
    num_cached: int = 0
    num_computed: int = 0
    finish: FinishReason | None = None
    stop_id: int | None = None
    error_code: str = ""
    error: str = ""
    error_hint: str = ""
    vector: bytes = b""
    waited_s: float = 0.0
    preempted: bool = False


class StepFrame(msgspec.Struct, frozen=True, tag="step"):
    """All that one engine step produced, for all sequences."""

    chunks: list[TokenChunk]


class SequenceView(msgspec.Struct, frozen=True):
    """One sequence as the dashboard sees it. `state` is waiting or running; page counts include shared pages.

    `pages` are the ids of its pages, uint32 little-endian, in order; only where somebody watches.
    """

    request_id: str
    state: Literal["waiting", "running"]
    num_prompt: int
    num_computed: int
    num_generated: int
    num_pages: int
    num_shared_pages: int
    num_preemptions: int
    pages: bytes = b""


RowKind = Literal["chunk", "decode", "draft"]


class RowView(msgspec.Struct, frozen=True):
    """A sequence's part of the last step: `num_tokens` computed from position `start` on. A draft is a decoded token
    with guesses of the next ones behind it."""

    request_id: str
    start: int
    num_tokens: int
    kind: RowKind


STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot", kw_only=True):
    """The engine at one moment. `pages` has one byte per page: 0 free, 1 cached (free to take), 2 owned, 3 shared.

    Counters rise for ever; rates are the reader's work. `time_s` is the worker's monotonic clock. Of the drafted
    tokens, which were guessed and then checked, the accepted ones stand; they count as generated, too.
    `step_sizes` counts steps by their tokens: up to each of STEP_TOKEN_BOUNDS, and beyond the last. `rows` are those of
    the last step, only where somebody watches. Models with recurrent state have a slot for each running sequence, and
    keep some states for prompts that begin alike.
    """

    time_s: float
    pages: bytes
    num_waiting: int
    num_running: int
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    last_step_s: float
    last_step_tokens: int
    sequences: list[SequenceView] = []
    num_drafts: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_step_tokens: int = 0
    num_slots: int = 0
    num_slots_used: int = 0
    num_states_kept: int = 0
    step_sizes: list[int] = []
    rows: list[RowView] = []


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """So many tokens at the start of the prompt need not be computed now."""

    question_id: int
    num_cached: int


class PageHolder(msgspec.Struct, frozen=True, array_like=True):
    """A sequence that holds a page, which is the `index`-th of its own."""

    request_id: str
    index: int


class PageLink(msgspec.Struct, frozen=True, array_like=True):
    """A page of a chain: the start of its hash, and who holds it. `page` None: it is not in memory any more."""

    page: int | None
    chain: str
    holders: list[str]


class PageAnswer(msgspec.Struct, frozen=True, tag="page_answer", kw_only=True):
    """One page at this moment. `state` as in a snapshot; `tokens` are those that are known to be in it, the first at
    position `index` times the page size; `chain` leads from it back towards the root, full pages only, cut where it is
    long: `num_links` is its whole length."""

    question_id: int
    page: int
    state: int
    num_references: int
    index: int = 0
    tokens: list[int] = []
    holders: list[PageHolder] = []
    chain: list[PageLink] = []
    num_links: int = 0


Answer = Probed | PageAnswer


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Sent every second by the worker's socket thread with the number of steps taken and whether one is under way."""

    num_steps: int
    in_step_s: float


FromWorker = Progress | Ready | Failed | StepFrame | Snapshot | Probed | PageAnswer | Heartbeat

HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 2**20

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode_frame(message: ToWorker | FromWorker) -> bytes:
    """Length prefix and msgpack body, ready to write."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


class FrameSplitter:
    """Bytes as they arrive to whole frame bodies. ValueError for a frame longer than the wire allows."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes | bytearray]:
        """The bodies of all frames that are complete now."""
        data: bytes | bytearray = received
        if self._rest:  # seldom: most frames are short and come whole
            self._rest += received
            data = self._rest
        at, length = 0, len(data)
        while length - at >= HEADER_BYTES:
            size = int.from_bytes(data[at : at + HEADER_BYTES], "little")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes is longer than the wire allows")
            end = at + HEADER_BYTES + size
            if length < end:
                break
            yield data[at + HEADER_BYTES : end]
            at = end
        if data is received:
            self._rest += received[at:]
        else:
            del self._rest[:at]


def decode_to_worker(body: bytes | bytearray) -> ToWorker:
    return _to_worker.decode(body)


def decode_from_worker(body: bytes | bytearray) -> FromWorker:
    return _from_worker.decode(body)
