"""Why the config.json of a Hugging Face folder or repository makes it none for us: known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localllm.errors import UnsupportedModel
from localllm.models.families import FAMILIES


def known_model_types() -> tuple[str, ...]:
    """The `model_type`s that are mapped, sorted."""
    return tuple(sorted({name for family in FAMILIES.values() for name in family.hf}))


def config_problem(config: Mapping[str, Any]) -> UnsupportedModel | None:
    """The reason, as the error to raise, why this build cannot run such a model; None when it may."""
    return _architecture_problem(config) or _quantization_problem(config)


def refuse_config(config: Mapping[str, Any]) -> None:
    """UnsupportedModel for code that came with a model, an unknown architecture, or weights quantized elsewhere."""
    if problem := config_problem(config):
        raise problem


def _architecture_problem(config: Mapping[str, Any]) -> UnsupportedModel | None:
    model_type, known = config.get("model_type"), known_model_types()
    if model_type in known:
        return None  # `auto_map` is then for other programs: nothing of it is needed here
    runs = "it runs " + ", ".join(known)
    if config.get("auto_map"):
        return UnsupportedModel(
            f"the model ({model_type!r}) is run by code that comes with it (auto_map), and such code is never run",
            hint=f"choose a model whose architecture this build knows: {runs}",
        )
    if not isinstance(model_type, str):
        return UnsupportedModel("config.json names no model_type", hint=runs)
    return UnsupportedModel(f"this build cannot run the architecture {model_type!r}", hint=runs)


def _quantization_problem(config: Mapping[str, Any]) -> UnsupportedModel | None:
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return None
    method = said.get("quant_method") or said.get("quant_algo") or "an unnamed method"
    if method == "mxfp4" and config.get("model_type") == "gpt_oss":
        return None
    return UnsupportedModel(
        f"the weights are quantized already ({method}), in a form that this build does not read yet",
        hint="use the original weights with --quantize, or a GGUF version",
    )
