"""What a path holds: a GGUF file to open, or safetensors with what belongs to them. Says by name what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localllm.errors import BadModelFile
from localllm.formats.sniff import model_kind

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class Place:
    """`path`: a GGUF file (the first of its parts), a safetensors file, or a folder of safetensors."""

    kind: Literal["gguf", "safetensors"]
    path: Path

    @property
    def folder(self) -> Path:
        """Where config and tokenizer of safetensors lie."""
        return self.path if self.path.is_dir() else self.path.parent


def place_of(path: Path) -> Place:
    """The model at a path; in a folder GGUF goes before safetensors. BadModelFile says what is there instead."""
    kind = model_kind(path)
    if kind == "folder":
        return _in_folder(path)
    if kind == "gguf":
        return Place("gguf", path)
    _require_config(path.parent)
    return Place("safetensors", path)


def _in_folder(folder: Path) -> Place:
    files = sorted(file for file in folder.glob("*.gguf") if "mmproj" not in file.name.lower())
    firsts = [file for file in files if "-of-" not in file.stem or "-00001-of-" in file.stem]
    if len(firsts) == 1:
        return Place("gguf", firsts[0])
    if firsts:
        names = ", ".join(file.name for file in firsts[:4])
        raise BadModelFile(f"{folder} holds several models ({names})", hint="name one of the files")
    if not any(folder.glob("*.safetensors")):
        raise _no_model(folder)
    _require_config(folder)
    return Place("safetensors", folder)


def _require_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadModelFile(
            f"{folder} has safetensors weights, but no config.json to say what they are",
            hint="download the whole repository: config.json and the tokenizer lie beside the weights",
        )


def _no_model(folder: Path) -> BadModelFile:
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in folder.glob(pattern))
    if pickles:
        return BadModelFile(
            f"{folder} holds weights only as pickles ({pickles[0]}), which can run code and are never opened",
            hint="look for a safetensors or GGUF version of this model",
        )
    return BadModelFile(
        f"{folder} holds no model file", hint="localllm opens folders with config.json and .safetensors, or a .gguf"
    )
