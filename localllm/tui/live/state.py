"""Everything the live feed has told, as one state that screens draw. Pure: no widgets, no clock of its own.

Frames may be missing, may come again after a reconnect, and models may vanish; whatever comes, the state stays whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from localllm.daemon.feed import Frame, Machine, ModelRow, RequestEvent
from localllm.safe_text import one_line
from localllm.tui.live.events import Happening, of_event, of_failure, of_model
from localllm.tui.live.pages import PageBoard
from localllm.tui.live.requests import OVER, Request, Requests, record_of
from localllm.tui.live.rings import SAMPLE_S, Ring, percentile
from localllm.tui.live.slots import OTHERS, Slots
from localllm.wire import Snapshot

MAX_HAPPENINGS = 200
RATE_S = 1.0
"""Rates are counted over the last second: between two frames there are but a few tokens."""
QUIET_S, STUCK_S = 1.5, 15.0
"""Without a new snapshot for so long nothing is computed: where nothing is to be computed, and where something is."""
FIRST_TOKENS = 64
"""The last ones, of which the middle and the slow end are shown."""
BACKWARDS_S = 5.0
"""A clock that went back further is that of another machine."""
FIGURES = ("decode", "prefill", "batch", "queue", "hits", "first_p50", "first_p95", "resident")
_RANKS = {"decode": 0, "prefill": 0, "preempted": 1, "waiting": 2, "queued": 3, "loading": 3}


class ModelState:
    """One model: its row, its pages, and a ring for each of FIGURES. Rates are tokens a second, hits 0 to 1, first
    tokens seconds, `resident` bytes of its process."""

    def __init__(self, row: ModelRow, slots: Slots) -> None:
        self.row = row
        self.snapshot: Snapshot | None = None
        self.rings = {name: Ring() for name in FIGURES}
        self._slots = slots
        self.board = PageBoard(self._slot_of)
        self._counted: deque[tuple[float, int, int]] = deque()
        self._first: deque[float] = deque(maxlen=FIRST_TOKENS)
        self._fresh = 0.0

    def take(self, snapshot: Snapshot, now: float) -> None:
        self.snapshot, self._fresh = snapshot, now
        if self._counted and snapshot.num_generated_tokens < self._counted[-1][2]:
            self._counted.clear()  # it was loaded again
        self._counted.append((now, snapshot.num_prompt_tokens - snapshot.num_cached_tokens,
                              snapshot.num_generated_tokens))  # fmt: skip
        while len(self._counted) > 2 and now - self._counted[0][0] > RATE_S:
            self._counted.popleft()
        self.board.take(snapshot, self.row.page_size, now)

    def note_first_token(self, span_s: float) -> None:
        self._first.append(span_s)

    def forget_rates(self) -> None:
        """There was a time when nothing was heard."""
        self._counted.clear()

    def sample(self, now: float) -> None:
        """Every figure as of now goes into its ring."""
        prefill, decode = self._rates(now)
        shot = self.snapshot
        first = list(self._first)
        figures: dict[str, float | None] = {
            "decode": decode,
            "prefill": prefill,
            "batch": None if shot is None else float(shot.num_running),
            "queue": None if shot is None else float(shot.num_waiting),
            "hits": self._hits(),
            "first_p50": percentile(first, 0.5),
            "first_p95": percentile(first, 0.95),
            "resident": float(self.row.resident_bytes) or None,
        }
        for name, value in figures.items():
            self.rings[name].push(now, value)

    def newest(self, figure: str) -> float | None:
        return self.rings[figure].newest

    def _rates(self, now: float) -> tuple[float | None, float | None]:
        if self.snapshot is None:
            return None, None
        # steps of a slow machine are rarer than samples: only who has nothing to do computes nothing
        patience_s = STUCK_S if self.snapshot.num_running else QUIET_S
        if now - self._fresh > patience_s or len(self._counted) < 2:
            return 0.0, 0.0
        (then, prompt, generated), (at, prompt_now, generated_now) = self._counted[0], self._counted[-1]
        span_s = max(at - then, 1e-3)
        return max(0, prompt_now - prompt) / span_s, max(0, generated_now - generated) / span_s

    def _hits(self) -> float | None:
        shot = self.snapshot
        return shot.num_cached_tokens / shot.num_prompt_tokens if shot is not None and shot.num_prompt_tokens else None

    def _slot_of(self, sequence_id: str) -> int:
        slot = self._slots.of(record_of(sequence_id)[0])
        return OTHERS if slot is None else slot


class LiveState:
    """`apply` each frame, `tick` ten times a second. Arguments named `local` are seconds of the caller's own clock;
    `now` is the daemon's time at this moment, as far as it is known."""

    def __init__(self) -> None:
        self.models: dict[str, ModelState] = {}
        self.requests = Requests()
        self.slots = Slots()
        self.happenings: deque[Happening] = deque(maxlen=MAX_HAPPENINGS)
        self.machine = Machine()
        self.memory = Ring()
        self.now = 0.0
        self.num_frames = 0
        self.needs_requests = False
        """Events were lost: only a list of the requests under way can say which of them are over."""
        self._told: float | None = None
        self._heard_local = self._advanced = 0.0
        self._is_returning = False

    # ---- what changes it

    def apply(self, frame: Frame, local: float) -> None:
        if self._told is not None and frame.at < self._told - BACKWARDS_S:
            self.clear()
        self._told, self._heard_local = frame.at, local
        self.now, self.num_frames = max(self.now, frame.at), self.num_frames + 1
        self.needs_requests |= frame.dropped > 0
        self.machine = frame.machine
        self._take_models(frame)
        for event in frame.events:
            self._take_event(event)
        for name, snapshot in frame.snapshots.items():
            self._take_snapshot(name, snapshot)
        if self._is_returning:
            self._settle_return(frame)
        self._advance()

    def tick(self, local: float) -> None:
        """Time went by without a frame."""
        if self._told is None:
            return
        self.now = max(self.now, self._told + local - self._heard_local)
        if self.now - self._advanced >= SAMPLE_S:
            self._advance()

    def reconcile(self, running: Iterable[str]) -> None:
        """What a list of the requests under way says."""
        self.needs_requests = False
        self.requests.reconcile(running, self.now)
        self._advance()

    def learn(self, events: Iterable[RequestEvent]) -> None:
        """Events of a request whose beginning was not told here."""
        for event in events:
            row = self.requests.rows.get(event.id)
            if row is not None and not row.is_over:
                row.learn(event)
        self._advance()

    def disconnected(self) -> None:
        """The feed broke off: what comes next tells of everything anew."""
        self._is_returning = True
        for model in self.models.values():
            model.forget_rates()

    def clear(self) -> None:
        """Another daemon, or another machine."""
        self.models.clear()
        self.requests.clear()
        self.slots.clear()
        self.memory.clear()
        self.now, self._advanced, self._told = 0.0, 0.0, None

    # ---- what is asked of it

    def ordered(self) -> list[Request]:
        """Running ones by their slots, then preempted ones, then those that wait in their order; one that is over
        stays where it was."""
        return sorted(self.requests.rows.values(), key=self._rank)

    def slot(self, request: Request) -> int | None:
        return self.slots.of(request.id)

    def tokens_per_s(self, row: ModelRow) -> float:
        """Of a model, over the last second; as its row says where no snapshot came yet."""
        model = self.models.get(row.name)
        known = model.newest("decode") if model is not None else None
        return row.tokens_per_s if known is None else known

    def model_of(self, request: Request) -> ModelState | None:
        return self.models.get(request.model)

    # ---- inside

    def _take_models(self, frame: Frame) -> None:
        rows = {row.name: row for row in frame.models}
        for name in [name for name in self.models if name not in rows]:
            self._happen(of_model(self.models.pop(name).row, None, frame.time))
            self.requests.miss_all(name, self.now)
        for name, row in rows.items():
            known = self.models.get(name)
            if self.num_frames > 1:
                self._happen(of_model(None if known is None else known.row, row, frame.time))
            if known is None or known.row.pid != row.pid:
                known = self.models[name] = self._model(row, known)
            known.row = row

    def _model(self, row: ModelRow, before: ModelState | None) -> ModelState:
        """A new process has new pages, but the figures go on."""
        made = ModelState(row, self.slots)
        if before is not None:
            made.rings = before.rings
        return made

    def _take_event(self, event: RequestEvent) -> None:
        before = self.requests.rows.get(event.id)
        num_known = len(before.events) if before is not None else 0
        row = self.requests.note(event)
        if row is None or (before is not None and len(row.events) == num_known):
            return
        if event.name == "admitted":
            self.slots.take(row.id)
        if event.name == "first_token" and row.first_token_s is not None and row.model in self.models:
            self.models[row.model].note_first_token(row.first_token_s)
        self._happen(of_failure(event, row.name) if event.name == "failed" else of_event(event, row.name))

    def _take_snapshot(self, name: str, snapshot: Snapshot) -> None:
        model = self.models.get(name)
        if model is None:
            return
        self.requests.look(name, snapshot.sequences, self.now)
        for view in snapshot.sequences:
            if view.state == "running" or view.num_pages:
                self.slots.take(record_of(view.request_id)[0])
        model.take(snapshot, self.now)

    def _settle_return(self, frame: Frame) -> None:
        """The first frame of a connection names all that is under way."""
        self._is_returning = False
        named = {event.id for event in frame.events}
        held = {record_of(view.request_id)[0] for shot in frame.snapshots.values() for view in shot.sequences}
        self.requests.reconcile(named | held, self.now)

    def _advance(self) -> None:
        self._advanced = self.now
        self.requests.sweep(self.now)
        self._free_slots()
        for model in self.models.values():
            model.board.age(self.now)
            model.sample(self.now)
        if self.machine.total_bytes:
            self.memory.push(self.now, float(self.machine.total_bytes - self.machine.available_bytes))

    def _free_slots(self) -> None:
        """A slot is free when its request has no page any more and is either over and gone, or has lost them."""
        holding = {
            record_of(view.request_id)[0]
            for model in self.models.values()
            if model.snapshot is not None
            for view in model.snapshot.sequences
            if view.num_pages
        }
        for owner in self.slots.owners():
            row = self.requests.rows.get(owner)
            is_needed = row is not None and row.state not in ("waiting", "preempted", "queued", "loading")
            if owner not in holding and not is_needed:
                self.slots.leave(owner)

    def _happen(self, happening: Happening | None) -> None:
        if happening is not None:
            self.happenings.appendleft(happening)

    def _rank(self, row: Request) -> tuple[int, int, float, str]:
        slot = self.slots.of(row.id)
        if row.state in OVER:
            return 0 if slot is not None else 2, slot or 0, row.began, row.id
        return _RANKS[row.state], (slot or 0) if row.state in ("decode", "prefill") else row.place, row.began, row.id


def model_names(state: LiveState) -> list[str]:
    """Of all that are loaded or loading, safe to draw."""
    return [one_line(name) for name in state.models]
