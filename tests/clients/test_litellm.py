"""`litellm`, which speaks to us as it does to OpenAI, to Ollama and to Anthropic: three dialects, one interface."""

import asyncio
import functools
import gc
import importlib
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.clients.asking import CITY, FORMAT, MESSAGES, SCHEMAS, TOOLS, fits, said_in_parts, said_whole

pytestmark = [  # nothing of ours runs in this process but tests; raised inside litellm, they break its streams
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pydantic's, of how litellm reads its models
    pytest.mark.filterwarnings("ignore::UserWarning"),  # pydantic's, of how litellm writes them
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

Ask = Callable[..., Any]
PROVIDERS = {"openai": "/v1", "ollama_chat": "", "anthropic": ""}
"""How it calls the dialects, and the path that each wants behind the daemon's address."""
CALLERS = ["openai", "anthropic"]
"""Dialects with tools for every model: Ollama's refuses them where a template knows none, as Ollama does."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session")
def litellm() -> Iterator[Any]:
    """The module: slow to import, and told to take its table of models from its own package."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        module = importlib.import_module("litellm")
        patch.setattr(module, "suppress_debug_info", True)
    yield module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves a loop open for the end of the process
        asyncio.run(_close(module))
        gc.collect()


async def _close(litellm: Any) -> None:
    """Connections are kept by the module, longer than the loops that they belong to."""
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture
async def closing(litellm: Any) -> AsyncIterator[None]:
    """For asynchronous tests: their connections end within their loop."""
    yield
    await _close(litellm)


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody but the daemon is spoken to."""
    called: list[Any] = []
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            called.append(address)
            raise OSError("tests reach this machine only")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    yield
    assert not called


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def ask(litellm: Any, daemon_url: str, model: str) -> Ask:
    """`litellm.completion` of the small model in a provider's dialect; other fields replace what is here."""

    def ask(provider: str, function: str = "completion", **fields: Any) -> Any:
        usual = {
            **_place(provider, daemon_url, model),
            "messages": MESSAGES,
            "temperature": 0,
            "max_tokens": 12,
        }
        return getattr(litellm, function)(**usual | fields)

    return ask


def _place(provider: str, daemon_url: str, model: str) -> dict[str, Any]:
    path = PROVIDERS.get(provider, "")
    return {"model": f"{provider}/{model}", "api_base": daemon_url + path, "api_key": "any", "num_retries": 0}


def text_of(answer: Any) -> str:
    text: str = answer.choices[0].message.content
    return text


# ---- what every dialect can do

ASKED: dict[str, dict[str, Any]] = {
    "nothing more": {},
    "a stop": {"stop": [","]},
    "one token": {"max_tokens": 1},
    "a system message": {"messages": [{"role": "system", "content": "Answer in one word."}, *MESSAGES]},
    "an earlier answer": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "Red"}, {"role": "user", "content": "More?"}]
    },
    "top_k": {"top_k": 1, "temperature": 1.0},
    "top_p": {"top_p": 0.01, "temperature": 1.0},
    "a schema": {"response_format": FORMAT, "max_tokens": 60},
}


@pytest.mark.parametrize("fields", ASKED.values(), ids=ASKED.keys())
def test_a_stream_says_what_the_whole_answer_says(
    ask: Ask, litellm: Any, provider: str, fields: dict[str, Any]
) -> None:
    whole = ask(provider, **fields)
    chunks = list(ask(provider, **fields, stream=True, stream_options={"include_usage": True}))
    (built,), (said,) = (said_whole(each).values() for each in (litellm.stream_chunk_builder(chunks), whole))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert built.text == streamed and built.finish == said.finish
    if "response_format" in fields:  # litellm may write the JSON of a whole answer anew, with other spaces
        assert fits(streamed, CITY) == fits(said.text, CITY)
    else:
        assert streamed == said.text
    for usage in (whole.usage, chunks[-1].usage):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens == whole.usage.completion_tokens > 0
        assert usage.prompt_tokens == whole.usage.prompt_tokens > 0


