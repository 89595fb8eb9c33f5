"""WordPiece (BERT) from GGUF metadata, whose tokens carry U+2581 where a word begins and nothing where it goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from localllm.errors import BadModelFile
from localllm.tokens.specials import TokenType, metadata_id
from localllm.tokens.vocabulary import SPACE_MARK, BuiltTokenizer, Defaults, finished, first_ids, read_vocabulary

CONTINUES = "##"
_DEFAULTS = {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0}
_LONGEST_WORD = 100  # characters; BERT's own: a longer word is unknown as a whole


def build_wordpiece(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """Greedy longest match within words; lower case and no accents unless the metadata says otherwise."""
    texts, types = read_vocabulary(metadata)
    unk = metadata_id(
        {"tokenizer.ggml.unknown_token_id": _DEFAULTS["unknown"], **metadata}, "unknown_token_id", len(texts)
    )
    if unk is None:
        raise BadModelFile("the tokenizer has no token for unknown words (tokenizer.ggml.unknown_token_id)")
    lowercase = bool(metadata.get("tokenizer.ggml.normalizer.lowercase", True))
    strip_accents = bool(metadata.get("tokenizer.ggml.normalizer.strip_accents", lowercase))
    core = Core(
        WordPiece(
            first_ids(_as_published(texts, types)),
            unk_token=texts[unk],
            continuing_subword_prefix=CONTINUES,
            max_input_chars_per_word=_LONGEST_WORD,
        )
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    defaults = Defaults(_DEFAULTS, add_bos=True, add_sep=True)
    return finished(metadata, core, texts, types, defaults, is_byte_level=False, adds_space_prefix=True)


def _as_published(texts: Sequence[str], types: Sequence[int]) -> list[str]:
    return [_published(text, kind) for text, kind in zip(texts, types, strict=True)]


def _published(text: str, kind: int) -> str:
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED):
        return text
    return text.removeprefix(SPACE_MARK) if text.startswith(SPACE_MARK) else CONTINUES + text


def as_in_gguf(text: str) -> str:
    """A normal token of a published vocabulary as GGUF spells it."""
    return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else SPACE_MARK + text
