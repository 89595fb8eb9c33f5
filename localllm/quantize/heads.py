"""Layers over pooled vectors as GGUF files have them; refuses what such files cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BlockType, encode
from localllm.formats.gguf_write import Tensor
from localllm.models.config import ModelConfig
from localllm.models.heads import Dense, Head, head_from_gguf
from localllm.models.judges import LABELS, RANK
from localllm.models.source import WeightSource

AS_IT_IS = "run the folder as it is"


def told_of_head(config: ModelConfig, head: Head | None) -> dict[str, Any]:
    """Metadata of a model that judges, or whose vectors go on. `head`: one that is not in the checkpoint's own file."""
    spec = head.spec if head is not None else config.head
    if spec is None:
        return {}
    architecture = config.architecture
    if not spec.judges:
        return _sizes(architecture, head)
    said = head_from_gguf({"general.architecture": architecture}, ["cls.output.weight"], is_encoder=config.is_encoder)
    is_said = said is not None and (spec.pooling, spec.activation) == (said.pooling, said.activation)
    if spec.words is None and not is_said:
        raise UnsupportedModel(
            f"GGUF files of {architecture} cannot say that pairs are judged by {spec.pooling} and {spec.activation}",
            hint=AS_IT_IS,
        )
    told: dict[str, Any] = {f"{architecture}.pooling_type": RANK}
    return told if spec.words is None else {**told, f"{architecture}.classifier.output_labels": LABELS}


def _sizes(architecture: str, head: Head | None) -> dict[str, Any]:
    """llama.cpp does not take them from the tensors."""
    told: dict[str, Any] = {}
    for name, (_, shape, _, _) in zip(("dense_2", "dense_3"), head_tensors(head), strict=False):
        told |= {f"{architecture}.{name}_feat_out": shape[0], f"{architecture}.{name}_feat_in": shape[1]}
    return told


def told_of_types(config: ModelConfig, source: WeightSource) -> dict[str, Any]:
    """llama.cpp wants the number of types of tokens, even where they are in the positions."""
    if not config.is_encoder or config.architecture not in ("bert", "nomic-bert"):
        return {}
    types = source.info("token_types.weight")
    return {"tokenizer.ggml.token_type_count": 1 if types is None else types.shape[0]}


def head_tensors(head: Head | None) -> Iterator[Tensor]:
    """Two words become a layer of two rows; layers of vectors are two, without biases."""
    if head is None:
        return
    layers = [layer for layer in head.layers if isinstance(layer, Dense)]
    names = ("cls.output.weight",) if head.judges else ("dense_2.weight", "dense_3.weight")
    is_plain = all(layer.bias is None and layer.activation == "none" for layer in layers)
    if not is_plain or len(layers) != len(names) or len(layers) != len(head.layers):
        raise UnsupportedModel("GGUF files cannot say what becomes of this model's vectors", hint=AS_IT_IS)
    for name, layer in zip(names, layers, strict=True):
        yield name, layer.weight.shape, BlockType.F32, encode(BlockType.F32, layer.weight)
