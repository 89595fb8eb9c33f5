"""GGUF files, whole or split, mapped read-only: metadata, tensor table, raw blocks.

Everything is checked while opening (see gguf_header); nothing of the tensor data is read or copied here. What comes
before it is: a file that is cut while its header is read costs an error, not the process.
"""

import re
from mmap import mmap
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.gguf_cursor import FrontTooShort
from localllm.formats.gguf_header import Header, TensorInfo, read_header
from localllm.formats.gguf_metadata import INTEGERS, Metadata, Value, ValueType
from localllm.formats.mapped import MappedTensors, closing_on_error, copy_front, map_file

__all__ = ["GGUFFile", "Metadata", "TensorInfo", "Value", "ValueType", "part_paths"]

FRONT_BYTES = 4 << 20
"""Read at first: enough for most vocabularies."""
MAX_FRONT_BYTES = 1 << 28
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)


class GGUFFile(MappedTensors[TensorInfo]):
    """One model's GGUF file, or all parts of a split one. Close it, or use it in `with`.

    `metadata` is that of the first part; `tensors` are those of all parts, in file order.
    """

    def __init__(
        self, paths: tuple[Path, ...], mappings: tuple[mmap, ...], fronts: tuple[mmap, ...], headers: tuple[Header, ...]
    ) -> None:
        super().__init__(paths, mappings, MappingProxyType(_merged(paths, headers)), fronts)
        self.metadata: Metadata = headers[0].metadata
        self.version = headers[0].version

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Open a file and, if its name says that it is part of a split, the other parts beside it.

        Raises ModelNotFound, BadModelFile (with file and field) or UnsupportedModel (a block type we do not know).
        """
        paths = part_paths(Path(path))
        with closing_on_error() as mappings, closing_on_error() as fronts:
            headers = []
            for part, part_path in enumerate(paths):
                mappings.append(map_file(part_path))
                front, header = _read_front(part_path, part, len(mappings[part]))
                fronts.append(front)
                headers.append(header)
                _check_split_keys(part_path, headers[part].metadata, part, len(paths))
            return cls(paths, tuple(mappings), tuple(fronts), tuple(headers))

    @property
    def architecture(self) -> str:
        """`general.architecture`; BadModelFile if it is missing or no string."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not value:
            raise BadModelFile(f"{self.paths[0]}: general.architecture is missing")
        return value

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The blocks of a tensor as they lie in the file: uint8 (size_bytes,), read-only, not a copy.

        Raises KeyError for an unknown name, ValueError once the file is closed.
        """
        tensor = self.tensors[name]
        return np.frombuffer(self._mapping(tensor), np.uint8, tensor.size_bytes, tensor.offset)


def _read_front(path: Path, part: int, size: int) -> tuple[mmap, Header]:
    """The header, and a copy of the bytes it was read from: twice as many as hold it at most."""
    length = min(size, FRONT_BYTES)
    while True:
        front = copy_front(path, length)
        try:
            return front, read_header(front, str(path), part, size)
        except FrontTooShort:
            front.close()
        except BaseException:
            front.close()
            raise
        if length >= MAX_FRONT_BYTES:
            raise BadModelFile(f"{path}: more than {MAX_FRONT_BYTES} bytes come before the tensors")
        length = min(size, 2 * length)


def part_paths(path: Path) -> tuple[Path, ...]:
    """All parts that belong to a file named like `x-00002-of-00003.gguf`, in order; just the file for other names."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise BadModelFile(f"{path}: the name says part {number} of {count}")
    return tuple(path.with_name(f"{match['stem']}-{index + 1:05d}-of-{count:05d}.gguf") for index in range(count))


def _declared(path: Path, metadata: Metadata, key: str, default: int) -> int:
    """An integer out of the metadata, or the default where it is missing; BadModelFile for another type."""
    if key not in metadata:
        return default
    if metadata.type_of(key) not in INTEGERS or metadata.is_array(key):
        raise BadModelFile(f"{path}: {key} is not an integer")
    return int(cast(int, metadata[key]))


def _check_split_keys(path: Path, metadata: Metadata, part: int, num_parts: int) -> None:
    count, number = _declared(path, metadata, "split.count", 1), _declared(path, metadata, "split.no", 0)
    # a file that was never split may carry a count of 0
    if (count or 1) != num_parts:
        raise BadModelFile(
            f"{path}: split.count is {count}, but the file name says {num_parts}",
            hint="keep the parts of a split model together, under the names they were published with",
        )
    if number != part:
        raise BadModelFile(f"{path}: split.no is {number}, but the file name says part {part + 1}")


def _merged(paths: tuple[Path, ...], headers: tuple[Header, ...]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path, header in zip(paths, headers, strict=True):
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise BadModelFile(f"{path}: tensor {name!r} is there twice, also in {paths[tensors[name].part]}")
            tensors[name] = tensor
    declared = _declared(paths[0], headers[0].metadata, "split.tensors.count", len(tensors))
    if declared != len(tensors):
        raise BadModelFile(f"{paths[0]}: split.tensors.count is {declared}, but the parts hold {len(tensors)} tensors")
    return tensors
