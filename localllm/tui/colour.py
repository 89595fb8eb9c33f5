"""Colour arithmetic: "#rrggbb" in and out. What lies outside of sRGB is brought in by lowering its chroma."""

from __future__ import annotations

import math
from functools import lru_cache

Rgb = tuple[float, float, float]


def rgb(colour: str) -> tuple[int, int, int]:
    """0 to 255 each."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def hexed(red: float, green: float, blue: float) -> str:
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"


@lru_cache(4096)
def mix(first: str, second: str, share: float) -> str:
    """`first` with this share of `second` in it."""
    one, two = rgb(first), rgb(second)
    return hexed(*(x + (y - x) * share for x, y in zip(one, two, strict=True)))


def grey(colour: str) -> str:
    red, green, blue = rgb(colour)
    return hexed(*[0.2126 * red + 0.7152 * green + 0.0722 * blue] * 3)


def luminance(colour: str) -> float:
    red, green, blue = (_linear(value) for value in rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """WCAG 2's ratio, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@lru_cache(1024)
def oklch(lightness: float, chroma: float, hue: float) -> str:
    """Oklab in polar form (Ottosson 2020): lightness 0 to 1, hue in degrees."""
    while True:
        linear = _from_oklab(lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue)))
        if chroma < 0.005 or all(-0.002 <= value <= 1.002 for value in linear):
            return hexed(*(_gamma(value) for value in linear))
        chroma *= 0.97


def _from_oklab(lightness: float, a: float, b: float) -> Rgb:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.707614701 * short,
    )


def _linear(value: float) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def _gamma(value: float) -> float:
    share = min(1.0, max(0.0, value))
    return 255 * (12.92 * share if share <= 0.0031308 else 1.055 * share ** (1 / 2.4) - 0.055)
