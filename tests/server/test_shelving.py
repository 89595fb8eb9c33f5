"""The library, the catalog, fits and pulls over HTTP: what is told of models on the disk, and how others get there."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localllm.client import Client, PullJob
from localllm.daemon import shelf_shapes
from localllm.errors import ModelNotFound
from localllm.store.catalog import Source
from tests.server.json_schema import complaints
from tests.server.ollama_world import Stocked, stocked
from tests.server.world import World, daemon
from tests.store.conftest import _own_caches, hub  # noqa: F401  # fixtures
from tests.store.worlds import FakeHub, catalog_of, tiny_gguf

NAME = "hf.co/org/tiny-GGUF:F32"
HUB = Source(kind="hub", repo="org/tiny-GGUF", files={"F32": "tiny-F32.gguf"})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("large") / "m.gguf", kilobytes=3000).read_bytes()


@pytest.fixture
def place(tmp_path: Path, hub: FakeHub, large: bytes) -> Iterator[Stocked]:  # noqa: F811
    hub.repos["org/tiny-GGUF"] = {"tiny-F32.gguf": large}
    catalog = catalog_of(
        HUB, parameters="1.5B", size_bytes=len(large), default_quant="F32", context_length=4096, license="mit",
        capabilities=("completion",), gated=True,
    )  # fmt: skip
    with stocked(tmp_path / "home", catalog, hub_endpoint=hub.endpoint) as found:
        yield found


@pytest.fixture
def calls(place: Stocked) -> Client:
    return Client(place.world.url)


def ended(calls: Client, pull_id: str) -> PullJob:
    """Waits for it with the calls that a screen would make."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        (job,) = [job for job in calls.library.pulls() if job.id == pull_id]
        if job.state in ("done", "failed"):
            return job
    raise AssertionError(f"still {job.state}")


# ---- what is here, and what could be


def test_a_pulled_model_is_listed_with_what_its_file_says(calls: Client, hub: FakeHub, large: bytes) -> None:  # noqa: F811
    assert calls.library.installed().models == ()
    job = calls.library.pull(NAME)
    assert (job.model, job.error) == (NAME, None)
    assert ended(calls, job.id).state == "done"
    here = calls.library.installed()
    (model,) = here.models
    assert (model.name, model.size_bytes, model.quantization) == (NAME, len(large), "F32")
    assert model.format == "gguf" and model.context_length == 128 and model.is_ours and model.license == "mit"
    assert here.store_bytes == len(large) and 0 < here.free_bytes <= here.disk_bytes and here.damaged == ()


def test_the_catalog_says_what_there_could_be(calls: Client, large: bytes) -> None:
    (model,) = calls.library.catalog().models
    assert (model.name, model.source, model.is_here, model.gated) == ("tiny:1m", "catalog", False, True)
    assert model.size_bytes == len(large) and model.repo == "org/tiny-GGUF" and model.refusal == ""
    assert [(quant.tag, quant.model, quant.is_default) for quant in model.quants] == [("F32", "tiny:1m", True)]


def test_a_search_finds_the_catalog_first_and_then_the_hub(calls: Client, hub: FakeHub) -> None:  # noqa: F811
    hub.repos["other/tiny-fork-GGUF"] = {}
    found = calls.library.search("tiny")
    assert [(model.name, model.source) for model in found.models] == [
        ("tiny:1m", "catalog"), ("hf.co/other/tiny-fork-GGUF", "hub"),
    ]  # fmt: skip
    assert found.notice == ""
    assert [model.source for model in calls.library.search("tiny", hub=False).models] == ["catalog"]


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(tmp_path: Path) -> None:
    with stocked(tmp_path / "home", catalog_of(HUB), hub_timeout_s=0.2) as found:
        answer = Client(found.world.url).library.search("tiny")
    assert [model.name for model in answer.models] == ["tiny:1m"]
    assert "hub cannot be reached" in answer.notice and "only the catalog was searched" in answer.notice


def test_a_removed_model_gives_its_bytes_back(calls: Client, large: bytes) -> None:
    assert ended(calls, calls.library.pull(NAME).id).state == "done"
    gone = calls.library.remove(NAME)
    assert (gone.removed, gone.freed_bytes) == (NAME, len(large))
    assert calls.library.installed().models == ()
    with pytest.raises(ModelNotFound):
        calls.library.remove(NAME)


