"""The options that say how a model is to be open: backend, device, KV type, threads, quantization."""

from collections.abc import Mapping
from typing import Annotated

import typer

from localllm.errors import UsageError
from localllm.settings import OF_LOADING, Settings

Backend = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help="What computes: auto, cpu, torch, metal or reference.")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Device of the torch backend: cpu, cuda, cuda:1, mps.")
]
KvType = Annotated[
    str | None, typer.Option("--kv-type", metavar="TYPE", help="How keys and values are kept: auto, f16, f32 or q8_0.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=0, max=256, help="Threads of the CPU backend; 0: one per physical core."),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="TYPE", help="Round float weights while they load: q8_0, q4_0 or q4_k."),
]
LOAD_FIELDS = (*OF_LOADING, "quantize")
TARGETS = ("q8_0", "q4_0", "q4_k", "none")


def target_of(quantize: str | None) -> str | None:
    """What `--quantize` asks for; UsageError names the choices."""
    if quantize is not None and quantize.lower() not in TARGETS:
        raise UsageError(f"weights cannot be rounded to {quantize!r}", hint=f"choose one of {', '.join(TARGETS)}")
    return quantize.lower() if quantize is not None else None


def wish_of(settings: Settings, quantize: str | None) -> Mapping[str, str | int]:
    """What a daemon that runs already must be told: flags, and what this shell's environment says."""
    target = target_of(quantize)
    own = {
        name: getattr(settings, name)
        for name in OF_LOADING
        if settings.origin[name].startswith(("flag", "environment"))
    }
    return own | ({"quantize": target} if target else {})
