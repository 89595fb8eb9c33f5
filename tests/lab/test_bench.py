"""A whole benchmark of a tiny random model: counts, shapes and names, never speeds."""

from pathlib import Path

import msgspec
import pytest

from localllm.errors import ModelNotFound, UsageError
from localllm.lab.bench import bench
from localllm.lab.bench_rows import BenchPlan, Row
from localllm.settings import load_settings
from tests.road.tiny_llama import make_tiny_llama

PLAN = BenchPlan(prompts=(8,), generations=(3,), parallel=(1, 2), depths=(0, 32), threads=(1,), repetitions=2)
ROWS = ["pp8", "tg3", "pp8 x2", "tg3 x2", "pp8 @ d32", "tg3 @ d32", "pp8 x2 @ d32", "tg3 x2 @ d32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    monkeypatch.setattr("localllm.lab.bench_bandwidth.MAX_BYTES", 2**20)
    settings = load_settings(backend="reference", kv_pages=64, speculation="off")
    return bench(str(folder), PLAN, settings=settings)


def test_every_row_has_its_samples_and_says_what_was_measured(rows: list[Row], folder: Path) -> None:
    assert [row.test for row in rows] == ROWS
    for row in rows:
        assert len(row.samples_ts) == 2 and min(row.samples_ts) > 0
        assert row.avg_ts == pytest.approx(sum(row.samples_ts) / 2)
        assert (row.model, row.backend, row.kv_type, row.speculation) == (folder.name, "reference", "f32", "off")
        assert row.note == ""
    two = rows[-1]
    assert (two.n_prompt, two.n_gen, two.n_parallel, two.n_depth) == (0, 3, 2, 32)


def test_size_and_parameters_are_those_of_the_file(rows: list[Row], folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        counts = [file.get_tensor(name).size for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    assert {row.params for row in rows} == {sum(counts)}
    assert {row.size for row in rows} == {4 * sum(counts)}


def test_only_decoding_has_a_share_of_the_bandwidth(rows: list[Row]) -> None:
    for row in rows:
        assert row.memory_bandwidth is not None and row.memory_bandwidth > 0
        if row.n_gen:
            assert row.read_bytes is not None and row.bandwidth_share is not None
            steps_per_s = row.avg_ts / row.n_parallel
            assert row.bandwidth_share == pytest.approx(row.read_bytes * steps_per_s / row.memory_bandwidth)
        else:
            assert row.read_bytes is None and row.bandwidth_share is None


def test_with_guesses_nobody_says_how_much_a_token_reads(folder: Path) -> None:
    settings = load_settings(backend="reference", kv_pages=64, speculation="4")
    (row,) = bench(str(folder), BenchPlan((0,), (3,), repetitions=1), settings=settings)
    assert row.speculation == "4" and row.read_bytes is None and row.bandwidth_share is None


def test_a_step_reads_weights_once_and_each_sequences_cache(rows: list[Row]) -> None:
    read = {row.test: row.read_bytes or 0 for row in rows}
    cached = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, their width, bytes: of one token
    assert read["tg3 @ d32"] - read["tg3"] == 32 * cached
    assert read["tg3 x2 @ d32"] - read["tg3 x2"] == 2 * 32 * cached
    row_of_embedding = 64 * 4
    assert read["tg3 x2"] - read["tg3"] == 2 * cached + row_of_embedding  # each sees two tokens on average


def test_rows_are_plain_json(rows: list[Row]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(rows), type=list[Row]) == rows


def test_what_cannot_be_measured_is_refused(folder: Path) -> None:
    settings = load_settings(backend="reference", kv_pages=64)
    with pytest.raises(UsageError, match="pp300 needs a context of 301 tokens, but it holds 256"):
        bench(str(folder), BenchPlan(prompts=(300,)), settings=settings)
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(str(folder), BenchPlan(prompts=(0,), generations=(0,)), settings=settings)
    with pytest.raises(ModelNotFound):
        bench("no/such.gguf", PLAN, settings=settings)
