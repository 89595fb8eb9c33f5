"""Importance matrices: for each weight, how large the inputs of its columns were while a model read a text.

Reads and writes the GGUF form of llama.cpp's llama-imatrix, and reads its older binary form (.dat). Both come from
anywhere: whatever does not fit together, is not finite or is negative, is refused by name.
Source: tools/imatrix/imatrix.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_header import MAGIC
from localllm.formats.gguf_metadata import Value
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import Tensor, write_gguf
from localllm.formats.mapped import file_size, read_prefix

Floats = NDArray[np.float32]

MAX_FILE_BYTES = 1 << 30
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 256
MAX_VALUES = 1 << 28
LEAST_SHARE = 1e-6
"""Of the mean of its weight, what a column counts at least: one that a text never met may still matter in another."""

_SUMS, _COUNTS = ".in_sum2", ".counts"
# one input, several weights: what files hold as one matrix may be several here, and the other way round
_SAME_INPUT = (
    ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    ("ffn_up", "ffn_gate"),
    ("ffn_up_exps", "ffn_gate_exps", "ffn_gate_up_exps"),
    ("ffn_up_shexp", "ffn_gate_shexp"),
)


@dataclass(frozen=True, slots=True)
class Importance:
    """`sums` (matrices, in): squares of the inputs, added up; `counts` (matrices,): how many inputs. A weight of two
    dimensions has one matrix, one of three has as many as it has experts."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Importances by the weight's canonical name. `datasets` names the texts; a chunk has `chunk_size` tokens."""

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...] = ()
    num_chunks: int = 0
    chunk_size: int = 512

    def importance_of(self, name: str, columns: int | None = None) -> Floats | None:
        """Mean squares of a weight's inputs, float32: (in,), or (matrices, in) where there is more than one matrix.

        All are above zero. `columns` is the length of the weight's rows; the old binary form needs it to tell experts
        apart. None where the file has nothing for this weight. BadModelFile where it has another number of columns.
        """
        found = self._entry(name)
        if found is None:
            return None
        sums, counts = found.sums, found.counts
        if columns is not None and sums.shape[1] != columns:
            if len(sums) > 1 or sums.shape[1] % columns:
                raise BadModelFile(
                    f"the importance matrix has {sums.shape[1]} columns for {name}, the model has {columns}",
                    hint="use the importance matrix of this model",
                )
            sums = sums.reshape(-1, columns)
            counts = np.broadcast_to(counts, (len(sums),))
        means = _means(sums, counts)
        return means[0] if len(means) == 1 else means

    def _entry(self, name: str) -> Importance | None:
        if name in self.entries:
            return self.entries[name]
        return next((self.entries[other] for other in _with_same_input(name) if other in self.entries), None)


def _means(sums: Floats, counts: Floats) -> Floats:
    """A matrix that met no input counts all its columns alike, as llama.cpp has it."""
    means = sums / np.maximum(counts, 1)[:, None]
    means[counts == 0] = 1
    mean = means.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    lifted: Floats = np.maximum(means, np.where(mean > 0, mean * np.float32(LEAST_SHARE), 1))
    return lifted


def _with_same_input(name: str) -> Iterator[str]:
    front, _, part = name.removesuffix(".weight").rpartition(".")
    for group in _SAME_INPUT:
        if part in group:
            yield from (f"{front}.{other}.weight" for other in group if other != part)


class ImportanceCollector:
    """Adds up squares of inputs as a model reads; sums are float64 until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.float64]] = {}

    def add(self, name: str, inputs: Floats, matrix: int = 0, num_matrices: int = 1) -> None:
        """`inputs` (n, in) of one matrix of the weight."""
        if name not in self._sums:
            self._sums[name] = np.zeros((num_matrices, inputs.shape[1]))
            self._counts[name] = np.zeros(num_matrices)
        self._sums[name][matrix] += np.square(inputs).sum(axis=0, dtype=np.float64)
        self._counts[name][matrix] += len(inputs)

    def entries(self) -> Mapping[str, Importance]:
        return {
            name: Importance(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """The GGUF form, all or nothing. StoreError and DiskFull as any file."""
    metadata: dict[str, Value] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets) or [""],
        "imatrix.chunk_count": matrix.num_chunks,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    tensors: list[Tensor] = []
    for name, entry in sorted(matrix.entries.items()):
        sums, counts = (np.ascontiguousarray(values, "<f4") for values in (entry.sums, entry.counts))
        tensors.append((name + _SUMS, sums.shape, BlockType.F32, sums.reshape(-1).view(np.uint8)))
        tensors.append((name + _COUNTS, (len(counts), 1), BlockType.F32, counts.view(np.uint8)))
    write_gguf(path, metadata, tensors)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Either form, told apart by its first bytes. ModelNotFound, BadModelFile."""
    if file_size(path) > MAX_FILE_BYTES:
        raise BadModelFile(f"{path} is larger than any importance matrix ({MAX_FILE_BYTES >> 20} MiB)")
    return _read_gguf(path) if read_prefix(path, len(MAGIC)) == MAGIC else _read_binary(path)


