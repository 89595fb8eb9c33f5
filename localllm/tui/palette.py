"""The colour roles of the themes, and the ink that paints with them.

Every role has a meaning (docs/tui.md); no widget names a colour. Owner hues are data, not signals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from rich.style import Style
from textual.theme import Theme

from localllm.tui.colour import grey, mix

OWNER_LETTERS = "abcdefghijklmnop"
OTHERS = "+"
"""Owners beyond the sixteenth."""


@dataclass(frozen=True, slots=True)
class Roles:
    """A theme. `owners` are eight hues; `heat` the grounds and `heat_text` the inks of five steps from sure to unsure,
    the first of them plain."""

    name: str
    is_dark: bool
    bg: str
    panel: str
    raised: str
    sel: str
    line: str
    faint: str
    muted: str
    text: str
    bright: str
    accent: str
    accent_bg: str
    on_accent: str
    warn: str
    warn_fill: str
    warn_bg: str
    err: str
    err_bg: str
    shared: str
    cached: str
    free: str
    preempted: str
    owners: tuple[str, ...]
    heat: tuple[str, ...]
    heat_text: tuple[str, ...]

    def owner(self, slot: int) -> str:
        """The hue of an owner: slots 8 to 15 have those of the first eight, lighter; beyond, all look alike."""
        if slot < 8:
            return self.owners[slot]
        return mix(self.owners[slot - 8], self.bright, 0.45) if slot < 16 else self.muted

    def theme(self) -> Theme:
        """For Textual's own widgets; the roles are variables: `$role-accent-bg`."""
        return Theme(
            name=f"localllm-{self.name}",
            primary=self.accent,
            secondary=self.muted,
            accent=self.accent,
            warning=self.warn,
            error=self.err,
            success=self.accent,
            foreground=self.text,
            background=self.bg,
            surface=self.panel,
            panel=self.raised,
            dark=self.is_dark,
            variables={"role-" + role.replace("_", "-"): colour for role, colour in self.colours().items()}
            | {
                "scrollbar": self.line,
                "scrollbar-hover": self.muted,
                "scrollbar-active": self.accent,
                "scrollbar-background": self.bg,
                "scrollbar-background-hover": self.bg,
                "scrollbar-background-active": self.bg,
                "scrollbar-corner-color": self.bg,
                "input-cursor-background": self.accent,
                "input-selection-background": self.sel,
            },
        )

    def colours(self) -> dict[str, str]:
        """All single roles."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in NOT_COLOURS}

    def mapped(self, name: str, changes: Mapping[str, str], is_grey: bool = False) -> Roles:
        """This theme with some roles changed, or with all colours as greys."""
        turned = grey if is_grey else str
        colours: dict[str, Any] = {role: turned(colour) for role, colour in self.colours().items()}
        lists = {key: tuple(map(turned, getattr(self, key))) for key in ("owners", "heat", "heat_text")}
        return replace(self, name=name, **colours | dict(changes) | lists)


NOT_COLOURS = ("name", "is_dark", "owners", "heat", "heat_text")

DARK = Roles(
    name="dark",
    is_dark=True,
    bg="#0f1318",
    panel="#141a21",
    raised="#1a212a",
    sel="#212c37",
    line="#28323e",
    faint="#66727f",
    muted="#8e9aab",
    text="#ccd4df",
    bright="#f3f6fa",
    accent="#6fd6b8",
    accent_bg="#17322f",
    on_accent="#0f1318",
    warn="#e8b45a",
    warn_fill="#e8b45a",
    warn_bg="#2c2518",
    err="#f0746e",
    err_bg="#321e20",
    shared="#eef2f7",
    cached="#485565",
    free="#1e262f",
    preempted="#f0746e",
    owners=("#5aaef2", "#c08b30", "#a8c545", "#f48fb4", "#f3d5a8", "#6f7fe6", "#8be9e4", "#c34d70"),
    heat=("#0f1318", "#2c2a28", "#4a3a26", "#865a24", "#d98a2b"),
    heat_text=("#ccd4df", "#ccd4df", "#f0dcc0", "#fff3df", "#1a1206"),
)
LIGHT = Roles(
    name="light",
    is_dark=False,
    bg="#fbfaf7",
    panel="#f4f2ed",
    raised="#edeae3",
    sel="#e2e9e4",
    line="#dad6cb",
    faint="#8b877c",
    muted="#65635b",
    text="#2b2e32",
    bright="#08090a",
    accent="#0b7a66",
    accent_bg="#d8ebe4",
    on_accent="#ffffff",
    warn="#8f5a00",
    warn_fill="#d9982a",
    warn_bg="#f6ead0",
    err="#b8352c",
    err_bg="#f8e1dd",
    shared="#434b55",
    cached="#b8b3a7",
    free="#e7e3d9",
    preempted="#d4453b",
    owners=("#2f7bcb", "#cf6f48", "#56711b", "#9c3f80", "#b0b010", "#3b2f97", "#16a9cf", "#6e2b2b"),
    heat=("#fbfaf7", "#f3ead6", "#f0d6a4", "#e3b164", "#99600a"),
    heat_text=("#2b2e32", "#2b2e32", "#2b2413", "#20180a", "#ffffff"),
)
CONTRAST = DARK.mapped(
    "contrast",
    {
        "bg": "#000000", "panel": "#000000", "raised": "#101010", "faint": "#e6e6e6", "muted": "#e6e6e6",
        "text": "#ffffff", "bright": "#ffffff", "on_accent": "#000000", "line": "#6e6e6e",
    },
)  # fmt: skip
MONO = DARK.mapped("mono", {}, is_grey=True)
"""Where there are no colours: letters and words carry everything."""
THEMES = (DARK, LIGHT, CONTRAST, MONO)


class Ink:
    """Styles by the names of roles. `is_mono`: nothing may rest on a colour."""

    def __init__(self, roles: Roles, is_mono: bool = False) -> None:
        self.roles = roles
        self.is_mono = is_mono or roles.name == "mono"
        self._made = lru_cache(8192)(self._make)

    def __call__(
        self,
        role: str = "text",
        *,
        on: str | None = None,
        bold: bool = False,
        italic: bool = False,
        underline: bool = False,
        strike: bool = False,
    ) -> Style:
        """`role` and `on` are names of roles or "#rrggbb". Without `on` the ground is that of the widget."""
        return self._made(role, on, bold, italic, underline, strike)

    def colour(self, role: str) -> str:
        return role if role.startswith("#") else getattr(self.roles, role)

    def faded(self, share: float = 0.55) -> Ink:
        """The same, nearer to the ground: for data that is old."""
        return Ink(_faded(self.roles, share), self.is_mono)

    @cached_property
    def selected(self) -> Style:
        """What a selected row is stylized with."""
        return Style(reverse=True) if self.is_mono or self.roles.name == "contrast" else Style(bgcolor=self.roles.sel)

    def _make(self, role: str, on: str | None, bold: bool, italic: bool, underline: bool, strike: bool) -> Style:
        return Style(
            color=self.colour(role),
            bgcolor=None if on is None else self.colour(on),
            bold=bold,
            italic=italic,
            underline=underline,
            strike=strike,
        )


@lru_cache(16)
def _faded(roles: Roles, share: float) -> Roles:
    kept = ("bg", "panel", "raised", "line", "free", "accent_bg", "warn_bg", "err_bg", "on_accent")
    changes = {role: mix(colour, roles.bg, share) for role, colour in roles.colours().items() if role not in kept}
    owners = tuple(mix(hue, roles.bg, share) for hue in roles.owners)
    return replace(roles.mapped(roles.name, changes), owners=owners)
