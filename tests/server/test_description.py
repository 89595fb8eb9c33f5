"""`/openapi.json` tells the truth: its paths answer, its request shapes are what we take, its answers what we give."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localllm.server import shapes
from localllm.server.fields import ChatRequest, CompletionRequest
from tests.server.json_schema import complaints, resolved
from tests.server.parrot import parrots
from tests.server.test_refusals import CHAT_REFUSALS, COMPLETION_REFUSALS
from tests.server.world import World, daemon

CHAT: dict[str, Any] = {"model": "toy:1b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
TEXT: dict[str, Any] = {"model": "toy:1b", "prompt": "x", "max_tokens": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home")) as world:
        yield world


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Over a model that can be kept to a form."""
    with daemon(tmp_path_factory.mktemp("speaking"), sources=parrots()) as world:
        yield world


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    answer = world.client.get("/openapi.json")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    described: dict[str, Any] = answer.json()
    return described


def schema_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(document["components"]["schemas"][name])


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(inner)


def test_every_route_is_described_and_nothing_else(world: World, document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1") and document["info"]["title"] == "localllm"
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    operations = world.daemon.directory.operations
    assert described == {(each.method, each.route().path_format) for each in operations}
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names) == len(operations)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        assert resolved(reference, document)["type"] == "object"


PATHS = (
    "/", "/health", "/version", "/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/v1/completions",
    "/localllm/v1/ps", "/localllm/v1/load", "/localllm/v1/stop", "/localllm/v1/tokenize", "/localllm/v1/shutdown",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_documented_path_answers_as_documented(world: World, document: dict[str, Any], path: str) -> None:
    ((method, operation),) = document["paths"][path].items()
    body = TEXT if path.endswith("completions") and "chat" not in path else CHAT
    if path.startswith("/localllm"):
        body = {"model": "toy:1b"} | ({"prompt": "x"} if path.endswith("tokenize") else {})
    sent = {"json": body} if "requestBody" in operation else {}
    answer = world.client.request(method, path.replace("{name}", "toy:1b"), **sent)
    described = operation["responses"]["200"]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert answer.status_code == 200
    if kind == "application/json":
        assert complaints(answer.json(), described[kind]["schema"], document) == []
    else:
        assert kind in described


def test_other_methods_than_the_documented_are_refused(world: World, document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        method = next(each for each in ("post", "get", "delete") if each not in operations)
        answer = world.client.request(method, path, json=None if method == "get" else {})
        assert answer.status_code == 405, path
        refusals = next(iter(operations.values()))["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert complaints(answer.json(), refusals, document) == [], path


@pytest.mark.parametrize(("kind", "required"), [(ChatRequest, ["messages"]), (CompletionRequest, ["prompt"])])
def test_every_field_of_a_request_is_described(document: dict[str, Any], kind: type, required: list[str]) -> None:
    schema = schema_of(document, kind.__name__)
    assert set(schema["properties"]) == set(kind.__struct_fields__)  # type: ignore[attr-defined]
    assert schema["required"] == required and schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("/v1/chat/completions", CHAT, shapes.ChatAnswer),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2, "n": 2}, shapes.ChatAnswer),
        ("/v1/chat/completions", CHAT | {"prompt_logprobs": 1, "return_token_ids": True}, shapes.ChatAnswer),
        ("/v1/completions", TEXT | {"prompt": ["a", "b"], "stop": ["x"], "seed": -1}, shapes.TextAnswer),
        ("/v1/completions", TEXT | {"prompt": [97, 98], "logprobs": 1, "echo": True}, shapes.TextAnswer),
        ("/v1/completions", TEXT | {"prompt": [[97], [98]], "prompt_logprobs": 0}, shapes.TextAnswer),
        ("/v1/completions", TEXT | {"return_token_ids": True, "timings": True, "best_of": 2}, shapes.TextAnswer),
    ],
)  # fmt: skip
def test_what_is_sent_and_answered_has_the_described_shape(
    world: World, document: dict[str, Any], path: str, fields: dict[str, Any], answer: type[msgspec.Struct]
) -> None:
    request = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert complaints(fields, request, document) == []
    body = world.client.post(path, json=fields).json()
    assert complaints(body, schema_of(document, answer.__name__), document) == []
    assert msgspec.to_builtins(msgspec.convert(body, answer)) == body, "the answer has fields that are not described"