def _read_gguf(path: Path) -> ImportanceMatrix:
    with GGUFFile.open(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise BadModelFile(f"{path} is a GGUF file, but no importance matrix")
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        entries = {name: _gguf_entry(file, path, name) for name in names}
        if 2 * len(entries) != len(file.tensors):
            raise BadModelFile(f"{path} has tensors that belong to no importance matrix")
        datasets = file.metadata.get("imatrix.datasets", [])
        num_chunks, chunk_size = (file.metadata.get(f"imatrix.chunk_{what}", 0) for what in ("count", "size"))
        if not isinstance(num_chunks, int) or not isinstance(chunk_size, int) or min(num_chunks, chunk_size) < 0:
            raise BadModelFile(f"{path}: imatrix.chunk_count and imatrix.chunk_size are no numbers of things")
        texts = tuple(map(str, datasets)) if isinstance(datasets, list) else ()
        return ImportanceMatrix(MappingProxyType(entries), texts, num_chunks, chunk_size)


def _gguf_entry(file: GGUFFile, path: Path, name: str) -> Importance:
    sums, counts = _gguf_floats(file, path, name + _SUMS), _gguf_floats(file, path, name + _COUNTS)
    sums = sums.reshape(-1, sums.shape[-1])
    if counts.size != len(sums):
        raise BadModelFile(f"{path}: {name} has {counts.size} counts for {len(sums)} matrices")
    return _checked(path, name, sums, counts.reshape(-1))


def _gguf_floats(file: GGUFFile, path: Path, name: str) -> Floats:
    info = file.tensors.get(name)
    if info is None or info.type is not BlockType.F32 or not info.shape:
        raise BadModelFile(f"{path}: {name} is missing, or is not of F32")
    return decode(info.type, file.raw(name), info.shape)


def _checked(path: Path, name: str, sums: Floats, counts: Floats) -> Importance:
    for values in (sums, counts):
        if not np.isfinite(values).all() or (values < 0).any():
            raise BadModelFile(f"{path}: the importances of {name} are not all numbers of at least 0")
    return Importance(sums, counts)


def _read_binary(path: Path) -> ImportanceMatrix:
    """Entries of (name, calls, values), then how many chunks and which text; the last two are missing in the oldest."""
    data = read_prefix(path, MAX_FILE_BYTES)
    reader = _Binary(path, data)
    num_entries = reader.number(1, MAX_ENTRIES)
    entries: dict[str, Importance] = {}
    for _ in range(num_entries):
        name = reader.text(reader.number(1, MAX_NAME_BYTES))
        calls = reader.number(0, math.inf)
        sums = reader.floats(reader.number(1, MAX_VALUES)).reshape(1, -1)
        if name in entries:
            raise BadModelFile(f"{path}: {name} is there twice")
        entries[name] = _checked(path, name, sums, np.array([calls], np.float32))
    num_chunks = 0 if reader.is_done else reader.number(0, math.inf)
    datasets = () if reader.is_done else (reader.text(reader.number(0, 1 << 16)),)
    return ImportanceMatrix(MappingProxyType(entries), datasets, num_chunks)


class _Binary:
    """Little-endian numbers, texts and floats, one after another."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def number(self, least: int, most: float) -> int:
        value = int(struct.unpack("<i", self._take(4))[0])
        if not least <= value <= most:
            raise self._no_matrix()
        return value

    def text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self._no_matrix() from None

    def floats(self, count: int) -> Floats:
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise self._no_matrix()
        self._at += size
        return self._data[self._at - size : self._at]

    def _no_matrix(self) -> BadModelFile:
        return BadModelFile(f"{self._path} is no importance matrix, or is damaged at byte {self._at}")
