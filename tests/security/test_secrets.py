"""No key, header, body or prompt gets into a log, whatever goes wrong, and no request writes a log line of its own."""

import logging
from pathlib import Path

import pytest

from localllm.server.logs import FORMAT, Sanitized
from tests.server.world import daemon

KEY = "hush-hush-0123456789"
PROMPT = "the-very-private-prompt"


def test_nothing_that_a_client_sends_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with daemon(tmp_path, api_keys=KEY) as world:
        good = {"authorization": f"Bearer {KEY}", "cookie": f"x={KEY}", "x-api-key": KEY}
        chat = {"model": "toy:1b", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, "user": KEY}
        for headers in (good, {"authorization": f"Bearer wrong-{KEY}"}, {"x-api-key": KEY[:-1]}):
            for body in (chat, chat | {KEY: 1}, chat | {"n": KEY}, chat | {"messages": [{"role": KEY}]}, [KEY]):
                world.client.post("/v1/chat/completions", json=body, headers=headers)
            world.client.get(f"/v1/models?key={KEY}", headers=headers)
            world.client.post("/api/chat", content=f'{{"{KEY}', headers={**headers, "content-type": "application/json"})
        assert world.client.post("/v1/chat/completions", json=chat, headers=good).status_code == 200
    logged = "\n".join(
        Sanitized(FORMAT).format(record) for record in caplog.records if record.name.startswith(("localllm", "uvicorn"))
    )
    assert "POST /v1/chat/completions" in logged, "there is something to look through"
    assert "hush" not in logged and PROMPT not in logged


def test_a_path_cannot_write_a_line_of_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "GET %s", ("/x\n2026 ERROR forged\x1b[31m\u202e",), None)
    line = Sanitized(FORMAT).format(record)
    assert "\n" not in line and "\x1b" not in line and "\u202e" not in line and "\\n2026 ERROR" in line


@pytest.mark.parametrize(
    "word", ["Bearer abcdefgh12345678", "sk-abcdefgh12345678", "hf_abcdefgh12345678", "llm-abcdefgh1234"]
)
def test_what_looks_like_a_key_is_hidden_even_in_a_librarys_words(word: str) -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed with %s in it", (word,), None)
    line = Sanitized(FORMAT).format(record)
    assert "abcdefgh" not in line and "[hidden]" in line
