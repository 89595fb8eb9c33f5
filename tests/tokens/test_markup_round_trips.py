"""What a published template writes as an assistant's turn, the parser of its markup reads back."""

import json
import re
from typing import Any

import pytest

from localllm.errors import TemplateRefused
from localllm.tokens.chat import render_text
from localllm.tokens.markup import MarkupParser, Piece, detect_markup
from tests.tokens.conversations import HELLO, OFF, ON, TOOLS, Message, call
from tests.tokens.markup_cases import joined
from tests.tokens.published import TEMPLATES, source_of

ENDS = (
    *("<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|tool_response>"),
    *("</s>", "<|end|>", "<|user|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
)
# they have no place for calls, or (Kimi) keep count of them in a way that no sandbox lets pass, transformers' neither
WITHOUT_CALLS = (
    *("HuggingFaceTB-SmolLM3-3B", "google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct", "Kimi-K2-Instruct"),
    "ibm-granite-granite-3.3-2B-Instruct",
)
ONE_AT_A_TIME = ("openai-gpt-oss-120b",)
REASON = "Two, and\n\nthen {three}: <b> 'x' \"y\" 猫"
SAY = "Let me look, ok?"
HARD: dict[str, Any] = {"place": 'Köln "am" Rhein, [x](y)\n<b>&amp;</b> {z: 1}', "unit": "C", "days": [1, 2]}
ANSWERS: dict[str, Message] = {
    "a call": {"role": "assistant", "content": "", "tool_calls": [call(place="Köln", unit="C")]},
    "hard arguments": {"role": "assistant", "content": "", "tool_calls": [call(**HARD)]},
    "no arguments": {"role": "assistant", "content": "", "tool_calls": [call("now")]},
    "two calls": {
        "role": "assistant",
        "content": "",
        "tool_calls": [call(place="Köln", days=[1]), call("now", "abcdef124")],
    },
    "words and a call": {"role": "assistant", "content": SAY, "tool_calls": [call(place="Köln")]},
    "thoughts and a call": {
        "role": "assistant",
        "content": "",
        "reasoning_content": REASON,
        "tool_calls": [call(place="Köln", unit="F")],
    },
    "thoughts and words": {"role": "assistant", "content": SAY, "reasoning_content": REASON},
    "words": {"role": "assistant", "content": SAY},
}


def rendered(source: str, messages: list[Message], *, prompted: bool = False, **variables: Any) -> str:
    return render_text(
        source, messages, tools=TOOLS, special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        add_generation_prompt=prompted, variables=variables,
    )  # fmt: skip


def prompt_and_answer(source: str, message: Message) -> tuple[str, str]:
    """The conversation cut where the model takes over: at a prompt for an answer, thinking or not, that fits."""
    whole = rendered(source, [HELLO, message], **ON)
    prompts = [rendered(source, [HELLO], prompted=True, **given) for given in (ON, OFF, {})]
    prompt = next((one for one in prompts if whole.startswith(one)), common_prompt(whole, prompts[0]))
    return prompt, until_end(whole[len(prompt) :])


def common_prompt(whole: str, prompt: str) -> str:
    """What both begin with, without half a tag."""
    pairs = zip(whole, prompt, strict=False)
    length = next((place for place, (one, other) in enumerate(pairs) if one != other), len(prompt))
    return re.sub(r"<[^<>\s]*\Z", "", whole[:length])


def until_end(answer: str) -> str:
    """The turn without the token that ends it; harmony ends each of its messages, so that the last one counts."""
    if "<|channel|>" in answer:
        return answer.removesuffix("<|call|>").removesuffix("<|return|>")
    return answer[: min((answer.index(end) for end in ENDS if end in answer), default=len(answer))]


def read(source: str, prompt: str, answer: str) -> list[Piece]:
    parser = MarkupParser(detect_markup(source).for_tools(TOOLS).for_prompt(prompt))
    return joined([piece for letter in answer for piece in parser.push(letter)] + parser.finish())


def text_of(pieces: list[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind).strip()


def calls_of(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [{"name": piece.name, "arguments": json.loads(piece.text)} for piece in pieces if piece.kind == "tool_call"]


WRITABLE = [
    (name, title)
    for name in TEMPLATES
    for title, message in ANSWERS.items()
    if name not in WITHOUT_CALLS or "tool_calls" not in message
]


@pytest.mark.parametrize(("name", "title"), WRITABLE)
def test_an_answer_comes_back(name: str, title: str) -> None:
    source, message = source_of(name), ANSWERS[title]
    expected = [one["function"] for one in message.get("tool_calls", [])]
    try:
        prompt, answer = prompt_and_answer(source, message)
    except TemplateRefused as error:
        pytest.skip(f"the template does not write it: {error}")
    pieces = read(source, prompt, answer)
    assert calls_of(pieces) == expected[: 1 if name in ONE_AT_A_TIME else None]
    # gpt-oss takes words before a call for thoughts; some templates drop either
    thoughts = SAY if f"analysis<|message|>{SAY}" in answer else REASON
    assert text_of(pieces, "reasoning") == (thoughts if thoughts in answer else "")
    assert text_of(pieces, "content") == (SAY if SAY in answer and thoughts is REASON else "")


def test_thoughts_in_parts_come_back() -> None:
    source = source_of("mistralai-Ministral-3-14B-Reasoning-2512")
    parts = [{"type": "thinking", "thinking": REASON}, {"type": "text", "text": SAY}]
    prompt, answer = prompt_and_answer(source, {**ANSWERS["hard arguments"], "content": parts})
    pieces = read(source, prompt, answer)
    assert (text_of(pieces, "reasoning"), text_of(pieces, "content")) == (REASON, SAY)
    assert calls_of(pieces) == [{"name": "weather", "arguments": HARD}]


def test_most_templates_write_calls_and_many_write_thoughts() -> None:
    """What the tests above would not notice if it were missing on both sides."""
    thoughtful = [
        name
        for name in TEMPLATES
        if name not in WITHOUT_CALLS and REASON in prompt_and_answer(source_of(name), ANSWERS["thoughts and a call"])[1]
    ]
    assert len(TEMPLATES) - len(WITHOUT_CALLS) == 20
    assert len(thoughtful) == 8
