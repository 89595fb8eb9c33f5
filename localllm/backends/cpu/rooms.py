"""How much room a layer's keys and values take in a page: what number_bytes and room_bytes of kernels.h say."""

from localllm.backends.layout import attention_specs
from localllm.models.config import ModelConfig

FLOAT_BYTES = {"f16": 2, "f32": 4}
BLOCK = 32
SCALE_BYTES = 2


def layer_bytes(config: ModelConfig, page_size: int, kv_type: str) -> int:
    """Bytes in a page of `page_size` tokens for the widest layer. `kv_type`: "f16", "f32" or "q8_0".

    q8_0: one byte per number and a half per 32 dimensions of a position's head; a head's last block may be shorter.
    """

    def room(dims: int) -> int:
        return head_bytes(dims, page_size, kv_type)

    specs = [spec for _, spec in attention_specs(config)]
    return max((spec.num_kv_heads * (room(spec.head_dim) + room(spec.value_dim)) for spec in specs), default=0)


def head_bytes(dims: int, page_size: int, kv_type: str) -> int:
    """Of the keys, or the values, of one head."""
    count = dims * page_size
    if kv_type != "q8_0":
        return count * FLOAT_BYTES[kv_type]
    return count + count % 2 + SCALE_BYTES * page_size * -(-dims // BLOCK)
