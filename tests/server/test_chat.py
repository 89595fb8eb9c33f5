"""`/v1/chat/completions` from outside."""

from collections.abc import Iterator

import pytest

from tests.daemon.toy import expected_text
from tests.server.world import World, daemon


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


def said(text: str, max_tokens: int = 16) -> str:
    return expected_text(f"<user>{text}\n<assistant>".encode(), max_tokens)


def test_an_answer_is_what_the_model_says(world: World) -> None:
    answer = world.chat("Hello")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == said("Hello")
    assert body["usage"]["completion_tokens"] == 16
