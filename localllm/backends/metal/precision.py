"""In which types products are computed. Between products everything is float32: norms, sums, softmax, logits."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from localllm.formats.blocks import BlockType
from localllm.models.config import ModelConfig

HALVES = {BlockType.F16: mx.float16, BlockType.BF16: mx.bfloat16}


@dataclass(frozen=True, slots=True)
class Precision:
    """`half`: products of weights that are not float32 take float16 (bfloat16) inputs and return such outputs."""

    half: bool

    def of(self, kind: BlockType) -> mx.Dtype:
        """What a product with weights of this block type is computed in."""
        if not self.half or kind == BlockType.F32:
            return mx.float32
        return HALVES.get(kind, mx.float16)


def precision_for(config: ModelConfig, device: str) -> Precision:
    """Half on a GPU, but for models that scale their embedding (Gemma): their activations pass float16's range."""
    return Precision(half=device == "gpu" and config.embed_scale == 1.0)
