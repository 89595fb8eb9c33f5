"""The colours of tokens: the same id has the same hue everywhere, dark text on light grounds or light on dark ones."""

from __future__ import annotations

from functools import lru_cache

from localllm.tui.colour import oklch

NUM_HUES = 12
_SPREAD = 0x9E3779B1  # neighbours in the vocabulary get hues that are far apart


def hue_of(token_id: int) -> int:
    """0 to 11."""
    return (token_id * _SPREAD >> 8 & 0xFFFF) % NUM_HUES


@lru_cache(256)
def chip_colours(hue: int, *, is_dark: bool, is_odd: bool = False) -> tuple[str, str]:
    """Text and ground of a chip, at least 9:1. Odd chips are 4 % lighter: for those that touch each other."""
    degrees = hue * 360 / NUM_HUES + 10
    lift = 0.04 if is_odd else 0.0
    if is_dark:
        return oklch(0.93, 0.03, degrees), oklch(0.345 + lift, 0.058, degrees)
    return oklch(0.32, 0.09, degrees), oklch(min(1.0, 0.90 + lift), 0.055, degrees)
