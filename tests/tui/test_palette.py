"""The promises of the colours: what must be read has contrast, and owners stay apart for every kind of sight."""

from itertools import combinations

import pytest

from localllm.tui.colour import contrast, grey, hexed, mix, oklch, rgb
from localllm.tui.palette import CONTRAST, DARK, LIGHT, MONO, THEMES, Ink, Roles

SIGHTS = {  # Machado et al. 2009, severity 1, on linear light
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def oklab(colour: str, sight: str) -> tuple[float, ...]:
    linear = [
        value / 255 / 12.92 if value <= 10.31 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb(colour)
    ]
    seen = [max(0.0, min(1.0, sum(m * x for m, x in zip(row, linear, strict=True)))) for row in SIGHTS[sight]]
    red, green, blue = seen
    cones = (
        (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3),
        (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3),
        (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3),
    )
    rows = (
        (0.2104542553, 0.793617785, -0.0040720468),
        (1.9779984951, -2.428592205, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.808675766),
    )
    return tuple(sum(m * x for m, x in zip(row, cones, strict=True)) for row in rows)


@pytest.mark.parametrize("roles", THEMES, ids=lambda roles: roles.name)
def test_what_must_be_read_has_contrast_on_every_ground(roles: Roles) -> None:
    for ground in (roles.bg, roles.panel, roles.raised):
        for ink in (roles.text, roles.bright, roles.muted, roles.accent, roles.warn, roles.err):
            assert contrast(ink, ground) >= 4.3, (ink, ground)
        assert contrast(roles.faint, ground) >= 2.9
    assert contrast(roles.on_accent, roles.accent) >= 4.5
    assert contrast(roles.bright, roles.sel) >= 4.5


@pytest.mark.parametrize("roles", [DARK, LIGHT, CONTRAST], ids=lambda roles: roles.name)
def test_text_on_heat_can_be_read(roles: Roles) -> None:
    for ground, ink in zip(roles.heat, roles.heat_text, strict=True):
        assert contrast(ink, ground) >= 4.5


@pytest.mark.parametrize("roles", [DARK, LIGHT], ids=lambda roles: roles.name)
@pytest.mark.parametrize("sight", SIGHTS)
def test_owners_stay_apart(roles: Roles, sight: str) -> None:
    for one, other in combinations(roles.owners, 2):
        distance = sum((a - b) ** 2 for a, b in zip(oklab(one, sight), oklab(other, sight), strict=True)) ** 0.5
        assert distance >= 0.07, (one, other, distance)


def test_slots_beyond_the_hues_are_lighter_and_then_alike() -> None:
    assert DARK.owner(0) == DARK.owners[0] and DARK.owner(8) == mix(DARK.owners[0], DARK.bright, 0.45)
    assert DARK.owner(16) == DARK.owner(200) == DARK.muted


def test_mono_has_no_colours_and_fading_goes_towards_the_ground() -> None:
    assert all(len(set(rgb(colour))) == 1 for colour in MONO.colours().values())
    faded = Ink(DARK).faded()
    assert contrast(faded.roles.text, DARK.bg) < contrast(DARK.text, DARK.bg)
    assert faded.roles.bg == DARK.bg and faded.roles.owners[0] != DARK.owners[0]


def test_ink_knows_roles_and_colours() -> None:
    ink = Ink(DARK)
    style = ink("accent", bold=True, on="panel")
    assert style.color and style.color.get_truecolor() == rgb(DARK.accent) and style.bold
    assert style.bgcolor and style.bgcolor.get_truecolor() == rgb(DARK.panel)
    assert ink("#102030").color == ink("#102030").color
    with pytest.raises(AttributeError):
        ink("no such role")


def test_oklch_gives_what_the_formula_says() -> None:
    assert oklch(1.0, 0.0, 0.0) == "#ffffff" and oklch(0.0, 0.0, 0.0) == "#000000"
    assert oklch(0.6279554, 0.2576833, 29.2338) == "#ff0000"  # sRGB's red in Ottosson's own table
    assert all(0 <= value <= 255 for hue in range(0, 360, 15) for value in rgb(oklch(0.345, 0.4, hue)))
    assert grey("#ffffff") == hexed(255, 255, 255)
