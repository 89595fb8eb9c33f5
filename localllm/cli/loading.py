"""The options that say how a model is to be open: backend, device, KV type, quantization."""

from collections.abc import Mapping
from typing import Annotated

import typer

from localllm.errors import UsageError
from localllm.settings import Settings

Backend = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help="What computes: auto, cpu, torch, metal or reference.")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Device of the torch backend: cpu, cuda, cuda:1, mps.")
]
KvType = Annotated[
    str | None, typer.Option("--kv-type", metavar="TYPE", help="How keys and values are kept: auto, f16, f32 or q8_0.")
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="TYPE", help="Round float weights while they load: q8_0, q4_0 or q4_k."),
]
LOAD_FIELDS = ("backend", "device", "kv_type", "quantize")
TARGETS = ("q8_0", "q4_0", "q4_k", "none")


def wish_of(settings: Settings, quantize: str | None) -> Mapping[str, str]:
    """What a daemon that runs already must be told: flags, and what this shell's environment says."""
    if quantize is not None and quantize.lower() not in TARGETS:
        raise UsageError(f"weights cannot be rounded to {quantize!r}", hint=f"choose one of {', '.join(TARGETS)}")
    own = {
        name: str(getattr(settings, name))
        for name in LOAD_FIELDS[:3]
        if settings.origin[name].startswith(("flag", "environment"))
    }
    return own | ({"quantize": quantize.lower()} if quantize else {})
