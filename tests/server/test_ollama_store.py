"""Models over Ollama's API, with its official client, in a real store: pulled, sent, made, copied, shown, deleted."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import ollama
import pytest

from localllm.server.ollama_shapes import OllamaShown
from tests.server.ollama_world import Stocked, stocked
from tests.store.conftest import _own_caches, hub  # noqa: F401  # fixtures
from tests.store.worlds import FakeHub, sha256, tiny_folder, tiny_gguf

LARGE_KB = 3000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("large") / "m.gguf", kilobytes=LARGE_KB).read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("small") / "own.gguf")


@pytest.fixture
def place(tmp_path: Path, hub: FakeHub, large: bytes) -> Iterator[Stocked]:  # noqa: F811
    hub.repos["org/tiny-GGUF"] = {"tiny-F32.gguf": large}
    with stocked(tmp_path / "home", hub_endpoint=hub.endpoint) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Iterator[Stocked]:
    """One for all refusals; it has a model, `base`."""
    with stocked(tmp_path_factory.mktemp("shared")) as found:
        found.client.create("base", files={"m.gguf": found.client.create_blob(small)})
        yield found


@pytest.fixture
def model(small: Path) -> Path:
    return small


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---- pulling


def test_a_pull_tells_its_progress_by_digest_and_ends_with_success(place: Stocked, hub: FakeHub) -> None:  # noqa: F811
    _, library, client = place
    said = list(client.pull("hf.co/org/tiny-GGUF:F32", stream=True))
    digest = f"sha256:{sha256(hub.repos['org/tiny-GGUF']['tiny-F32.gguf'])}"
    progress = [each for each in said if each.digest == digest]
    assert said[0].status == "pulling manifest" and said[-1].status == "success"
    assert progress[-1].completed == progress[-1].total and progress[-1].status == f"pulling {digest[7:19]}"
    assert [entry.name for entry in library.entries()] == ["hf.co/org/tiny-GGUF:F32"]


def test_a_pull_without_a_stream_answers_once(place: Stocked) -> None:
    world, _, _ = place
    answer = world.client.post("/api/pull", json={"name": "hf.co/org/tiny-GGUF:F32", "stream": False})
    assert answer.json() == {"status": "success"}


def test_what_cannot_be_pulled_has_a_status_of_its_own(place: Stocked) -> None:
    world, _, _ = place
    answer = world.client.post("/api/pull", json={"model": "no-such-model"})
    assert answer.status_code == 404 and "no-such-model" in answer.json()["error"]


def test_two_pulls_of_one_model_share_one_download(place: Stocked, hub: FakeHub) -> None:  # noqa: F811
    _, _, client = place
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(client.pull, "hf.co/org/tiny-GGUF:F32") for _ in range(2)]
        assert [pull.result().status for pull in pulls] == ["success", "success"]
    assert len(hub.ranges_of("tiny-F32.gguf")) == 1


def test_a_client_that_leaves_stops_the_pull_and_the_next_goes_on_where_it_was(
    place: Stocked,
    hub: FakeHub,  # noqa: F811
) -> None:
    world, library, client = place
    hub.cut_after = [1_000_000] + [200_000] * 40
    with world.client.stream("POST", "/api/pull", json={"model": "hf.co/org/tiny-GGUF:F32"}) as answer:
        assert next(answer.iter_lines())
    hub.cut_after = []
    assert client.pull("hf.co/org/tiny-GGUF:F32").status == "success"
    assert library.find("hf.co/org/tiny-GGUF:F32").files[0].size_bytes > LARGE_KB * 1000


@pytest.mark.parametrize("name", ["/etc/passwd", "./x.gguf", "http://127.0.0.1:1/x.gguf", "../../x", "a b", "x.gguf"])
def test_neither_paths_nor_addresses_are_pulled(shared: Stocked, name: str) -> None:
    world, _, _ = shared
    for path, body in (("/api/pull", {"model": name}), ("/api/create", {"model": "mine", "from": name})):
        answer = world.client.post(path, json=body)
        assert answer.status_code == 400 and f'"{name}" is invalid' in answer.json()["error"]


def test_nothing_is_pushed(shared: Stocked) -> None:
    _, _, client = shared
    with pytest.raises(ollama.ResponseError, match="no registry"):
        client.push("mine")


# ---- files that are sent


def test_a_file_that_is_sent_becomes_a_model_and_goes_with_it(place: Stocked, model: Path) -> None:
    world, library, client = place
    content = model.read_bytes()
    digest = client.create_blob(model)
    assert world.client.head(f"/api/blobs/{digest}").status_code == 200
    said = [each.status for each in client.create("mine", files={"any name".replace(" ", "-"): digest}, stream=True)]
    assert said[-2:] == ["writing manifest", "success"]
    (entry,) = library.entries()
    assert entry.name == "mine:latest" and Path(entry.path).read_bytes() == content and entry.files[0].is_ours
    assert all(result.is_good for result in library.verify("mine"))
    assert world.client.head(f"/api/blobs/{digest}").status_code == 200, "the model has it"
    assert files_below(library.settings.store_dir / "uploads") == [], "and nothing is there twice"
    assert client.chat("mine", [{"role": "user", "content": "x"}], options={"num_predict": 3}).done
    client.delete("mine")
    assert library.entries() == [] and files_below(library.settings.store_dir / "files") == []
    assert world.client.head(f"/api/blobs/{digest}").status_code == 404


def test_the_files_of_a_folder_become_a_model(place: Stocked) -> None:
    world, library, client = place
    digests = {}
    for name, content in tiny_folder().items():
        digests[name] = f"sha256:{sha256(content)}"
        assert world.client.post(f"/api/blobs/{digests[name]}", content=content).status_code == 201
    assert client.create("folder", files=digests).status == "success"
    entry = library.find("folder")
    assert entry.architecture == "llama" and all(file.is_ours and file.sha256 for file in entry.files)
    assert client.show("folder").details.format == "safetensors"  # type: ignore[union-attr]


def test_creating_again_takes_the_place_of_what_was_sent_before(place: Stocked, tmp_path: Path) -> None:
    _, library, client = place
    for seed in (1, 2):
        digest = client.create_blob(tiny_gguf(tmp_path / f"{seed}.gguf", seed=seed))
        assert client.create("mine", files={"m.gguf": digest}).status == "success"
    assert files_below(library.settings.store_dir / "files") == ["m.gguf"]
    assert digest == f"sha256:{library.find('mine').files[0].sha256}"


def test_a_copy_holds_on_to_the_files(place: Stocked, model: Path) -> None:
    _, library, client = place
    client.create("mine", files={"m.gguf": client.create_blob(model)})
    assert client.copy("mine", "yours").status == "success"
    client.delete("mine")
    assert Path(library.find("yours").path).read_bytes() == model.read_bytes()


def test_a_file_that_is_not_what_it_says_is_not_kept(place: Stocked) -> None:
    world, library, _ = place
    expected, found = sha256(b"right"), sha256(b"wrong")
    answer = world.client.post(f"/api/blobs/sha256:{expected}", content=b"wrong")
    assert answer.status_code == 400
    assert answer.json() == {"error": f'digest mismatch, expected "sha256:{expected}", got "sha256:{found}"'}
    assert files_below(library.settings.store_dir) == [] and world.client.head(
        f"/api/blobs/sha256:{expected}"
    ).status_code == 404  # fmt: skip


def test_a_file_that_is_here_is_not_read_again(place: Stocked) -> None:
    world, _, _ = place
    url = f"/api/blobs/sha256:{sha256(b'x')}"
    assert [world.client.post(url, content=b"x").status_code for _ in range(2)] == [201, 200]


@pytest.mark.parametrize(
    "digest",
    ["sha256:x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 64, "sha256:..%2F..%2Fetc%2Fpasswd",
     "..%2F" * 20, "sha256:" + "a" * 64 + "%00", "sha256:" + "a" * 64 + "%0a", "%2e%2e"],
)  # fmt: skip
def test_digests_are_digests(shared: Stocked, digest: str) -> None:
    world, library, _ = shared
    before = files_below(library.settings.store_dir)
    for method in ("POST", "HEAD"):
        answer = world.client.request(method, f"/api/blobs/{digest}", content=b"x" if method == "POST" else None)
        assert answer.status_code in (400, 404, 405) and "traceback" not in answer.text.lower()
    assert files_below(library.settings.store_dir) == before


def test_a_full_disk_is_said_before_the_file_comes(tmp_path: Path) -> None:
    with stocked(tmp_path / "home", free=lambda folder: 1000) as (world, library, _):
        answer = world.client.post(f"/api/blobs/sha256:{sha256(b'x')}", content=b"x")
        assert answer.status_code == 507 and "free some space" in answer.json()["error"]
        assert files_below(library.settings.store_dir) == []


@pytest.mark.parametrize("name", ["../x.gguf", "a/b.gguf", "/x.gguf", "..", "", "x\n.gguf", "x" * 300, ".hidden"])
def test_names_of_sent_files_stay_in_their_folder(shared: Stocked, name: str, model: Path) -> None:
    world, library, client = shared
    digest = client.create_blob(model)
    answer = world.client.post("/api/create", json={"model": "mine", "files": {name: digest}, "stream": False})
    assert answer.status_code == 400 and "no plain file name" in answer.json()["error"]
    assert [entry.name for entry in library.entries()] == ["base:latest"]


@pytest.mark.parametrize(
    ("content", "name", "status"),
    [
        (b"GGUF\x03\0\0\0", "m.gguf", 422),
        (b"hello", "m.gguf", 422),
        (b"\x80\x04.", "m.bin", 422),
        (b"{}", "m.json", 422),
    ],
)
def test_what_is_no_model_is_refused_and_leaves_nothing(place: Stocked, content: bytes, name: str, status: int) -> None:
    world, library, _ = place
    digest = f"sha256:{sha256(content)}"
    assert world.client.post(f"/api/blobs/{digest}", content=content).status_code == 201
    answer = world.client.post("/api/create", json={"model": "mine", "files": {name: digest}, "stream": False})
    assert answer.status_code == status and library.entries() == []
    assert files_below(library.settings.store_dir / "files") == []


def test_a_digest_that_was_never_sent_is_named(shared: Stocked) -> None:
    world, _, _ = shared
    digest = f"sha256:{'0' * 64}"
    answer = world.client.post("/api/create", json={"model": "mine", "files": {"m.gguf": digest}, "stream": False})
    assert answer.status_code == 400 and f'blob "{digest}" not found' in answer.json()["error"]


# ---- made of others


@pytest.fixture
def base(place: Stocked, model: Path) -> Stocked:
    client = place.client
    client.create("base", files={"m.gguf": client.create_blob(model)})
    return place


def test_a_model_of_ones_own_has_what_it_was_given(base: Stocked) -> None:
    _, library, client = base
    client.create(
        "mine:v1",
        from_="base",
        system="Be brief.",
        template="{% for message in messages %}{{ message.content }}{% endfor %}",
        license=["MIT", "and more"],
        parameters={"temperature": 0, "stop": ["a", "b"], "num_predict": 7},
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    )
    shown = client.show("mine:v1")
    assert shown.license == "MIT\nand more" and shown.template and shown.template.startswith("{% for")
    assert shown.parameters and 'stop                           "a"\n' in shown.parameters + "\n"
    assert shown.modelfile and "SYSTEM Be brief." in shown.modelfile and shown.details
    assert shown.details.parent_model == "base:latest"
    entry = library.find("mine:v1")
    assert entry.params == {"temperature": 0.0, "stop": ["a", "b"], "num_predict": 7}
    assert entry.messages[1] == {"role": "assistant", "content": "hello"}


def test_what_a_model_sets_holds_until_a_request_says_otherwise(base: Stocked) -> None:
    _, _, client = base
    client.create("short", from_="base", parameters={"num_predict": 2, "temperature": 0})
    messages = [{"role": "user", "content": "tell me"}]
    assert client.chat("short", messages).eval_count == 2
    assert client.chat("short", messages, options={"num_predict": 3}).eval_count == 3
    assert (client.chat("short", messages, options={"num_predict": -1}).eval_count or 0) > 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"adapters": {"a": "sha256:" + "0" * 64}}, "adapters"),
        ({"quantize": "q4_XL"}, "quantize"),
        ({"draft_files": {"a": "b"}}, "draft_files"),
        ({"modelfile": "FROM x"}, "modelfile"),
        ({"parameters": {"temprature": 1}}, "temprature"),
        ({"parameters": {"top_k": "many"}}, "top_k"),
        ({"parameters": {"temperature": -1}}, "temperature"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"files": {"m.gguf": "sha256:" + "0" * 64}}, "'from' or 'files'"),
        ({"from": None}, "neither 'from' or 'files' was specified"),
        ({"template": 5}, "template"),
    ],
)
def test_what_create_cannot_do_is_refused_by_name(shared: Stocked, fields: dict[str, object], named: str) -> None:
    world, library, _ = shared
    answer = world.client.post("/api/create", json={"model": "mine", "from": "base", "stream": False} | fields)
    assert answer.status_code == 400 and named in answer.json()["error"], answer.text
    assert [entry.name for entry in library.entries()] == ["base:latest"]


def test_a_go_template_is_kept_and_said_not_to_run(base: Stocked) -> None:
    world, _, client = base
    said = [each.status for each in client.create("mine", from_="base", template="{{ .Prompt }}", stream=True)]
    assert any("Go language" in (status or "") for status in said) and said[-1] == "success"
    body = {"model": "mine", "from": "base", "template": "{{ .Prompt }}", "stream": False}
    whole = world.client.post("/api/create", json=body).json()
    assert whole["status"] == "success" and "Go language" in whole["warnings"][0]
    del body["template"]
    assert world.client.post("/api/create", json=body).json() == {"status": "success"}


# ---- shown, listed, deleted


def test_a_list_is_newest_first_with_what_clients_show(base: Stocked) -> None:
    _, library, client = base
    client.copy("base", "newer")
    models = client.list().models
    assert [each.model for each in models] == ["newer:latest", "base:latest"]
    assert models[0].digest == models[1].digest == library.find("base").digest and len(models[0].digest) == 64
    assert models[0].size and models[0].details and models[0].details.family == "llama" and models[0].modified_at


def test_metadata_is_shown_flat_and_long_lists_only_where_wanted(shared: Stocked) -> None:
    world, _, _ = shared
    shown = world.client.post("/api/show", json={"model": "base"}).json()
    assert shown["model_info"]["llama.context_length"] == 128 and "tensors" not in shown
    verbose = world.client.post("/api/show", json={"name": "base", "verbose": True}).json()
    assert verbose["tensors"][0]["name"] == "token_embd.weight" and verbose["tensors"][0]["type"] == "F32"


def test_what_is_shown_is_what_is_described(base: Stocked) -> None:
    world, _, client = base
    client.create("mine", from_="base", system="x", license="y", messages=[{"role": "user", "content": "z"}])
    for fields in ({}, {"verbose": True}):
        body = world.client.post("/api/show", json={"model": "mine"} | fields).json()
        assert msgspec.to_builtins(msgspec.convert(body, OllamaShown)) == body


def test_a_loaded_model_is_unloaded_before_it_is_deleted(base: Stocked) -> None:
    _, _, client = base
    assert client.generate("base", "x", options={"num_predict": 1}).done
    assert [each.model for each in client.ps().models] == ["base:latest"]
    assert client.delete("base").status == "success"
    assert client.ps().models == [] and client.list().models == []


def test_what_is_not_ours_is_not_deleted(tmp_path: Path) -> None:
    theirs = tmp_path / "ollama"
    blob = tiny_gguf(tmp_path / "their.gguf").read_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    (theirs / "blobs").mkdir(parents=True)
    (theirs / "blobs" / f"sha256-{digest}").write_bytes(blob)
    manifest = theirs / "manifests" / "registry.ollama.ai" / "library" / "theirs"
    manifest.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(blob)}
    (manifest / "latest").write_text(json.dumps({"layers": [layer]}))
    with stocked(tmp_path / "home", ollama_models=str(theirs)) as (world, _, client):
        assert [each.model for each in client.list().models] == ["theirs:latest"]
        answer = world.client.request("DELETE", "/api/delete", json={"model": "theirs"})
        assert answer.status_code == 409 and "belongs to Ollama" in answer.json()["error"]
    assert os.listdir(theirs / "blobs") == [f"sha256-{digest}"]


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("DELETE", "/api/delete", {"model": "nope"}, "model 'nope' not found"),
        ("POST", "/api/show", {"model": "nope"}, "model 'nope' not found"),
        ("POST", "/api/copy", {"source": "nope", "destination": "x"}, 'model "nope" not found'),
        ("POST", "/api/generate", {"model": "nope", "prompt": "x"}, "model 'nope' not found"),
        ("POST", "/api/generate", {"model": "nope"}, "model 'nope' not found"),
        ("POST", "/api/embed", {"model": "nope", "input": "x"}, "model 'nope' not found"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_here_is_not_found(
    shared: Stocked, method: str, path: str, body: dict[str, object], error: str
) -> None:
    answer = shared.world.client.request(method, path, json=body)
    assert (answer.status_code, answer.json()) == (404, {"error": error})