def test_what_ps_shows_is_described_in_full(world: World) -> None:
    assert world.chat("x").status_code == 200
    body = world.client.get("/localllm/v1/ps").json()
    assert msgspec.to_builtins(msgspec.convert(body, shapes.LoadedModels)) == body and body["models"]


def test_refusals_have_the_described_shape(world: World, document: dict[str, Any]) -> None:
    for fields, _ in CHAT_REFUSALS:
        answer = world.client.post("/v1/chat/completions", json=CHAT | fields)
        assert complaints(answer.json(), schema_of(document, "ErrorBody"), document) == [], fields


def test_whatever_the_schema_refuses_we_refuse(world: World, document: dict[str, Any]) -> None:
    chat = [("/v1/chat/completions", "ChatRequest", CHAT | fields) for fields, _ in CHAT_REFUSALS]
    text = [("/v1/completions", "CompletionRequest", TEXT | fields) for fields, _ in COMPLETION_REFUSALS]
    refused = [(p, body) for p, name, body in chat + text if complaints(body, schema_of(document, name), document)]
    assert len(refused) > 40
    for path, body in refused:
        assert world.client.post(path, json=body).status_code == 400, body


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("ChatRequest", CHAT | {"n": 0}),
        ("ChatRequest", CHAT | {"temperature": -1}),
        ("ChatRequest", CHAT | {"temprature": 1}),
        ("ChatRequest", CHAT | {"messages": [{"role": "wizard"}]}),
        ("ChatRequest", {"model": "toy:1b"}),
        ("CompletionRequest", TEXT | {"logprobs": 21}),
        ("CompletionRequest", TEXT | {"prompt": [1.5]}),
        ("CompletionRequest", TEXT | {"stop": 5}),
    ],
)
def test_the_schema_refuses_what_we_refuse(document: dict[str, Any], name: str, body: dict[str, Any]) -> None:
    assert complaints(body, schema_of(document, name), document)


MESSAGES: dict[str, Any] = {"model": "parrot:1b", "messages": CHAT["messages"], "max_tokens": 4}
RESPONSE: dict[str, Any] = {"model": "parrot:1b", "input": "x", "max_output_tokens": 4, "store": False}


