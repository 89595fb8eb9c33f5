"""Exclusive bounds of numbers in JSON schemas as readers of floats understand them.

A decimal may lie inside of an exclusive bound and become the bound when it is read into a float: -76.5000000000000002
under an exclusiveMaximum of -76.5. No two decimals of up to fifteen digits are the same float, so it is enough to bound
the decimals. (The next float as an inclusive bound will not do: below 99.99999999999999 llguidance allows no 99.9.)
"""

from collections.abc import Mapping
from typing import Any

_OF_NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""Keywords whose values are schemas by name; a name may be that of any keyword."""
_OF_VALUES = frozenset(("const", "enum", "default", "examples"))
"""Keywords whose values are no schemas."""
_FIXED = ("multipleOf", "enum", "const")
DIGITS = 15
MAX_DECIMALS = 9  # llguidance reads no finer step


def readable(schema: Any) -> Any:
    """The schema with bounded decimals wherever a float could be read as an exclusive bound. Its depth must have been
    checked."""
    if isinstance(schema, list | tuple):
        return [readable(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _inside(key, value) for key, value in schema.items()}
    decimals = [_decimals(found.get(name)) for name in ("exclusiveMinimum", "exclusiveMaximum")]
    known = [each for each in decimals if each is not None]
    if known and found.get("type") != "integer" and not any(name in found for name in _FIXED):
        found["multipleOf"] = float(f"1e-{min(known)}")
    return found


def _inside(key: str, value: Any) -> Any:
    if key in _OF_VALUES:
        return value
    if key in _OF_NAMES and isinstance(value, Mapping):
        return {name: readable(part) for name, part in value.items()}
    return readable(value)


def _decimals(bound: Any) -> int | None:
    """So many decimals a number near this bound may have. None where there is no bound that anything is rounded to."""
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 1e-6 < abs(bound) < 1e9:
        return None  # of zero, a decimal would need hundreds of digits to become it
    return min(MAX_DECIMALS, DIGITS - len(str(int(abs(bound)))))
