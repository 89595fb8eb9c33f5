"""The reader of streamed answers: whole events out of any pieces, and a sentence for everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import NetworkError, UsageError
from localllm.lab.bench_events import AnswerReader, Event, error_text
from localllm.lab.bench_stream import Address, request_bytes

TEXT = 'data: {"choices":[{"index":0,"text":"é"}],"usage":null}\n\n'
SAID, PING = '{"choices":[{"delta":{"content":"b"}}]}', ": ping"
CHAT = f'data: {{"choices":[{{"delta":{{"role":"assistant"}}}}]}}\r\n\r\n{PING}\r\n\r\ndata: {SAID}\r\n\r\n'
LAST = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\ndata: [DONE]\n\n'
BODY = (TEXT + CHAT + LAST).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, sizes: list[int]) -> bytes:
    parts, rest = [], body
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    framed = [b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in [*parts, rest] if part]
    return b"".join(framed) + b"0\r\n\r\n"


def read(data: bytes, cuts: list[int]) -> tuple[AnswerReader, list[Event]]:
    reader, events, start = AnswerReader(), [], 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        events += reader.feed(data[start:cut])
        start = cut
    reader.end()
    return reader, events


@given(
    sizes=st.lists(st.integers(1, 80), max_size=8),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    framing=st.sampled_from(["chunks", "length", "close"]),
)
def test_events_are_the_same_however_they_are_framed_and_cut(sizes: list[int], cuts: list[int], framing: str) -> None:
    answers = {
        "chunks": CHUNKED + chunked(BODY, sizes),
        "length": HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
        "close": HEAD + b"\r\n" + BODY,
    }
    reader, events = read(answers[framing], cuts)
    assert reader.is_done and reader.status == 200
    assert [event.has_content for event in events] == [True, False, True, False]
    assert events[-1].usage is not None and events[-1].usage.completion_tokens == 2


def test_several_events_may_come_in_one_piece() -> None:
    assert len(AnswerReader().feed(CHUNKED + chunked(BODY, []))) == 4


@pytest.mark.parametrize(
    ("choice", "has_content"),
    [
        ('{"text":"a"}', True),
        ('{"text":""}', False),
        ('{"delta":{"content":"a"}}', True),
        ('{"delta":{"content":null,"reasoning_content":"a"}}', True),
        ('{"delta":{"reasoning":"a"}}', True),
        ('{"delta":{"role":"assistant"}}', False),
        ('{"delta":{},"finish_reason":"stop"}', False),
    ],
)
def test_content_is_text_of_an_answer_or_of_its_reasoning(choice: str, has_content: bool) -> None:
    (event,) = AnswerReader().feed(HEAD + b'\r\ndata: {"choices":[' + choice.encode() + b"]}\n")
    assert event.has_content is has_content


def test_an_answer_that_breaks_off_is_not_done() -> None:
    reader, events = read(CHUNKED + chunked(BODY, [])[:-5], [])
    assert not reader.is_done and len(events) == 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"220 mail.example ESMTP\r\n\r\n", "does not speak HTTP"),
        (b"x" * 70_000, "64 KiB of headers"),
        (CHUNKED + b"hello\r\n", "cut into chunks"),
        (HEAD + b"\r\ndata: {nonsense\n", "none of a completion"),
        (HEAD + b"\r\ndata: [1]\n", "none of a completion"),
    ],
)
def test_what_is_no_stream_of_events_is_told(data: bytes, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        AnswerReader().feed(data)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"no such model","code":404}}', "no such model"),
        (b'{"error":"busy"}', "busy"),
        (b'{"detail":[{"msg":"bad"}]}', '[{"msg":"bad"}]'),
        (b"<html>", "<html>"),
    ],
)
def test_a_refusal_is_quoted(body: bytes, said: str) -> None:
    reader, events = read(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body, [20, 60])
    assert reader.is_done and not events
    assert error_text(reader.error_body) == said


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:8080", Address("localhost", 8080)),
        ("http://[::1]:1/v1/", Address("::1", 1)),
        ("http://a/api/v1", Address("a", 80, "/api")),
    ],
)
def test_addresses_are_taken_with_and_without_v1(url: str, address: Address) -> None:
    assert Address.of(url) == address
    assert Address.of(address.url) == address


@pytest.mark.parametrize("url", ["", "https://a", "http://", "ftp://a", "http://a:b"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address of a server"):
        Address.of(url)


def test_a_request_is_one_whole_piece_with_its_key() -> None:
    head, _, body = request_bytes(Address("a", 1, "/x"), "/v1/completions", {"b": 1}, "secret").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x/v1/completions HTTP/1.1\r\nHost: a:1\r\n") and body == b'{"b":1}'
    assert b"\r\nAuthorization: Bearer secret" in head and b"\r\nContent-Length: 7\r\n" in head
