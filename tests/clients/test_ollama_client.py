"""The official `ollama` client, unmodified, with a real daemon and a real small model."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.clients.asking import CITY, MESSAGES, QUESTION, fits

GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 12}
FRANCE = "The capital of France is"
LISTED: Any = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3}
CALLING = """{% if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool.function.name }}{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""How models that call tools are asked: the small one learns it from examples in the conversation."""


@pytest.fixture(scope="session")
def client(daemon_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=daemon_url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
async def patient(daemon_url: str) -> Any:
    async with ollama.AsyncClient(host=daemon_url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def caller(client: ollama.Client, model: str) -> Iterator[str]:
    """The small model with a template that speaks of tools."""
    client.create("caller", from_=model, template=CALLING, parameters={"temperature": 0, "num_predict": 40})
    yield "caller"
    client.delete("caller")


def look(place: str) -> str:
    """Look somewhere.

    Args:
      place: where to
    """
    return f"{place} is nice."


def looks(*places: str) -> list[Any]:
    """A conversation in which the model has looked at these places."""
    return [
        message
        for place in places
        for message in (
            {"role": "user", "content": f"Look at {place}."},
            {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"place": place}}}]},
            {"role": "tool", "tool_name": "look", "content": look(place)},
            {"role": "assistant", "content": look(place)},
        )
    ]


def raw(client: ollama.Client, model: str, prompt: str = FRANCE, **options: Any) -> str:
    return str(client.generate(model, prompt, raw=True, options=GREEDY | options).response)


def refused(call: Callable[[], Any]) -> ollama.ResponseError:
    with pytest.raises(ollama.ResponseError) as caught:
        call()
    return caught.value


# ---- answers


def test_a_whole_answer_with_its_counts_and_durations(client: ollama.Client, model: str) -> None:
    answer = client.chat(model, MESSAGES, options=GREEDY)
    assert (answer.model, answer.message.role, answer.done) == (model, "assistant", True)
    assert answer.message.content and answer.message.thinking is None and answer.message.tool_calls is None
    assert answer.done_reason == "length" and answer.eval_count == 12
    assert answer.prompt_eval_count is not None and answer.prompt_eval_count > 20
    assert answer.total_duration is not None and answer.eval_duration is not None
    assert 0 < answer.eval_duration <= answer.total_duration < 60e9
    made = datetime.fromisoformat(str(answer.created_at))
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=2)


def test_a_chat_streams_what_it_says_whole(client: ollama.Client, model: str) -> None:
    whole = client.chat(model, MESSAGES, options=GREEDY)
    *parts, last = client.chat(model, MESSAGES, options=GREEDY, stream=True)
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert len(parts) > 3 and not any(part.done for part in parts) and last.done and not last.message.content
    assert (last.done_reason, last.eval_count, last.prompt_eval_count) == ("length", 12, whole.prompt_eval_count)
    assert all(a <= b for a, b in pairwise(str(part.created_at) for part in (*parts, last)))


def test_generating_streams_what_it_says_whole_and_what_a_chat_would_say(client: ollama.Client, model: str) -> None:
    whole = client.generate(model, QUESTION, options=GREEDY)
    *parts, last = client.generate(model, QUESTION, options=GREEDY, stream=True)
    assert "".join(part.response or "" for part in parts) == whole.response
    assert list(last.context or ()) == list(whole.context or ())
    assert client.chat(model, MESSAGES, options=GREEDY).message.content == whole.response


def test_a_system_text_is_read(client: ollama.Client, model: str) -> None:
    plain = client.generate(model, QUESTION, options=GREEDY)
    told = client.generate(model, QUESTION, system="You are a pirate. Speak like one.", options=GREEDY)
    first = {"role": "system", "content": "You are a pirate. Speak like one."}
    assert told.response != plain.response and told.prompt_eval_count != plain.prompt_eval_count
    assert client.chat(model, [first, *MESSAGES], options=GREEDY).message.content == told.response


def test_a_raw_prompt_is_gone_on_with_as_it_is(client: ollama.Client, model: str) -> None:
    answer = client.generate(model, FRANCE, raw=True, options=GREEDY)
    assert (answer.response or "").startswith(" Paris") and answer.prompt_eval_count == 5 and answer.context is None
    error = refused(lambda: client.generate(model, FRANCE, raw=True, system="Be brief."))
    assert error.status_code == 400 and "raw mode does not support" in error.error


def test_a_template_of_the_request_makes_its_prompt(client: ollama.Client, model: str) -> None:
    answer = client.generate(
        model, "France", template="The capital of {{ messages[-1]['content'] }} is", options=GREEDY
    )
    assert answer.response == raw(client, model) and answer.prompt_eval_count == 5
    error = refused(lambda: client.generate(model, "France", template="The capital of {{ .Prompt }} is"))
    assert error.status_code == 400 and "Go" in error.error


def test_a_context_goes_on_with_what_was_said(client: ollama.Client, model: str) -> None:
    first = client.generate(model, "My name is Ada.", options=GREEDY | {"num_predict": 6})
    assert first.context is not None and first.prompt_eval_count is not None and first.eval_count is not None
    assert len(first.context) in (first.prompt_eval_count + first.eval_count + more for more in (0, 1))
    second = client.generate(model, "What is my name?", context=first.context, options=GREEDY)
    alone = client.generate(model, "What is my name?", options=GREEDY)
    assert second.context is not None and list(second.context[: len(first.context)]) == list(first.context)
    assert second.prompt_eval_count is not None and alone.prompt_eval_count is not None
    assert second.prompt_eval_count > len(first.context) and second.response != alone.response


# ---- options


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"typical_p": 0.0, "top_k": 1}])
def test_what_leaves_one_token_is_as_good_as_greedy(client: ollama.Client, model: str, only: dict[str, Any]) -> None:
    assert raw(client, model, temperature=2.0, **only) == raw(client, model)


def test_a_seed_repeats_an_answer_and_another_one_does_not(client: ollama.Client, model: str) -> None:
    def said(seed: int) -> str:
        return raw(client, model, "Once upon a time", temperature=1.5, top_p=1.0, top_k=0, seed=seed)

    assert said(7) == said(7)
    assert len({said(seed) for seed in (7, 8, 9)}) == 3


def test_a_stop_ends_an_answer_and_is_not_part_of_it(client: ollama.Client, model: str) -> None:
    text = raw(client, model)
    stop = text[6:9]
    answer = client.generate(model, FRANCE, raw=True, options=GREEDY | {"stop": [stop, "never said"]})
    assert (answer.response, answer.done_reason) == (text.partition(stop)[0], "stop")


@pytest.mark.parametrize("limit", [1, 5])
def test_num_predict_bounds_an_answer(client: ollama.Client, model: str, limit: int) -> None:
    answer = client.chat(model, MESSAGES, options={"temperature": 0, "num_predict": limit})
    assert (answer.eval_count, answer.done_reason) == (limit, "length")


def test_num_ctx_bounds_prompt_and_answer_together(client: ollama.Client, model: str) -> None:
    answer = client.generate(model, FRANCE, raw=True, options={"temperature": 0, "num_ctx": 8, "num_predict": -1})
    assert (answer.eval_count, answer.done_reason) == (3, "length")
    error = refused(lambda: client.generate(model, FRANCE, raw=True, options={"num_ctx": 5}))
    assert error.status_code == 400 and "5 tokens" in error.error


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 3.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
def test_penalties_end_repetitions(client: ollama.Client, model: str, penalty: dict[str, float]) -> None:
    prompt = "one two one two one two one two one two one two"
    plain = raw(client, model, prompt, num_predict=20)
    said = raw(client, model, prompt, num_predict=20, **penalty)
    assert len(set(said.split())) > len(set(plain.split()))


def test_options_come_as_the_clients_own_object(client: ollama.Client, model: str) -> None:
    options = ollama.Options(temperature=0.0, num_predict=12, seed=3, top_k=40, num_gpu=0, mirostat=0)
    assert client.chat(model, MESSAGES, options=options).message == client.chat(model, MESSAGES, options=GREEDY).message


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("temperature", -1.0), ("top_p", 1.5), ("num_predict", -3), ("num_ctx", 0), ("stop", 5)],
)
def test_an_option_that_is_wrong_is_named(client: ollama.Client, model: str, name: str, value: Any) -> None:
    error = refused(lambda: client.chat(model, MESSAGES, options={name: value}))
    assert error.status_code == 400 and name in error.error


# ---- formats


def test_json_is_an_object(client: ollama.Client, model: str) -> None:
    asked = {"role": "user", "content": 'Say {"name": "Ada", "age": 36} and nothing else.'}
    answer = client.chat(model, [asked], format="json", options={"temperature": 0, "num_predict": 80})
    assert answer.done_reason == "stop" and isinstance(json.loads(answer.message.content or ""), dict)


@pytest.mark.parametrize("schema", [CITY, LISTED], ids=["object", "list"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_fits_its_schema(client: ollama.Client, model: str, schema: Any, temperature: float) -> None:
    options = {"temperature": temperature, "num_predict": 80, "seed": 5}
    assert fits(client.chat(model, MESSAGES, format=schema, options=options).message.content, schema)
    parts = client.generate(model, QUESTION, format=schema, options=options, stream=True)
    assert fits("".join(part.response or "" for part in parts), schema)


def test_a_schema_that_cannot_be_kept_is_refused(client: ollama.Client, model: str) -> None:
    error = refused(lambda: client.chat(model, MESSAGES, format={"type": "nonsense"}))
    assert error.status_code == 400 and "nonsense" in error.error


# ---- tools and thinking


def test_a_function_is_called(client: ollama.Client, caller: str) -> None:
    assert "tools" in (client.show(caller).capabilities or ())
    asked = [*looks("Bern", "Basel"), {"role": "user", "content": "Look at Zug."}]
    message = client.chat(caller, asked, tools=[look]).message
    assert message.tool_calls is not None and not message.content
    (call,) = message.tool_calls
    assert (call.function.name, dict(call.function.arguments)) == ("look", {"place": "Zug"})
    result = {"role": "tool", "tool_name": "look", "content": look(**call.function.arguments)}
    assert client.chat(caller, [*asked, message, result], tools=[look]).message.content == "Zug is nice."


def test_a_call_is_streamed_whole(client: ollama.Client, caller: str) -> None:
    asked = [*looks("Bern", "Basel"), {"role": "user", "content": "Look at Chur."}]
    chunks = list(client.chat(caller, asked, tools=[look], stream=True))
    calls = [call.function for chunk in chunks for call in chunk.message.tool_calls or ()]
    assert [(call.name, dict(call.arguments)) for call in calls] == [("look", {"place": "Chur"})]
    assert not any(chunk.message.content for chunk in chunks) and chunks[-1].done


def test_a_model_without_tools_says_so(client: ollama.Client, model: str) -> None:
    error = refused(lambda: client.chat(model, MESSAGES, tools=[look]))
    assert (error.status_code, error.error) == (400, f'"{model}" does not support tools')


def test_not_to_think_is_easy_for_a_model_that_cannot(client: ollama.Client, model: str) -> None:
    answer = client.chat(model, MESSAGES, think=False, options=GREEDY)
    assert answer.message == client.chat(model, MESSAGES, options=GREEDY).message
    error = refused(lambda: client.chat(model, MESSAGES, think=True))
    assert (error.status_code, error.error) == (400, f'"{model}" does not support thinking')


# ---- logprobs and vectors


@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_logprobs_are_those_of_the_tokens_that_were_said(client: ollama.Client, model: str, kind: str) -> None:
    wanted: Any = {"logprobs": True, "top_logprobs": 3, "options": GREEDY}
    if kind == "chat":
        chatted = client.chat(model, MESSAGES, **wanted)
        text, scored = chatted.message.content, chatted.logprobs
    else:
        generated = client.generate(model, QUESTION, **wanted)
        text, scored = generated.response, generated.logprobs
    assert scored is not None and len(scored) == 12 and "".join(each.token for each in scored) == text
    for each in scored:
        best = [other.logprob for other in each.top_logprobs or ()]
        assert len(best) == 3 and best == sorted(best, reverse=True) and best[0] == each.logprob <= 0
        assert sum(map(math.exp, best)) <= 1 + 1e-6


def length_of(vector: Sequence[float]) -> float:
    return math.hypot(*vector)


def test_vectors_have_length_1_and_do_not_depend_on_their_company(client: ollama.Client, model: str) -> None:
    texts = ["a red apple", "a green apple", "the law of contracts"]
    many = client.embed(model, texts)
    assert len(many.embeddings) == 3 and {len(vector) for vector in many.embeddings} == {576}
    assert all(length_of(vector) == pytest.approx(1, abs=1e-4) for vector in many.embeddings)
    one = client.embed(model, texts[0])
    assert one.embeddings[0] == pytest.approx(many.embeddings[0], abs=2e-3)
    assert client.embeddings(model, texts[0]).embedding == pytest.approx(many.embeddings[0], abs=2e-3)
    red, green, law = many.embeddings
    assert math.dist(red, green) < math.dist(red, law)


def test_fewer_dimensions_are_the_first_ones_at_length_1(client: ollama.Client, model: str) -> None:
    (whole,), (cut,) = (client.embed(model, "x", dimensions=count).embeddings for count in (None, 8))
    scale = length_of(whole[:8])
    assert cut == pytest.approx([number / scale for number in whole[:8]], abs=1e-4) and len(cut) == 8


def test_texts_too_long_to_embed_are_refused_and_none_at_all_are_nothing(client: ollama.Client, model: str) -> None:
    error = refused(lambda: client.embed(model, "word " * 9000))
    assert (error.status_code, error.error) == (400, "the input length exceeds the context length")
    assert list(client.embed(model, []).embeddings) == []


# ---- models


def test_the_model_is_listed_shown_and_seen_running(client: ollama.Client, model: str) -> None:
    client.chat(model, MESSAGES, options={"num_predict": 1}, keep_alive="10m")
    (listed,) = (each for each in client.list().models if each.model == model)
    (running,) = (each for each in client.ps().models if each.model == model)
    assert listed.digest == running.digest and listed.size is not None and listed.size > 90e6
    assert listed.details is not None and listed.details.quantization_level == "Q4_1"
    assert running.size is not None and running.size > 90e6 and running.context_length == 8192
    assert running.expires_at is not None
    assert timedelta(minutes=9) < running.expires_at - datetime.now(UTC) <= timedelta(minutes=10)
    shown = client.show(model)
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["llama.embedding_length"] == 576 and shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.capabilities == ["completion"] and "<|im_start|>" in (shown.template or "")
    assert (shown.details or listed.details).family == "llama" and "num_predict" in (shown.parameters or "")


def test_models_are_unloaded_and_loaded_when_told_to(client: ollama.Client, caller: str) -> None:
    loaded = client.generate(caller, keep_alive=-1)
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    (running,) = (each for each in client.ps().models if each.model == f"{caller}:latest")
    assert running.expires_at is not None and running.expires_at.year > 2200
    left = client.chat(caller, keep_alive=0)
    assert (left.done_reason, left.message.content) == ("unload", "")
    assert f"{caller}:latest" not in [each.model for each in client.ps().models]
    error = refused(lambda: client.chat(caller, keep_alive="soon"))
    assert error.status_code == 400 and "keep_alive" in error.error


def test_a_copy_is_a_model_until_it_is_deleted(client: ollama.Client, model: str) -> None:
    assert client.copy(model, "second").status == "success"
    assert client.show("second").modified_at is not None
    assert client.delete("second").status == "success"
    assert "second:latest" not in [each.model for each in client.list().models]
    assert refused(lambda: client.delete("second")).status_code == 404
    assert refused(lambda: client.copy("second", "third")).status_code == 404


def test_a_model_made_of_another_keeps_what_it_was_told(client: ollama.Client, model: str) -> None:
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A pirate."}]
    made = client.create(
        "pirate", from_=model, system="You are a pirate.", parameters={"temperature": 0, "stop": ["\n"]},
        messages=turns, license="none", stream=True,
    )  # fmt: skip
    assert [each.status for each in made][-1] == "success"
    shown = client.show("pirate")
    assert "You are a pirate." in (shown.modelfile or "") and shown.license == "none"
    assert "temperature" in (shown.parameters or "") and '"\n"' not in (shown.template or "")
    said = client.chat("pirate", MESSAGES, options={"num_predict": 8})
    told = [{"role": "system", "content": "You are a pirate."}, *turns, *MESSAGES]
    assert said.message == client.chat(model, told, options=GREEDY | {"num_predict": 8, "stop": ["\n"]}).message
    client.delete("pirate")


def test_a_model_made_of_a_file_that_was_sent_is_the_same_model(
    client: ollama.Client, model: str, model_path: Path, daemon_url: str
) -> None:
    blob = f"{daemon_url}/api/blobs/sha256:{hashlib.sha256(model_path.read_bytes()).hexdigest()}"
    assert httpx.head(blob, trust_env=False).status_code == 404
    digest = client.create_blob(model_path)
    assert blob.endswith(digest) and httpx.head(blob, trust_env=False).status_code == 200
    assert client.create("sent", files={"model.gguf": digest}).status == "success"
    assert client.chat("sent", MESSAGES, options=GREEDY).message == client.chat(model, MESSAGES, options=GREEDY).message
    client.delete("sent")


def test_a_file_that_is_not_what_its_digest_says_is_not_kept(daemon_url: str) -> None:
    blob = f"{daemon_url}/api/blobs/sha256:{hashlib.sha256(b'this').hexdigest()}"
    assert httpx.post(blob, content=b"that", trust_env=False).status_code == 400
    assert httpx.head(blob, trust_env=False).status_code == 404


def test_what_nobody_can_make_a_model_of_is_refused(client: ollama.Client, model: str) -> None:
    assert refused(lambda: client.create("none", from_="missing")).status_code == 404
    unknown = {"model.gguf": "sha256:" + "0" * 64}
    assert refused(lambda: client.create("none", files=unknown)).status_code in (400, 404)
    assert refused(lambda: client.create("none", from_=model, quantize="q4_K_M")).status_code == 400
    assert "none:latest" not in [each.model for each in client.list().models]


@pytest.mark.parametrize("streams", [False, True])
def test_a_pull_that_fails_is_an_error(client: ollama.Client, streams: bool) -> None:
    error = refused(lambda: list(client.pull("nobody/has-this", stream=True)) if streams else client.pull("nobody/has"))
    assert "nobody/has" in error.error and "offline" in error.error
    assert "registry" in refused(lambda: client.push("smollm2:135m")).error


def test_probes_find_a_server_of_ollamas(daemon_url: str) -> None:
    assert "Ollama is running" in httpx.get(daemon_url, trust_env=False).text
    version = httpx.get(f"{daemon_url}/api/version", trust_env=False).json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 0)


# ---- errors, and clients that leave


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_a_model_that_is_not_there_is_not_found(client: ollama.Client, kind: str, streams: bool) -> None:
    def ask() -> Any:
        if kind == "chat":
            return list(client.chat("nope", MESSAGES, stream=True)) if streams else client.chat("nope", MESSAGES)
        return list(client.generate("nope", "x", stream=True)) if streams else client.generate("nope", "x")

    error = refused(ask)
    assert (error.status_code, error.error) == (404, "model 'nope' not found")


@pytest.mark.parametrize("wanted", ["embed", "embeddings", "show", "delete"])
def test_everything_else_finds_no_such_model_either(client: ollama.Client, wanted: str) -> None:
    texts = [] if wanted in ("show", "delete") else ["x"]
    error = refused(lambda: getattr(client, wanted)("nope", *texts))
    assert error.status_code == 404 and "nope" in error.error


def test_images_are_refused_by_a_model_that_reads_text(client: ollama.Client, model: str) -> None:
    error = refused(lambda: client.generate(model, "What is this?", images=[b"picture"]))
    assert error.status_code == 400 and "images" in error.error


def test_more_logprobs_than_there_are_is_an_error(client: ollama.Client, model: str) -> None:
    error = refused(lambda: client.chat(model, MESSAGES, logprobs=True, top_logprobs=21))
    assert error.status_code == 400 and "top_logprobs" in error.error


def test_whoever_leaves_a_stream_ends_the_work_for_it(client: ollama.Client, model: str, daemon_url: str) -> None:
    def newest() -> Any:
        return httpx.get(f"{daemon_url}/v1/requests", trust_env=False).json()

    stream = client.generate(model, "Once upon a time", raw=True, options={"num_predict": 4000}, stream=True)
    assert [next(stream).done for _ in range(3)] == [False] * 3
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    deadline = time.monotonic() + 10
    while any(row["running"] + row["waiting"] for row in _loaded(daemon_url)):
        assert time.monotonic() < deadline, newest()
        time.sleep(0.02)


def _loaded(daemon_url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = httpx.get(f"{daemon_url}/localllm/v1/ps", trust_env=False).json()["models"]
    return rows


# ---- the asynchronous client


async def test_many_at_once_each_get_their_own_answer(
    patient: ollama.AsyncClient, client: ollama.Client, model: str
) -> None:
    countries = ("France", "Italy", "Spain", "Japan")
    asked = [
        patient.generate(model, f"The capital of {name} is", raw=True, options=GREEDY | {"num_predict": 3})
        for name in countries
    ]
    said = [answer.response or "" for answer in await asyncio.gather(*asked)]
    assert [text.split()[0].strip(",.") for text in said[:2]] == ["Paris", "Rome"] and len(set(said)) == 4


async def test_the_asynchronous_client_streams_embeds_and_lists(
    patient: ollama.AsyncClient, client: ollama.Client, model: str
) -> None:
    chunks = [chunk async for chunk in await patient.chat(model, MESSAGES, options=GREEDY, stream=True)]
    whole = client.chat(model, MESSAGES, options=GREEDY)
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content and chunks[-1].done
    assert len((await patient.embed(model, ["a", "b"])).embeddings) == 2
    assert model in [each.model for each in (await patient.list()).models]
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        await patient.show("nope")
    assert caught.value.status_code == 404
