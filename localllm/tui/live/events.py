"""What happens, a line an event: for the list at the side of the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localllm.daemon.feed import ModelRow, RequestEvent
from localllm.safe_text import one_line
from localllm.tui.words import count, seconds

MAX_TEXT = 120
ENDED_BY_PEOPLE = {"client_gone": "its client left", "request_cancelled": "from outside"}


@dataclass(frozen=True, slots=True)
class Happening:
    """`time` since the epoch, `word` what happened, `name` to which request, `role` the colour of the word."""

    time: float
    word: str
    name: str
    text: str
    role: str = "accent"


def of_event(event: RequestEvent, name: str) -> Happening | None:
    """None for what is not worth a line."""
    found = _TOLD.get(event.name)
    if found is None:
        return None
    word, role, tell = found
    return Happening(event.time, word, name, one_line(tell(event.data))[:MAX_TEXT], role)


def of_failure(event: RequestEvent, name: str) -> Happening:
    """One that a client or a person ended is cancelled, any other failed."""
    code = one_line(str(event.data.get("code", "")))[:MAX_TEXT]
    if code in ENDED_BY_PEOPLE:
        return Happening(event.time, "cancel", name, ENDED_BY_PEOPLE[code], "muted")
    return Happening(event.time, "fail", name, code.replace("_", " "), "err")


def of_model(before: ModelRow | None, after: ModelRow | None, time: float) -> Happening | None:
    """A model came, is ready, failed or went."""
    if after is None:
        gone = before.name if before is not None else ""
        return Happening(time, "unload", "", one_line(gone), "muted")
    if before is not None and before.state == after.state:
        return None
    name = one_line(after.name)
    if after.state == "ready" and before is not None:
        took = f" in {seconds(after.load_s)}" if after.load_s else ""
        return Happening(time, "load", "", f"{name}{took}")
    if after.state == "failed":
        return Happening(time, "fail", "", f"{name} {one_line(after.error)}"[:MAX_TEXT], "err")
    return None


def _admitted(data: Any) -> str:
    cached, prompt = data.get("cached"), data.get("prompt")
    if not isinstance(cached, int) or not isinstance(prompt, int):
        return ""
    return f"{count(cached)} of {count(prompt)} tokens cached" if cached else f"{count(prompt)} tokens to compute"


def _finished(data: Any) -> str:
    done = data.get("completion")
    tokens = f" · {count(done)} tokens" if isinstance(done, int) else ""
    return f"{data.get('reason', '')}{tokens}"


_TOLD: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "admitted": ("admit", "accent", _admitted),
    "finished": ("finish", "muted", _finished),
    "preempted": ("preempt", "err", lambda data: "its pages go to others, it will resume"),
    "resumed": ("resume", "accent", lambda data: "its pages are computed again"),
    "loading": ("wait", "warn", lambda data: "for its model to load"),
}
