"""The real small model goes on from any of its tokens, the same way or another, and computes hardly anything for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm.client import ChatChunk, Client
from localllm.client.said import SaidToken
from localllm.daemon.sources import Sources
from localllm.settings import load_settings
from localllm.store.library import Library
from tests.server.world import World, daemon

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

pytestmark = pytest.mark.xdist_group("road")

QUESTION = [{"role": "user", "content": "Name three things that a lighthouse keeper needs, and say why."}]
WISHES: dict[str, Any] = {"logprobs": True, "top_logprobs": 8, "return_token_ids": True}


@pytest.fixture(scope="module")
def world(small_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("branching")
    library = Library(load_settings({"LOCALLLM_HOME": str(home)}))
    options: dict[str, Any] = {"default_model": str(small_model_file), "kv_pages": 256, "context_length": 1024}
    with daemon(home, sources=Sources(library=library), **options) as world:
        yield world


def told(world: World, **fields: Any) -> list[ChatChunk]:
    body = {"model": world.daemon.settings.default_model, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    return list(Client(world.url).chat(body | WISHES | fields))


def tokens_of(chunks: list[ChatChunk]) -> list[SaidToken]:
    return [token for chunk in chunks for token in chunk.tokens]


def test_every_token_comes_with_its_alternatives(world: World) -> None:
    chunks = told(world)
    tokens = tokens_of(chunks)
    assert len(tokens) == 40 and all(len(token.alternatives) == 8 for token in tokens)
    assert all(token.rank == 1 and token.entropy is not None for token in tokens), "greedy takes the first"
    assert b"".join(token.raw for token in tokens).decode() == "".join(chunk.content for chunk in chunks)
    assert all(sum(each.probability for each in token.alternatives) <= 1.0001 for token in tokens)
    assert chunks[0].prompt_ids


def test_a_branch_computes_only_what_stands_behind_the_last_full_page(world: World) -> None:
    chunks = told(world)
    tokens, num_prompt = tokens_of(chunks), len(chunks[0].prompt_ids)
    place = 32 - num_prompt % 16  # the first token of a page
    other = tokens[place].alternatives[1]
    branch = told(world, continue_token_ids=[*(token.token_id for token in tokens[:place]), other.token_id])
    timings = branch[-1].timings
    assert timings is not None
    assert (timings.cache_n, timings.prompt_n) == (num_prompt + place, 1), "its new token, and nothing else"


def test_the_same_token_goes_on_with_the_same_words(world: World) -> None:
    ways: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5}]
    for way in ways:
        whole = told(world, **way)
        ids, text = [token.token_id for token in tokens_of(whole)], "".join(chunk.content for chunk in whole)
        for keep in (1, 17, 39):
            rest = told(world, **way, continue_token_ids=ids[:keep], max_tokens=40 - keep, echo=True)
            assert [token.token_id for token in tokens_of(rest)] == ids[keep:]
            assert "".join(chunk.content for chunk in rest) == text


def test_a_preview_counts_what_the_request_then_finds(world: World) -> None:
    told(world)
    body = {"model": world.daemon.settings.default_model, "messages": QUESTION}
    shown = Client(world.url).looking.preview(body)
    timings = told(world, max_tokens=1)[-1].timings
    assert timings is not None and shown.state == "ready"
    assert (shown.prompt_tokens, shown.cached_tokens) == (timings.cache_n + timings.prompt_n, timings.cache_n)
    assert shown.parts.system > 0, "this template has a system prompt of its own"
    assert shown.parts.system + shown.parts.history == shown.prompt_tokens
    longer = Client(world.url).looking.preview(body, "And what does a fisherman need? " * 5)
    assert longer.parts.draft > 30 and longer.compute_s is not None and 0 < longer.compute_s < 60


def test_a_cached_page_holds_the_text_of_the_conversation(world: World) -> None:
    told(world)
    client = Client(world.url)
    loaded = client.ps()[0]
    (resident,) = world.daemon.residency.residents()
    pages = resident.snapshot.pages if resident.snapshot else b""
    texts = []
    for number in (number for number, state in enumerate(pages) if state == 1):
        page = client.looking.page(loaded.name, number)
        assert page.tokens is not None and len(page.tokens) == 16 == page.end - page.start
        texts.append("".join(token.text for token in page.tokens))
    assert any("lighthouse" in text for text in texts)
