"""Published tokenizers from before tokenizer.json, turned into what GGUF files say of them.

tokenizer.model (SentencePiece, or the ranks of tiktoken), vocab.json with merges.txt, and *.tiktoken.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.tokens.alphabet import spelled
from localllm.tokens.published import (
    added_tokens,
    chat_templates,
    configuration,
    end_ids,
    read_bounded,
    read_json,
    role_ids,
)
from localllm.tokens.sentencepiece import sentencepiece_metadata
from localllm.tokens.specials import TokenType
from localllm.tokens.tiktoken import looks_like_ranks, merges_from_ranks, read_ranks

OLDER_FILES = ("tokenizer.model", "vocab.json", "*.tiktoken", "tiktoken.model")
_MAX_FILE_BYTES = 256 << 20
_MAX_ADDED = 1 << 16
_ROLE_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
# By `tokenizer_class`: what such files leave to the code that came with them.
_PRE_BY_CLASS = {
    "GPT2Tokenizer": "gpt-2",
    "RobertaTokenizer": "roberta-bpe",
    "Qwen2Tokenizer": "qwen2",
    "QWenTokenizer": "qwen2",
    "TikTokenTokenizer": "kimi-k2",
    "SmolLMTokenizer": "smollm",
}


def older_metadata(folder: Path, chosen: Path | None = None) -> dict[str, Any] | None:
    """The `tokenizer.*` keys for a folder's tokenizer (the `chosen` file, else the first there is), None without any.

    Raises BadModelFile or UnsupportedModel.
    """
    files = [chosen] if chosen else [file for pattern in OLDER_FILES for file in sorted(folder.glob(pattern))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    config = configuration(folder)
    metadata = _read(file, config)
    _add_tokens(metadata, folder, config)
    _add_roles(metadata, folder, config)
    for name, text in chat_templates(folder, config).items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = text
    return metadata


def _read(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if file.name == "vocab.json":
        return _vocabulary_and_merges(file, config)
    raw = read_bounded(file, _MAX_FILE_BYTES)
    return _ranks(raw, file, config) if looks_like_ranks(raw[:4096]) else sentencepiece_metadata(raw, str(file))


def _vocabulary_and_merges(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise UnsupportedModel(f"{file.parent} has vocab.json but no merges.txt", hint="download merges.txt, too")
    ids_by_text = read_json(file, _MAX_FILE_BYTES)
    ids = ids_by_text.values()
    if not all(isinstance(one, int) and 0 <= one < 4 * len(ids) + _MAX_ADDED for one in ids):
        raise BadModelFile(f"{file} maps tokens to what is no id, or to ids far apart")
    tokens, types = _empty_rows(max(ids, default=-1) + 1)
    for text, token_id in ids_by_text.items():
        tokens[token_id], types[token_id] = text, int(TokenType.NORMAL)
    lines = read_bounded(merges, _MAX_FILE_BYTES).decode("utf-8-sig", errors="replace").split("\n")
    pairs = [line.strip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    return _byte_level(tokens, types, pairs, _pre_of(config, "gpt-2"))


def _ranks(raw: bytes, file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    tokens = [spelled(token) for token in read_ranks(raw, str(file))]
    merges = [f"{left} {right}" for left, right in merges_from_ranks(tokens)]
    guess = "gpt-4o" if "o200k" in file.name else "qwen2" if "qwen" in file.name else "llama-bpe"
    return _byte_level(tokens, [int(TokenType.NORMAL)] * len(tokens), merges, _pre_of(config, guess))


def _byte_level(tokens: list[str], types: list[int], merges: list[str], pre: str) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _pre_of(config: Mapping[str, Any], otherwise: str) -> str:
    return _PRE_BY_CLASS.get(str(config.get("tokenizer_class", "")).removesuffix("Fast"), otherwise)


def _empty_rows(size: int, first: int = 0) -> tuple[list[str], list[int]]:
    return [f"[PAD{one}]" for one in range(first, first + size)], [int(TokenType.UNUSED)] * size


def _add_tokens(metadata: dict[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """Added tokens take their places; a place that nothing names is filled as converters fill it."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = added_tokens(folder, config)
    missing = max(added, default=-1) + 1 - len(tokens)
    if missing > _MAX_ADDED:
        raise BadModelFile(f"{folder} names added tokens with ids up to {max(added)}")
    more_tokens, more_types = _empty_rows(max(missing, 0), len(tokens))
    tokens += more_tokens
    types += more_types
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] += [0.0] * max(missing, 0)
    for token_id, token in added.items():
        if types[token_id] != TokenType.UNKNOWN:
            tokens[token_id], types[token_id] = token.text, token.type


def _add_roles(metadata: dict[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    ids_by_text = {text: token_id for token_id, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    for role, token_id in role_ids(config, ids_by_text).items():
        if role in _ROLE_KEYS:
            metadata[f"tokenizer.ggml.{_ROLE_KEYS[role]}_token_id"] = token_id
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    others = [one for one in end_ids(folder, len(ids_by_text)) if one != eos]
    metadata |= {f"tokenizer.ggml.{role}_token_id": one for role, one in zip(("eot", "eom"), others, strict=False)}
    for role in ("bos", "eos"):
        if isinstance(config.get(f"add_{role}_token"), bool):
            metadata[f"tokenizer.ggml.add_{role}_token"] = config[f"add_{role}_token"]