# ---- whether it fits


def test_a_fit_of_the_catalog_is_an_estimate_with_a_sentence(calls: Client, large: bytes) -> None:
    fit, unknown = calls.library.fit(["tiny:1m", "nothing:1b"])
    assert fit.verdict == "fits" and fit.is_estimate and fit.weight_bytes == len(large)
    assert fit.sentence.startswith("It fits with about ") and fit.sentence.endswith(" tokens for all chats.")
    assert fit.tokens > 0 and fit.room_bytes <= fit.memory_bytes
    assert unknown.verdict == "unknown" and "nothing" in unknown.sentence


def test_a_file_that_is_no_whole_model_has_no_fit_but_a_reason(calls: Client) -> None:
    assert ended(calls, calls.library.pull(NAME).id).state == "done"
    (fit,) = calls.library.fit([NAME])
    assert fit.verdict == "unknown" and fit.sentence


# ---- looking inside


def test_an_inspection_shows_metadata_tensors_and_types(calls: Client) -> None:
    assert ended(calls, calls.library.pull(NAME).id).state == "done"
    inside = calls.library.inspect(NAME)
    assert (inside.name, inside.format, inside.quantization) == (NAME, "gguf", "F32")
    values = {item.key: item.value for item in inside.metadata}
    assert values["general.architecture"] == "llama" and values["llama.context_length"] == "128"
    (tensor,) = inside.tensors
    assert (tensor.name, tensor.shape, tensor.type) == ("token_embd.weight", (12000, 64), "F32")
    assert inside.types == {"F32": tensor.size_bytes} == {"F32": 12000 * 64 * 4}


# ---- pulls


def test_a_pull_that_broke_off_says_so_and_goes_on_where_it_was(calls: Client, hub: FakeHub) -> None:  # noqa: F811
    hub.cut_after = [2_000_000] + [0] * 40
    job = ended(calls, calls.library.pull("tiny:1m").id)
    assert job.state == "failed" and job.error is not None and "broke off" in job.error.message
    assert job.done_bytes == 2_000_000 and job.bytes_per_s == 0
    hub.cut_after = []
    assert calls.library.resume(job.id).error is None
    assert ended(calls, job.id).state == "done"
    assert hub.ranges_of("tiny-F32.gguf")[-1] == "bytes=2000000-"


def test_who_asks_for_the_same_model_shares_the_pull(calls: Client, hub: FakeHub) -> None:  # noqa: F811
    hub.cut_after = [1_000_000] + [0] * 40
    first = ended(calls, calls.library.pull("tiny").id)
    hub.cut_after = []
    assert calls.library.pull("tiny").id == first.id
    assert ended(calls, first.id).state == "done"


def test_cancelling_takes_the_partial_file_away(calls: Client, hub: FakeHub, tmp_path: Path) -> None:  # noqa: F811
    hub.cut_after = [1_000_000] + [0] * 40
    job = ended(calls, calls.library.pull("tiny:1m").id)
    partials = list((tmp_path / "hf").rglob("*.partial*"))
    assert len(partials) == 2
    calls.library.cancel(job.id)
    assert calls.library.pulls() == ()
    deadline = time.monotonic() + 10
    while any(path.exists() for path in partials) and time.monotonic() < deadline:
        pass
    assert not any(path.exists() for path in partials)


def test_a_gated_repository_fails_with_what_to_do(calls: Client, hub: FakeHub) -> None:  # noqa: F811
    hub.gated.add("org/tiny-GGUF")
    job = ended(calls, calls.library.pull("tiny:1m").id)
    assert job.state == "failed" and job.error is not None
    assert "gated" in job.error.message and "accept it at" in job.error.hint


def test_a_pull_that_nobody_knows_is_not_found(calls: Client) -> None:
    for act in (calls.library.pause, calls.library.resume, calls.library.cancel):
        with pytest.raises(ModelNotFound, match="no pull 'xyz'"):
            act("xyz")


