"""SentencePiece's normalization: a map of characters, superfluous spaces, and U+2581 for the spaces that are left."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, normalizers

from localllm.errors import BadModelFile
from localllm.tokens.vocabulary import SPACE_MARK

_MAX_CHARSMAP_BYTES = 16 << 20
OUTER_SPACES = r"\A +| +\z"
SPACE_RUNS = " {2,}"


def adds_prefix(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("tokenizer.ggml.add_space_prefix", True))


def merges_spaces(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))


def marking_normalizer(metadata: Mapping[str, Any]) -> normalizers.Normalizer:
    """The file's character map, then the prefix, and a mark for each space."""
    prefix = [normalizers.Prepend(SPACE_MARK)] if adds_prefix(metadata) else []
    return normalizers.Sequence([*charsmap(metadata), *prefix, normalizers.Replace(" ", SPACE_MARK)])


def merging_normalizer(metadata: Mapping[str, Any]) -> normalizers.Normalizer:
    """The file's character map, then no space at the ends and never two in a row."""
    merging = [normalizers.Replace(Regex(OUTER_SPACES), ""), normalizers.Replace(Regex(SPACE_RUNS), " ")]
    return normalizers.Sequence([*charsmap(metadata), *merging])


def charsmap(metadata: Mapping[str, Any]) -> list[normalizers.Normalizer]:
    """The map as a step, or no step. BadModelFile for what is none."""
    said = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(said, tuple):  # with its type, as it goes into a file
        said = said[1]
    if said is None or len(said) == 0:
        return []
    try:
        raw = bytes(int(value) & 0xFF for value in said)
        if len(raw) > _MAX_CHARSMAP_BYTES:
            raise ValueError("it is larger than any real one")
        return [normalizers.Precompiled(raw)]
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"tokenizer.ggml.precompiled_charsmap is no map of characters: {error}") from error
