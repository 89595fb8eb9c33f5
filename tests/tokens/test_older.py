"""Tokenizers from before tokenizer.json: SentencePiece's model, vocab.json with merges.txt, and tiktoken's ranks."""

import base64
import json
import struct
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.tokens.alphabet import byte_alphabet, spelled_bytes
from localllm.tokens.export import gguf_tokenizer
from localllm.tokens.pretokenizers import pretokenizer_or_default, splitter
from localllm.tokens.sentencepiece import sentencepiece_metadata
from localllm.tokens.tiktoken import merges_from_ranks, read_ranks
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import CORPUS, from_folder, from_metadata, gguf_metadata, written_folder
from tests.tokens.worlds import tiny_spm, tiny_spm_metadata

UNIGRAM, BPE_KIND = 1, 2


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + varint(value >> 7)


def numbered(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def lengthy(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def model_file(metadata: dict[str, Any], kind: int = BPE_KIND, *, prefix: bool = True, roles: bytes = b"") -> bytes:
    """A SentencePiece model as its own program writes it, with fields in it that we do not read."""
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    pieces = (
        lengthy(
            1,
            lengthy(1, text.encode())
            + b"\x15"
            + struct.pack("<f", score)
            + (numbered(3, type_) if type_ != 1 else b""),
        )
        for text, score, type_ in zip(*columns, strict=True)
    )
    trainer = lengthy(1, b"corpus.txt") + numbered(3, kind) + numbered(35, 1) + roles
    normalizer = lengthy(1, b"identity") + numbered(3, prefix) + numbered(4, 0)
    return (
        b"".join(pieces) + lengthy(2, trainer) + lengthy(3, normalizer) + lengthy(4, b"\x00") + b"\x3d\x00\x00\x80\x3f"
    )


def saved(folder: Path, name: str, raw: bytes, config: dict[str, Any] | None = None) -> Path:
    (folder / name).write_bytes(raw)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return folder


# --- SentencePiece


def test_a_sentencepiece_model_reads_as_the_published_tokenizer(tmp_path: Path) -> None:
    folder = saved(
        tmp_path, "tokenizer.model", model_file(gguf_metadata("llama2")), {"tokenizer_class": "LlamaTokenizer"}
    )
    tokenizer, published = Tokenizer.from_folder(folder), from_folder("llama2")
    for text in CORPUS:
        assert tokenizer.encode(text) == published.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == published.decode(published.encode(text))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.built.special.unk_id) == (1, 2, 0)


def test_a_model_file_opens_by_its_own_path(tmp_path: Path) -> None:
    file = saved(tmp_path, "tokenizer.model", model_file(tiny_spm_metadata())) / "tokenizer.model"
    assert Tokenizer.from_path(file).encode("hello world") == tiny_spm().encode("hello world")


def test_added_tokens_and_roles_come_from_the_configuration(tmp_path: Path) -> None:
    size = tiny_spm().vocab_size
    config = {
        "added_tokens_decoder": {
            str(size + 1): {"content": "<|im_end|>", "special": True},
            str(size + 2): {"content": "<think>", "special": False},
        },
        "eos_token": "<|im_end|>",
        "add_bos_token": False,
        "chat_template": "{{ messages }}",
    }
    folder = saved(tmp_path, "tokenizer.model", model_file(tiny_spm_metadata()), config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, size + 1]}), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<|im_end|>") == [size + 1]
    assert size + 1 not in tokenizer.encode("<|im_end|>", parse_special=False)
    assert tokenizer.encode("<think>", parse_special=False) == [size + 2]
    assert tokenizer.eos_id == size + 1
    assert {2, size + 1} <= tokenizer.eog_ids == Tokenizer.from_gguf(gguf_tokenizer(folder)).eog_ids
    assert tokenizer.built.chat_template == "{{ messages }}"
    assert tokenizer.decode([size]) == f"[PAD{size}]"


def test_a_model_without_the_space_prefix_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path, "tokenizer.model", model_file(tiny_spm_metadata(), prefix=False))
    tokenizer = Tokenizer.from_folder(folder)
    assert [tokenizer.piece(one) for one in tokenizer.encode("hello", add_special=False)] == ["hello"]


def test_a_unigram_model_takes_the_likeliest_pieces(tmp_path: Path) -> None:
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1), ("a", -3.0, 1), ("b", -3.0, 1)]
    pieces += [("ab", -4.0, 1), ("▁a", -3.5, 1), ("ba", -5.5, 1)]
    names = ("tokens", "scores", "token_type")
    metadata = {
        f"tokenizer.ggml.{name}": list(column) for name, column in zip(names, zip(*pieces, strict=True), strict=True)
    }
    roles = numbered(40, 2) + numbered(41, -1) + numbered(42, 1) + numbered(43, 0)
    tokenizer = Tokenizer.from_folder(saved(tmp_path, "tokenizer.model", model_file(metadata, UNIGRAM, roles=roles)))
    assert [tokenizer.piece(one) for one in tokenizer.encode("aba", add_special=False)] == [" a", "ba"]
    assert tokenizer.encode("ab?")[-2:] == [2, 1]
    assert tokenizer.bos_id is None
    assert 1 not in tokenizer.encode("</s>", add_special=False, parse_special=False)