# ---- refusals and the description

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("pulls", {}, "model"),
    ("pulls", {"model": ""}, "model"),
    ("pulls", {"model": 5}, "model"),
    ("pulls", {"model": "/etc/passwd"}, "model"),
    ("pulls", {"model": "http://127.0.0.1:1/x.gguf"}, "model"),
    ("pulls", {"model": "a b"}, "model"),
    ("pulls", {"model": "tiny", "insecure": True}, "insecure"),
    ("fit", {}, "models"),
    ("fit", {"models": []}, "models"),
    ("fit", {"models": [""]}, "models[0]"),
    ("fit", {"models": ["tiny"], "context_length": -1}, "context_length"),
    ("fit", {"models": ["x"] * 513}, "models"),
    ("catalog/search", {"query": "x" * 201}, "query"),
    ("catalog/search", {"query": "x", "hub": "no"}, "hub"),
    ("library/inspect", {"name": "x"}, "name"),
    ("library/remove", {"model": None}, "model"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stocked]:
    with stocked(tmp_path_factory.mktemp("shared"), catalog_of(HUB)) as found:
        yield found


@pytest.mark.parametrize(("path", "body", "field"), BAD, ids=str)
def test_bad_fields_are_named(shared: Stocked, path: str, body: dict[str, Any], field: str) -> None:
    answer = shared.world.client.post(f"/localllm/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_answers_have_the_described_shape(shared: Stocked) -> None:
    client = shared.world.client
    document = client.get("/openapi.json").json()
    asked: list[tuple[str, str, dict[str, Any] | None, type[msgspec.Struct]]] = [
        ("get", "library", None, shelf_shapes.InstalledModels),
        ("get", "catalog", None, shelf_shapes.CatalogModels),
        ("post", "catalog/search", {"query": "tiny", "hub": False}, shelf_shapes.CatalogModels),
        ("post", "fit", {"models": ["tiny"]}, shelf_shapes.ModelFits),
        ("get", "pulls", None, shelf_shapes.PullJobs),
    ]
    for method, path, body, kind in asked:
        answer = client.request(method, f"/localllm/v1/{path}", json=body).json()
        described = document["paths"][f"/localllm/v1/{path}"][method]["responses"]["200"]
        assert complaints(answer, described["content"]["application/json"]["schema"], document) == []
        assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(answer, kind))) == answer


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon whose models are given to it."""
    with daemon(tmp_path_factory.mktemp("given")) as world:
        yield world


def test_given_models_are_listed_and_nothing_is_pulled(given: World) -> None:
    calls = Client(given.url)
    assert [model.name for model in calls.library.installed().models] == ["toy:1b"]
    assert calls.library.pulls() == ()
    for refused in (lambda: calls.library.pull("x"), lambda: calls.library.remove("toy:1b"), calls.library.catalog):
        with pytest.raises(Exception, match="cannot be changed"):
            refused()


def test_keys_for_inference_see_models_but_neither_paths_nor_changes(tmp_path: Path) -> None:
    from localllm.daemon.keys import KeyFile

    with daemon(tmp_path, api_keys="all") as world:
        secret = KeyFile(world.daemon.settings.keys_file).create("app", ("inference",))
        headers = {"x-api-key": secret}
        (model,) = world.client.get("/localllm/v1/library", headers=headers).json()["models"]
        assert model["path"] == "" and model["name"] == "toy:1b"
        (model,) = world.client.get("/localllm/v1/library", headers={"x-api-key": "all"}).json()["models"]
        assert model["path"] == "toy:"
        for path, body in (("pulls", {"model": "x"}), ("library/remove", {"model": "x"}), ("catalog/search", {})):
            assert world.client.post(f"/localllm/v1/{path}", json=body, headers=headers).status_code == 403
        answer = world.client.post("/localllm/v1/fit", json={"models": ["/etc/passwd"]}, headers=headers)
        assert answer.status_code == 403


def test_a_used_model_is_remembered_over_a_restart(tmp_path: Path) -> None:
    before = time.time()
    for _ in range(2):
        with daemon(tmp_path) as world:
            if not (tmp_path / "habits.json").exists():
                assert world.chat("hello", max_tokens=40).status_code == 200
            (model,) = Client(world.url).library.installed().models
            assert before <= model.used <= time.time()
    assert model.tokens_per_s >= 0
