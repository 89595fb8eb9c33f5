"""Pre-tokenizers and kinds against classes of transformers that have them in their own code, on small vocabularies."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from localllm.tokens.export import gguf_tokenizer
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.corpus import lines
from tests.tokens.test_export import byte_level, unigram, wordpiece

transformers = pytest.importorskip("transformers", reason="transformers is the judge here")
SOME = lines()[::5]
BPE_JUDGES = {
    "gpt-2": "GPT2Tokenizer",
    "roberta-bpe": "RobertaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen35": "Qwen3_5Tokenizer",
    "command-r": "CohereTokenizer",
    "olmo": "GPTNeoXTokenizer",
    "mpt": "GPTNeoXTokenizer",
}


@cache
def small(pre: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(byte_level(pre).to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@pytest.mark.parametrize("pre", BPE_JUDGES)
def test_a_pre_tokenizer_cuts_as_its_class_does(pre: str) -> None:
    vocabulary, merges = small(pre)
    known = {"unk_token": "<s>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|im_end|>"}
    judge = getattr(transformers, BPE_JUDGES[pre])(vocab=vocabulary, merges=merges, **known).backend_tokenizer
    texts = sorted(vocabulary, key=lambda text: vocabulary[text])
    ours = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": [3 if text in known.values() else 1 for text in texts],
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
    )
    theirs = [one.ids for one in judge.encode_batch(SOME, add_special_tokens=False)]
    assert [text for text, ids in zip(SOME, theirs, strict=True) if ours.encode(text, add_special=False) != ids] == []


def read_back(save: Any, config: dict[str, Any]) -> Tokenizer:
    """What our converter makes of a folder."""
    with TemporaryDirectory() as name:
        save(str(Path(name) / "tokenizer.json"))
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return Tokenizer.from_gguf(gguf_tokenizer(name))


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_reads_as_bert(lowercase: bool) -> None:
    vocabulary = json.loads(wordpiece(lowercase=lowercase).to_str())["model"]["vocab"]
    judge = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    roles = ("cls", "sep", "pad", "unk")
    config = {f"{role}_token": f"[{role.upper()}]" for role in roles}
    ours = read_back(judge.backend_tokenizer.save, config)
    theirs = judge(SOME)["input_ids"]
    assert [text for text, ids in zip(SOME, theirs, strict=True) if ours.encode(text) != ids] == []


def test_unigram_reads_as_t5() -> None:
    vocabulary = [tuple(entry) for entry in json.loads(unigram().to_str())["model"]["vocab"]]
    judge = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    ours = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": [text for text, _ in vocabulary],
            "tokenizer.ggml.scores": [score for _, score in vocabulary],
            "tokenizer.ggml.token_type": [3, 3, 2, *[1] * (len(vocabulary) - 3)],
            "tokenizer.ggml.remove_extra_whitespaces": True,
        }
    )
    # this class cuts at all kinds of spaces: its map of characters, which is not here, makes one kind of them; and it
    # takes the mark for a space, where somebody types it, for the beginning of a word
    usual = [text for text in SOME if all(one == " " or not one.isspace() for one in text) and "\u2581" not in text]
    theirs = judge(usual)["input_ids"]
    assert len(usual) > 500
    assert [text for text, ids in zip(usual, theirs, strict=True) if ours.encode(text) != ids] == []
