"""What a folder's tokenizer becomes in GGUF reads every text as the folder's does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE, Unigram, WordPiece

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.tokens.export import gguf_tokenizer
from localllm.tokens.pretokenizers import distinct, pretokenizer_or_default, splitter
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import CORPUS, PUBLISHED, written_folder

_TEXT = [
    *CORPUS,
    "the cat sat on the mat and the other cats were not there, 12 345 6789",
    "low lower lowest new newer",
] * 4
BYTE_LEVEL = [name for name, entry in distinct() if entry.is_byte_level]


def byte_level(pre: str) -> Core:
    """A small byte-level BPE that cuts text as `pre` does."""
    entry, _ = pretokenizer_or_default(pre)
    core = Core(BPE(ignore_merges=entry.ignore_merges))
    core.pre_tokenizer = splitter(entry)
    core.normalizer = normalizers.NFC() if entry.normalize_nfc else None
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=alphabet, special_tokens=special
    )
    core.train_from_iterator(_TEXT, trainer)
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return core


def spaced() -> Core:
    """SentencePiece's BPE as tokenizer.json says it: a mark for spaces, bytes for what is unknown."""
    core = Core(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"], max_token_length=8
    )
    core.train_from_iterator([text.replace(" ", " ▁") for text in _TEXT], trainer)
    state = json.loads(core.to_str())
    vocab = state["model"]["vocab"]
    for name in bytes_:
        vocab.setdefault(name, len(vocab))
    state["model"]["merges"] = _all_merges(vocab, state["model"]["merges"])
    return Core.from_str(json.dumps(state))


def _all_merges(vocab: dict[str, int], learned: list[list[str]]) -> list[list[str]]:
    """All ways to make each piece, the pieces in the order learned: what transformers writes for SentencePiece."""
    pieces = list(dict.fromkeys(left + right for left, right in learned))
    return [
        [one[:cut], one[cut:]] for one in pieces for cut in range(1, len(one)) if {one[:cut], one[cut:]} <= set(vocab)
    ]


