"""Tells kinds of model files apart by their first bytes. Nothing is ever unpickled."""

import struct
from os import PathLike
from pathlib import Path
from typing import Literal

from localllm.errors import BadModelFile
from localllm.formats.mapped import file_size, read_prefix

FileKind = Literal["gguf", "safetensors", "pickle", "folder", "unknown"]
ModelKind = Literal["gguf", "safetensors", "folder"]

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # llama.cpp before GGUF
_ZIP = b"PK\x03\x04"


def sniff(path: str | PathLike[str]) -> FileKind:
    """What a path holds, by its bytes; the name decides only when they say nothing (text pickles have no magic).

    Raises ModelNotFound for a missing path, BadModelFile for what is neither a folder nor a readable regular file.
    """
    path = Path(path)
    if path.is_dir():
        return "folder"
    prefix = read_prefix(path, 4096)
    if prefix.startswith(b"GGUF"):
        return "gguf"
    # before pickle: the length of a safetensors header may begin with the bytes of a pickle protocol
    if _is_safetensors(prefix, file_size(path)):
        return "safetensors"
    if prefix.startswith(_OLD_GGML):
        return "unknown"
    return "pickle" if _is_pickle(prefix) or path.suffix.lower() in _PICKLE_SUFFIXES else "unknown"


def model_kind(path: str | PathLike[str]) -> ModelKind:
    """The kind of a model path that we open; BadModelFile, with the reason, for all others."""
    kind = sniff(path)
    if kind == "pickle":
        raise BadModelFile(
            f"{path} is a pickle checkpoint, which can run code when it is opened, so it is refused",
            hint="look for a GGUF or safetensors version of this model",
        )
    if kind == "unknown":
        raise BadModelFile(
            f"{path} is not a model file: it is neither a GGUF nor a safetensors file",
            hint="if it was downloaded, check that it is whole",
        )
    return kind


def _is_safetensors(prefix: bytes, size: int) -> bool:
    if len(prefix) < 9:
        return False
    (length,) = struct.unpack_from("<Q", prefix)
    return prefix[8:9] == b"{" and 2 <= length <= size - 8


def _is_pickle(prefix: bytes) -> bool:
    if prefix.startswith(_ZIP):
        return b".pkl" in prefix  # torch.save writes NAME/data.pkl as the first entry
    return len(prefix) > 1 and prefix[0] == 0x80 and 1 <= prefix[1] <= 5
