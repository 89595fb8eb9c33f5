"""What a model file says about itself: architecture, size, context, licence. Opens the file, reads no weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import BadModelFile, ModelNotFound
from localllm.store.blobs import open_regular
from localllm.store.entry import Entry, ModelFile
from localllm.store.pick import UNSAFE_SUFFIXES, pick_safetensors, tag_of

MAX_CONFIG_BYTES = 8 << 20

# general.file_type: what llama.cpp's quantize tool was asked for
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
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
    return _from_gguf(entry, path)


def _from_gguf(entry: Entry, path: Path) -> Entry:
    # deferred: numpy comes with it, and `list` must not pay for that
    from localllm.formats.gguf_read import GGUFFile

    with GGUFFile.open(path) as file:
        meta, arch = file.metadata, file.architecture
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
        )


def block_types(path: Path) -> tuple[str, ...]:
    """Names of the block types of a GGUF file's tensors; empty for folders."""
    from localllm.formats.gguf_read import GGUFFile  # deferred: numpy comes with it

    if path.is_dir():
        return ()
    with GGUFFile.open(path) as file:
        return tuple(sorted({tensor.type.name for tensor in file.tensors.values()}))


def _from_folder(entry: Entry, path: Path) -> Entry:
    listing = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    ggufs = [file for file in listing if file.lower().endswith(".gguf")]
    picked = pick_safetensors(listing)
    if picked is None:
        return _folder_of_something_else(entry, path, ggufs, listing)
    config = read_config(path)
    files = entry.files or tuple(
        ModelFile(path=str(path / name), size_bytes=(path / name).stat().st_size) for name in picked.files
    )
    nested = config.get("text_config")
    text_config: dict[str, Any] = nested if isinstance(nested, dict) else config
    return msgspec.structs.replace(
        entry,
        files=files,
        size_bytes=sum(part.size_bytes for part in files),
        architecture=_text(config.get("model_type")),
        quantization=entry.quantization
        or _text(config.get("torch_dtype") or config.get("dtype")).upper().replace("FLOAT", "F"),
        context_length=_int(text_config.get("max_position_embeddings")) or entry.context_length,
        embedding_length=_int(text_config.get("hidden_size")),
        capabilities=entry.capabilities or ("completion",),
    )


def _folder_of_something_else(entry: Entry, path: Path, ggufs: list[str], listing: list[str]) -> Entry:
    if len(ggufs) == 1:
        return _from_gguf(msgspec.structs.replace(entry, path=str(path / ggufs[0])), path / ggufs[0])
    if ggufs:
        raise BadModelFile(
            f"{path} holds {len(ggufs)} GGUF files", hint=f"name one of them, for example {path / ggufs[0]}"
        )
    for file in listing:
        refuse_unsafe(Path(file))
    raise BadModelFile(
        f"{path} holds no model", hint="a model folder has config.json and .safetensors files, or a .gguf file"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; BadModelFile when it is missing, huge or no JSON object."""
    path = folder / "config.json"
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        config = json.loads(raw[: MAX_CONFIG_BYTES + 1]) if len(raw) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise BadModelFile(f"{path} is no JSON object")
    return config


def count_text(count: int) -> str:
    """A number of weights as people write it: 135M, 1.24B."""
    if count >= 1e9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def _capabilities(arch: str, meta: Any) -> tuple[str, ...]:
    if f"{arch}.pooling_type" in meta:
        return ("embedding",)
    template = _text(meta.get("tokenizer.chat_template"))
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if "<think>" in template or "enable_thinking" in template:
        found.append("thinking")
    return tuple(found)


def _main_type(types: Counter[str]) -> str:
    return types.most_common(1)[0][0] if types else ""


def _int(value: Any, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