def unigram() -> Core:
    core = Core(Unigram())
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", True)
    core.decoder = decoders.Metaspace("▁", "always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    core.train_from_iterator(_TEXT, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    state = json.loads(core.to_str())
    # as SentencePiece's own scores are: a file has no more digits
    state["model"]["vocab"] = [[piece, float(np.float32(score))] for piece, score in state["model"]["vocab"]]
    return Core.from_str(json.dumps(state))


def wordpiece(*, lowercase: bool = True) -> Core:
    core = Core(WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        [text.replace("▁", "") for text in _TEXT],
        trainers.WordPieceTrainer(vocab_size=500, show_progress=False, special_tokens=special),
    )
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return core


CONFIGS: dict[str, dict[str, Any]] = {
    "bpe": {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": "{{ messages }}"},
    "spaced": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "add_bos_token": True},
    "unigram": {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "wordpiece": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
}


def saved(folder: Path, core: Core, config: dict[str, Any]) -> Path:
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def check_same(folder: Path) -> Tokenizer:
    """The folder's tokenizer and the one from its metadata agree on everything; the latter is returned."""
    published, written = Tokenizer.from_folder(folder), Tokenizer.from_gguf(gguf_tokenizer(folder))
    for text in CORPUS:
        for parse_special in (True, False):
            ids = published.encode(text, parse_special=parse_special)
            assert written.encode(text, parse_special=parse_special) == ids, text
            assert written.decode(ids) == published.decode(ids)
    for name in ("bos_id", "eos_id", "eot_id", "pad_id", "eog_ids", "vocab_size", "special_ids"):
        assert getattr(written, name) == getattr(published, name), name
    assert written.built.chat_templates == published.built.chat_templates
    return written


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tokenizer_reads_the_same_from_gguf(name: str, tmp_path: Path) -> None:
    check_same(written_folder(name, tmp_path))


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_a_byte_level_tokenizer_reads_the_same_from_gguf(pre: str, tmp_path: Path) -> None:
    written = check_same(saved(tmp_path, byte_level(pre), CONFIGS["bpe"]))
    assert written.eos_id in written.eog_ids


@pytest.mark.parametrize(
    "pre", ["gpt-2", "llama-bpe", "qwen2", "stablelm2", "smollm", "gpt-4o", "tekken", "deepseek-v3"]
)
def test_the_name_of_the_pre_tokenizer_is_found_by_what_it_does(pre: str, tmp_path: Path) -> None:
    assert gguf_tokenizer(saved(tmp_path, byte_level(pre), CONFIGS["bpe"]))["tokenizer.ggml.pre"] == pre


def test_a_split_that_has_no_name_is_refused_and_the_closest_is_named(tmp_path: Path) -> None:
    core = byte_level("qwen2")
    own = Regex(r"\p{N}{1,2}|\p{L}+|\s+|[^\s\p{L}\p{N}]+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(own, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    with pytest.raises(UnsupportedModel, match="no pre-tokenizer") as caught:
        gguf_tokenizer(saved(tmp_path, core, CONFIGS["bpe"]))
    assert "the closest is '" in caught.value.hint


def test_pieces_with_scores_read_the_same_from_gguf(tmp_path: Path) -> None:
    written = check_same(saved(tmp_path, spaced(), CONFIGS["spaced"]))
    assert written.add_bos


def test_a_unigram_tokenizer_reads_the_same_from_gguf(tmp_path: Path) -> None:
    written = check_same(saved(tmp_path, unigram(), CONFIGS["unigram"]))
    assert written.encode("low")[-1] == written.eos_id
    assert written.eos_id not in written.encode("</s>", add_special=False, parse_special=False)
    assert written.encode("low</s>", add_special=False)[-1] == written.eos_id


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_wordpiece_tokenizer_reads_the_same_from_gguf(lowercase: bool, tmp_path: Path) -> None:
    written = check_same(saved(tmp_path, wordpiece(lowercase=lowercase), CONFIGS["wordpiece"]))
    ids = written.encode("the lowest mat")
    assert (ids[0], ids[-1]) == (2, 3)
    assert written.decode(ids, skip_special=True) == "the lowest mat"


def test_pieces_that_would_be_spelled_alike_are_refused(tmp_path: Path) -> None:
    core = Core(WordPiece({"[UNK]": 0, "a": 1, "##▁a": 2}, unk_token="[UNK]"))
    with pytest.raises(UnsupportedModel, match="no words"):
        gguf_tokenizer(saved(tmp_path, core, CONFIGS["wordpiece"]))


def test_the_vocabulary_is_filled_up_to_the_model(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level("qwen2"), CONFIGS["bpe"])
    size = Tokenizer.from_folder(folder).vocab_size
    metadata = gguf_tokenizer(folder, vocab_size=size + 3)
    assert metadata["tokenizer.ggml.tokens"][-2:] == [f"[PAD{size + 1}]", f"[PAD{size + 2}]"]
    assert metadata["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    with pytest.raises(BadModelFile, match=str(size)):
        gguf_tokenizer(folder, vocab_size=size - 1)


def test_tokens_that_eat_the_spaces_beside_them_still_do(tmp_path: Path) -> None:
    core = byte_level("gpt-2")
    core.add_special_tokens([AddedToken("<|user|>", rstrip=True), AddedToken("<mask>", lstrip=True)])
    published, written = Tokenizer.from_folder(saved(tmp_path, core, CONFIGS["bpe"])), check_same(tmp_path)
    for text in ("<|user|>\n low ", "low  <mask> new", "<|user|>", "  <|user|>  <mask>  "):
        assert written.encode(text) == published.encode(text)
    assert written.decode(written.encode("<|user|> \nlow  <mask>")) == "<|user|>low<mask>"


def test_named_templates_keep_their_names(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    metadata = gguf_tokenizer(saved(tmp_path, byte_level("gpt-2"), CONFIGS["bpe"] | {"chat_template": templates}))
    assert metadata["tokenizer.chat_template"] == "{{ 1 }}"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ 2 }}"


def test_an_end_that_only_the_generation_settings_name_is_written(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level("gpt-2"), CONFIGS["bpe"])
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 1]}', encoding="utf-8")
    written = check_same(folder)
    assert {1, 2} <= written.eog_ids


def test_what_is_written_to_a_file_reads_the_same(tmp_path: Path) -> None:
    folder = saved(tmp_path, unigram(), CONFIGS["unigram"])
    file = tmp_path / "vocabulary.gguf"
    write_gguf(file, {"general.architecture": "of-tomorrow", **gguf_tokenizer(folder)}, [])
    with GGUFFile.open(file) as opened:
        assert not opened.tensors
    written, published = Tokenizer.from_path(file), Tokenizer.from_path(folder)
    for text in CORPUS:
        assert written.encode(text) == published.encode(text)
