"""The backends every contract test runs on, each with how far it may be from the plain float64 computation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.select import BackendOptions, native_problem, open_backend
from localllm.engine.step import Backend
from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource
from localllm.settings import KvType as KvType
from tests.contract.worlds import MemorySource, World, build

PAGE_SIZE = 4


def nothing_missing() -> str:
    return ""


def torch_missing() -> str:
    try:
        from localllm.backends.torch.library import torch_problem
    except ImportError as error:
        return f"the torch backend is not there: {error}"
    return torch_problem()


def metal_missing() -> str:
    try:
        from localllm.backends.metal.library import metal_problem
    except ImportError as error:
        return f"the metal backend is not there: {error}"
    return metal_problem()


@dataclass(frozen=True)
class Host:
    """`tolerance` is the largest difference of a logit over the largest logit; `quantized` is for weights in blocks
    of less than 16 bits, whose activations a backend may round, too. `problem` says why it cannot be used here."""

    name: str
    tolerance: float
    quantized: float
    problem: Callable[[], str]

    def open(self, config: ModelConfig, source: WeightSource, kv_type: KvType = "auto") -> Backend:
        # a budget as in use: it bounds the tokens of one step
        options = BackendOptions(page_size=PAGE_SIZE, threads=2, max_tokens_per_step=128, kv_type=kv_type)
        return open_backend(self.name, config, source, options)

    def open_world(self, world: World) -> tuple[Backend, ModelConfig, MemorySource]:
        """The test is skipped where a backend refuses a model by name; the reference must run them all."""
        config, source = build(world)
        try:
            return self.open(config, source), config, source
        except UnsupportedModel as error:
            if self.name == "reference":
                raise
            pytest.skip(f"{self.name} refuses this by name: {error}")

    def check(self, ours: NDArray[np.float32] | None, expected: NDArray[np.float64], world: World) -> None:
        assert ours is not None and ours.dtype == np.float32 and ours.shape == expected.shape
        is_float = world.type in (BlockType.F32, BlockType.F16, BlockType.BF16)
        difference = np.abs(ours - expected).max() / np.abs(expected).max()
        assert difference <= (self.tolerance if is_float else self.quantized)


# cpu keeps keys and values as float16 and rounds the inputs of quantized products to 8 bits
HOSTS = (
    Host("reference", 1e-5, 1e-5, nothing_missing),
    Host("cpu", 3e-3, 3e-2, native_problem),
    Host("torch", 3e-3, 3e-3, torch_missing),
    Host("metal", 3e-3, 3e-3, metal_missing),
)


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str: ...


def in_groups(worlds: Iterable[Named]) -> list[object]:
    """As parameters whose tests run in one process each, so that what they share is made once."""
    return [pytest.param(world, marks=pytest.mark.xdist_group(world.name)) for world in worlds]


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    chosen: Host = request.param
    if problem := chosen.problem():
        pytest.skip(problem)
    return chosen