@pytest.mark.parametrize(
    ("path", "body", "within", "beyond"),
    [
        ("/v1/responses", RESPONSE, {"max_output_tokens": 1}, {"max_output_tokens": 0}),
        ("/v1/responses", RESPONSE, {"max_output_tokens": 10**7}, {"max_output_tokens": 10**7 + 1}),
        ("/v1/responses", RESPONSE, {"max_tool_calls": 0}, {"max_tool_calls": -1}),
        ("/v1/responses", RESPONSE, {"top_logprobs": 20}, {"top_logprobs": 21}),
        ("/v1/responses", RESPONSE, {"seed": -(2**63)}, {"seed": 2**63}),
        ("/v1/responses", RESPONSE, {"temperature": 100}, {"temperature": 101}),
        ("/v1/responses", RESPONSE, {"min_p": 1.0}, {"min_p": 1.5}),
        ("/v1/responses", RESPONSE, {"frequency_penalty": -2}, {"frequency_penalty": -2.5}),
        ("/v1/responses", RESPONSE, {"priority": -(2**31) + 1}, {"priority": 2**31}),
        ("/v1/responses", RESPONSE, {"timeout_s": 86_400}, {"timeout_s": 0}),
        ("/v1/messages", MESSAGES, {"max_tokens": 1}, {"max_tokens": 0}),
        ("/v1/messages", MESSAGES, {"temperature": 1}, {"temperature": 1.1}),
        ("/v1/messages", MESSAGES, {"top_p": 0.5}, {"top_p": 1.5}),
        ("/v1/messages", MESSAGES, {"top_k": 0}, {"top_k": -1}),
        (
            "/v1/messages/count_tokens", {"model": "parrot:1b", "messages": CHAT["messages"]},
            {"thinking": {"type": "disabled", "budget_tokens": 1}},
            {"thinking": {"type": "disabled", "budget_tokens": 0}},
        ),
    ],
)  # fmt: skip
def test_the_bounds_of_numbers_are_described_as_they_hold(
    speaking: World,
    document: dict[str, Any],
    path: str,
    body: dict[str, Any],
    within: dict[str, Any],
    beyond: dict[str, Any],
) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert complaints(body | within, schema, document) == [] and complaints(body | beyond, schema, document)
    answers = [speaking.client.post(path, json=body | fields) for fields in (within, beyond)]
    assert [answer.status_code for answer in answers] == [200, 400], [answer.text for answer in answers]


NARROWED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/chat/completions", {"stop": "x"}, {"stop": ""}),
    ("/v1/chat/completions", {"kv_type": "f16"}, {"kv_type": "f15"}),
    ("/v1/chat/completions", {"keep_alive": "1h30m"}, {"keep_alive": "soon"}),
    ("/v1/chat/completions", {"logit_bias": {"97": False}}, {"logit_bias": {"a": 1}}),
    ("/v1/chat/completions", {"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant"}]}, {"messages": [{"role": "user"}]}),
    ("/v1/chat/completions", {"tools": []}, {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
    ("/v1/responses", {"include": ["reasoning.encrypted_content"]}, {"include": ["all"]}),
    ("/v1/responses", {"input": []}, {"input": [{"type": "function_call", "name": "f"}]}),
    ("/v1/messages", {"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled"}}),
    ("/api/chat", {"think": False}, {"think": "hard"}),
    ("/v1/rerank", {"query": "x", "documents": ["y"]}, {"query": "x", "documents": ["y"], "texts": ["z"]}),
]
"""What a body may say and what it may not, where its types are the same or nearly so."""


@pytest.mark.parametrize(("path", "good", "bad"), NARROWED, ids=str)
def test_what_is_refused_is_described(
    speaking: World, document: dict[str, Any], path: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    bases = {"/v1/responses": RESPONSE | {"instructions": "x"}, "/v1/rerank": {"model": "parrot:1b"}}
    base = bases.get(path, MESSAGES | {"stream": False})
    if path == "/api/chat":
        base = {name: value for name, value in base.items() if name != "max_tokens"}
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert complaints(base | good, schema, document) == [] and complaints(base | bad, schema, document)
    answers = [speaking.client.post(path, json=base | fields) for fields in (good, bad)]
    assert [answer.status_code for answer in answers] == [200, 400], [answer.text for answer in answers]


def test_a_path_of_its_own_has_its_own_methods(world: World) -> None:
    """Not those of the path with a parameter behind it."""
    answer = world.client.request("PUT", "/v1/responses/input_tokens")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_with_keys_the_description_says_so_and_needs_one_itself(tmp_path: Path) -> None:
    with daemon(tmp_path, api_keys="secret") as world:
        assert world.client.get("/openapi.json").status_code == 401
        described = world.client.get("/openapi.json", headers={"x-api-key": "secret"}).json()
    assert described["security"] and set(described["components"]["securitySchemes"]) == {"bearer", "header"}
    assert described["paths"]["/health"]["get"]["security"] == []


def test_no_page_of_documentation_loads_scripts_from_elsewhere(world: World) -> None:
    assert [world.client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
