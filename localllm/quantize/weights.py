"""What is to be quantized: the tensors of a file, by the names that files give them, and its metadata."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.formats.gguf_metadata import Value, ValueType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import Raw
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.heads import Head
from localllm.quantize.convert import converted
from localllm.quantize.recipes import TensorFacts

Bytes = NDArray[np.uint8]
Typed = tuple[ValueType, Value]

_OF_SPLIT_FILES = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor; `shape` in numpy order. `raw` gives its blocks, uint8 (bytes,); `release` says they are done with."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    raw: Callable[[], Bytes]
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors in file order. `identity` is another one as soon as the files, `paths`, are."""

    metadata: Mapping[str, Value | Typed]
    tensors: tuple[Weight, ...]
    identity: str
    paths: tuple[Path, ...] = ()

    def facts(self) -> tuple[TensorFacts, ...]:
        return tuple(TensorFacts(weight.name, weight.shape, weight.type) for weight in self.tensors)

    def value(self, key: str) -> Value | None:
        """A value of the metadata without its type; None where there is none."""
        found = self.metadata.get(key)
        return found[1] if isinstance(found, tuple) else found


def gguf_weights(file: GGUFFile) -> Weights:
    """All tensors of an open file, whole or split, and its metadata without what tells of parts."""
    metadata = {key: value for key, value in file.metadata.typed().items() if key not in _OF_SPLIT_FILES}
    tensors = tuple(
        Weight(info.name, info.shape, info.type, partial(file.raw, info.name), partial(file.release, info.name))
        for info in file.tensors.values()
    )
    return Weights(metadata, tensors, identity_of(file.paths), file.paths)


def folder_weights(folder: SafetensorsFolder, extra: Mapping[str, Any], head: Head | None = None) -> Weights:
    """What a conversion of the folder writes, its matrices in the types they have there; `extra` as for `convert`."""
    metadata, tensors = converted(folder, None, extra, head)
    weights = (Weight(name, tuple(shape), kind, _reader(raw), _nothing) for name, shape, kind, raw in tensors)
    return Weights(metadata, tuple(weights), identity_of(folder.paths), folder.paths)


def _reader(raw: Raw) -> Callable[[], Bytes]:
    return raw if callable(raw) else lambda: raw


def _nothing() -> None:
    """A conversion lets go of what it reads by itself."""


def identity_of(paths: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change, not of what the files hold."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
