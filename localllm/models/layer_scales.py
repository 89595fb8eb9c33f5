"""Scales of whole layers: files keep each as a tensor of one number, and the config knows the number."""

from __future__ import annotations

from dataclasses import replace

from localllm.formats.blocks import decode
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource


def with_layer_scales(config: ModelConfig, source: WeightSource) -> ModelConfig:
    """The config with the scale of every layer that has one."""
    scales = [_scale(source, f"blk.{index}.layer_output_scale.weight") for index in range(len(config.layers))]
    if set(scales) <= {1.0}:
        return config
    layers = (replace(layer, scale=scale) for layer, scale in zip(config.layers, scales, strict=True))
    return replace(config, layers=tuple(layers))


def _scale(source: WeightSource, name: str) -> float:
    info = source.info(name)
    return 1.0 if info is None else float(decode(info.type, source.raw(name), info.shape)[0])
