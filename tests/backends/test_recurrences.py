"""The recurrence of gated delta nets in stretches of tokens is that of one token after another, in numpy."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localllm.backends.recurrences import delta_net
from localllm.models.config import DeltaNetSpec

Floats = NDArray[np.float32]
SPEC = DeltaNetSpec(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=6, kernel=4)


class Inputs:
    """One row of `count` tokens; `alike`: their keys are the same, and each is corrected whole."""

    def __init__(self, count: int, spec: DeltaNetSpec, seed: int, alike: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.spec = spec
        self.state = self._drawn(rng, spec.num_value_heads, spec.key_dim, spec.value_dim)
        self.x = self._drawn(rng, count, spec.channels)
        self.beta, self.decay = (self._drawn(rng, count, spec.num_value_heads) for _ in range(2))
        self.rate, self.bias = -np.abs(self._drawn(rng, spec.num_value_heads)), self._drawn(rng, spec.num_value_heads)
        if alike:
            self.x[:, : 2 * spec.num_key_heads * spec.key_dim] = 1
            self.beta[:], self.decay[:] = 20, -20

    @staticmethod
    def _drawn(rng: np.random.Generator, *shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    def expected(self, count: int | None = None) -> tuple[Floats, Floats]:
        state = self.state.copy()
        lines = (each[:count] for each in (self.x, self.beta, self.decay))
        return delta_net(*lines, self.rate, self.bias, self.spec, state), state

    def of(self, module: ModuleType, array: Callable[[Floats], Any]) -> tuple[Floats, Floats]:
        rows = (array(each[None]) for each in (self.x, self.beta, self.decay))
        weights = array(self.rate), array(self.bias)
        out, state = module.delta_net(*rows, *weights, self.spec, array(self.state[None]))
        return np.asarray(out)[0], np.asarray(state)[0]


def torch_twin() -> tuple[ModuleType, Callable[[Floats], Any]]:
    torch = pytest.importorskip("torch", reason="the twin is on torch")
    from localllm.backends.torch import recurrences

    return recurrences, torch.from_numpy


def metal_twin() -> tuple[ModuleType, Callable[[Floats], Any]]:
    mx = pytest.importorskip("mlx.core", reason="the twin is on MLX")
    from localllm.backends.metal import recurrences

    return recurrences, mx.array


TWINS = pytest.mark.parametrize("twin", [torch_twin, metal_twin])


@TWINS
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("tiled", [False, True])
def test_stretches_of_any_length_are_tokens_one_by_one(twin: Callable[[], Any], count: int, tiled: bool) -> None:
    inputs = Inputs(count, replace(SPEC, tiled=tiled), seed=count)
    for ours, expected in zip(inputs.of(*twin()), inputs.expected(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@TWINS
def test_tokens_with_the_same_key_correct_each_other_without_growing(twin: Callable[[], Any]) -> None:
    inputs = Inputs(128, SPEC, seed=1, alike=True)
    for ours, expected in zip(inputs.of(*twin()), inputs.expected(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_how_a_row_is_cut_changes_no_bit(seed: int, cuts: list[int], tiled: bool) -> None:
    spec = DeltaNetSpec(1, 3, key_dim=5, value_dim=7, kernel=3, tiled=tiled)
    inputs = Inputs(sum(cuts), spec, seed)
    whole, end = inputs.expected()
    state, first, outs = inputs.state.copy(), 0, []
    for cut in cuts:
        lines = (each[first : first + cut] for each in (inputs.x, inputs.beta, inputs.decay))
        outs.append(delta_net(*lines, inputs.rate, inputs.bias, spec, state))
        first += cut
    np.testing.assert_array_equal(np.concatenate(outs), whole)
    np.testing.assert_array_equal(state, end)
