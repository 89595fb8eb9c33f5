"""What all clients are asked: a question, tools, schemas; and what a stream of OpenAI's chunks says as a whole."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jsonschema

QUESTION = "Name three colours of the rainbow."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
CITY: Any = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""Small enough that any model that keeps to it is done within two dozen tokens."""
TIME: Any = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock", "description": "Time in a zone", "parameters": TIME}},
]
SCHEMAS = {"weather": CITY, "clock": TIME}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


def fits(text: str | None, schema: Any) -> Any:
    """The value that `text` is in JSON; it keeps to the schema."""
    value = json.loads(text or "")
    jsonschema.validate(value, schema)
    return value


@dataclass
class Said:
    """One choice of an answer. `calls` are names and arguments."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    tokens: list[str] = field(default_factory=list)


def said_whole(answer: Any) -> dict[int, Said]:
    """The choices of a chat completion, by index."""
    return {choice.index: _said(choice) for choice in answer.choices}


def _said(choice: Any) -> Said:
    message = choice.message
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]
    return Said(message.content or "", calls, choice.finish_reason, _tokens(choice))


def _tokens(choice: Any) -> list[str]:
    scored = getattr(choice, "logprobs", None)
    return [entry.token for entry in scored.content or ()] if scored else []


def said_in_parts(chunks: Iterable[Any]) -> dict[int, Said]:
    """The choices of a chat stream, by index, put together as a client does it. Each finishes once, and says nothing
    behind that."""
    choices: dict[int, Said] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        said = choices.setdefault(choice.index, Said())
        assert said.finish is None
        said.text += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            _add_call(said.calls, part)
        said.tokens += _tokens(choice)
        said.finish = choice.finish_reason
    return choices


def _add_call(calls: list[list[str]], part: Any) -> None:
    """A call's first part has its name and its id, the others go on with its arguments."""
    if part.index == len(calls):
        assert part.id and part.function.name
        calls.append([part.function.name, ""])
    calls[part.index][1] += part.function.arguments or ""
