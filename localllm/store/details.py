"""What a model file says about itself: architecture, size, context, licence. Opens the file, reads no weights."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.sniff import sniff
from localllm.models.families import is_encoder_architecture
from localllm.models.judges import RANK
from localllm.quantize.receipt import in_metadata
from localllm.store.entry import Entry, ModelFile
from localllm.store.folder import (
    EMBEDS,
    RANKS,
    capabilities_of,
    count_text,
    describe_folder,
    named_shards,
    picked_in,
    read_config,
    with_weights,
)
from localllm.store.pick import INDEX_NAME, UNSAFE_SUFFIXES, Picked, candidates, pick_safetensors, tag_of

MAX_FILES = 2000
MAX_DEPTH = 4
"""Of a model's folder: files, and folders below it."""
# general.file_type: what llama.cpp's quantize tool was asked for
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
    40: "Q1_0",
}  # fmt: skip


def refuse_unsafe(path: Path) -> None:
    """BadModelFile for checkpoints that can run code when opened."""
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        raise BadModelFile(
            f"{path.name} is a {path.suffix} checkpoint: opening one can run code that is hidden in it",
            hint="look for the same model as .gguf or .safetensors",
        )


def describe(entry: Entry) -> Entry:
    """The entry with what its file adds; what the entry already says (name, params, licence) stays.

    ModelNotFound when nothing is there; BadModelFile when it is no sound model.
    """
    path = Path(entry.path)
    refuse_unsafe(path)
    if path.is_dir():
        return _from_folder(entry, path)
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist", hint="check the path, or pull the model again")
    if sniff(path) == "safetensors":
        return _from_safetensors(entry, path)
    return _from_gguf(entry, path)


def _from_gguf(entry: Entry, path: Path) -> Entry:
    # deferred: numpy comes with it, and `list` must not pay for that
    from localllm.formats.gguf_read import GGUFFile

    with GGUFFile.open(path) as file:
        meta, arch = file.metadata, file.architecture
        if meta.get("general.type") == "adapter":
            raise _is_adapter(path)
        num_weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
        types = Counter(tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1)
        files = entry.files or tuple(ModelFile(path=str(part), size_bytes=part.stat().st_size) for part in file.paths)
        quantization = (
            _FILE_TYPES.get(_int(meta.get("general.file_type"), -1)) or tag_of(path.name) or _main_type(types)
        )
        return msgspec.structs.replace(
            entry,
            files=files,
            size_bytes=sum(part.size_bytes for part in files),
            architecture=arch,
            parameters=entry.parameters or count_text(num_weights),
            quantization=quantization,
            context_length=_int(meta.get(f"{arch}.context_length")) or entry.context_length,
            embedding_length=_int(meta.get(f"{arch}.embedding_length")),
            capabilities=entry.capabilities or _capabilities(arch, meta),
            license=entry.license or _text(meta.get("general.license")),
            receipt=entry.receipt or in_metadata(meta, {name: each.type.name for name, each in file.tensors.items()}),
        )


def block_types(path: Path) -> tuple[str, ...]:
    """Names of the block types of a GGUF file's tensors; empty for safetensors."""
    from localllm.formats.gguf_read import GGUFFile  # deferred: numpy comes with it

    if path.is_dir() or path.suffix == ".safetensors":
        return ()
    with GGUFFile.open(path) as file:
        return tuple(sorted({tensor.type.name for tensor in file.tensors.values()}))


def _from_folder(entry: Entry, path: Path) -> Entry:
    """GGUF goes before safetensors, as for whoever opens the folder later."""
    listing = _listing(path)
    ggufs = candidates(listing)
    if len(ggufs) == 1:
        first = path / ggufs[0][0]
        return _from_gguf(msgspec.structs.replace(entry, path=str(first)), first)
    if ggufs:
        raise BadModelFile(
            f"{path} holds {len(ggufs)} GGUF models", hint=f"name one of them, for example {path / ggufs[0][0]}"
        )
    picked = picked_in(path, listing)
    if picked is None:
        raise _no_model(path, listing)
    return describe_folder(entry, path, picked)


def _from_safetensors(entry: Entry, path: Path) -> Entry:
    """One file of weights; what belongs to it lies beside it."""
    read_config(path.parent)  # without it nothing is a model here
    listing = [name for name in _listing(path.parent) if "/" not in name or name.endswith(".jinja")]
    picked = pick_safetensors(listing)
    return describe_folder(entry, path.parent, with_weights(picked or Picked((), ""), (path.name,)))


def _listing(folder: Path) -> list[str]:
    """The files in it, in the order of the alphabet. BadModelFile where there are more than any model has: whoever
    names a home, or `/`, does not mean all of it, and must not keep the daemon busy for hours."""
    found: list[str] = []
    for num_folders, (place, folders, names) in enumerate(os.walk(folder)):
        depth = len(Path(place).relative_to(folder).parts)
        if depth == MAX_DEPTH:
            folders.clear()
        found += [
            str(Path(place, name).relative_to(folder)) for name in names if os.path.isfile(os.path.join(place, name))
        ]
        if len(found) > MAX_FILES or num_folders > MAX_FILES:
            raise BadModelFile(f"{folder} holds too many files for a model", hint="name the model's own folder or file")
    return sorted(found)


def _is_adapter(path: Path) -> BadModelFile:
    return BadModelFile(f"{path} is an adapter, not a model", hint=f"run its base with `--lora {path}`")


def _no_model(path: Path, listing: list[str]) -> BadModelFile:
    if "adapter_config.json" in listing:
        return _is_adapter(path)
    if INDEX_NAME in listing or any(name.endswith(".safetensors") and "/" not in name for name in listing):
        read_config(path)  # says what is missing
    if INDEX_NAME in listing:
        named_shards(path / INDEX_NAME, set(listing))  # the same
    for file in listing:
        refuse_unsafe(Path(file))
    return BadModelFile(
        f"{path} holds no model", hint="a model folder has config.json and .safetensors files, or a .gguf file"
    )


def _capabilities(arch: str, meta: Any) -> tuple[str, ...]:
    if meta.get(f"{arch}.pooling_type") == RANK:
        return RANKS
    if f"{arch}.pooling_type" in meta or is_encoder_architecture(arch):
        return EMBEDS
    return capabilities_of(_text(meta.get("tokenizer.chat_template")))


def _main_type(types: Counter[str]) -> str:
    return types.most_common(1)[0][0] if types else ""


def _int(value: Any, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
