"""Fields that the table does not have: refused by name, warned of, or named in a header."""

from typing import Any, Literal

import msgspec
import pytest
from starlette.requests import Request

from localllm.errors import InvalidRequest
from localllm.server.fields import ChatRequest, CompletionRequest
from localllm.server.notes import Notes
from localllm.server.unknowns import HINTS, IGNORED_HEADER, MAX_NAMED, NEUTRAL, Taken, ignored_header, take

MESSAGES = [{"role": "user", "content": "x"}]


class Text(msgspec.Struct, tag="text"):
    text: str


class Image(msgspec.Struct, tag="image"):
    url: str


class Turn(msgspec.Struct):
    role: Literal["user"]
    content: str | list[Text | Image]


class Talk(msgspec.Struct):
    turns: list[Turn]
    options: dict[str, Any] | None = None


def sent(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


def chat(request: Request, **fields: Any) -> Taken:
    return take({"messages": MESSAGES, **fields}, ChatRequest, request)


def test_a_stranger_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(sent(), mood="good")
    assert (refused.value.param, refused.value.code) == ("mood", "unknown_parameter")
    with pytest.raises(InvalidRequest) as refused:
        chat(sent(), n_predict=5)
    assert (refused.value.param, refused.value.code) == ("n_predict", "unsupported_parameter")
    assert "max_tokens" in refused.value.hint


def test_no_field_that_works_is_told_to_be_left_out() -> None:
    """What became a field leaves the tables of what is refused."""
    works = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert {"typical_p", "xtc_probability", "dry_multiplier"} <= works
    assert not works & (HINTS.keys() | NEUTRAL.keys())


def test_what_is_passed_over_later_joins_the_unknown_fields_in_the_header() -> None:
    request = sent(user_agent="aider/1.0")
    notes = Notes.of(request, chat(request, mood="good", novelty=1))
    notes.pass_over(InvalidRequest("no", param="parallel_tool_calls"))
    assert notes.all_headers() == {IGNORED_HEADER: "mood, novelty, parallel_tool_calls"}


def test_a_lenient_client_gets_warnings() -> None:
    taken = chat(sent(prefer="respond-async, handling=lenient"), mood=1, stream=True, stream_options={"speed": 2})
    assert taken.warnings == [f"{name!r} is not supported and was ignored" for name in ("mood", "stream_options.speed")]
    assert taken.headers == {} and taken.request.stream_options.include_usage is None


@pytest.mark.parametrize(
    "agent",
    ["claude-cli/2.0.1 (external, cli)", "codex_cli_rs/0.50.0 (Linux)", "Open-WebUI/0.6", "Continue/1.0", "RooCode/3.1",
     "Cline/3.0", "aider/0.86", "litellm/1.80.0", "Zed/0.200 (linux)", "Cursor/1.0", "opencode/1.0"],
)  # fmt: skip
def test_a_known_agent_may_be_newer_than_the_table(agent: str) -> None:
    taken = chat(sent(user_agent=agent), mood=1, speed="fast")
    assert taken.headers == {IGNORED_HEADER: "mood, speed"} and taken.warnings == []


@pytest.mark.parametrize("agent", ["OpenAI/Python 2.54.0", "curl/8.5.0", "python-httpx/0.28", "discontinued/1", ""])
def test_others_may_not(agent: str) -> None:
    with pytest.raises(InvalidRequest):
        chat(sent(user_agent=agent), mood=1)


def test_some_dialects_pass_over_what_they_do_not_know_at_any_depth() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cite": 1}, {"type": "image", "url": "b"}], "x": 2}
    ]
    body = {"turns": turns, "options": {"anything": 1}, "beta": True}
    taken = take(body, Talk, sent(), always=True)
    assert taken.headers == {IGNORED_HEADER: "turns[0].content[0].cite, turns[0].x, beta"}
    assert taken.request == Talk([Turn("user", [Text("a"), Image("b")])], {"anything": 1})


def test_wrong_types_are_refused_whoever_sends_them() -> None:
    with pytest.raises(InvalidRequest) as refused:
        take({"turns": [{"role": "user", "content": 5}]}, Talk, sent(prefer="handling=lenient"), always=True)
    assert refused.value.param == "turns[0].content"
    with pytest.raises(InvalidRequest) as refused:
        take({"turns": [{"role": "user"}]}, Talk, sent(), always=True)
    assert refused.value.param == "turns[0].content"


def test_bounds_hold_for_all() -> None:
    with pytest.raises(InvalidRequest) as refused:
        take({"prompt": "x", "n": 99}, CompletionRequest, sent(user_agent="codex/1"), always=True)
    assert refused.value.param == "n"


def test_a_refused_field_that_asks_for_what_happens_anyway_is_fine() -> None:
    taken = chat(sent(), mirostat=0, audio=None, use_beam_search=False, length_penalty=1.0, id_slot=-1)
    assert (taken.warnings, taken.headers) == ([], {})
    for field in ({"mirostat": 1}, {"mirostat": False}, {"use_beam_search": True}, {"verbosity": "low"}):
        with pytest.raises(InvalidRequest):
            chat(sent(), **field)


def test_names_in_a_header_are_only_letters() -> None:
    names = ["a\r\nset-cookie: x", "b, c", "\ud800", "猫", "x" * 999]
    (shown,) = ignored_header(names).values()
    assert shown.isascii() and shown.isprintable() and shown.count(", ") == len(names) - 1
    assert "set-cookie:" not in shown and len(shown) < 600
    many = ignored_header(f"n{number}" for number in range(MAX_NAMED + 5))[IGNORED_HEADER]
    assert many.endswith("and-5-more") and many.count(",") == MAX_NAMED
    assert ignored_header([]) == {} and ignored_header(["a", ""]) == {IGNORED_HEADER: 'a, ""'}


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert chat(sent(), n=2.0, stop_token_ids=[3.0]).request.stop_token_ids == [3]
    with pytest.raises(InvalidRequest, match="n: expected int"):
        chat(sent(), n=2.5)
