"""Parts in a row, and conversations that strict templates take."""

from typing import Any

import pytest

from localllm import wire
from localllm.daemon.incremental import ToolCall
from localllm.daemon.replies import Piece
from localllm.errors import InvalidRequest, TemplateRefused
from localllm.server import calming
from localllm.server.calming import calmed
from localllm.server.fields import ChatRequest
from localllm.server.notes import Notes
from localllm.server.parts import Part, Row
from localllm.server.passing import headers_of, named_as, over


class Log:
    """Writes parts as text."""

    def opened(self, part: Part) -> bytes:
        return f"<{part.kind}{part.name and ':' + part.name}>".encode()

    def added(self, part: Part, text: str, logprobs: list[wire.TokenLogprobs]) -> bytes:
        return text.encode()

    def closed(self, part: Part, *, is_cut: bool) -> bytes:
        return b"|>" if is_cut else b">"


def written(*pieces: Piece, is_cut: bool = False) -> str:
    row = Row(Log())
    return (b"".join(map(row.feed, pieces)) + row.end(is_cut=is_cut)).decode()


def test_parts_come_one_behind_the_other() -> None:
    call = Piece(0, tool_calls=[ToolCall(0, "1", "f", '{"a":'), ToolCall(0, "", "", "1}"), ToolCall(1, "2", "g", "{}")])
    said = written(Piece(0, reasoning="hm"), Piece(0, reasoning="m", text="so"), Piece(0, text=" it is"), call)
    assert said == '<reasoning>hmm><text>so it is><call:f>{"a":1}><call:g>{}>'


def test_arguments_that_come_in_parts_are_one_call() -> None:
    parts = [Piece(0, tool_calls=[ToolCall(0, name, name, text)]) for name, text in (("f", '{"a"'), ("", ":1}"))]
    assert written(*parts) == '<call:f>{"a":1}>'


@pytest.mark.parametrize(
    ("texts", "has_call", "said"),
    [
        (("\n", "\n"), True, "<call:f>{}>"),
        (("\n", "a"), True, "<text>\na><call:f>{}>"),
        (("\n",), False, "<text>\n>"),
        ((), False, "<text>>"),
    ],
)
def test_white_space_before_a_call_is_no_text(texts: tuple[str, ...], has_call: bool, said: str) -> None:
    calls = [Piece(0, tool_calls=[ToolCall(0, "1", "f", "{}")])] if has_call else []
    assert written(*(Piece(0, text=text) for text in texts), *calls) == said


def test_only_the_last_part_is_cut() -> None:
    assert written(Piece(0, reasoning="a", text="b"), is_cut=True) == "<reasoning>a><text>b|>"


def test_log_probabilities_of_reasoning_are_not_those_of_the_text() -> None:
    row = Row(Log())
    row.feed(Piece(0, reasoning="a", logprobs=[wire.TokenLogprobs(1, -1.0)]))
    row.feed(Piece(0, text="", logprobs=[wire.TokenLogprobs(2, -1.0)]))
    row.feed(Piece(0, text="b", logprobs=[wire.TokenLogprobs(3, -1.0)]))
    assert [entry.token_id for entry in row.parts[1].logprobs] == [2, 3]


# ---- calm conversations


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_late_words_of_the_system_are_the_users() -> None:
    talk = said(("system", "a"), ("system", "b"), ("user", "c"), ("system", "d"), ("assistant", "e"), ("system", "f"))
    assert calmed(talk) == said(("system", "a\n\nb"), ("user", "c\n\nd"), ("assistant", "e"), ("user", "f"))


def test_results_of_tools_stay_apart() -> None:
    talk = said(("user", "a"), ("tool", "b"), ("tool", "c"), ("user", "d"))
    assert calmed(talk) == talk


def test_a_template_that_refuses_gets_a_calmer_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def strict(wanted: ChatRequest, *rest: Any, notes: Notes) -> list[Any]:
        seen.append(wanted.messages)
        if any(message["role"] == "system" for message in wanted.messages[1:]):
            raise TemplateRefused("the system speaks first")
        return []

    monkeypatch.setattr(calming, "chat_asks", strict)
    notes = Notes()
    wanted = ChatRequest(messages=said(("user", "a"), ("system", "b")))
    assert calming.calming(notes)(wanted, *[None] * 4) == [] and seen[1] == said(("user", "a\n\nb"))  # type: ignore[arg-type]
    assert headers_of(notes, {}) == {"x-localllm-ignored": "messages.role"}


def test_a_template_that_refuses_a_calm_conversation_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*rest: Any, **more: Any) -> list[Any]:
        raise TemplateRefused("never")

    monkeypatch.setattr(calming, "chat_asks", refusing)
    with pytest.raises(TemplateRefused):
        calming.calming(Notes())(ChatRequest(messages=said(("user", "a"))), *[None] * 4)  # type: ignore[arg-type]


# ---- names


@pytest.mark.parametrize(
    ("param", "shown"),
    [
        ("messages[1].content", "input[4].content"),
        ("messages[12].content", "input[12].content"),
        ("messages", "input"),
        ("messages_of_mine", "messages_of_mine"),
        ("reasoning_effort", "reasoning.effort"),
    ],
)
def test_errors_name_the_clients_own_fields(param: str, shown: str) -> None:
    names = {"messages": "input", "messages[1]": "input[4]", "reasoning_effort": "reasoning.effort"}
    with pytest.raises(InvalidRequest) as caught, named_as(names):
        raise InvalidRequest(f"{param} is wrong", param=param)
    assert (caught.value.param, caught.value.message) == (shown, f"{shown} is wrong")


def test_what_is_passed_over_is_named_once_with_what_fields_were() -> None:
    notes = Notes(is_agent=True, headers={"x-localllm-ignored": "shininess"})
    over(notes, "tools[0]", "does not run here")
    notes.ignored.append("reasoning_effort")
    named = headers_of(notes, {"reasoning_effort": "reasoning.effort"})
    assert named == {"x-localllm-ignored": "shininess, tools[0], reasoning.effort"}


def test_what_nobody_forgives_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        over(Notes(), "tools[0]", "does not run here")
    assert caught.value.param == "tools[0]" and caught.value.code == "unsupported_parameter"
