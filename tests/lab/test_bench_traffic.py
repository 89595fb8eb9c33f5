"""Bytes that a step of decoding reads, counted from the very arrays of tiny models."""

from collections.abc import Callable

import pytest

from localllm.engine.step import CacheLayout, KvGroup
from localllm.formats.blocks import BlockType
from localllm.lab.bench_bandwidth import memory_bandwidth, read_through
from localllm.lab.bench_traffic import Weights, kv_read_bytes
from localllm.models.config import LayerSpec
from tests.contract.worlds import ATTENTION, MOE, VOCAB, MemorySource, World, build

EXPERTS = World("experts", layers=(LayerSpec(ATTENTION, MOE), LayerSpec(ATTENTION)))


def bytes_of(source: MemorySource, wanted: Callable[[str], bool]) -> int:
    return sum(source.raw(name).nbytes for name in source.names() if wanted(name))


@pytest.mark.parametrize("block_type", [BlockType.F32, BlockType.Q8_0])
def test_all_weights_are_counted_in_the_types_they_have(block_type: BlockType) -> None:
    config, source = build(World("plain", type=block_type))
    weights = Weights.of(source, config)
    assert weights.size_bytes == bytes_of(source, lambda name: True)
    assert weights.num_params == sum(array.size for array in source.decoded().values())


def test_a_token_reads_one_row_of_the_embedding_and_everything_else() -> None:
    config, source = build(World("untied"))
    weights = Weights.of(source, config)
    table = bytes_of(source, lambda name: name == "token_embd.weight")
    rest = weights.size_bytes - table
    assert [weights.read_bytes(count) for count in (1, 4)] == [rest + table // VOCAB, rest + 4 * table // VOCAB]


def test_a_tied_embedding_is_the_head_and_read_whole() -> None:
    config, source = build(World("tied", extras=("tied",)))
    weights = Weights.of(source, config)
    assert weights.read_bytes(1) == weights.read_bytes(16) == weights.size_bytes


def test_of_experts_a_token_reads_those_it_uses_and_many_tokens_read_nearly_all() -> None:
    config, source = build(EXPERTS)
    weights = Weights.of(source, config)
    experts = bytes_of(source, lambda name: "_exps" in name)
    table = bytes_of(source, lambda name: name == "token_embd.weight")
    rest = weights.size_bytes - experts - table
    assert MOE.num_used / MOE.num_experts == pytest.approx(1 / 3)
    assert weights.read_bytes(1) == pytest.approx(rest + table / VOCAB + experts / 3, abs=1)
    assert weights.read_bytes(2) == pytest.approx(rest + 2 * table / VOCAB + experts * (1 - (2 / 3) ** 2), abs=1)
    assert weights.read_bytes(100) == pytest.approx(rest + 100 * table / VOCAB + experts, abs=1)


def test_the_cache_is_read_up_to_the_token_itself_and_no_further_than_a_window() -> None:
    full = CacheLayout(page_size=4, groups=(KvGroup(None, (0, 1)),), page_bytes=4 * 2 * 100)
    assert kv_read_bytes(full, depth=0, num_steps=1) == 200
    assert kv_read_bytes(full, depth=10, num_steps=3) == 200 * 12  # 11, 12 and 13 tokens
    windowed = CacheLayout(4, (KvGroup(None, (0, 1)), KvGroup(6, (2,))), 4 * 2 * 100)
    assert kv_read_bytes(windowed, depth=100, num_steps=1) == 200 * 101 + 100 * 6
    assert kv_read_bytes(CacheLayout(4, (), 0, 16), depth=5, num_steps=1) == 0


def test_bandwidth_is_bytes_over_the_fastest_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.lab.bench_bandwidth.MAX_BYTES", 2**20)
    times = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.5])  # passes of 0.5, 0.25 and 0.5 s
    assert memory_bandwidth(2, clock=lambda: next(times)) == 2**20 / 0.25


def test_reading_through_looks_at_every_byte() -> None:
    assert not read_through(b"\1" * 10_000)
    assert read_through(b"\1" * 9_999 + b"\0")
