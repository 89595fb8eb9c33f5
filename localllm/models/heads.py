"""What is behind the last norm of models that write nothing: layers that judge a pair of texts, or that make another
vector of the pooled one. They see one vector per text, so that numpy does on every host.

Refuses judgements of more than one kind: those are classes, and no order of documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import decode
from localllm.models.config import HeadActivation, HeadSpec, ModelConfig
from localllm.models.judges import LABELS, RANK, is_judge
from localllm.models.source import WeightSource
from localllm.wire import Pooling

Floats = NDArray[np.float32]
_POOLING: Mapping[int, Pooling] = MappingProxyType({1: "mean", 2: "first", 3: "last"})
_BERTS = ("bert", "roberta", "xlm-roberta", "camembert")
_erf = np.vectorize(math.erf, otypes=[np.float32])

_ACTIVATIONS: Mapping[HeadActivation, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "none": lambda x: x,
        "tanh": lambda x: np.tanh(x),
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: x * (1 + _erf(x * 0.5**0.5)) / 2,
        "gelu_tanh": lambda x: x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))) / 2,
    }
)
_NAMES: Mapping[str, HeadActivation] = MappingProxyType(
    {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "tanh": "tanh"}
)


@dataclass(frozen=True, slots=True)
class Dense:
    """activation(x @ weight.T + bias); weight (out, in)."""

    weight: Floats
    bias: Floats | None = None
    activation: HeadActivation = "none"

    def __call__(self, x: Floats) -> Floats:
        product = self.weight @ x
        return _ACTIVATIONS[self.activation](product if self.bias is None else product + self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Mean and variance of the whole vector."""

    weight: Floats
    bias: Floats | None
    eps: float

    def __call__(self, x: Floats) -> Floats:
        centred = x - x.mean(dtype=np.float32)
        normed = centred / np.sqrt(np.mean(centred * centred, dtype=np.float32) + np.float32(self.eps)) * self.weight
        return np.asarray(normed if self.bias is None else normed + self.bias, np.float32)


@dataclass(frozen=True, slots=True)
class Head:
    """Layers over a pooled vector (hidden,), float32. `judges`: what comes out is one number, the logit of a pair;
    else it is the vector of a text. `pooling`: whose state it was trained on."""

    spec: HeadSpec
    layers: Sequence[Callable[[Floats], Floats]]

    @property
    def judges(self) -> bool:
        return self.spec.judges

    @property
    def pooling(self) -> Pooling:
        return self.spec.pooling

    def __call__(self, pooled: Floats) -> Floats:
        x = pooled
        for layer in self.layers:
            x = layer(x)
        if self.judges and len(x) == 2:  # yes and no: the softmax of the first is the sigmoid of this
            x = x[:1] - x[1:]
        return np.asarray(x, np.float32)


def read_head(config: ModelConfig, source: WeightSource) -> Head | None:
    """The layers out of a model's own file; None where the config tells of none."""
    spec = config.head
    if spec is None:
        return None
    if spec.words is not None:
        output = "output.weight" if source.info("output.weight") is not None else "token_embd.weight"
        return Head(spec, [Dense(_rows(source, output, spec.words))])
    if not spec.judges:
        return Head(spec, [_dense(source, name) for name in ("dense_2", "dense_3")])
    layers: list[Callable[[Floats], Floats]] = []
    if source.info("cls.weight") is not None:
        layers.append(_dense(source, "cls", spec.activation))
    if source.info("cls.norm.weight") is not None:
        layers.append(Norm(_values(source, "cls.norm.weight"), _maybe(source, "cls.norm.bias"), spec.norm_eps))
    return Head(spec, [*layers, _dense(source, "cls.output")])


