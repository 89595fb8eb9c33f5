"""Conversations to render with any model's template: turns, tools, reasoning, documents, parts, and odd ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]

SYSTEM: Message = {"role": "system", "content": "Answer <briefly> & in \"good\" German — 'gut'."}
HELLO: Message = {"role": "user", "content": "Hello there,\n  what is 2 < 3 & 4?"}
TURNS: list[Message] = [
    HELLO,
    {"role": "assistant", "content": "It is {{ true }}. 猫 🐈\n"},
    {"role": "user", "content": "  And now?  "},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather at a place — "now".',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Where, e.g. Köln"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
    },
]
DOCUMENTS: list[dict[str, Any]] = [
    {"doc_id": 1, "title": "Cats", "text": "Cats sit on mats.\nOften."},
    {"doc_id": 2, "title": "Hunde", "text": "Der Hund heißt 'Rex' & bellt."},
]


def call(name: str = "weather", call_id: str = "abcdef123", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def result(text: str = '{"sky": "blue"}', name: str = "weather", call_id: str = "abcdef123") -> Message:
    return {"role": "tool", "name": name, "tool_call_id": call_id, "content": text}


ONE_CALL: Message = {"role": "assistant", "content": "", "tool_calls": [call(place="Köln", unit="C")]}
TWO_CALLS: Message = {
    "role": "assistant",
    "content": "Both:",
    "tool_calls": [call(place="Köln", days=[1, 2]), call("now", "abcdef124")],
}
THOUGHT: Message = {"role": "assistant", "content": "Yes, 5.", "reasoning_content": "Two and\n\nthree…"}
ANSWER: Message = {"role": "assistant", "content": "Blue sky in Köln."}


def said(role: str, *texts: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: Sequence[Message]
    given: Mapping[str, Any] = field(default_factory=dict)


ON = {"enable_thinking": True, "thinking": True}
OFF = {"enable_thinking": False, "thinking": False}
OPEN = {"add_generation_prompt": False, "continue_final_message": True}
CLOSED = {"add_generation_prompt": False}

CONVERSATIONS = {
    "one turn": Conversation([HELLO]),
    "one turn, no prompt": Conversation([HELLO], CLOSED),
    "turns": Conversation(TURNS),
    "turns, no prompt": Conversation(TURNS, CLOSED),
    "turns that end with the assistant": Conversation([*TURNS, ANSWER], CLOSED),
    "system": Conversation([SYSTEM, HELLO]),
    "system and turns": Conversation([SYSTEM, *TURNS]),
    "a late system message": Conversation([*TURNS[:2], SYSTEM, TURNS[2]]),
    "the assistant first": Conversation([ANSWER, HELLO]),
    "an unknown role": Conversation([HELLO, {"role": "critic", "content": "Boo."}]),
    "tools": Conversation([HELLO], {"tools": TOOLS}),
    "no tools at all": Conversation([HELLO], {"tools": []}),
    "tools and system": Conversation([SYSTEM, *TURNS], {"tools": TOOLS}),
    "a call": Conversation([HELLO, ONE_CALL], {"tools": TOOLS, **CLOSED}),
    "a call and its result": Conversation([SYSTEM, HELLO, ONE_CALL, result()], {"tools": TOOLS}),
    "a call answered": Conversation([HELLO, ONE_CALL, result(), ANSWER], {"tools": TOOLS, **CLOSED}),
    "a call and another turn": Conversation([HELLO, ONE_CALL, result(), ANSWER, HELLO], {"tools": TOOLS}),
    "two calls": Conversation(
        [HELLO, TWO_CALLS, result(), result("12:00", "now", "abcdef124")], {"tools": TOOLS}
    ),
    "a call without content": Conversation(
        [HELLO, {**ONE_CALL, "content": None}, {**result(), "content": "ok"}], {"tools": TOOLS}
    ),
    "a call with arguments as text": Conversation(
        [HELLO, {**ONE_CALL, "tool_calls": [{**call(), "function": {"name": "now", "arguments": "{}"}}]}, result()],
        {"tools": TOOLS},
    ),
    "a call of a builtin tool": Conversation(
        [HELLO, {"role": "assistant", "tool_calls": [call("brave_search", query="cats & dogs")]}, result("mice")],
        {"builtin_tools": ["brave_search", "python", "browser"], "tools": TOOLS},
    ),
    "a call thought about": Conversation(
        [HELLO, {**ONE_CALL, "reasoning_content": "I must look."}, result()], {"tools": TOOLS, **ON}
    ),
    "reasoning before": Conversation([HELLO, THOUGHT, HELLO], ON),
    "reasoning at the end": Conversation([HELLO, THOUGHT], {**CLOSED, **ON}),
    "reasoning in the content": Conversation(
        [HELLO, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, HELLO], ON
    ),
    "thinking on": Conversation([SYSTEM, HELLO], ON),
    "thinking off": Conversation([SYSTEM, HELLO], OFF),
    "thinking off, with turns": Conversation(TURNS, OFF),
    "effort": Conversation([HELLO], {"reasoning_effort": "high"}),
    "continued": Conversation([HELLO, {"role": "assistant", "content": "It is"}], OPEN),
    "continued behind a space": Conversation([SYSTEM, HELLO, {"role": "assistant", "content": "It is  "}], OPEN),
    "continued in parts": Conversation([HELLO, said("assistant", "It", " is")], OPEN),
    "continued in the reasoning": Conversation(
        [HELLO, {"role": "assistant", "content": "", "reasoning_content": "Let me"}],
        {**OPEN, "continue_final_message": "reasoning_content"},
    ),
    "nothing to continue": Conversation([HELLO, {"role": "assistant", "content": None}], OPEN),
    "continued and prompted": Conversation([HELLO, ANSWER], {**OPEN, "add_generation_prompt": True}),
    "content in parts": Conversation([said("user", "One. ", "Two."), said("assistant", "Three."), said("user", "4?")]),
    "a picture": Conversation(
        [{"role": "user", "content": [{"type": "image", "url": "x.png"}, {"type": "text", "text": "What is it?"}]}]
    ),
    "empty content": Conversation([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, HELLO]),
    "no content": Conversation([{"role": "user", "content": None}]),
    "strange letters": Conversation(
        [{"role": "user", "content": "e\u0301 \u200d👩‍👩‍👧 مرحبا \u2028 \x00 \U0010ffff <|im_end|> {% raw %}"}]
    ),
    "documents": Conversation([HELLO], {"documents": DOCUMENTS}),
    "documents and tools": Conversation([SYSTEM, HELLO], {"documents": DOCUMENTS, "tools": TOOLS}),
    "documents to be cited": Conversation(
        [HELLO], {"documents": DOCUMENTS, "controls": {"citations": True, "hallucinations": True}}
    ),
    "tools in the system message": Conversation(
        [SYSTEM, HELLO], {"tools": TOOLS, "tools_in_user_message": False, "date_string": "26 Jul 2024"}
    ),
    "past thoughts kept": Conversation(
        [HELLO, THOUGHT, HELLO],
        {"preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False},
    ),
}  # fmt: skip
"""By name. The prompt for a new message is asked for unless `given` says otherwise."""
