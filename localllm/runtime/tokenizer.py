"""The Tokenizer for scripts: opened by name, file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from localllm.formats.sniff import sniff
from localllm.runtime.names import model_path, open_library
from localllm.tokens.folder import is_tokenizer_file
from localllm.tokens.tokenizer import Tokenizer as PlainTokenizer


class Tokenizer(PlainTokenizer):
    """`Tokenizer.load("smollm2:135m")`, then encode, decode, explain."""

    @classmethod
    def load(cls, model: str | Path) -> Self:
        """A pulled model's name, that of a tokenizer without a model, a GGUF file (vocabulary-only ones, too), or a
        tokenizer's folder or own file.

        ModelNotFound with a suggestion, BadModelFile, or UnsupportedModel naming the tokenizer kind.
        """
        path = Path(model).expanduser()
        if is_tokenizer_file(path) and path.is_file():
            return cls.from_path(path)
        if not path.exists() or sniff(path) in ("unknown", "pickle") or _is_bare(path):
            alone = open_library().tokenizers
            if alone.knows(str(model)) and not path.exists():
                return cls.from_folder(alone.find(str(model)))
            path = model_path(model)  # the store says what a name means, and which files are never opened
        return cls.from_path(path.parent if sniff(path) == "safetensors" else path)


def _is_bare(path: Path) -> bool:
    """A folder without a tokenizer of its own: perhaps one with a GGUF file."""
    return path.is_dir() and not any(map(is_tokenizer_file, path.iterdir()))
