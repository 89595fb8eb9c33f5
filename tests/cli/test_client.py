"""The typed client: what it sends, what it makes of answers, and which error each failure becomes."""

from collections.abc import Iterator
from typing import Any

import pytest

from localllm.client import Client, error_from
from localllm.errors import (
    ContextExceeded,
    DaemonUnreachable,
    InvalidApiKey,
    LocalLLMError,
    ModelNotFound,
    WorkerCrashed,
)
from tests.cli.fake_daemon import FakeDaemon, fake_daemon

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def server() -> Iterator[FakeDaemon]:
    with fake_daemon() as running:
        yield running


def test_an_answer_comes_in_chunks_and_ends_with_its_timings(server: FakeDaemon) -> None:
    chunks = list(Client(server.url).chat(ASK))
    assert [chunk.content for chunk in chunks] == ["Hello", " there.", ""]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].timings is not None and chunks[-1].timings.predicted_n == 298


def test_usage_and_timings_are_asked_for(server: FakeDaemon) -> None:
    list(Client(server.url).chat(ASK))
    (body,) = server.bodies("/v1/chat/completions")
    assert body == {**ASK, "stream": True, "stream_options": {"include_usage": True}, "timings": True}


def test_reasoning_is_told_apart_under_both_of_its_names(server: FakeDaemon) -> None:
    server.answers = [[{"reasoning": "a"}, {"reasoning_content": "b"}, {"content": "c"}]]
    chunks = list(Client(server.url).chat(ASK))
    assert [(chunk.reasoning, chunk.content) for chunk in chunks[:3]] == [("a", ""), ("b", ""), ("", "c")]


def test_an_error_in_the_middle_of_a_stream_is_raised_after_the_text_before_it(server: FakeDaemon) -> None:
    server.answers = [[{"content": "so far"}, {"error": {"message": "the worker died", "code": "worker_crashed"}}]]
    seen: list[str] = []
    with pytest.raises(WorkerCrashed, match="the worker died"):
        for chunk in Client(server.url).chat(ASK):
            seen.append(chunk.content)
    assert seen == ["so far"]


def test_an_unknown_model_is_the_error_of_the_tree(server: FakeDaemon) -> None:
    with pytest.raises(ModelNotFound) as caught:
        list(Client(server.url).load("absent"))
    assert caught.value.exit_code == 4


def test_loading_reports_bytes_and_ends_with_ready(server: FakeDaemon) -> None:
    steps = list(Client(server.url).load("tiny", "5m"))
    assert [(step.status, step.done_bytes) for step in steps] == [("loading", 1), ("ready", 0)]
    assert server.bodies("/localllm/v1/load") == [{"model": "tiny", "keep_alive": "5m"}]


def test_closing_an_answer_closes_its_connection(server: FakeDaemon) -> None:
    server.hangs = True
    chunks: Any = Client(server.url).chat(ASK)
    assert next(chunks).content == "Hello"
    chunks.close()
    assert server.client_left.wait(timeout=10)


def test_nobody_listening_is_said_with_the_next_step() -> None:
    with pytest.raises(DaemonUnreachable) as caught:
        Client("http://127.0.0.1:9").health()
    assert "localllm serve" in caught.value.hint and caught.value.exit_code == 3


def test_a_stream_without_its_end_is_not_taken_for_a_whole_answer(
    server: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cli.fake_daemon._Handler._chat", lambda handler: handler._stream(["data: {}\n\n"]))
    with pytest.raises(DaemonUnreachable, match="before the answer was complete"):
        list(Client(server.url).chat(ASK))


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b'{"message": "no key", "code": "invalid_api_key"}', InvalidApiKey),
        (b'{"message": "new kind", "code": "from_the_future"}', LocalLLMError),
        (b'{"message": "llama.cpp says", "code": 503}', LocalLLMError),
        (b'"only words"', LocalLLMError),
        (b"[1, 2]", LocalLLMError),
    ],
)
def test_any_error_body_becomes_a_sentence(raw: bytes, kind: type[LocalLLMError]) -> None:
    error = error_from(raw)
    assert type(error) is kind and error.message


def test_a_hint_is_not_said_twice() -> None:
    error = error_from(b'{"message": "no room (try later)", "hint": "try later", "code": "not_enough_memory"}')
    assert (error.message, error.hint) == ("no room", "try later")


def test_a_too_long_prompt_keeps_both_numbers() -> None:
    raw = b'{"message": "the prompt has 9000 tokens, but the context holds 4096", "code": "context_length_exceeded"}'
    error = error_from(raw)
    assert isinstance(error, ContextExceeded)
    assert (error.num_prompt_tokens, error.context_length, error.exit_code) == (9000, 4096, 6)


def test_something_else_on_the_port_is_not_believed(server: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cli.fake_daemon._Handler.do_GET", lambda handler: handler._json(200, ["not", "ours"]))
    with pytest.raises(LocalLLMError, match="not a daemon of this version"):
        Client(server.url).health()
