"""Real tokenizers: what we build from GGUF metadata against what their authors publish."""

import os
from collections.abc import Iterator
from pathlib import Path
from unicodedata import is_normalized

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.merges import explain_merges, merge_rules
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.trained import read, unigram
from tests.tokens.worlds import CORPUS, data_folder, original, real, tokenizer_json

REAL = [("gpt4o", "gpt-4o"), ("llama3_1", "llama-bpe"), ("llama2", None)]
CASES = pytest.mark.parametrize(("name", "pre"), REAL, ids=[name for name, _ in REAL])
MARKED = st.text(alphabet=st.characters(exclude_categories=("Cs",))).map(lambda text: text.replace("▁", "_"))


def judged(name: str, text: str) -> list[int]:
    return original(name).encode(text, add_special_tokens=False).ids


@CASES
def test_ids_are_those_of_the_original_on_a_wide_corpus(name: str, pre: str | None) -> None:
    for text in CORPUS:
        assert real(name, pre).encode(text, add_special=False) == judged(name, text), text


@CASES
@settings(max_examples=150)
@given(text=MARKED)
def test_ids_are_those_of_the_original_on_any_text(name: str, pre: str | None, text: str) -> None:
    assert real(name, pre).encode(text, add_special=False) == judged(name, text)


@CASES
@settings(max_examples=100)
@given(text=st.text(alphabet="aAbe 'sS\n\t\r1230.,!/é中<|>_"))
def test_ids_are_those_of_the_original_on_dense_text(name: str, pre: str | None, text: str) -> None:
    assert real(name, pre).encode(text, add_special=False) == judged(name, text)


@CASES
def test_texts_come_back(name: str, pre: str | None) -> None:
    for text in CORPUS:
        assert real(name, pre).decode(real(name, pre).encode(text, add_special=False)) == text


@CASES
def test_decoding_agrees_with_the_original_token_by_token(name: str, pre: str | None) -> None:
    tokenizer = real(name, pre)
    for token_id in range(0, tokenizer.vocab_size, 97):
        if original(name).id_to_token(token_id) is not None:
            assert tokenizer.decode([token_id]) == original(name).decode([token_id], skip_special_tokens=False)


@pytest.fixture(scope="module", params=[name for name, _ in REAL])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder as the hub serves it."""
    path: Path = tmp_path_factory.mktemp(request.param)
    (path / "tokenizer.json").write_text(tokenizer_json(request.param), encoding="utf-8")
    config = data_folder("tokenizers") / request.param / "tokenizer_config.json"
    (path / "tokenizer_config.json").write_bytes(config.read_bytes())
    yield path


def test_a_folder_gives_the_same_tokenizer(folder: Path) -> None:
    ours, judge = Tokenizer.from_path(folder), Core.from_file(str(folder / "tokenizer.json"))
    for text in CORPUS:
        assert ours.encode(text) == judge.encode(text).ids
        assert ours.decode(ours.encode(text), skip_special=True) == text
    assert ours.vocab_size == max(judge.get_vocab().values()) + 1
    assert ours.eos_id in ours.eog_ids
    assert ours.built.is_trusted_pattern


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_an_expression_that_backtracks_without_end_is_given_up(tmp_path: Path) -> None:
    judge = Core.from_str(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"post_processor":null,'
        '"decoder":null,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(x+x+)+yz"},"behavior":"Isolated",'
        '"invert":false},"model":{"type":"BPE","vocab":{"x":0},"merges":[]}}'
    )
    judge.save(str(tmp_path / "tokenizer.json"))
    hostile = Tokenizer.from_folder(tmp_path)
    assert not hostile.built.is_trusted_pattern
    with pytest.raises(InvalidRequest, match="could not split"):
        hostile.encode("x" * 3000 + "!yz")
    assert hostile.encode("xx") == [0, 0]
    with pytest.raises(InvalidRequest, match="characters"):
        hostile.encode("x" * (1 << 19))


@CASES
def test_traced_merges_end_in_the_ids_of_the_tokenizer(name: str, pre: str | None) -> None:
    tokenizer = real(name, pre)
    rules = merge_rules(tokenizer)
    for text in CORPUS:
        ids = [token_id for word in explain_merges(tokenizer, text, rules) for token_id in word.ids]
        assert ids == tokenizer.encode(text, add_special=False), text


VOCABULARIES = os.environ.get("LOCALLLM_TEST_VOCABULARIES")


@pytest.mark.skipif(
    not VOCABULARIES, reason="LOCALLLM_TEST_VOCABULARIES names no folder of llama.cpp's ggml-vocab-*.gguf"
)
def test_llama_cpp_vocabularies_give_the_ids_published_beside_them() -> None:
    """Each vocabulary there has texts (.inp) and the ids that its model's own tokenizer gives (.out)."""
    files = [file for file in sorted(Path(VOCABULARIES or ".").glob("*.gguf")) if Path(f"{file}.inp").exists()]
    assert files
    for file in files:
        tokenizer = Tokenizer.from_path(file)
        texts = Path(f"{file}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = Path(f"{file}.out").read_text().split("\n")
        composed = tokenizer.built.core.normalizer is not None and tokenizer.built.is_byte_level
        for text, line in zip(texts, lines, strict=False):
            if composed and not is_normalized("NFC", text):
                continue  # for Qwen 3.5 the ids there are of a program that does not compose, as the tokenizer does
            assert tokenizer.encode(text, add_special=False) == [int(one) for one in line.split()], (file.name, text)


def with_added() -> tuple[Tokenizer, Core]:
    """A Unigram tokenizer with tokens behind its vocabulary, too, and its judge."""
    judge = Core.from_str(unigram().built.core.to_str())
    judge.add_tokens([AddedToken("<mask>", special=True), AddedToken("<tool>"), AddedToken("</tool>")])
    return read(judge, {"eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}), judge


def test_added_tokens_keep_their_ids_where_special_ones_are_text() -> None:
    ours, judge = with_added()
    judge.encode_special_tokens = True
    text = "<tool>the cat</tool>"
    ids = judge.encode(text, add_special_tokens=False).ids
    assert {judge.token_to_id("<tool>"), judge.token_to_id("</tool>")} < set(ids)
    assert ours.encode(text, add_special=False, parse_special=False) == ids


def test_no_text_that_one_could_guess_is_a_special_token_where_those_are_text() -> None:
    ours, _ = with_added()
    special = ours.special_ids - {ours.built.special.unk_id}
    for text in ("<mask>", "</s>", "a<pad>b", *(f"\U0010fffe{token_id}\U0010fffe" for token_id in special)):
        assert not special.intersection(ours.encode(text, add_special=False, parse_special=False)), text
