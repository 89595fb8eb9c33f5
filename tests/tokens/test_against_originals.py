"""Ids are those of the models' own tokenizers, from a folder and from GGUF metadata; strange metadata is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import BadModelFile, InvalidRequest, LocalLLMError, UnsupportedModel
from localllm.tokens.pretokenizers import known_names
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import CORPUS, PUBLISHED, from_folder, from_metadata, gguf_metadata, original, written_folder

ALL = (*PUBLISHED, "tiny")
_PICKY_TEXT = st.text(st.sampled_from("aAzZ09'stm \n\r\t\u00a0.,/-_é猫🐈\u200d\u0301中\u017f\u2581Ġ½٣"), max_size=40)


def theirs(name: str, text: str) -> list[int]:
    """The oracle's ids, without what it puts around a text."""
    ids: list[int] = original(name).encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("name", ALL)
def test_a_folder_gives_the_original_ids(name: str) -> None:
    tokenizer = from_folder(name)
    for text in CORPUS:
        assert tokenizer.encode(text, add_special=False) == theirs(name, text), text


@pytest.mark.parametrize("name", ALL)
def test_gguf_metadata_gives_the_original_ids(name: str) -> None:
    tokenizer = from_metadata(name)
    for text in CORPUS:
        assert tokenizer.encode(text, add_special=False) == theirs(name, text), text


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60)
@given(text=st.text(max_size=60) | _PICKY_TEXT)
def test_any_text_gets_the_original_ids(name: str, text: str) -> None:
    assert from_metadata(name).encode(text, add_special=False, parse_special=False) == theirs(name, text)


@pytest.mark.parametrize("name", ALL)
def test_what_goes_around_a_text_is_the_originals(name: str) -> None:
    for text in ("", "a", "hello there"):
        framed = original(name).encode(text, add_special_tokens=True).ids
        assert from_folder(name).encode(text) == framed
        assert from_metadata(name).encode(text) == framed


@pytest.mark.parametrize("name", ALL)
def test_folder_and_metadata_agree_about_special_tokens(name: str) -> None:
    folder, metadata = from_folder(name), from_metadata(name)
    assert (folder.bos_id, folder.eos_id, folder.eot_id) == (metadata.bos_id, metadata.eos_id, metadata.eot_id)
    assert folder.eog_ids == metadata.eog_ids
    assert folder.add_bos == metadata.add_bos
    assert folder.vocab_size == metadata.vocab_size
    assert folder.special_ids == metadata.special_ids


def test_llama_3_1_knows_its_ends() -> None:
    tokenizer = from_metadata("llama3_1")
    texts = {tokenizer.built.texts[token_id] for token_id in tokenizer.eog_ids}
    assert texts == {"<|end_of_text|>", "<|eot_id|>"}
    assert tokenizer.eot_id == tokenizer.built.texts.index("<|eot_id|>")


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_within_a_text_are_the_originals(name: str) -> None:
    tokenizer = from_metadata(name)
    for mark in [tokenizer.built.texts[one] for one in sorted(tokenizer.special_ids)[:5]]:
        for text in (mark, f"{mark}a", f"a {mark} b", f"{mark}{mark}\n{mark}", f"<{mark}>", mark[:-1]):
            assert tokenizer.encode(text, add_special=False) == theirs(name, text), text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("text", "meant"),
    [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\udc08", "🐈"), ("\udc08\ud83d", "\ufffd\ufffd")],
)
def test_lone_surrogates_read_as_replacement_characters(name: str, text: str, meant: str) -> None:
    assert from_metadata(name).encode(text, add_special=False) == theirs(name, meant)


def test_spm_without_the_space_prefix_leaves_it_out() -> None:
    metadata = gguf_metadata("llama2") | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode(" hello there", add_special=False) == theirs("llama2", "hello there")
    assert tokenizer.decode(tokenizer.encode(" hello", add_special=False)) == " hello"


@pytest.mark.parametrize("name", known_names())
def test_every_known_pre_tokenizer_builds_and_loses_nothing(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(gguf_metadata("tiny") | {"tokenizer.ggml.pre": name})
    for text in CORPUS:
        if not tokenizer.built.core.normalizer:
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


# --- what is refused


@pytest.mark.parametrize("kind", ["rwkv", "plamo2"])
def test_an_unknown_kind_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=kind):
        Tokenizer.from_gguf(gguf_metadata("tiny") | {"tokenizer.ggml.model": kind})


