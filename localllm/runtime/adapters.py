"""Which adapter a call means: a path, one for each prompt, or what the model itself comes with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localllm.errors import InvalidRequest
from localllm.models.open_adapter import adapter_place

Lora = str | Path | None
"""The folder or file of an adapter; an empty text: none; None: what the model comes with."""
MAX_SCALE = 100


def adapter_path(lora: Lora, usual: str = "") -> str:
    """The absolute path of an adapter as the engine knows it, empty for none. ModelNotFound or BadModelFile where there
    is none at the path."""
    if lora is None:
        return usual
    if not isinstance(lora, str | Path):
        raise InvalidRequest(f"lora must be the path of an adapter, not {type(lora).__name__}", param="lora")
    return str(adapter_place(Path(os.path.expanduser(lora)).absolute())) if str(lora) else ""


def adapter_paths(lora: Lora | Sequence[Lora], count: int, usual: str) -> list[str]:
    """One for each of `count` prompts."""
    if lora is None or isinstance(lora, str | Path):
        return [adapter_path(lora, usual)] * count
    if not isinstance(lora, Sequence) or len(lora) != count:
        raise InvalidRequest(f"lora must be one path, or a list of {count}: one for each prompt", param="lora")
    return [adapter_path(each, usual) for each in lora]


def checked_scale(scale: Any) -> float:
    """InvalidRequest for what is no number between -100 and 100."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not -MAX_SCALE <= scale <= MAX_SCALE:
        raise InvalidRequest(
            f"lora_scale must be a number between -{MAX_SCALE} and {MAX_SCALE}, not {scale!r}", param="lora_scale"
        )
    return float(scale)
