"""The options that say how a model is to be open: backend, device, KV type, threads, quantization."""

import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated

import typer

from localllm.daemon.loras import NamedLora, facts_of, parsed_lora
from localllm.errors import ModelNotFound, UsageError
from localllm.settings import BACKENDS, KV_TYPES, OF_LOADING, Settings

TARGETS = ("q8_0", "q4_0", "q4_k", "none")


def starting(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """For the shell's Tab key: those of `choices` that begin as what is typed."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What computes: auto, cpu, torch, metal or reference.",
        autocompletion=starting(BACKENDS),
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Device of the torch backend: cpu, cuda, cuda:1, mps.")
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        metavar="TYPE",
        help="How keys and values are kept: auto, f16, f32 or q8_0.",
        autocompletion=starting(KV_TYPES),
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=0, max=256, help="Threads of the CPU backend; 0: one per physical core."),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="TYPE",
        help="Round float weights while they load: q8_0, q4_0 or q4_k.",
        autocompletion=starting(TARGETS),
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        "--lora", metavar="[NAME=]PATH[:SCALE]", help="Apply an adapter: its folder or file.", show_default=False
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="[NAME=]PATH[:SCALE]",
        help="An adapter that requests may name; may be given again.",
        show_default=False,
    ),
]
LOAD_FIELDS = (*OF_LOADING, "quantize")


def target_of(quantize: str | None) -> str | None:
    """What `--quantize` asks for; UsageError names the choices."""
    if quantize is not None and quantize.lower() not in TARGETS:
        raise UsageError(f"weights cannot be rounded to {quantize!r}", hint=f"choose one of {', '.join(TARGETS)}")
    return quantize.lower() if quantize is not None else None


def lora_of(text: str | None) -> NamedLora | None:
    """The adapter of a conversation. One without a name of its own gets one that no other path has."""
    if text is None:
        return None
    found = parsed_lora(text)
    if "=" in text.partition("/")[0]:
        return found
    return replace(found, name=f"{found.name}-{zlib.crc32(found.path.encode()):08x}")


def loras_of(texts: list[str] | None) -> str | None:
    """As the setting has them. ModelNotFound, BadModelFile or UnsupportedModel for one that no model could use."""
    if not texts:
        return None
    found = [parsed_lora(text) for text in texts]
    for lora in found:
        if "," in lora.path:
            raise UsageError(f"the path {lora.path} has a comma in it", hint="rename the adapter")
        check_is_there(lora)
        facts_of(lora.path)
    return ",".join(f"{lora.name}={lora.path}:{lora.scale!r}" for lora in found)


def check_is_there(lora: NamedLora) -> None:
    """ModelNotFound where the path of an adapter leads to nothing."""
    if not os.path.exists(lora.path):
        hint = "name the adapter's folder or file, for example --lora ./adapter"
        raise ModelNotFound(f"there is no adapter {lora.path}", hint=hint)


def wish_of(settings: Settings, quantize: str | None) -> Mapping[str, str | int]:
    """What a daemon that runs already must be told: flags, and what this shell's environment says."""
    target = target_of(quantize)
    own = {
        name: getattr(settings, name)
        for name in OF_LOADING
        if settings.origin[name].startswith(("flag", "environment"))
    }
    return own | ({"quantize": target} if target else {})