def test_every_dialect_gives_the_same_answer(ask: Ask, provider: str) -> None:
    answer, usual = ask(provider), ask("openai")
    assert text_of(answer) == text_of(usual)
    assert answer.usage.total_tokens == usual.usage.total_tokens


def test_an_answer_ends_at_its_limit(ask: Ask, provider: str) -> None:
    answer = ask(provider, max_tokens=5)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)


def test_an_answer_ends_before_its_stop(ask: Ask, provider: str) -> None:
    free = text_of(ask(provider))
    stopped = ask(provider, stop=[free[5:8]])
    assert (text_of(stopped), stopped.choices[0].finish_reason) == (free[: free.index(free[5:8])], "stop")


def test_an_answer_keeps_to_its_schema(ask: Ask, provider: str) -> None:
    answer = ask(provider, response_format=FORMAT, max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    fits(text_of(answer), CITY)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "smollm3:1b"}, "NotFoundError"),
        ({"temperature": -1}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "ContextWindowExceededError"),
    ],
    ids=["no such model", "out of bounds", "too long"],
)
def test_errors_are_of_the_kind_that_litellm_has_for_them(
    ask: Ask, litellm: Any, provider: str, fields: dict[str, Any], error: str, stream: bool
) -> None:
    named = {"model": f"{provider}/{fields['model']}"} if "model" in fields else {}
    if provider == "ollama_chat" and error == "ContextWindowExceededError":
        error = "BadRequestError"  # Ollama itself cuts such prompts: litellm knows no words of its for this
    with pytest.raises(getattr(litellm, error)) as caught:
        answer = ask(provider, stream=stream, **fields | named)
        list(answer)
    assert caught.value.status_code == (404 if error == "NotFoundError" else 400)


@pytest.mark.usefixtures("closing")
async def test_answers_come_asynchronously_too(ask: Ask, provider: str) -> None:
    whole = await ask(provider, "acompletion")
    stream = await ask(provider, "acompletion", stream=True)
    chunks = [chunk async for chunk in stream]
    assert said_in_parts(chunks)[0].text == text_of(whole) == text_of(ask(provider))


def test_many_at_once_get_what_each_gets_alone(ask: Ask, provider: str) -> None:
    asked = [[{"role": "user", "content": f"Count on from {number}."}] for number in range(3)]
    together = ask(provider, "batch_completion", messages=asked)
    assert [text_of(answer) for answer in together] == [text_of(ask(provider, messages=each)) for each in asked]