@given(damage=st.binary(max_size=40), place=st.integers(0, 3000), keep=st.integers(0, 4000))
def test_a_damaged_model_is_refused_or_read(damage: bytes, place: int, keep: int) -> None:
    raw = model_file(tiny_spm_metadata())
    try:
        sentencepiece_metadata(raw[:place] + damage + raw[place : place + keep], "tokenizer.model")
    except LocalLLMError as error:
        assert isinstance(error, BadModelFile | UnsupportedModel)


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x0b\x01", b"\x08\x01"])
def test_what_is_no_model_is_refused(raw: bytes) -> None:
    with pytest.raises(BadModelFile, match="no SentencePiece model"):
        sentencepiece_metadata(raw, "tokenizer.model")


def test_a_model_of_whole_words_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="kind"):
        sentencepiece_metadata(model_file(tiny_spm_metadata(), kind=3), "tokenizer.model")


# --- vocab.json and merges.txt


def pair_of_files(folder: Path, config: dict[str, Any]) -> Path:
    metadata = gguf_metadata("tiny")
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    plain = {text: place for place, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind == 1}
    (folder / "vocab.json").write_text(json.dumps(plain), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *metadata["tokenizer.ggml.merges"], ""])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    added = {text: place for place, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind != 1}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    special = [text for text in added if text != "<think>"]
    return saved(folder, "special_tokens_map.json", json.dumps({"additional_special_tokens": special}).encode(), config)


def test_a_vocabulary_and_merges_read_as_the_tokenizer_they_are_of(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer, original = Tokenizer.from_folder(pair_of_files(tmp_path, config)), from_metadata("tiny")
    for text in (*CORPUS, "a<|eot_id|>b<think>"):
        for parse_special in (True, False):
            ids = original.encode(text, parse_special=parse_special)
            assert tokenizer.encode(text, parse_special=parse_special) == ids
    assert (tokenizer.bos_id, tokenizer.eos_id) == (original.bos_id, original.eos_id)


def test_the_class_in_the_configuration_says_how_text_is_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(pair_of_files(tmp_path, {"tokenizer_class": "Qwen2TokenizerFast"}))
    assert len(tokenizer.encode("12")) == 2
    assert gguf_tokenizer(tmp_path)["tokenizer.ggml.pre"] == "qwen2"


def test_a_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    pair_of_files(tmp_path, {})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UnsupportedModel, match=r"merges\.txt"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("vocabulary", ['{"a": -1}', '{"a": "b"}', '{"a": 4000000000}', "[]", "{}"])
def test_a_vocabulary_of_no_ids_is_refused(vocabulary: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(BadModelFile):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_mark_that_an_editor_put_before_a_text_is_passed_over(is_old: bool, tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    folder = pair_of_files(tmp_path, config) if is_old else written_folder("tiny", tmp_path)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    for file in folder.iterdir():
        file.write_bytes(BOM_UTF8 + file.read_bytes())
    tokenizer, original = Tokenizer.from_folder(folder), from_metadata("tiny")
    for text in CORPUS:
        assert tokenizer.encode(text) == original.encode(text)
    assert tokenizer.built.chat_template == "{{ bos_token }}"


# --- tiktoken


def ranks_of(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def test_merges_that_follow_from_ranks_read_as_the_learned_ones(tmp_path: Path) -> None:
    metadata = gguf_metadata("tiny")
    merges = [tuple(line.split(" ")) for line in metadata["tokenizer.ggml.merges"]]
    texts = [*byte_alphabet(), *dict.fromkeys(left + right for left, right in merges)]
    judge = Core(BPE({text: place for place, text in enumerate(texts)}, merges))
    judge.pre_tokenizer = splitter(pretokenizer_or_default("qwen2")[0])
    folder = saved(tmp_path, "qwen.tiktoken", ranks_of([spelled_bytes(text) for text in texts]))
    tokenizer = Tokenizer.from_folder(folder)
    for text in CORPUS:
        assert tokenizer.encode(tokenizer.decode(tokenizer.encode(text))) == tokenizer.encode(text)
        if tokenizer.decode(tokenizer.encode(text)) == text:  # what the normalizer leaves as it is
            assert tokenizer.encode(text) == judge.encode(text, add_special_tokens=False).ids


def test_the_ranks_of_a_published_tokenizer_give_its_merges() -> None:
    """A token that several merges make has one of them left: the one that its ranks lead to."""
    metadata = gguf_metadata("gpt4o")
    texts = metadata["tokenizer.ggml.tokens"][:20_000]
    derived = merges_from_ranks(texts)
    assert set(" ".join(pair) for pair in derived) <= set(metadata["tokenizer.ggml.merges"])
    assert {left + right for left, right in derived} == {text for text in texts if len(text) > 1}


@pytest.mark.parametrize("raw", [b"", b"YQ==\n", b"YQ== x\n", b"Y! 0\n", b"YQ== 1\n", b"YQ== 0\nYg== 2\n"])
def test_ranks_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(BadModelFile):
        read_ranks(raw, "x.tiktoken")


def test_a_file_of_ranks_named_as_a_model_is_told_apart(tmp_path: Path) -> None:
    folder = saved(tmp_path, "tokenizer.model", ranks_of([bytes([byte]) for byte in range(256)]))
    assert Tokenizer.from_folder(folder).encode("ab", add_special=False) == [97, 98]
