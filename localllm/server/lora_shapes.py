"""What the routes of adapters take and say."""

import msgspec
from msgspec import UNSET, UnsetType


class LoadLora(msgspec.Struct):
    """vLLM's order. `lora_path` is on the daemon's machine; `scale` is what requests get that name none."""

    lora_name: str
    lora_path: str
    scale: float | UnsetType | None = UNSET


class UnloadLora(msgspec.Struct):
    lora_name: str


class Lora(msgspec.Struct):
    """One adapter that requests may name. `base` is the model it was trained on, as it says itself."""

    id: int
    name: str
    path: str
    scale: float
    base: str | UnsetType = UNSET
    rank: int | UnsetType = UNSET
    targets: list[str] | UnsetType = UNSET


class LoraUnloaded(msgspec.Struct):
    unloaded: str
