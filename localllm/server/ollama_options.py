"""Ollama's `options`: checked, and sorted into those that an answer here depends on and those without effect."""

from collections.abc import Mapping
from typing import Any

from localllm.errors import InvalidRequest
from localllm.server.fields import MAX_NEW_TOKENS, check_stops
from localllm.server.ollama_shapes import NUMBERS, OllamaOptions
from localllm.wire import SAMPLING_BOUNDS

MAX_OPTIONS = 256
_WORDS: Mapping[type, str] = {int: "integer", float: "float32", bool: "boolean", list: "array of strings"}
_BOUNDS = (*SAMPLING_BOUNDS, ("num_ctx", 1, MAX_NEW_TOKENS), ("num_predict", -2, MAX_NEW_TOKENS))
_EFFECTIVE = frozenset(OllamaOptions.__struct_fields__)
_NEUTRAL: Mapping[str, Any] = {"tfs_z": 1.0, "mirostat": 0, "low_vram": False, "numa": False}
"""Values without an effect in Ollama either: nobody needs to be told."""


def sorted_options(given: Any) -> tuple[dict[str, Any], list[str]]:
    """Options with an effect, and the names of the others. InvalidRequest names an option of the wrong type or out of
    bounds, also where none has an effect."""
    if given is None:
        return {}, []
    if not isinstance(given, dict) or len(given) > MAX_OPTIONS:
        raise InvalidRequest("options must be an object", param="options")
    values = {name: _checked(name, value) for name, value in given.items() if value is not None}
    effective = {name: value for name, value in values.items() if name in _EFFECTIVE}
    _check_bounds(effective)
    others = [name for name, value in values.items() if name not in _EFFECTIVE and _NEUTRAL.get(name) != value]
    return effective, [f"options.{name}" for name in others]


def _checked(name: str, value: Any) -> Any:
    kind = NUMBERS.get(name)
    if kind is None:
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # JavaScript knows no whole numbers
    if kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if name == "stop" and isinstance(value, str):
        value = [value]
    if type(value) is not kind or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
        raise InvalidRequest(f'option "{name}" must be of type {_WORDS[kind]}', param=f"options.{name}")
    return value


def _check_bounds(options: Mapping[str, Any]) -> None:
    for ours, low, high in _BOUNDS:
        name = "repeat_penalty" if ours == "repetition_penalty" else ours
        if name in options and not low <= options[name] <= high:
            shown = f"options.{name}"
            raise InvalidRequest(f"{shown} must be between {low} and {high}, not {options[name]}", param=shown)
    check_stops(options.get("stop", ()), "options.stop")


def sampling_fields(options: OllamaOptions) -> dict[str, Any]:
    """As fields of our own requests, but for the limits on length."""
    fields = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repetition_penalty": options.repeat_penalty,
        "repeat_last_n": options.repeat_last_n,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": None if options.seed == -1 else options.seed,
        "stop": options.stop,
    }
    return {name: value for name, value in fields.items() if value is not None}


DEFAULTS: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""What Ollama's clients take for granted where neither they nor the model say otherwise."""
