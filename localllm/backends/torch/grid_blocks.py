"""Blocks of the IQ1 to IQ3 types and of the ternary ones on the device: the twin of formats/grid_blocks.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from localllm.formats.grid_blocks import IQ1_SHIFT, IQ1_STEPS, grid


@cache
def _table(name: str, device: torch.device) -> Tensor:
    """The grid as float32 (entries, values), on the device once."""
    return torch.tensor(grid(name).tolist(), dtype=torch.float32, device=device)


def _half(field: Tensor) -> Tensor:
    return field.contiguous().view(torch.float16).float()


def _pairs(field: Tensor) -> Tensor:
    """Little-endian pairs of bytes (n, 2k) to ints (n, k)."""
    numbers = field.int().view(len(field), -1, 2)
    return numbers[:, :, 0] | numbers[:, :, 1] << 8


def _fields(numbers: Tensor, width: int, count: int) -> Tensor:
    """`count` fields of `width` bits of each number (n, k), lowest first: ints (n, k * count)."""
    fields = torch.stack([numbers.int() >> width * place for place in range(count)], dim=2)
    return (fields & ((1 << width) - 1)).view(len(numbers), -1)


def _signs(masks: Tensor) -> Tensor:
    """Eight signs for each byte (n, k), lowest bit first, set for minus: float32 (n, 8k)."""
    return 1 - 2 * _fields(masks, 1, 8).float()


def _even(codes: Tensor) -> Tensor:
    """Seven signs to eight: an even number of them is minus."""
    folded = codes ^ (codes >> 4)
    folded = folded ^ (folded >> 2)
    return codes | ((folded ^ (folded >> 1)) & 1) << 7


def _picked(name: str, indices: Tensor) -> Tensor:
    return _table(name, indices.device)[indices.int()].view(len(indices), -1)


def _times(values: Tensor, scale: Tensor) -> Tensor:
    """Values (n, values) times the scale of their group (n, groups)."""
    return (scale[:, :, None] * values.view(*scale.shape, -1)).view(values.shape)


def _with_half(scales: Tensor, by: float, whole: Tensor) -> Tensor:
    """whole (n, 1) * (scales + 1/2) * by"""
    return whole * (0.5 + scales.float()) * by


def _iq2_xxs(blocks: Tensor) -> Tensor:
    words = blocks[:, 2:].reshape(-1, 8, 8)
    values = _picked("IQ2_XXS", words[:, :, :4].reshape(len(blocks), -1))
    signs, scales = _signs_and_scales(words[:, :, 4:].reshape(len(blocks), -1))
    return _times(values * signs, _with_half(scales, 0.25, _half(blocks[:, :2])))


def _signs_and_scales(field: Tensor) -> tuple[Tensor, Tensor]:
    """Words (n, 4k) of four times seven signs and a scale of 4 bits, to (n, 32k) and (n, k)."""
    words = field.contiguous().view(torch.int32)
    return _signs(_even(_fields(words, 7, 4))), words >> 28 & 15


def _iq2_xs(blocks: Tensor) -> Tensor:
    pairs = _pairs(blocks[:, 2:66])
    values = _picked("IQ2_XS", pairs & 511) * _signs(_even(pairs >> 9))
    return _times(values, _with_half(_fields(blocks[:, 66:], 4, 2), 0.25, _half(blocks[:, :2])))


def _iq2_s(blocks: Tensor) -> Tensor:
    indices = blocks[:, 2:34].int() | _fields(blocks[:, 66:74], 2, 4) << 8
    values = _picked("IQ2_S", indices) * _signs(blocks[:, 34:66])
    return _times(values, _with_half(_fields(blocks[:, 74:], 4, 2), 0.25, _half(blocks[:, :2])))


def _iq3_xxs(blocks: Tensor) -> Tensor:
    signs, scales = _signs_and_scales(blocks[:, 66:])
    return _times(_picked("IQ3_XXS", blocks[:, 2:66]) * signs, _with_half(scales, 0.5, _half(blocks[:, :2])))


def _iq3_s(blocks: Tensor) -> Tensor:
    indices = blocks[:, 2:66].int() | _fields(blocks[:, 66:74], 1, 8) << 8
    values = _picked("IQ3_S", indices) * _signs(blocks[:, 74:106])
    return _times(values, _half(blocks[:, :2]) * (1 + 2 * _fields(blocks[:, 106:], 4, 2)).float())


def _iq1_s(blocks: Tensor) -> Tensor:
    pairs = _pairs(blocks[:, 34:])
    indices = blocks[:, 2:34].int() | _fields(pairs, 3, 4) << 8
    return _times(
        _eighths(indices, (pairs >> 15).repeat_interleave(4, dim=1)), _half(blocks[:, :2]) * _odd(pairs >> 12 & 7)
    )


def _iq1_m(blocks: Tensor) -> Tensor:
    nibbles, pairs = _fields(blocks[:, 32:48], 4, 2), _pairs(blocks[:, 48:])
    eighths = _eighths(blocks[:, :32].int() | (nibbles & 7) << 8, nibbles >> 3)
    parts = [pairs[:, place] >> 12 << 4 * place for place in range(4)]  # of the float16 that scales the block
    whole = torch.stack(parts).sum(0).to(torch.int16).view(torch.float16).float()
    return _times(eighths, whole[:, None] * _odd(_fields(pairs, 3, 4)))


def _eighths(indices: Tensor, down: Tensor) -> Tensor:
    """Values (n, 8k) in eighths; `down` (n, k) is 1 where eight of them are shifted down, else 0."""
    shift = (IQ1_SHIFT - 2 * IQ1_SHIFT * down).float()
    return IQ1_STEPS * _picked("IQ1_S", indices) + shift.repeat_interleave(8, dim=1)


def _odd(scales: Tensor) -> Tensor:
    """2s + 1, for values in eighths."""
    return (2 * scales + 1).float() * (1 / IQ1_STEPS)


def _tq1_0(blocks: Tensor) -> Tensor:
    parts = [_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)]
    return _half(blocks[:, 52:]) * (torch.cat(parts, dim=1).float() - 1)


def _digits(packed: Tensor, count: int) -> Tensor:
    """The first digit to base 3 of all bytes (n, k), then the second of all, ...: (n, k * count)."""
    return torch.cat([(packed.int() * 3**place & 255) * 3 >> 8 for place in range(count)], dim=1)


def _tq2_0(blocks: Tensor) -> Tensor:
    packed = blocks[:, :64].reshape(-1, 2, 32)
    quants = torch.stack([packed >> shift & 3 for shift in range(0, 8, 2)], dim=2)
    return _half(blocks[:, 64:]) * (quants.reshape(len(blocks), -1).float() - 1)


GRID_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "IQ1_S": _iq1_s,
        "IQ1_M": _iq1_m,
        "IQ2_XXS": _iq2_xxs,
        "IQ2_XS": _iq2_xs,
        "IQ2_S": _iq2_s,
        "IQ3_XXS": _iq3_xxs,
        "IQ3_S": _iq3_s,
        "TQ1_0": _tq1_0,
        "TQ2_0": _tq2_0,
    }
)
"""By the name of the block type: blocks uint8 (n, bytes of a block) to float32 (n, 256)."""
