"""GGML blocks to float32 on the device of their bytes, in the order of formats/blocks.py: equal to it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from localllm.backends.torch.grid_blocks import GRID_DECODERS
from localllm.formats.blocks import BLOCK_LAYOUTS, IQ4_VALUES, MXFP4_VALUES_DOUBLED, BlockType

FLOAT_TYPES: Mapping[BlockType, torch.dtype] = MappingProxyType(
    {BlockType.F32: torch.float32, BlockType.F16: torch.float16, BlockType.BF16: torch.bfloat16}
)
"""Block types that are a type of torch."""


def decode_rows(block_type: BlockType, raw: Tensor) -> Tensor:
    """raw uint8 (rows, bytes of a row) to float32 (rows, columns). KeyError for a type not in TORCH_DECODABLE."""
    blocks = raw.contiguous().view(-1, BLOCK_LAYOUTS[block_type].bytes_per_block)
    return _DECODERS[block_type](blocks).reshape(len(raw), -1)


def _half(field: Tensor) -> Tensor:
    """Little-endian float16 bytes (n, 2k) to float32 (n, k)."""
    return field.contiguous().view(torch.float16).float()


def _signed(field: Tensor) -> Tensor:
    return field.contiguous().view(torch.int8).float()


def _halves_in_order(packed: Tensor) -> Tensor:
    """Nibbles (n, b) to (n, 2b): first all low nibbles, then all high ones."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=1)


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """Nibbles to bytes (n, 2b), each `group` bytes giving their low nibbles, then their high ones."""
    grouped = packed.reshape(len(packed), -1, group)
    return torch.stack([grouped & 0x0F, grouped >> 4], dim=2).reshape(len(packed), -1)


def _bits(packed: Tensor, group: int, width: int) -> Tensor:
    """Fields of `width` bits to bytes, each `group` bytes giving their lowest fields first."""
    grouped = packed.reshape(len(packed), -1, group)
    fields = torch.stack([grouped >> shift for shift in range(0, 8, width)], dim=2)
    return (fields & ((1 << width) - 1)).reshape(len(packed), -1)


def _fifth_bits(field: Tensor) -> Tensor:
    """Four bytes (n, 4) to their 32 bits (n, 32) as sixteens, lowest first."""
    return _bits(field, 1, 1) << 4


def _values(codebook: tuple[int, ...], indices: Tensor) -> Tensor:
    return torch.tensor(codebook, dtype=torch.float32, device=indices.device)[indices.int()]


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * (_halves_in_order(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * _halves_in_order(blocks[:, 4:]).float() + _half(blocks[:, 2:4])


def _q5_0(blocks: Tensor) -> Tensor:
    quants = _halves_in_order(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * (quants.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    quants = _halves_in_order(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * quants.float() + _half(blocks[:, 2:4])


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * _signed(blocks[:, 2:])


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    scale = _half(blocks[:, 80:82]) * (scales & 0x0F).float()  # (n, 16), one for each 16 values
    floor = _half(blocks[:, 82:84]) * (scales >> 4).float()
    return _scaled(_bits(blocks[:, 16:80], 32, 2).float(), scale, floor)


def _q3_k(blocks: Tensor) -> Tensor:
    high = _bits(blocks[:, :32], 32, 1)  # a set bit means that 4 is not subtracted
    quants = _bits(blocks[:, 32:96], 32, 2).float() - 4 * (high ^ 1).float()
    packed = blocks[:, 96:108]  # sixteen 6-bit scales: low nibbles from eight bytes, high pairs from four
    scales = _halves_in_order(packed[:, :8]) | (_bits(packed[:, 8:], 4, 2) << 4)
    return _scaled(quants, _half(blocks[:, 108:110]) * (scales.float() - 32), None)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, floor = _k_scales(blocks)
    return _scaled(_nibbles(blocks[:, 16:], 32).float(), scale, floor)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, floor = _k_scales(blocks)
    quants = _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, 16:48], 32, 1) << 4)
    return _scaled(quants.float(), scale, floor)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and floor (n, 8) of Q4_K and Q5_K: two float16, then eight pairs of 6-bit numbers in twelve bytes."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], dim=1)
    floors = torch.cat([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], dim=1)
    return _half(blocks[:, :2]) * scales.float(), _half(blocks[:, 2:4]) * floors.float()


def _q6_k(blocks: Tensor) -> Tensor:
    quants = _nibbles(blocks[:, :128], 64) | (_bits(blocks[:, 128:192], 32, 2) << 4)
    return _scaled(quants.float() - 32, _half(blocks[:, 208:210]) * _signed(blocks[:, 192:208]), None)


def _scaled(quants: Tensor, scale: Tensor, floor: Tensor | None) -> Tensor:
    """quants (n, values) times the scale of its group (n, groups), minus the floor of its group."""
    grouped = scale[:, :, None] * quants.view(*scale.shape, -1)
    return (grouped if floor is None else grouped - floor[:, :, None]).view(quants.shape)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * _values(IQ4_VALUES, _halves_in_order(blocks[:, 2:]))


def _iq4_xs(blocks: Tensor) -> Tensor:
    scales = _bits(blocks[:, 4:8], 1, 4) | (_bits(blocks[:, 2:4], 1, 2) << 4)  # (n, 8)
    scale = _half(blocks[:, :2]) * (scales.float() - 32)
    return _scaled(_values(IQ4_VALUES, _nibbles(blocks[:, 8:], 16)), scale, None)


def _mxfp4(blocks: Tensor) -> Tensor:
    exponent = blocks[:, :1].int()
    # half of 2**(e - 127), because the codebook holds doubled values; the two smallest are denormal
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1).clamp(min=0) << 23)
    return bits.view(torch.float32) * _values(MXFP4_VALUES_DOUBLED, _halves_in_order(blocks[:, 1:]))


def _q1_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * (2 * _bits(blocks[:, 2:], 1, 1).float() - 1)


_DECODERS: Mapping[BlockType, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        BlockType.F32: lambda blocks: blocks.view(torch.float32),
        BlockType.F16: _half,
        BlockType.BF16: lambda blocks: blocks.view(torch.bfloat16).float(),
        BlockType.Q4_0: _q4_0,
        BlockType.Q4_1: _q4_1,
        BlockType.Q5_0: _q5_0,
        BlockType.Q5_1: _q5_1,
        BlockType.Q8_0: _q8_0,
        BlockType.Q2_K: _q2_k,
        BlockType.Q3_K: _q3_k,
        BlockType.Q4_K: _q4_k,
        BlockType.Q5_K: _q5_k,
        BlockType.Q6_K: _q6_k,
        BlockType.IQ4_NL: _iq4_nl,
        BlockType.IQ4_XS: _iq4_xs,
        BlockType.MXFP4: _mxfp4,
        BlockType.Q1_0: _q1_0,
        **{BlockType[name]: expand for name, expand in GRID_DECODERS.items()},
    }
)
TORCH_DECODABLE: frozenset[BlockType] = frozenset(_DECODERS)
