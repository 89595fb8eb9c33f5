"""Quantizing through the daemon: Ollama's create, and jobs of our own that are listed with the pulls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest

from localllm.client import Client
from localllm.formats.blocks import BlockType, encode
from localllm.formats.gguf_write import write_gguf
from localllm.store.library import Library
from localllm.store.modelfile import parse_modelfile
from tests.server.ollama_world import Stocked, stocked


def small_gguf(path: Path) -> Path:
    """A sound file with matrices of the roles that recipes tell apart. Its weights mean nothing."""
    chance = np.random.default_rng(0)
    metadata: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": 128, "llama.block_count": 1}
    shapes = {"token_embd.weight": (512, 64), "blk.0.ffn_up.weight": (512, 64), "output.weight": (512, 64)}
    values = {name: chance.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_gguf(
        path,
        metadata,
        [(name, each.shape, BlockType.F32, encode(BlockType.F32, each)) for name, each in values.items()],
    )
    return path


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Stocked]:
    with stocked(tmp_path / "home") as found:
        path = small_gguf(tmp_path / "base.gguf")
        found.library.create("base", parse_modelfile(f"FROM {path}\nSYSTEM be brief".encode()))
        yield found


def ours(world: Stocked) -> Client:
    return Client(world.world.url)


def test_create_with_quantize_tells_what_ollama_tells(base: Stocked) -> None:
    said = list(base.client.create("small", from_="base", quantize="q8_0", stream=True))
    words = [each.status for each in said]
    assert words[0] == "using existing layers of base" and words[-2:] == ["writing manifest", "success"]
    (step,) = {each for each in words if each and each.startswith("quantizing")}
    assert step == "quantizing F32 model to Q8_0"
    last = [each for each in said if each.status == step][-1]
    assert last.total and last.completed == last.total
    made = base.library.find("small")
    assert made.quantization == "Q8_0" and made.system == "be brief" and made.receipt is not None
    assert made.size_bytes < base.library.find("base").size_bytes and made.receipt.source == "base:latest"
    shown = base.client.show("small")
    assert shown.details and shown.details.quantization_level == "Q8_0"
    assert shown.modelinfo and shown.modelinfo["localllm.quantize.recipe"] == "Q8_0"


def test_what_was_sent_can_be_quantized_on_its_way(base: Stocked, tmp_path: Path) -> None:
    digest = base.client.create_blob(tmp_path / "base.gguf")
    base.client.create("sent", files={"model.gguf": digest}, quantize="q4_0")
    made = base.library.find("sent")
    assert made.quantization == "Q4_0" and len(made.files) == 1 and made.files[0].is_ours
    base.client.delete("sent")
    assert not Path(made.path).exists()
    assert [path.name for path in (tmp_path / "home" / "store" / "files").rglob("*") if path.is_file()] == []


def test_rounding_twice_and_types_that_do_not_exist_are_refused(base: Stocked) -> None:
    base.client.create("small", from_="base", quantize="q8_0")
    for source, kind, word in (("small", "q4_0", "second time"), ("base", "q9", "no quantization")):
        with pytest.raises(ollama.ResponseError, match=word) as refused:
            base.client.create("smaller", from_=source, quantize=kind)
        assert refused.value.status_code == 400
    assert sorted(entry.name for entry in base.library.entries()) == ["base:latest", "small:latest"]


def ended(calls: Client, job_id: str) -> str:
    for _ in range(2000):
        (job,) = [job for job in calls.library.pulls() if job.id == job_id]
        if job.state in ("done", "failed"):
            return job.state if job.error is None else job.error.message
    raise AssertionError("it did not end")


def test_a_job_is_listed_with_the_pulls_and_makes_a_model(base: Stocked) -> None:
    calls = ours(base)
    job = calls.library.quantize("base", "Q5_0")
    assert (job.kind, job.source, job.type, job.model) == ("quantize", "base:latest", "Q5_0", "base:q5_0")
    assert ended(calls, job.id) == "done"
    found = {each.name: each for each in calls.library.installed().models}
    assert found["base:q5_0"].quantization == "Q5_0" and found["base:q5_0"].is_ours
    again = calls.library.quantize("base:q5_0", "q4_0", "mine")
    assert "second time" in ended(calls, again.id)
    calls.library.cancel(again.id)
    assert [each.id for each in calls.library.pulls()] == [job.id]


def test_sizes_are_told_for_every_type(base: Stocked) -> None:
    calls = ours(base)
    told = calls.library.quantized_sizes("base")
    assert told.model == "base:latest" and not told.refusal
    assert [each.type for each in told.types][:2] == ["F16", "BF16"]
    small = {each.type: each.size_bytes for each in told.types}
    assert small["Q4_0"] < small["Q8_0"] < told.size_bytes
    base.client.create("small", from_="base", quantize="q8_0")
    refused = calls.library.quantized_sizes("small")
    assert not refused.types and "quantized already" in refused.refusal


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "base", "type": "q9"}, 400, "type"),
        ({"model": "base", "type": "q8_0", "name": "a b"}, 400, "name"),
        ({"model": "base", "type": "q8_0", "name": "/tmp/x.gguf"}, 400, "name"),
        ({"model": "/etc/passwd", "type": "q8_0"}, 400, "model"),
        ({"model": "./base.gguf", "type": "q8_0"}, 400, "model"),
        ({"model": "missing", "type": "q8_0"}, 404, None),
        ({"model": "base"}, 400, "type"),
        ({"model": "base", "type": "q8_0", "pure": True}, 400, "pure"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(
    shared: Stocked, body: dict[str, object], status: int, param: str | None
) -> None:
    answer = shared.world.client.post("/localllm/v1/quantizations", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    library: Library = shared.library
    assert [entry.name for entry in library.entries()] == ["base:latest"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stocked]:
    folder = tmp_path_factory.mktemp("shared")
    with stocked(folder / "home") as found:
        path = small_gguf(folder / "base.gguf")
        found.library.create("base", parse_modelfile(f"FROM {path}".encode()))
        yield found