# ---- tools


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ["weather", "clock"])
@pytest.mark.parametrize("dialect", CALLERS)
def test_a_named_tool_is_called_as_its_schema_says(ask: Ask, dialect: str, name: str, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = ask(dialect, tools=TOOLS, tool_choice=choice, max_tokens=80, stream=stream)
    said = said_in_parts(answer)[0] if stream else said_whole(answer)[0]
    ((called, arguments),) = said.calls
    assert (called, said.text, said.finish) == (name, "", "tool_calls")
    fits(arguments, SCHEMAS[name])


@pytest.mark.parametrize("dialect", CALLERS)
def test_only_one_call_without_parallel_calls(ask: Ask, dialect: str) -> None:
    answer = ask(dialect, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=80)
    ((name, arguments),) = said_whole(answer)[0].calls
    fits(arguments, SCHEMAS[name])


@pytest.mark.parametrize("dialect", CALLERS)
def test_the_result_of_a_call_goes_back_to_the_model(ask: Ask, dialect: str) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    first = ask(dialect, tools=TOOLS, tool_choice=choice, max_tokens=80)
    called = first.choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": '{"degrees": 21}'}
    second = ask(dialect, messages=[*MESSAGES, called.model_dump(exclude_none=True), result], tools=TOOLS)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert text_of(second) or second.choices[0].message.tool_calls


@pytest.mark.parametrize("dialect", CALLERS)
def test_a_model_that_need_not_call_may_speak(ask: Ask, dialect: str) -> None:
    (said,) = said_whole(ask(dialect, tools=TOOLS, tool_choice="auto")).values()
    assert said.text or said.calls


def test_tools_of_a_model_that_knows_none_are_refused_as_ollama_does(ask: Ask, litellm: Any) -> None:
    with pytest.raises(litellm.BadRequestError, match="does not support tools"):
        ask("ollama_chat", tools=TOOLS)


# ---- what some dialects can do


@pytest.mark.parametrize("dialect", ["openai", "ollama_chat"])
def test_a_seed_gives_the_same_again_and_another_one_another(ask: Ask, dialect: str) -> None:
    first, again, other = (text_of(ask(dialect, seed=seed, temperature=1.5)) for seed in (1, 1, 2))
    assert first == again != other


def test_choices_and_scores_and_extras_of_openai(ask: Ask) -> None:
    answer = ask("openai", n=2, logprobs=True, top_logprobs=2, extra_body={"guided_choice": ["yes", "no"]})
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.message.content in ("yes", "no")
        assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content


def test_a_field_that_is_unknown_is_refused_by_name(ask: Ask, litellm: Any) -> None:
    with pytest.raises(litellm.BadRequestError, match="speed"):
        ask("openai", extra_body={"speed": 3})


@pytest.mark.parametrize(("dialect", "path"), [("openai", "/v1"), ("ollama", ""), ("hosted_vllm", "/v1")])
def test_texts_become_vectors(ask: Ask, litellm: Any, daemon_url: str, model: str, dialect: str, path: str) -> None:
    place = _place(dialect, daemon_url, model) | {"api_base": daemon_url + path}
    answer = litellm.embedding(**place, input=["a cat", "a dog", "a cat"])
    first, second, third = (each["embedding"] for each in answer.data)
    assert first == pytest.approx(third, abs=1e-5) and first != pytest.approx(second, abs=1e-3)
    assert answer.usage.total_tokens > 0


@pytest.mark.parametrize(("dialect", "path"), [("cohere", ""), ("hosted_vllm", "")])
def test_documents_are_ranked(litellm: Any, daemon_url: str, model: str, dialect: str, path: str) -> None:
    place = _place(dialect, daemon_url, model) | {"api_base": daemon_url + path}
    place.pop("num_retries")
    answer = litellm.rerank(**place, query="cats", documents=["a tax law", "cats", "a dog"], top_n=2)
    assert len(answer.results) == 2 and answer.results[0]["index"] == 1
    assert answer.results[0]["relevance_score"] >= answer.results[1]["relevance_score"]


def test_plain_texts_go_on(litellm: Any, daemon_url: str, model: str) -> None:
    place = _place("text-completion-openai", daemon_url, model) | {"api_base": f"{daemon_url}/v1"}
    complete = functools.partial(
        litellm.text_completion, **place, prompt="The capital of France is", temperature=0, max_tokens=4
    )
    whole, chunks = complete(), complete(stream=True)
    assert "Paris" in whole.choices[0].text
    assert "".join(choice.text or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].text


def test_responses_go_on_from_each_other(litellm: Any, daemon_url: str, model: str) -> None:
    place = _place("openai", daemon_url, model)
    first = litellm.responses(**place, input="My name is Ada.", max_output_tokens=16, temperature=0)
    second = litellm.responses(
        **place, input="And yours?", previous_response_id=first.id, max_output_tokens=16, temperature=0
    )
    assert first.output[0].content[0].text and second.output[0].content[0].text
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.usefixtures("closing")
async def test_messages_in_anthropics_own_form(litellm: Any, daemon_url: str, model: str) -> None:
    place = _place("anthropic", daemon_url, model)
    answer = await litellm.anthropic.messages.acreate(**place, messages=MESSAGES, max_tokens=8)
    assert answer["content"][0]["type"] == "text" and answer["usage"]["output_tokens"] == 8


@pytest.mark.usefixtures("closing")
async def test_a_stream_may_be_left(ask: Ask, provider: str) -> None:
    stream = await ask(provider, "acompletion", max_tokens=400, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.aclose()
    assert text_of(await ask(provider, "acompletion", max_tokens=2))
