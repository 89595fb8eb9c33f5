"""Keys and values in 8 bits: a backend keeps them so with little loss, or refuses the type by name."""

import numpy as np
import pytest

from localllm.engine.step import Want
from localllm.errors import UnsupportedModel
from tests.contract.conftest import Host
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, WINDOWED, World, attending, build, plain

ALL = Want(logits="all")
TOKENS = np.random.default_rng(4).integers(0, 80, 40).tolist()
KEEPERS = ("cpu",)
TOLERANCE = 2e-2
"""Largest difference over largest logit: 8 bits are 4e-3 of the largest of 32 numbers, in every layer."""
ROUNDED = (
    BY_NAME["llama"],
    BY_NAME["sinks"],
    BY_NAME["values narrower than keys"],
    BY_NAME["attention over latents"],
    BY_NAME["hybrid"],
    World("windows", WINDOWED),
    World("heads of 40 and 72", attending(head_dim=40, value_dim=72, rope=None)),
)


def difference(host: Host, world: World, kv_type: str) -> float:
    config, source = build(world)
    backend = host.open(config, source, kv_type)  # type: ignore[arg-type]
    walk, seen, first = Walk(backend), [], 0
    for size in (17, 1, 20, 2):
        (result,) = walk.step((1, TOKENS[first : first + size], ALL))
        assert result.logits is not None
        seen.append(result.logits)
        first += size
    backend.close()
    expected = plain(config, source).logits(TOKENS)
    return float(np.abs(np.concatenate(seen) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("world", ROUNDED, ids=lambda world: world.name)
def test_8_bits_per_number_cost_little(host: Host, world: World) -> None:
    if host.name not in KEEPERS:
        pytest.skip(f"{host.name} refuses the type by name")
    lost = difference(host, world, "q8_0")
    assert difference(host, world, "f32") < lost <= TOLERANCE


def test_who_does_not_keep_8_bits_says_so(host: Host) -> None:
    if host.name in KEEPERS:
        pytest.skip(f"{host.name} keeps them")
    config, source = build(BY_NAME["llama"])
    with pytest.raises(UnsupportedModel, match=f"the {host.name} backend .* q8_0") as caught:
        host.open(config, source, "q8_0")
    assert "f16" in caught.value.hint
