"""What programs send that are not ours passes as it is, in OpenAI's dialect and in Ollama's."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping

import httpx
import pytest

from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.parrot import parrots
from tests.server.recorded import Recorded, recorded, send
from tests.server.test_completions import filling_text
from tests.server.world import World, daemon
from tests.store.worlds import tiny_gguf

PROGRAMS = ("open_webui", "continue", "cline", "aider", "openai_agents", "lm_eval", "node")
WITHOUT_EFFECT = {
    "open_webui: Ollama: with tools": "messages[1].tool_calls[0].index",
    "cline: behind a call, with thoughts of another provider": "messages[2].reasoning_details",
}
"""What is passed over, and said so; of every other request each field counts."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A parrot with a file that can be looked into, and another one that can fill gaps."""
    home = tmp_path_factory.mktemp("home")
    can = ("completion", "tools", "thinking")
    entry = toy_entry("parrot:1b", str(tiny_gguf(home / "parrot.gguf")), capabilities=can)
    library = ToyLibrary(entry, toy_entry("toy:fills", "parrot:"))
    sources = dataclasses.replace(parrots(), library=library, load_text=filling_text)
    with daemon(home, sources=sources, max_tokens=64) as world:  # forced calls of a parrot would never end
        yield world


def is_chat(answer: httpx.Response, request: Recorded) -> bool:
    if not request["body"].get("stream"):
        return bool(answer.json()["choices"][0]["finish_reason"])
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    has_usage = bool(request["body"].get("stream_options")) == ("usage" in chunks[-1])
    finished = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return lines[-1] == "[DONE]" and len(finished) == 1 and has_usage


def is_text(answer: httpx.Response, request: Recorded) -> bool:
    """One choice for each prompt, scored to its last token where it is repeated: lm-eval goes by that."""
    prompt, is_echo = request["body"]["prompt"], request["body"].get("echo")
    if not (isinstance(prompt, list) and is_echo):
        return is_chat(answer, request)
    scored = [choice["logprobs"] for choice in answer.json()["choices"]]
    first_is_null = all(each["token_logprobs"][0] is None and each["top_logprobs"][0] is None for each in scored)
    lengths = [(len(each["token_logprobs"]), len(each["top_logprobs"])) for each in scored]
    return first_is_null and lengths == [(len(tokens) + 1, len(tokens) + 1) for tokens in prompt]


def is_ollamas(answer: httpx.Response, request: Recorded) -> bool:
    """Whole or in lines: Ollama streams unless it is told not to."""
    is_stream = answer.headers["content-type"].startswith("application/x-ndjson")
    done = json.loads(answer.text.splitlines()[-1])["done"]
    return bool(done) and is_stream == (request["body"].get("stream") is not False)


ENDS: Mapping[str, Callable[[httpx.Response, Recorded], bool]] = {
    "/v1/models": lambda answer, _: "parrot:1b" in {each["id"] for each in answer.json()["data"]},
    "/v1/chat/completions": is_chat,
    "/v1/completions": is_text,
    "/tokenizer_info": lambda answer, _: bool(answer.json()["eos_token"]),
    "/tokenize": lambda answer, _: answer.json()["tokens"] == list(b"test"),
    "/v1/embeddings": lambda answer, request: len(answer.json()["data"]) == len(request["body"]["input"]),
    "/v1/rerank": lambda answer, request: len(answer.json()["results"]) == len(request["body"]["documents"]),
    "/api/tags": lambda answer, _: "parrot:1b" in {each["name"] for each in answer.json()["models"]},
    "/api/version": lambda answer, _: bool(answer.json()["version"]),
    "/api/ps": lambda answer, _: "models" in answer.json(),
    "/api/show": lambda answer, _: "completion" in answer.json()["capabilities"],
    "/api/chat": is_ollamas,
    "/api/generate": is_ollamas,
    "/api/embed": lambda answer, request: len(answer.json()["embeddings"]) == len(request["body"]["input"]),
}


@pytest.mark.parametrize("request_", [each for program in PROGRAMS for each in recorded(program)])
def test_what_programs_send_passes(world: World, request_: Recorded, request: pytest.FixtureRequest) -> None:
    has_gap = "suffix" in request_.get("body", {})
    answer = send(world, request_, "toy:fills" if has_gap else "parrot:1b")
    assert answer.status_code == 200, answer.text
    assert ENDS[request_["path"]](answer, request_), answer.text
    name = request.node.callspec.id
    assert answer.headers.get("x-localllm-ignored", "") == WITHOUT_EFFECT.get(name, "")


def test_thoughts_of_another_provider_are_refused_where_nobody_is_known_to_send_them(world: World) -> None:
    said = {"role": "assistant", "content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "b"}]}
    body = {"model": "parrot:1b", "messages": [{"role": "user", "content": "x"}, said]}
    refused = world.client.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[1].reasoning_details")
    lenient = world.client.post("/v1/chat/completions", json=body, headers={"prefer": "handling=lenient"})
    assert "reasoning_details" in lenient.json()["warnings"][0]
