"""What a model's own files say: metadata, tensors, the chat template. Opens them, reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.formats.sniff import model_kind
from localllm.store.folder import folder_template


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor as its file has it."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """`metadata` are a GGUF file's own keys, or what is in config.json. `format` is "gguf" or "safetensors"."""

    format: str
    metadata: Mapping[str, Any]
    tensors: tuple[TensorFact, ...]


def facts_of(path: Path) -> Facts:
    """Of a model file or folder; BadModelFile when it is none."""
    if model_kind(path) == "gguf":
        with GGUFFile.open(path) as file:
            tensors = [
                TensorFact(name, each.type.name, tuple(each.shape), each.size_bytes)
                for name, each in file.tensors.items()
            ]
            return Facts("gguf", dict(file.metadata), tuple(tensors))
    with SafetensorsFolder.open(path) as folder:
        tensors = [
            TensorFact(name, each.dtype, tuple(each.shape), each.size_bytes) for name, each in folder.tensors.items()
        ]
        return Facts("safetensors", dict(folder.config), tuple(tensors))


def template_in(path: Path) -> str:
    """The chat template in the model's files; empty when there is none."""
    if model_kind(path) != "gguf":
        return folder_template(path if path.is_dir() else path.parent)
    with GGUFFile.open(path) as file:
        found = file.metadata.get("tokenizer.chat_template", "")
        return found if isinstance(found, str) else ""
