"""Small Unigram and WordPiece tokenizers, trained here and read by ours as tokenizer.json and as GGUF metadata."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram, WordPiece

from localllm.tokens.tokenizer import Tokenizer

TEXT = (
    "the cat sat on the mat, and the other cats' mats weren't there; 'twas 1999 and then 2024",
    "def main(argument):\n    return [argument, argument]\n\n\n",
    "die Katze saß auf der Matte, während es schneite; naïve café, élève unbelievably",
    "кошка сидела на коврике hello world hello word",
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def read(core: Core, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """Ours, from the folder that such a tokenizer is published in."""
    with TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(core.to_str(), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
        return Tokenizer.from_folder(folder)


@cache
def unigram() -> Tokenizer:
    """As T5: words with a mark before each, `</s>` at the end."""
    core = Core(Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=140, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    core.train_from_iterator(TEXT * 3, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return read(core, {"eos_token": "</s>", "unk_token": "<unk>"})


@cache
def unigram_with_bytes() -> Tokenizer:
    """Unknown characters become their bytes; the text is one word."""
    vocab = [("<unk>", 0.0), *((name, -20.0) for name in _BYTES), ("\u2581", -2.0), ("the", -3.0), ("e", -4.0)]
    vocab += [("h", -4.5), ("t", -4.5), ("\u2581the", -3.5), ("\u2581\u2581", -2.5), ("é", -6.0), ("é中", -6.5)]
    core = Core(Unigram(vocab, 0, True))
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return read(core, {"unk_token": "<unk>"})


def gguf_of(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """A Unigram model of these pieces, from GGUF metadata, that puts nothing around a text."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    rows = [*specials, *pieces]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": [text for text, _ in rows],
            "tokenizer.ggml.scores": [score for _, score in rows],
            "tokenizer.ggml.token_type": [3, 3, 2] + [1] * len(pieces),
            "tokenizer.ggml.add_space_prefix": False,
        }
    )


@cache
def unigram_of_gguf() -> Tokenizer:
    return gguf_of(
        [("\u2581", -2.0), ("h", -3.0), ("e", -3.0), ("he", -4.0), ("llo", -5.0), ("l", -3.5), ("hello", -9.0)]
    )


def _wordpiece(longest_word: int = 100) -> Core:
    core = Core(WordPiece(unk_token="[UNK]", max_input_chars_per_word=longest_word))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=special)
    core.train_from_iterator(TEXT * 3, trainer)
    state = json.loads(core.to_str())
    state["model"]["max_input_chars_per_word"] = longest_word
    return Core.from_str(json.dumps(state))


@cache
def wordpiece() -> Tokenizer:
    return read(_wordpiece(), {"unk_token": "[UNK]"})


@cache
def wordpiece_of_gguf() -> Tokenizer:
    state = json.loads(_wordpiece().to_str())
    texts = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    special = [text.startswith("[") and len(text) > 1 for text in texts]
    spelled = [
        text if is_special else text[2:] if text.startswith("##") else "\u2581" + text
        for text, is_special in zip(texts, special, strict=True)
    ]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": spelled,
            "tokenizer.ggml.token_type": [3 if is_special else 1 for is_special in special],
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
        }
    )


@cache
def patient_wordpiece() -> Tokenizer:
    """It looks into words of any length."""
    return read(_wordpiece(10_000), {"unk_token": "[UNK]"})


UNIGRAMS: Mapping[str, Callable[[], Tokenizer]] = {
    "trained": unigram,
    "with bytes": unigram_with_bytes,
    "of GGUF": unigram_of_gguf,
}
WORDPIECES: Mapping[str, Callable[[], Tokenizer]] = {
    "trained": wordpiece,
    "of GGUF": wordpiece_of_gguf,
}
