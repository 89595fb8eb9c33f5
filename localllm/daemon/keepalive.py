"""How long an idle model stays loaded, in the notations people know: "5m", "1h30m", 300, 0, -1."""

import math
import re

from localllm.errors import InvalidRequest
from localllm.settings import DURATION

FOREVER = math.inf
LONGEST_S = 100 * 365 * 86_400.0
"""More is for ever: no calendar has a date for it."""
_UNITS_S = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)")  # as Go writes them, days are ours
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def keep_alive_seconds(value: str | float | int) -> float:
    """Seconds, `FOREVER` for anything negative or beyond LONGEST_S. InvalidRequest: neither a number nor a duration."""
    if isinstance(value, str):
        value = _seconds_of(value.strip())
    if math.isnan(value):
        raise _refused("NaN")
    return FOREVER if value < 0 or value > LONGEST_S else float(value)


def _seconds_of(text: str) -> float:
    if not DURATION.fullmatch(text):
        raise _refused(repr(text))
    if _NUMBER.fullmatch(text):
        return float(text)
    if text.startswith("-"):
        return -1.0
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def _refused(shown: str) -> InvalidRequest:
    return InvalidRequest(
        f"keep_alive must be seconds or a duration such as 5m, not {shown}",
        hint='use "30s", "5m", "1h", 0 to unload at once, or -1 for ever',
        param="keep_alive",
    )