def head_from_config(config: Mapping[str, Any]) -> HeadSpec | None:
    """Of a checkpoint that judges, by its `architectures`. UnsupportedModel: it tells classes apart, or its head is
    another."""
    kind = config.get("model_type")
    if not is_judge(config):
        return None
    labels = config.get("id2label")
    num_labels = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 1)
    if num_labels != 1:
        raise UnsupportedModel(
            f"this model sorts texts into {num_labels} classes, and this build runs only those that judge how well"
            " two texts go together",
            hint="choose a reranker, whose config.json has one label",
        )
    if kind in _BERTS:
        return HeadSpec("first", activation="tanh")
    if kind == "modernbert":
        return _modern(config)
    if kind == "nomic_bert":
        raise UnsupportedModel("this build does not know how Nomic-BERT judges texts")
    return HeadSpec("last")


def _modern(config: Mapping[str, Any]) -> HeadSpec:
    pooling, activation = config.get("classifier_pooling", "cls"), config.get("classifier_activation", "gelu")
    if pooling not in ("cls", "mean") or activation not in _NAMES:
        raise UnsupportedModel(f"this build does not know a head by {pooling!r} and {activation!r}"[:300])
    eps = config.get("norm_eps", 1e-5)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise BadModelFile(f"norm_eps must be a number, not {eps!r:.60}")
    return HeadSpec("first" if pooling == "cls" else "mean", activation=_NAMES[activation], norm_eps=float(eps))


def head_from_gguf(metadata: Mapping[str, Any], tensors: Collection[str], *, is_encoder: bool) -> HeadSpec | None:
    """UnsupportedModel where a file says that it judges and has no head, or labels that are none of ours."""
    architecture = metadata.get("general.architecture")
    pooling = metadata.get(f"{architecture}.pooling_type")
    if "dense_2.weight" in tensors:
        usual: Pooling = "mean" if is_encoder else "last"
        return HeadSpec(_POOLING.get(pooling, usual) if isinstance(pooling, int) else usual, judges=False)
    if "cls.output.weight" not in tensors:
        if pooling == RANK:
            raise UnsupportedModel(
                "the model file says that it judges pairs of texts (pooling_type 4), but has no head (cls.output)",
                hint="take a file of this model that was made as a reranker",
            )
        return None
    labels = metadata.get(f"{architecture}.classifier.output_labels")
    if labels is not None and not isinstance(labels, list):
        raise BadModelFile(f"{architecture}.classifier.output_labels must be a list, not {labels!r:.60}")
    if labels is not None and len(labels) > 1 and list(labels) != LABELS:
        raise UnsupportedModel(
            f"this model sorts texts into {len(labels)} classes, and this build runs only those that judge how well"
            " two texts go together"
        )
    if architecture == "modern-bert":
        return HeadSpec("mean", activation="gelu", norm_eps=_eps(metadata, architecture))
    return HeadSpec("first", activation="tanh") if is_encoder else HeadSpec("last")


def _eps(metadata: Mapping[str, Any], architecture: str) -> float:
    eps = metadata.get(f"{architecture}.attention.layer_norm_epsilon", 1e-5)
    return float(eps) if isinstance(eps, (int, float)) else 1e-5


def _dense(source: WeightSource, name: str, activation: HeadActivation = "none") -> Dense:
    return Dense(_values(source, f"{name}.weight"), _maybe(source, f"{name}.bias"), activation)


def _maybe(source: WeightSource, name: str) -> Floats | None:
    return None if source.info(name) is None else _values(source, name)


def _values(source: WeightSource, name: str) -> Floats:
    """A copy: the file's pages are given back."""
    info = source.info(name)
    if info is None:
        raise BadModelFile(f"the model file lacks the tensor {name}")
    values = np.array(decode(info.type, source.raw(name), info.shape), np.float32)
    source.release(name)
    return values


def _rows(source: WeightSource, name: str, indices: tuple[int, ...]) -> Floats:
    info = source.info(name)
    assert info is not None, "checked with the config"
    blocks = source.raw(name).reshape(info.shape[0], -1)[list(indices)]
    return np.array(decode(info.type, blocks, (len(indices), info.shape[1])), np.float32)