@pytest.mark.parametrize("kind", ["none", "no_vocab"])
def test_a_model_without_a_tokenizer_says_so(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match="comes without a tokenizer"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": kind})


def test_a_file_without_a_tokenizer_says_so() -> None:
    with pytest.raises(BadModelFile, match="tokenizer"):
        Tokenizer.from_gguf({"general.architecture": "llama"})


def _spm(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary by hand."""
    base = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a"],
        "scores": [0.0, 0.0, 0.0, -3.0, -2.0, -1.0],
        "token_type": [2, 3, 3, 1, 1, 1],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (base | changes).items()}


def _bpe(**changes: Any) -> dict[str, Any]:
    return gguf_metadata("tiny") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


_HOSTILE: dict[str, Callable[[], dict[str, Any]]] = {
    "no tokens": lambda: _bpe(tokens=[]),
    "tokens no list": lambda: _bpe(tokens=7),
    "tokens one string": lambda: _bpe(tokens="abc"),
    "tokens numbers": lambda: _bpe(tokens=[1, 2, 3]),
    "tokens bytes": lambda: _bpe(tokens=[b"a", b"b"]),
    "a token that is no string": lambda: _bpe(tokens=["a", None, 3], token_type=[1, 1, 1], merges=[]),
    "a surrogate in a token": lambda: _bpe(tokens=["a", "\ud800"], token_type=[1, 3], merges=[]),
    "merges missing": lambda: {key: value for key, value in _bpe().items() if not key.endswith("merges")},
    "merges no list": lambda: _bpe(merges=3),
    "merges one string": lambda: _bpe(merges="a b"),
    "a merge that is no pair": lambda: _bpe(merges=["ab"]),
    "a merge that is no string": lambda: _bpe(merges=[["a", "b"]]),
    "a merge that is empty": lambda: _bpe(merges=[""]),
    "a merge of no token": lambda: _bpe(merges=["nosuch token"]),
    "a merge into no token": lambda: _bpe(merges=["q z"]),
    "a surrogate in a merge": lambda: _bpe(merges=["\ud800 a"]),
    "types too few": lambda: _bpe(token_type=[1]),
    "types no list": lambda: _bpe(token_type=1),
    "types no numbers": lambda: _bpe(token_type=["control"] * 1000),
    "types a mapping": lambda: _bpe(token_type={}),
    "eos no number": lambda: _bpe(eos_token_id="</s>"),
    "pre no string": lambda: _bpe(pre=["llama-bpe"]),
    "kind no string": lambda: _bpe(model=["gpt2"]),
    "kind a mapping": lambda: _bpe(model={}),
    "scores missing": lambda: {key: value for key, value in _spm().items() if not key.endswith("scores")},
    "scores too few": lambda: _spm(scores=[0.0]),
    "scores one string": lambda: _spm(scores="abcdef"),
    "scores no numbers": lambda: _spm(scores=["a"] * 6),
    "a map of characters that is none": lambda: _spm(precompiled_charsmap=[1, 2, 3]),
    "a map of characters with holes": lambda: _spm(precompiled_charsmap=[8, 0, 0, 0, 1, "x"]),
    "a unigram model without scores": lambda: _bpe(model="t5"),
    "a unigram model with a map that is none": lambda: _spm(model="t5", precompiled_charsmap="abc"),
    "word pieces without a word for unknown ones": lambda: _bpe(model="bert", unknown_token_id=1 << 30),
    "spm token that is no string": lambda: _spm(tokens=["<unk>", "<s>", "</s>", 1, 2, 3]),
}


@pytest.mark.parametrize("case", _HOSTILE)
def test_hostile_metadata_is_refused_with_an_error_of_ours(case: str) -> None:
    with pytest.raises((BadModelFile, UnsupportedModel)) as caught:
        Tokenizer.from_gguf(_HOSTILE[case]())
    assert str(caught.value)


@pytest.mark.parametrize("wrong", [-1, 10**6, 1 << 63])
def test_a_special_id_out_of_range_is_as_none(wrong: int) -> None:
    names = ("bos", "eos", "eot", "padding", "unknown")
    tokenizer = Tokenizer.from_gguf(_bpe(**{f"{name}_token_id": wrong for name in names}, add_bos_token=True))
    assert tokenizer.bos_id is tokenizer.eos_id is tokenizer.pad_id is None
    assert tokenizer.encode("the mat") == theirs("tiny", "the mat")
    assert Tokenizer.from_gguf(_spm(unknown_token_id=wrong)).encode("a") == [1, 5]


def test_the_later_of_two_equal_tokens_is_decoded_but_never_made() -> None:
    metadata = gguf_metadata("tiny")
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    copy = texts.index("the") if "the" in texts else texts.index("a")
    doubled = metadata | {"tokenizer.ggml.tokens": [*texts, texts[copy]], "tokenizer.ggml.token_type": [*types, 1]}
    tokenizer = Tokenizer.from_gguf(doubled)
    assert tokenizer.encode("the cat") == Tokenizer.from_gguf(metadata).encode("the cat")
    assert tokenizer.decode([len(texts)]) == texts[copy]


def test_scores_that_are_no_numbers_of_size_still_end_in_text() -> None:
    strange = [0.0, 0.0, 0.0, float("nan"), float("inf"), float("-inf")]
    tokenizer = Tokenizer.from_gguf(_spm(scores=strange))
    assert tokenizer.decode(tokenizer.encode("a a", add_special=False)) == "a a"


def test_a_vocabulary_without_bytes_says_unknown() -> None:
    tokenizer = Tokenizer.from_gguf(_spm())
    assert tokenizer.encode("a?") == [1, 5, 0]


@settings(max_examples=150)
@given(
    tokens=st.lists(st.text(max_size=3) | st.integers() | st.none(), max_size=6),
    merges=st.lists(st.text("ab ", max_size=4) | st.integers(), max_size=4),
    types=st.lists(st.integers(-1, 9) | st.text(max_size=1), max_size=7),
    bos=st.integers(-3, 9) | st.none() | st.text(max_size=1),
    kind=st.sampled_from(["gpt2", "llama", "gemma4", "bert", "t5"]),
)
def test_random_metadata_builds_or_is_refused(
    tokens: list[object], merges: list[object], types: list[object], bos: object, kind: str
) -> None:
    metadata = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
        assert all(0 <= one < len(tokens) for one in tokenizer.encode("ab a<\n"))
    except LocalLLMError as error:
        assert isinstance(error, BadModelFile | UnsupportedModel | InvalidRequest)


_HOSTILE_FOLDERS: dict[str, tuple[dict[str, str], tuple[type[LocalLLMError], ...]]] = {
    "nothing": ({}, (UnsupportedModel,)),
    "no json": ({"tokenizer.json": "{"}, (BadModelFile,)),
    "a list": ({"tokenizer.json": "[]"}, (BadModelFile,)),
    "no object in the configuration": ({"tokenizer_config.json": "[1]"}, (BadModelFile,)),
    "nested past measure": ({"tokenizer_config.json": "[" * 200_000}, (BadModelFile,)),
    "word pieces marked otherwise": (
        {
            "tokenizer.json": '{"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", '
            '"continuing_subword_prefix": "@@", "max_input_chars_per_word": 100}, "added_tokens": []}'
        },
        (UnsupportedModel,),
    ),
    "whole words": (
        {"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}'},
        (UnsupportedModel,),
    ),
    "a map of characters that is none": (
        {
            "tokenizer.json": '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}, "added_tokens": [], '
            '"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAAAAAA"}}'
        },
        (BadModelFile,),
    ),
    "ids far apart": (
        {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 4000000000}, "merges": []}}'},
        (BadModelFile,),
    ),
    "merges of no token": (
        {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "x"]]}}'},
        (BadModelFile,),
    ),
}


@pytest.mark.parametrize("case", _HOSTILE_FOLDERS)
def test_a_hostile_folder_is_refused_with_an_error_of_ours(case: str, tmp_path: Path) -> None:
    files, errors = _HOSTILE_FOLDERS[case]
    if "tokenizer_config.json" in files:
        written_folder("tiny", tmp_path)
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(errors):
        Tokenizer.from_folder(tmp_path)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (written_folder("tiny", tmp_path) / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(BadModelFile, match=r"chat_template\.jinja is not UTF-8 at byte 0"):
        Tokenizer.from_folder(tmp_path).chat_template()


def test_a_split_expression_of_the_files_own_takes_only_shorter_texts(tmp_path: Path) -> None:
    folder = written_folder("tiny", tmp_path)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    split = (
        '"pre_tokenizer":{"type":"Sequence","pretokenizers":['
        '{"type":"Split","pattern":{"Regex":"(a+)+$"},"behavior":"Isolated","invert":false},'
        '{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]}'
    )
    start = text.index('"pre_tokenizer":')
    end = text.index('"post_processor":')
    (folder / "tokenizer.json").write_text(f"{text[:start]}{split},{text[end:]}", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(InvalidRequest):
        tokenizer.encode("a" * 300_000)
    with pytest.raises(InvalidRequest):
        tokenizer.encode("a" * 5_000 + "b")
    assert tokenizer.decode(tokenizer.encode("the mat")) == "the mat"
