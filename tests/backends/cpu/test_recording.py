"""What the recorder makes of a decoder: which verbs melt together, and when a buffer may be taken again."""

import pytest

from localllm.backends.cpu.buffers import Buffers, Kind
from localllm.backends.cpu.fuse import fuse
from localllm.backends.cpu.nodes import Add, Attention, Head, Linear, Node, RmsNorm, Rope, Value
from localllm.backends.cpu.record import record
from tests.contract.worlds import BY_NAME, build


def recorded(name: str) -> list[Node]:
    config, source = build(BY_NAME[name])
    return fuse(record(config, source))


def test_a_llama_layer_has_eight_nodes() -> None:
    names = [type(node).__name__ for node in recorded("llama")]
    layer = ["RmsNorm", "Linear", "Linear", "Linear", "Attention", "Linear", "RmsNorm", "Gated", "Linear"]
    assert names == ["Embed", *layer, *layer, "RmsNorm", "Pool", "TakeRows", "Head"]


def test_residuals_melt_into_the_products_before_them() -> None:
    nodes = recorded("llama")
    assert not any(isinstance(node, Add) for node in nodes)
    assert sum(isinstance(node, Linear) and node.residual is not None for node in nodes) == 4


def test_a_norm_between_product_and_sum_keeps_them_apart() -> None:
    nodes = recorded("norms after")
    assert sum(isinstance(node, Add) for node in nodes) == 4
    assert not any(isinstance(node, Linear) and node.residual is not None for node in nodes)


def test_rotations_melt_into_attention_and_scales_into_the_head() -> None:
    assert not any(isinstance(node, Rope) for node in recorded("llama"))
    ropes = [(node.query_rope, node.key_rope) for node in recorded("llama") if isinstance(node, Attention)]
    assert all(of_queries == of_keys is not None for of_queries, of_keys in ropes)
    last = recorded("logit softcap")[-1]
    assert isinstance(last, Head) and (last.scale, last.softcap) == (1.0, 5.0)
    last = recorded("logit scale")[-1]
    assert isinstance(last, Head) and (last.scale, last.softcap) == (0.25, 0.0)


def test_queries_that_grow_turn_otherwise_than_keys_in_the_same_pass() -> None:
    nodes = recorded("queries grow")
    assert not any(isinstance(node, Rope) for node in nodes)
    for node in nodes:
        if isinstance(node, Attention):
            assert node.query_rope == node.spec.query_rope != node.key_rope == node.spec.rope


def test_norms_that_products_read_are_recorded_once() -> None:
    nodes = recorded("norms per head")
    assert sum(isinstance(node, RmsNorm) for node in nodes) == 2 * 4 + 1


class Counter:
    """Numbers buffers as they are asked for."""

    def __init__(self) -> None:
        self.made = 0

    def buffer(self, width: int, quantized: bool, is_private: bool, taken: bool) -> int:
        self.made += 1
        return self.made


@pytest.fixture
def buffers() -> Buffers:
    return Buffers(Counter())


def test_a_dead_value_s_buffer_is_taken_again_after_the_next_meeting(buffers: Buffers) -> None:
    old = Value(8)
    first = buffers.hold(old, quantized=False, is_private=False)
    buffers.drop(old)
    buffers.after([first], synced=False)
    assert buffers.take(first.kind) is not first
    buffers.after([], synced=True)
    assert buffers.take(first.kind) is first


def test_buffers_of_another_kind_are_never_mixed(buffers: Buffers) -> None:
    old = Value(8)
    first = buffers.hold(old, quantized=False, is_private=False)
    buffers.drop(old)
    buffers.after([], synced=True)
    assert buffers.take(Kind(8, False, is_private=True, taken=False)) is not first
    assert buffers.take(Kind(16, False, is_private=False, taken=False)) is not first


def test_a_sum_is_not_made_in_place_while_others_may_still_read(buffers: Buffers) -> None:
    old, new = Value(8), Value(8)
    held = buffers.hold(old, quantized=False, is_private=False)
    buffers.after([held], synced=False)
    assert buffers.reuse(new, old) is None
    buffers.after([], synced=True)
    assert buffers.reuse(new, old) is held
