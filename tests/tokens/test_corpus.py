"""Some thousand lines of everything: ids, texts and merges are those of the models' own tokenizers, on every line."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from localllm.formats.gguf_read import GGUFFile
from localllm.tokens.export import gguf_tokenizer
from localllm.tokens.merges import explain_merges, merge_rules
from localllm.tokens.specials import TokenType
from localllm.tokens.stream import TokenStream
from localllm.tokens.tokenizer import Tokenizer, clean_text
from tests.tokens.corpus import MAX_LINE_CHARS, broken_bytes, broken_lines, lines
from tests.tokens.material import PUBLISHED, from_folder, written_folder

transformers = pytest.importorskip("transformers", reason="transformers is the judge here")
BYTE_LEVEL = ("llama3_1", "gpt4o")


@cache
def judge(name: str) -> Any:
    """The published tokenizer.json as transformers runs it.

    Not AutoTokenizer: version 5 of transformers sets aside the pre-tokenizer of some files for that of the class which
    their configuration names, and so cuts text by GPT-2's rule for GPT-4o.
    """
    with TemporaryDirectory() as folder:
        return transformers.PreTrainedTokenizerFast.from_pretrained(str(written_folder(name, Path(folder))))


@cache
def judged(name: str) -> list[list[int]]:
    ids: list[list[int]] = judge(name)(list(lines()))["input_ids"]
    return ids


@cache
def written(name: str) -> Tokenizer:
    """From what our converter says of the folder in GGUF."""
    with TemporaryDirectory() as folder:
        return Tokenizer.from_gguf(gguf_tokenizer(written_folder(name, Path(folder))))


def different(ours: list[Any], theirs: list[Any]) -> list[str]:
    """The first lines on which the two disagree."""
    found = [text for text, one, other in zip(lines(), ours, theirs, strict=True) if one != other]
    return [f"{len(found)} lines", *map(repr, found[:3])] if found else []


def test_the_corpus_is_wide() -> None:
    assert len(set(lines())) >= 5000
    assert max(map(len, lines())) <= MAX_LINE_CHARS
    wanted = [
        "\u200d",
        "🇩",
        "🏽",
        "e\u0301",
        "é",
        "漢",
        "של",
        "مر",
        "ไ",
        "न",
        "    ",
        "\t\t",
        "\n\n",
        "\ufffd",
        "<|eot_id|>",
    ]
    assert [one for one in wanted if not any(one in line for line in lines())] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_from_a_folder_are_those_of_transformers(name: str) -> None:
    assert different([from_folder(name).encode(line) for line in lines()], judged(name)) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_from_gguf_are_those_of_transformers(name: str) -> None:
    assert different([written(name).encode(line) for line in lines()], judged(name)) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_of_text_that_is_only_text_are_those_of_transformers(name: str) -> None:
    core: Core = judge(name).backend_tokenizer
    core.encode_special_tokens = True
    theirs = [one.ids for one in core.encode_batch(list(lines()), add_special_tokens=False)]
    core.encode_special_tokens = False
    for tokenizer in (from_folder(name), written(name)):
        ours = [tokenizer.encode(line, add_special=False, parse_special=False) for line in lines()]
        assert different(ours, theirs) == []
        assert not any(tokenizer.special_ids.intersection(ids) for ids in ours)


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_texts_come_back_as_with_transformers(name: str, skip_special: bool) -> None:
    theirs = judge(name).batch_decode(
        judged(name), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )
    for tokenizer in (from_folder(name), written(name)):
        assert different([tokenizer.decode(ids, skip_special=skip_special) for ids in judged(name)], theirs) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_only_text_comes_back(name: str) -> None:
    """Except the mark that SentencePiece has for a space, which comes back as a space."""
    tokenizer = from_folder(name)
    ids = [tokenizer.encode(line, add_special=False, parse_special=False) for line in lines()]
    wanted = [line if name in BYTE_LEVEL else line.replace("\u2581", " ") for line in lines()]
    assert different([tokenizer.decode(one) for one in ids], wanted) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_traced_merges_end_in_the_ids_on_every_line(name: str) -> None:
    tokenizer = from_folder(name)
    rules = merge_rules(tokenizer)
    traced = [[one for word in explain_merges(tokenizer, line, rules) for one in word.ids] for line in lines()]
    assert different(traced, [tokenizer.encode(line, add_special=False) for line in lines()]) == []


# --- bytes that are no UTF-8


@pytest.mark.parametrize("name", PUBLISHED)
def test_text_from_broken_bytes_reads_with_replacement_characters(name: str) -> None:
    for line in broken_lines():
        meant = "".join("\ufffd" if "\ud800" <= one <= "\udfff" else one for one in line)
        assert clean_text(line) == meant
        assert from_folder(name).encode(line) == judge(name)(meant)["input_ids"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_broken_bytes_from_tokens_come_back_as_with_transformers(name: str) -> None:
    tokenizer = from_folder(name)
    of_byte = {tokenizer.token_bytes(one): one for one in reversed(range(tokenizer.vocab_size))}
    for raw in broken_bytes():
        ids = [of_byte[bytes([byte])] for byte in raw]
        text = tokenizer.decode(ids)
        assert text == raw.decode("utf-8", "replace")
        assert text == judge(name).decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_streamed_tokens_of_broken_bytes_are_the_decoded_text(name: str) -> None:
    tokenizer = from_folder(name)
    of_byte = {tokenizer.token_bytes(one): one for one in reversed(range(tokenizer.vocab_size))}
    for raw in broken_bytes():
        ids = [of_byte[bytes([byte])] for byte in raw]
        stream = TokenStream(tokenizer, skip_special=False)
        streamed = "".join(stream.push([one]).text for one in ids) + stream.finish().text
        assert streamed == tokenizer.decode(ids)


# --- the small model of the catalog, whose file says only GGUF's words


@pytest.fixture(scope="module")
def small(small_model_file: Path) -> tuple[Tokenizer, Core]:
    """The tokenizer of the file, and the judge: its published parts, which are digits apart and GPT-2's own rule."""
    with GGUFFile.open(small_model_file) as file:
        metadata = dict(file.metadata)
    texts = list(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(line.split(" ")) for line in metadata["tokenizer.ggml.merges"]]
    core = Core(BPE({text: place for place, text in enumerate(texts)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    core.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, types, strict=True) if kind == TokenType.CONTROL]
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return Tokenizer.from_gguf(metadata), core


def test_the_small_model_reads_and_writes_every_line(small: tuple[Tokenizer, Core]) -> None:
    tokenizer, core = small
    theirs = [one.ids for one in core.encode_batch(list(lines()), add_special_tokens=False)]
    assert different([tokenizer.encode(line, add_special=False) for line in lines()], theirs) == []
    assert (
        different([tokenizer.decode(ids) for ids in theirs], core.decode_batch(theirs, skip_special_tokens=False)) == []
    )


def test_the_small_model_goes_to_a_folder_and_back(small: tuple[Tokenizer, Core], tmp_path: Path) -> None:
    tokenizer, core = small
    core.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    metadata = gguf_tokenizer(tmp_path)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    again = Tokenizer.from_gguf(metadata)
    ids = [tokenizer.encode(line, add_special=False) for line in lines()]
    assert different([again.encode(line, add_special=False) for line in lines()], ids) == []


def test_the_small_models_merges_end_in_the_ids_on_every_line(small: tuple[Tokenizer, Core]) -> None:
    tokenizer, _ = small
    rules = merge_rules(tokenizer)
    traced = [[one for word in explain_merges(tokenizer, line, rules) for one in word.ids] for line in lines()]
    assert different(traced, [tokenizer.encode(line, add_special=False) for line in lines()]) == []
