"""Groups of equal room: layers with one window share a table, and no cache is wasted for nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.backends.layout import StatePart, cache_layout, kv_places, layers_per_group, state_places
from localllm.engine.step import CacheLayout
from localllm.models.config import DeltaNetSpec, LayerSpec, ModelConfig, ShortConvSpec, StateSpaceSpec
from tests.contract.worlds import ATTENTION, HIDDEN


def layout_of(windows: list[int | None], page_size: int = 16, value_bytes: int = 2) -> CacheLayout:
    layers = tuple(LayerSpec(replace(ATTENTION, window=window)) for window in windows)
    return cache_layout(ModelConfig("tiny", HIDDEN, 80, 128, layers), page_size, value_bytes)


def test_layers_of_one_window_are_one_group() -> None:
    layout = layout_of([None] * 30)
    assert [len(group.layers) for group in layout.groups] == [30]
    # keys and values of 2 heads of 16 numbers, 2 bytes each
    assert layout.page_bytes == 30 * 16 * 2 * (16 + 16) * 2


def test_alternating_windows_make_two_groups() -> None:
    layout = layout_of([100, None] * 13)
    assert [(group.window, len(group.layers)) for group in layout.groups] == [(100, 13), (None, 13)]
    assert layout.groups[0].layers == tuple(range(0, 26, 2))


def test_five_to_one_is_split_so_that_little_room_is_left_unused() -> None:
    layout = layout_of(([512] * 5 + [None]) * 5 + [512] * 4)
    assert [len(group.layers) for group in layout.groups if group.window is None] == [5]
    assert sum(len(group.layers) for group in layout.groups) == 34
    assert len(layout.groups) == 7


def test_a_lone_full_layer_does_not_split_every_layer_off() -> None:
    assert layers_per_group([61, 1]) > 1


def test_layers_that_read_the_keys_and_values_of_others_take_no_room() -> None:
    windows = ([512] * 4 + [None]) * 3
    owners = tuple(LayerSpec(replace(ATTENTION, window=window)) for window in windows)
    sharers = tuple(LayerSpec(replace(ATTENTION, window=w, kv_from=13 if w else 14)) for w in windows + windows[:5])
    alone, together = (ModelConfig("tiny", HIDDEN, 80, 128, layers) for layers in (owners, owners + sharers))
    assert cache_layout(together, 16) == cache_layout(alone, 16)
    places = kv_places(together, cache_layout(together, 16))
    assert sorted(places) == list(range(35))
    assert {places[layer] for layer in range(15, 35)} == {places[13], places[14]}


@given(st.lists(st.sampled_from([None, 4, 100, 4096]), min_size=1, max_size=70))
def test_every_layer_has_one_place_and_no_group_is_larger_than_its_room(windows: list[int | None]) -> None:
    layers = tuple(LayerSpec(replace(ATTENTION, window=window)) for window in windows)
    layout = layout_of(windows, page_size=1, value_bytes=1)
    places = kv_places(ModelConfig("tiny", HIDDEN, 80, 128, layers), layout)
    assert sorted(places) == list(range(len(windows)))
    assert len({(place.group, place.index) for place in places.values()}) == len(windows)
    room = layout.page_bytes // 64
    assert max(len(group.layers) for group in layout.groups) == room
    for layer, place in places.items():
        assert layout.groups[place.group].window == windows[layer]
    assert room * len(layout.groups) <= 2 * len(windows), "at most half of the cache may be unused"


def test_state_is_laid_out_layer_after_layer() -> None:
    conv = LayerSpec(ShortConvSpec(3, HIDDEN))
    config = ModelConfig("tiny", HIDDEN, 80, 128, (conv, LayerSpec(ATTENTION), LayerSpec(ShortConvSpec(4, HIDDEN))))
    layout = cache_layout(config, 16)
    assert layout.state_bytes == (2 + 3) * HIDDEN * 4 and layout.has_state
    assert state_places(config) == {0: (StatePart(0, (2, HIDDEN)),), 2: (StatePart(2 * HIDDEN, (3, HIDDEN)),)}
    assert layout.groups[0].layers == (1,)


def test_a_layer_may_have_several_parts_of_state() -> None:
    delta, space = DeltaNetSpec(2, 4, 8, 6, 4), StateSpaceSpec(4, 8, 2, 16, 3)
    config = ModelConfig("tiny", HIDDEN, 80, 128, (LayerSpec(delta), LayerSpec(space)))
    channels, matrices = 2 * 2 * 8 + 4 * 6, 4 * 8 * 6
    first, second = state_places(config)[0], state_places(config)[1]
    assert first == (StatePart(0, (3, channels)), StatePart(3 * channels, (4, 8, 6)))
    assert second[0].first == first[1].end == 3 * channels + matrices
    assert [part.shape for part in second] == [(2, 4 * 8 + 2 * 2 * 16), (4, 8, 16)]
    assert cache_layout(config, 16).state_bytes == 4 * second[1].end


@pytest.mark.parametrize("value_bytes", [1, 2, 4])
def test_page_bytes_count_the_widest_layer(value_bytes: int) -> None:
    layers = (LayerSpec(ATTENTION), LayerSpec(replace(ATTENTION, num_kv_heads=4, value_dim=8)))
    layout = cache_layout(ModelConfig("tiny", HIDDEN, 80, 128, layers), 16, value_bytes)
    assert layout.page_bytes == 2 * 16 * 4 * (16 + 8) * value_bytes
