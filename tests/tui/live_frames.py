"""Frames of a feed that nobody sends: engines for tests, whose pages and requests are moved by hand."""

from array import array
from dataclasses import dataclass, field
from typing import Any

from localllm import wire
from localllm.daemon.feed import Frame, Machine, ModelRow, RequestEvent

GB = 10**9


@dataclass
class FakeSequence:
    """One sequence of a fake engine."""

    id: str
    prompt: int
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    generated: int = 0
    state: Any = "running"
    preemptions: int = 0

    def view(self, shared: set[int]) -> wire.SequenceView:
        num_shared = len(shared.intersection(self.pages))
        return wire.SequenceView(
            self.id, self.state, self.prompt, self.computed, self.generated, len(self.pages), num_shared,
            self.preemptions, array("I", self.pages).tobytes(),
        )  # fmt: skip


class FakeEngine:
    """A model with pages. Move its sequences, then ask for a `frame`."""

    def __init__(self, name: str = "qwen3-4b", num_pages: int = 2048, page_size: int = 16, pid: int = 1) -> None:
        self.name, self.num_pages, self.page_size, self.pid = name, num_pages, page_size, pid
        self.sequences: dict[str, FakeSequence] = {}
        self.cached: set[int] = set()
        self.free = list(reversed(range(num_pages)))
        self.num_prompt = self.num_cached = self.num_generated = 0
        self.events: list[RequestEvent] = []
        self.state = "ready"
        self.num_slots = 0
        self.sources: dict[int, str] = {}
        self.at = 100.0

    # ---- what happens

    def tell(self, number: int, name: str, **data: Any) -> None:
        self.events.append(
            RequestEvent(
                id=f"r{number}", model=self.name, route="/v1/chat/completions", name=name, at=self.at,
                time=1_700_000_000 + self.at, data=data, serial=number, source=self.sources.get(number, "curl"),
                priority=-10 if self.sources.get(number, "").startswith("batch") else 0,
            )
        )  # fmt: skip

    def take(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            page = self.free.pop() if self.free else self.cached.pop()
            taken.append(page)
        return taken

    def admit(self, number: int, prompt: int, *, cached: int = 0, shared: list[int] | None = None) -> FakeSequence:
        """Queued, submitted and admitted at once, with pages for its prompt; `shared` pages are another's too."""
        for name in ("queued", "submitted"):
            self.tell(number, name)
        self.tell(number, "admitted", cached=cached, prompt=prompt)
        begin = list(shared or [])
        self.cached -= set(begin)
        pages = begin + self.take(-(-prompt // self.page_size) - len(begin))
        made = FakeSequence(f"r{number}/{number}-0", prompt, pages, computed=cached)
        self.sequences[f"r{number}"] = made
        self.num_prompt += prompt
        self.num_cached += cached
        return made

    def wait(self, number: int, prompt: int) -> None:
        """Queued and submitted, but not admitted."""
        self.tell(number, "queued")
        self.tell(number, "submitted")
        self.sequences[f"r{number}"] = FakeSequence(f"r{number}/{number}-0", prompt, state="waiting")

    def begin(self, number: int, *, cached: int = 0) -> None:
        """One that waited is admitted."""
        sequence = self.sequences[f"r{number}"]
        sequence.state, sequence.computed = "running", cached
        sequence.pages = self.take(-(-sequence.prompt // self.page_size))
        self.tell(number, "admitted", cached=cached, prompt=sequence.prompt)

    def write(self, number: int, count: int) -> None:
        """So many tokens of the answer; the first one ends the prompt."""
        sequence = self.sequences[f"r{number}"]
        if not sequence.generated:
            self.tell(number, "first_token")
            sequence.computed = sequence.prompt
        sequence.generated += count
        sequence.computed += count
        self.num_generated += count
        missing = -(-sequence.computed // self.page_size) - len(sequence.pages)
        sequence.pages += self.take(max(0, missing))

    def preempt(self, number: int) -> None:
        sequence = self.sequences[f"r{number}"]
        self._release(sequence, False)
        sequence.pages, sequence.computed, sequence.state = [], 0, "waiting"
        sequence.preemptions += 1
        self.tell(number, "preempted", sequence=0)

    def finish(self, number: int, *, stays_cached: bool = False) -> None:
        sequence = self.sequences.pop(f"r{number}")
        self._release(sequence, stays_cached)
        self.tell(number, "finished", reason="stop", prompt=sequence.prompt, cached=0, completion=sequence.generated)

    def _release(self, sequence: FakeSequence, stays_cached: bool) -> None:
        held = {page for other in self.sequences.values() if other is not sequence for page in other.pages}
        for page in sequence.pages:
            if page not in held and stays_cached:
                self.cached.add(page)
            elif page not in held:
                self.free.append(page)

    # ---- what is told

    def pages(self) -> bytes:
        states = bytearray(self.num_pages)
        for page in self.cached:
            states[page] = 1
        for sequence in self.sequences.values():
            for page in sequence.pages:
                states[page] = 3 if states[page] >= 2 else 2
        return bytes(states)

    def snapshot(self) -> wire.Snapshot:
        pages = self.pages()
        shared = {page for page, state in enumerate(pages) if state == 3}
        running = [each for each in self.sequences.values() if each.state == "running"]
        waiting = [each for each in self.sequences.values() if each.state == "waiting"]
        return wire.Snapshot(
            time_s=self.at, pages=pages, num_waiting=len(waiting), num_running=len(running), num_steps=1,
            num_prompt_tokens=self.num_prompt, num_cached_tokens=self.num_cached,
            num_generated_tokens=self.num_generated, num_preemptions=0, last_step_s=0.02, last_step_tokens=1,
            sequences=[each.view(shared) for each in running + waiting],
            num_slots=self.num_slots, num_slots_used=len(running) if self.num_slots else 0,
        )  # fmt: skip

    def row(self) -> ModelRow:
        used = sum(state >= 2 for state in self.pages())
        rate = 40.0 * sum(each.generated > 0 for each in self.sequences.values())
        return ModelRow(
            name=self.name, state=self.state, pid=self.pid, page_size=self.page_size, pages_total=self.num_pages,
            size_bytes=2_400_000_000, memory_bytes=7_200_000_000, resident_bytes=7_900_000_000, device="cpu avx2",
            processor="100% CPU", max_sequences=32, pages_used=used, tokens_per_s=rate,
        )  # fmt: skip

    def frame(self, after_s: float = 0.1, *others: "FakeEngine", with_snapshot: bool = True, dropped: int = 0) -> Frame:
        """The next one, so long after the last."""
        self.at += after_s
        engines = (self, *others)
        events = [event for engine in engines for event in engine.events]
        for engine in engines:
            engine.events, engine.at = [], self.at
        return Frame(
            at=self.at, time=1_700_000_000 + self.at, models=[engine.row() for engine in engines],
            snapshots={engine.name: engine.snapshot() for engine in engines if with_snapshot}, events=events,
            dropped=dropped, machine=Machine(8 * GB, 16 * GB, 100_000_000),
        )  # fmt: skip


SOURCES = {
    4119: "claude-code", 4121: "chat tui", 4122: "batch eval", 4126: "batch eval", 4127: "curl", 4128: "batch eval",
    4129: "open-webui", 4130: "chat tui", 4131: "batch eval", 4132: "batch eval", 4133: "batch eval",
    4134: "batch eval", 4120: "curl",
}  # fmt: skip


def busy_day(num_pages: int = 2048) -> tuple[FakeEngine, list[Frame]]:
    """The day of the pictures: a long prompt that others wait for, shared beginnings, a preemption, a queue."""
    engine = FakeEngine(num_pages=num_pages)
    engine.sources = dict(SOURCES)
    if num_pages > 2048:  # all of them were in use before
        engine.free.remove(num_pages - 100)
        engine.cached.add(num_pages - 100)
    frames = [engine.frame()]
    first = engine.admit(4119, 8192, cached=1024).pages[:64]
    frames.append(engine.frame(1.0))
    engine.admit(4121, 2311, cached=1024, shared=first)
    engine.admit(4122, 812, cached=512)
    frames.append(engine.frame(0.2))
    engine.wait(4127, 2906)
    for number in range(40):
        for writer in (4119, 4121, 4122)[number < 6 :]:
            engine.write(writer, 1 + writer % 3)
        frames.append(engine.frame())
    engine.begin(4127, cached=1024)
    for computed in (2000, 2500):
        engine.tell(4127, "progress", computed=computed)
        frames.append(engine.frame(0.3))
    engine.admit(4128, 790, cached=512)
    engine.admit(4129, 1650, cached=768)
    frames += _writing(engine, 25)
    engine.admit(4126, 801, cached=512)
    engine.write(4126, 33)
    frames.append(engine.frame())
    engine.preempt(4126)
    engine.admit(4120, 700)
    engine.write(4120, 30)
    frames.append(engine.frame())
    engine.finish(4120, stays_cached=True)
    engine.admit(4130, 5120, cached=1024).computed = 3200
    engine.admit(4131, 768, cached=512).computed = 560
    for number in (4132, 4133, 4134):
        engine.at += 0.1
        engine.wait(number, 774 + number % 7 * 9)
    return engine, frames + _writing(engine, 12)


def _writing(engine: FakeEngine, count: int) -> list[Frame]:
    frames = []
    for number in range(count):
        for place, writer in enumerate((4119, 4121, 4122, 4127, 4128, 4129)):
            engine.write(writer, (5, 7, 6, 6, 6, 7)[(number + place) % 6])
        frames.append(engine.frame())
    return frames
