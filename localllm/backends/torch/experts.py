"""The chosen experts' feed-forwards, as few products as there are kinds of crowds at an expert's door."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localllm.backends.torch.formulas import activate, gate_times_up
from localllm.backends.torch.products import Products, check_width
from localllm.backends.torch.weights import Weight
from localllm.models.config import Activation

Indices = NDArray[np.int64]
WEIGHTS_AT_ONCE = 1 << 27
"""How many values of the matrices of chosen experts are gathered at once."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Experts with about as many tokens each: `places` are indices of choices, each at its row of (experts, most)."""

    experts: Indices
    most: int
    places: Indices
    rows: Indices


@dataclass(frozen=True, slots=True)
class Experts:
    """Matrices (experts, out, in) with biases (experts, out)."""

    gate: Weight | None
    up: Weight
    down: Weight
    activation: Activation
    biases: tuple[Weight | None, Weight | None, Weight | None]

    def mix(self, x: Tensor, routing: Tensor, products: Products) -> Tensor:
        """x (T, in) and routing (T, num_used, 2) to the weighted sum (T, out), in the order of expert index."""
        check_width(x, self.up)
        chosen = routing[:, :, 0].cpu().numpy().astype(np.int64)
        order = np.argsort(chosen, axis=1, kind="stable")
        choices = np.take_along_axis(chosen, order, axis=1)
        num_used = choices.shape[1]
        outputs = x.new_empty((choices.size, self.down.shape[1]))
        for crowd in crowds(choices.reshape(-1), self._limit(x.device)):
            tokens, places, rows = (on(x.device, part) for part in (crowd.places // num_used, crowd.places, crowd.rows))
            inputs = x.new_zeros((len(crowd.experts) * crowd.most, x.shape[1]))
            inputs[rows] = x[tokens]
            outputs[places] = self._feed(inputs.view(len(crowd.experts), crowd.most, -1), crowd, products)[rows]
        shares = routing[:, :, 1].gather(1, on(x.device, order))
        return (outputs.view(*choices.shape, -1) * shares[:, :, None]).sum(dim=1)

    def _feed(self, x: Tensor, crowd: Crowd, products: Products) -> Tensor:
        """x (experts, most, in) to (experts * most, out)."""
        of_gate, of_up, of_down = self.biases
        hidden = self._linear(x, self.up, of_up, crowd, products)
        if self.gate is None:
            hidden = activate(hidden, self.activation)
        else:
            hidden = gate_times_up(self._linear(x, self.gate, of_gate, crowd, products), hidden, self.activation)
        return self._linear(hidden, self.down, of_down, crowd, products).flatten(0, 1)

    @staticmethod
    def _linear(x: Tensor, weight: Weight, bias: Weight | None, crowd: Crowd, products: Products) -> Tensor:
        product = products.each(x, weight.experts(crowd.experts))
        return product if bias is None else product + bias.store[on(x.device, crowd.experts)][:, None]

    def _limit(self, device: torch.device) -> int:
        """How many experts at once: a processor gains nothing by copies of their matrices."""
        return 1 if device.type == "cpu" else max(1, WEIGHTS_AT_ONCE // (self.up.shape[1] * self.up.shape[2]))


def crowds(choices: Indices, limit: int) -> Iterator[Crowd]:
    """Choices (n,) of experts in crowds of at most `limit` experts, so that less than half of the rows stay empty."""
    by_expert = np.argsort(choices, kind="stable")
    experts, firsts, counts = np.unique(choices[by_expert], return_index=True, return_counts=True)
    sizes = np.ceil(np.log2(counts)).astype(np.int64)
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        for first in range(0, len(alike), limit):
            some = alike[first : first + limit]
            most = int(counts[some].max())
            ranks = [np.arange(count) for count in counts[some]]
            places = [by_expert[begin + rank] for begin, rank in zip(firsts[some], ranks, strict=True)]
            rows = [index * most + rank for index, rank in enumerate(ranks)]
            yield Crowd(experts[some], most, np.concatenate(places), np.concatenate(rows))


def on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
