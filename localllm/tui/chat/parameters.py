"""What can be set for a chat: names, bounds and steps of parameters, and the presets that everybody has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from localllm.errors import UsageError
from localllm.history import Preset

Kind = Literal["slider", "switch", "number", "texts"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`field` is that of a request. Sliders go from `low` to `high`; `is_wide`: by doubling."""

    field: str
    label: str
    tip: str
    kind: Kind = "slider"
    low: float = 0.0
    high: float = 1.0
    step: float = 0.05
    start: float = 0.0
    is_wide: bool = False

    @property
    def is_whole(self) -> bool:
        return self.step >= 1 or self.kind == "number"

    def moved(self, value: Any, by: int) -> Any:
        """The value `by` steps further; from none the slider starts where most models stand."""
        if self.kind == "switch":
            return "none" if by < 0 else None
        if value is None:
            return self._typed(self.start)
        if self.is_wide:
            return self._typed(2 ** (math.floor(math.log2(max(1, value))) + by))
        return self._typed(round(value / self.step) * self.step + by * self.step)

    def share(self, value: float) -> float:
        """Where on the slider a value stands, 0 to 1."""
        if self.is_wide:
            return (math.log2(max(self.low, value)) - math.log2(self.low)) / (
                math.log2(self.high) - math.log2(self.low)
            )
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def read(self, text: str) -> Any:
        """What was typed; None for nothing. UsageError names the bounds."""
        text = text.strip()
        if not text:
            return None
        if self.kind == "texts":
            return [part for part in (piece.strip() for piece in text.split(",")) if part] or None
        try:
            value = float(text.replace(",", ""))
        except ValueError:
            raise UsageError(f"{self.label} is a number, not {text!r}") from None
        if not self.low <= value <= self.high:  # false for NaN, too
            raise UsageError(f"{self.label} goes from {self.text(self.low)} to {self.text(self.high)}")
        return self._typed(value)

    def text(self, value: Any) -> str:
        if value is None:
            return {"number": "random", "texts": "none"}.get(self.kind, "default")
        if self.kind == "texts":
            return ", ".join(map(repr, value)) if isinstance(value, list) else repr(value)
        return f"{value:,.0f}" if self.is_whole else f"{value:.2f}"

    def _typed(self, value: float) -> Any:
        bounded = min(self.high, max(self.low, value))
        return int(bounded) if self.is_whole else round(bounded, 4)


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("temperature", "temperature", "0 takes the likeliest token each time", high=2.0, start=0.7),
    Parameter("top_p", "top p", "Choose among the likeliest tokens that make up this share", start=0.95),
    Parameter("top_k", "top k", "Choose among so many of the likeliest tokens; 0: all", high=100, step=1, start=40),
    Parameter("min_p", "min p", "Leave out tokens less likely than this share of the likeliest", step=0.01, start=0.05),
    Parameter("repetition_penalty", "repeat", "Above 1 makes repetition less likely", low=0.5, high=2.0, start=1.05),
    Parameter(
        "max_tokens",
        "reply limit",
        "Tokens of an answer at most",
        low=16,
        high=131072,
        step=1,
        start=1024,
        is_wide=True,
    ),
    Parameter("reasoning_effort", "thinking", "Whether models that can think do so", "switch"),
    Parameter("seed", "seed", "The same seed gives the same answer", "number", high=2**53),
    Parameter("stop", "stop", "End the answer before these texts", "texts"),
)
BUILT_IN: tuple[Preset, ...] = (
    Preset("balanced", {}),
    Preset("careful", {"temperature": 0.3, "top_p": 0.9}),
    Preset("exact", {"temperature": 0.0}),
    Preset("inventive", {"temperature": 1.1, "min_p": 0.05}),
)
"""The first one is what a new chat begins with: the model's own values."""


def preset_name(parameters: Mapping[str, Any], presets: list[Preset]) -> str:
    """The preset that has these parameters; `own` when none has."""
    return next((preset.name for preset in presets if preset.parameters == dict(parameters)), "own")


def changed(parameters: Mapping[str, Any], parameter: Parameter, value: Any) -> dict[str, Any]:
    """`parameters` with one of them set, or without it for None."""
    others = {name: other for name, other in parameters.items() if name != parameter.field}
    return others if value is None else {**others, parameter.field: value}
