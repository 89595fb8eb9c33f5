"""Streams of chats from the first byte to the last, held against files: ids, times and the sizes of deltas made equal.

`GOLDEN=write pytest tests/server` writes them anew.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.parrot import parrots
from tests.server.test_chat import events_of
from tests.server.world import World, daemon

FOLDER = Path(__file__).parent / "golden"
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\\n{"name": "look", "arguments": {"word": "sky"}}\\n</tool_call>'
CASES: dict[str, dict[str, Any]] = {
    "text": {"say": "Hello there"},
    "usage": {"say": "Hello", "stream_options": {"include_usage": True}},
    "thoughts": {"say": "<think>hm</think>\\nSo."},
    "calls": {"say": f"I look.\\n{CALL}\\n{CALL}", "tools": [LOOK]},
    "cut": {"say": "one two three", "max_tokens": 5},
    "stop": {"say": "one two three", "stop": [" tw"], "include_stop_str_in_output": True},
    "choices": {"say": "Hi", "n": 2},
    "logprobs": {"say": "Hi", "logprobs": True, "return_token_ids": True},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), sources=parrots(), default_model="parrot:1b") as world:
        world.chat("say:so", model="parrot:1b")  # it is loaded from here on
        yield world


@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_what_it_was(world: World, name: str) -> None:
    fields = dict(CASES[name])
    messages = [{"role": "user", "content": f"say:{fields.pop('say')}"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 200, "stream": True} | fields
    shown = normal(world.client.post("/v1/chat/completions", json=body).text)
    path = FOLDER / f"chat_{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(shown)
    assert shown == path.read_text(), f"{path.name} differs; GOLDEN=write keeps what came"


def normal(stream: str) -> str:
    """One event per line, choices apart; neighbouring deltas of one kind are one."""
    merged: list[dict[str, Any]] = []
    events = [each for event in events_of(stream) for each in _apart(event)]
    for event in sorted(events, key=lambda event: [choice["index"] for choice in event["choices"]] or [99]):
        if not (merged and _joined(merged[-1], event)):
            merged.append(event)
    names: dict[str, str] = {}
    lines = (json.dumps(event | {"created": 0, "system_fingerprint": ""}, ensure_ascii=False) for event in merged)
    return "".join(
        re.sub(r"(chatcmpl-|call_)[0-9a-f]+", lambda found: _name(found, names), line) + "\n" for line in lines
    )


def _apart(event: dict[str, Any]) -> list[dict[str, Any]]:
    """What came together because it came at once."""
    deltas = [choice["delta"] for choice in event["choices"] if "role" not in choice["delta"]]
    if not deltas or not deltas[0]:
        return [event]
    parts = [{"tool_calls": [part]} for part in deltas[0].get("tool_calls", [])]
    thoughts = {name: deltas[0][name] for name in ("reasoning", "reasoning_content") if name in deltas[0]}
    kinds = [thoughts, *({"content": deltas[0][name]} for name in ("content",) if name in deltas[0]), *parts]
    (choice,) = event["choices"]
    return [{**event, "choices": [{**choice, "delta": kind}]} for kind in kinds if kind]


def _name(found: re.Match[str], names: dict[str, str]) -> str:
    return names.setdefault(found[0], f"{found[1]}{len(names)}")


def _joined(last: dict[str, Any], event: dict[str, Any]) -> bool:
    """Whether the event only goes on with the last one, which has taken it in then."""
    if not (last["choices"] and event["choices"]) or last["choices"][0]["index"] != event["choices"][0]["index"]:
        return False
    (before,), (choice,) = last["choices"], event["choices"]
    old, new = before["delta"], choice["delta"]
    if "role" in old or set(old) != set(new) or not new or choice["finish_reason"]:
        return False
    if "tool_calls" in new:
        (part,), (whole,) = new["tool_calls"], old["tool_calls"]
        is_more = part["index"] == whole["index"]
        whole["function"]["arguments"] += part["function"]["arguments"] if is_more else ""
        return bool(is_more)
    for name, text in new.items():
        old[name] += text
    if choice["logprobs"]:
        before["logprobs"]["content"] += choice["logprobs"]["content"]
        before["token_ids"] += choice["token_ids"]
    return True
