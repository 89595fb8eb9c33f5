"""Complete streams of events, held against files in `golden/`: ids, times and the sizes of deltas made equal.

`GOLDEN=write pytest tests/server` writes them anew.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
_IDS = re.compile(r"\b(resp|msg|rs|fc|ctc|call|toolu|req)_[0-9a-f]{16,}\b")
_TIMES = ("created_at", "completed_at")
_PROMPT_COUNTS = ("input_tokens", "cached_tokens", "cache_read_input_tokens", "total_tokens")
_DELTAS = ("delta", "partial_json", "thinking", "text")
Event = dict[str, Any]


def events_of(stream: str) -> list[Event]:
    """The data of all events, each of whose names must be that of its type; comments and pings are passed over."""
    events = []
    for block in stream.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "ping":  # comes while a model is loading
            events.append(event)
    return events


def assert_golden(name: str, stream: str) -> None:
    """The stream is as it was when the file was written."""
    shown = normal(stream)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(shown)
    assert shown == path.read_text(), f"{path.name} differs; GOLDEN=write keeps what came"


def normal(stream: str) -> str:
    """One event per line; neighbouring deltas of one part are one."""
    merged: list[Event] = []
    for event in events_of(stream):
        event.pop("sequence_number", None)
        if not (merged and _joined(merged[-1], event)):
            merged.append(event)
    names: dict[str, str] = {}
    lines = [json.dumps(_timeless(event), ensure_ascii=False) for event in merged]
    return "".join(_IDS.sub(lambda found: _name(found, names), line) + "\n" for line in lines)


def _joined(last: Event, event: Event) -> bool:
    """Whether the event only goes on with the last one, which has taken it in then."""
    same = ("type", "item_id", "output_index", "index")
    if any(last.get(name) != event.get(name) for name in same) or "delta" not in event:
        return False
    if isinstance(event["delta"], str):
        last["delta"] += event["delta"]
        last.get("logprobs", []).extend(event.get("logprobs", []))
        return True
    if last["delta"].get("type") != event["delta"].get("type") or event["type"] != "content_block_delta":
        return False
    for name in _DELTAS:
        if name in event["delta"]:
            last["delta"][name] += event["delta"][name]
    return True


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {name: _constant(name, inner) for name, inner in value.items()}


def _constant(name: str, value: Any) -> Any:
    if name in _TIMES and value is not None:
        return 0
    if name in _PROMPT_COUNTS:
        return 0  # what tools add to a prompt is another test's affair
    return _timeless(value)


def _name(found: "re.Match[str]", names: dict[str, str]) -> str:
    return names.setdefault(found[0], f"{found[1]}_{len(names)}")
