"""Small numbers into the bit fields of blocks: the other direction of the field readers in formats/blocks.py."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def pack_bits(numbers: NDArray[Any], group: int, width: int) -> Bytes:
    """uint8 (n, values) to (n, values * width / 8): `group` bytes take their lowest fields first. `width` divides 8."""
    fields = numbers.reshape(len(numbers), -1, 8 // width, group)
    packed: Bytes = fields[:, :, 0]
    for index in range(1, 8 // width):
        packed = packed | (fields[:, :, index] << np.uint8(index * width))
    return packed.reshape(len(numbers), -1)


def halves(numbers: Floats) -> tuple[Bytes, Floats]:
    """(n,) to float16 bytes (n, 2), and the numbers as a reader will see them."""
    rounded = numbers.astype("<f2")
    return rounded.reshape(-1, 1).view(np.uint8), rounded.astype(np.float32)


def pack_scale_pairs(scales: Bytes, floors: Bytes) -> Bytes:
    """Eight scales and eight floors of 6 bits (n, 8) to twelve bytes, as Q4_K and Q5_K keep them."""
    low = (scales[:, :4] & 0x3F) | ((scales[:, 4:] >> 4) << 6)
    middle = (floors[:, :4] & 0x3F) | ((floors[:, 4:] >> 4) << 6)
    high = (scales[:, 4:] & 0x0F) | ((floors[:, 4:] & 0x0F) << 4)
    return np.concatenate([low, middle, high], axis=1)
