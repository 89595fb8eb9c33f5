"""Weights by canonical name, as every backend that keeps them in Python looks them up."""

from __future__ import annotations

from typing import Generic, TypeVar

from localllm.errors import BadModelFile

W = TypeVar("W")


class NamedWeights(Generic[W]):
    """A `models.ops.Weights` over a dictionary."""

    def __init__(self, weights: dict[str, W]) -> None:
        self._weights = weights

    def get(self, name: str) -> W | None:
        return self._weights.get(name)

    def __getitem__(self, name: str) -> W:
        weight = self._weights.get(name)
        if weight is None:
            raise BadModelFile(f"the model file lacks the tensor {name}")
        return weight
