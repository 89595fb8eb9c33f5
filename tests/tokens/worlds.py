# ruff: noqa: RUF001 (look-alikes are what the corpus is about)
"""Tokenizers to test with: a tiny one made here, and real ones where the data folder is there."""

import json
import lzma
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core

from localllm.tokens.alphabet import byte_alphabet
from localllm.tokens.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[2]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def data_folder(name: str) -> Path:
    """A folder of real models' data; skips the test where there is none."""
    said = os.environ.get("LOCALLLM_TEST_SHARED")
    folder = (Path(said) if said else REPOSITORY.parent / "shared") / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LOCALLLM_TEST_SHARED to the folder that holds data/{name}")
    return folder


@cache
def tokenizer_json(name: str) -> str:
    return lzma.decompress((data_folder("tokenizers") / name / "tokenizer.json.xz").read_bytes()).decode()


@cache
def original(name: str) -> Core:
    """The real tokenizer as its authors publish it: the judge."""
    return Core.from_str(tokenizer_json(name))


@cache
def as_gguf_metadata(name: str, pre: str | None) -> Mapping[str, Any]:
    """The real tokenizer under the keys that a converter to GGUF writes; `pre` None for the SentencePiece kind."""
    published = json.loads(tokenizer_json(name))
    texts = published["model"]["vocab"] | {token["content"]: token["id"] for token in published["added_tokens"]}
    tokens = [f"[PAD{token_id}]" for token_id in range(max(texts.values()) + 1)]
    types = [5] * len(tokens)
    for text, token_id in texts.items():
        tokens[token_id] = text
        types[token_id] = BYTE if pre is None and text.startswith("<0x") else NORMAL
    for token in published["added_tokens"]:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in published["model"]["merges"]]
    keys = {"tokens": tokens, "token_type": types, "add_bos_token": False}
    if pre is None:
        types[0] = UNKNOWN
        keys |= {"model": "llama", "scores": _scores(tokens, merges)}
    else:
        keys |= {"model": "gpt2", "pre": pre, "merges": merges}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The published merges are sorted by the score of their union, so the first that makes a piece places it."""
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        places.setdefault(merge.replace(" ", ""), place)
    return [-float(places.get(token, len(merges))) for token in tokens]


@cache
def real(name: str, pre: str | None) -> Tokenizer:
    return Tokenizer.from_gguf(as_gguf_metadata(name, pre))


def tiny_metadata(**changes: Any) -> dict[str, Any]:
    """Byte-level BPE with all 256 bytes, a few merges and three control tokens."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ã ©", "i m", "Ġ Ġ"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, *special, "<think>"],
        "token_type": [NORMAL] * len(tokens) + [CONTROL] * len(special) + [USER_DEFINED],
        "merges": merges,
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens) + 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**keys, **changes}.items() if value is not None}


@cache
def tiny() -> Tokenizer:
    return Tokenizer.from_gguf(tiny_metadata())


def tiny_spm_metadata(**changes: Any) -> dict[str, Any]:
    """SentencePiece BPE with byte fallback; longer pieces score worse, as learned later."""
    pieces = ["▁", "h", "e", "l", "o", "w", "r", "d", "▁w", "he", "ll", "hell", "hello", "▁hello", "or"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(place) for place in range(len(pieces))]
    keys = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
    return {f"tokenizer.ggml.{key}": value for key, value in {**keys, **changes}.items()}


@cache
def tiny_spm() -> Tokenizer:
    return Tokenizer.from_gguf(tiny_spm_metadata())


CORPUS = (
    "Hello, world!",
    " leading and trailing ",
    "  two   three    four spaces",
    "tabs\t\tand\nnew\n\nlines\r\n \n  \n\t x",
    "I'm you're we'll THEY'VE it's 'tis o'clock I'D",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\nclass A:\n\tpass",
    'x=1;y+=2;z**=3//4&&5||!6 <html><b>a</b></html> {"k":[1,null]} C:\\path /usr/bin https://a.b/c?d=e#f',
    "naïve façade Ünïcödé ßtraße ŁÓDŹ ΑΒΓ αβγ Привет мир",
    "日本語のテキスト 中文文本 한국어 텍스트 ไทย العربية עברית हिन्दी தமிழ்",
    "🚀🎉 👨‍👩‍👧‍👦 🇩🇪 ✋🏽 e\u0301 \u00e9 \u200b\u200d\ufeff \u2028 \u00a0nbsp\u3000wide",
    "CamelCaseWords HTTPServer iPhone snake_case kebab-case SCREAMING_CASE aB1cD2",
    "!!!??? ... --- *** ((())) [[[]]] ~~~ ``` \"quoted\" 'single' — – “smart”",
    "a" * 300 + " " * 100 + "\n" * 20,
    "\x00\x01\x1f\x7f\x80",
    "\U0010ffff\ue000 𝔘𝔫𝔦 𐐀 𝟘𝟙",
)
