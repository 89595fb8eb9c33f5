"""What goes in comes out: text, bytes, offsets and counts, with and without special tokens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import InvalidRequest
from localllm.tokens.alphabet import byte_alphabet, spelled_bytes
from localllm.tokens.tokenizer import Explained, Tokenizer, clean_text
from tests.tokens.material import CORPUS, PUBLISHED, from_folder, from_metadata

BYTE_LEVEL = ("tiny", "gpt4o", "llama3_1")
ALL = ("tiny", *PUBLISHED)
_MARKS = ("<s>", "</s>", "<|eot_id|>", "<think>", "<|eot_id", "s>", "<", " ", "\n", "cat", "é", "🐈\u200d")
_MARKED_TEXT = st.lists(st.sampled_from(_MARKS) | st.text(max_size=3), max_size=12).map("".join)
_ANY_TEXT = st.text(max_size=80) | _MARKED_TEXT


@pytest.fixture
def tiny() -> Tokenizer:
    return from_metadata("tiny")


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return tokenizer.built.texts.index(text)


def as_kept(name: str, text: str) -> str:
    """SentencePiece spells a space with a mark, so the mark itself cannot come back."""
    return text.replace("\u2581", " ") if name == "llama2" else text


# --- text comes back


@pytest.mark.parametrize("name", ALL)
def test_the_corpus_comes_back(name: str) -> None:
    tokenizer = from_metadata(name)
    for text in CORPUS:
        for add_special in (False, True):
            ids = tokenizer.encode(text, add_special=add_special, parse_special=False)
            assert tokenizer.decode(ids, skip_special=True) == as_kept(name, text)


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(max_examples=60)
@given(text=_ANY_TEXT, parse_special=st.booleans())
def test_any_text_comes_back_from_bytes(name: str, text: str, parse_special: bool) -> None:
    tokenizer = from_metadata(name)
    assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=parse_special)) == text


@settings(max_examples=100)
@given(text=_ANY_TEXT.filter(lambda text: "\u2581" not in text))
def test_any_text_without_the_space_mark_comes_back_from_sentencepiece(text: str) -> None:
    tokenizer = from_metadata("llama2")
    assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=False)) == text


@pytest.mark.parametrize("name", ALL)
def test_a_folder_decodes_as_the_file_does(name: str) -> None:
    folder, file = from_folder(name), from_metadata(name)
    for text in CORPUS:
        ids = file.encode(text)
        assert folder.decode(ids) == file.decode(ids)
        assert [folder.token_bytes(one) for one in ids] == [file.token_bytes(one) for one in ids]


def test_lone_surrogates_come_back_as_replacement_characters(tiny: Tokenizer) -> None:
    assert tiny.decode(tiny.encode("a\ud83db\udc08", add_special=False)) == "a\ufffdb\ufffd"


def test_a_continuation_keeps_the_space_that_a_text_of_its_own_loses() -> None:
    tokenizer = from_metadata("llama2")
    ids = [id_of(tokenizer, "\u2581the"), id_of(tokenizer, "\u2581is")]
    assert tokenizer.decode(ids) == "the is"
    assert tokenizer.decode(ids, continuation=True) == " the is"
    assert tokenizer.decode(ids[1:], continuation=True) == " is"


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60)
@given(text=_ANY_TEXT)
def test_the_bytes_of_the_tokens_joined_are_the_text_in_utf_8(name: str, text: str) -> None:
    tokenizer = from_metadata(name)
    text = text.replace("\u2581", "")
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    space = b" " if tokenizer.built.adds_space_prefix and text else b""
    assert b"".join(tokenizer.token_bytes(one) for one in ids) == space + text.encode()


@settings(max_examples=100)
@given(text=_ANY_TEXT, add_special=st.booleans(), parse_special=st.booleans())
@pytest.mark.parametrize("name", ["tiny", "llama2"])
def test_count_is_the_number_of_ids(name: str, text: str, add_special: bool, parse_special: bool) -> None:
    tokenizer = from_metadata(name)
    ids = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    assert tokenizer.count(text, add_special=add_special, parse_special=parse_special) == len(ids)


def test_every_byte_has_one_character_in_the_alphabet() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert spelled_bytes("\u0120a\u010a") == b" a\n"
    assert spelled_bytes("猫") == "猫".encode()  # a token that was never spelled in the alphabet


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 400), max_size=30))
def test_any_ids_decode_as_their_joined_bytes(ids: list[int]) -> None:
    tokenizer = from_metadata("tiny")
    joined = b"".join(tokenizer.token_bytes(one) for one in ids)
    assert tokenizer.decode(ids) == joined.decode(errors="replace")


# --- special tokens


def test_a_special_token_is_one_id_only_where_it_may_be_parsed(tiny: Tokenizer) -> None:
    eot = id_of(tiny, "<|eot_id|>")
    assert tiny.encode("<|eot_id|>", add_special=False, parse_special=True) == [eot]
    plain = tiny.encode("<|eot_id|>", add_special=False, parse_special=False)
    assert eot not in plain
    assert tiny.decode(plain) == "<|eot_id|>"


def test_a_tag_that_people_see_is_one_id_either_way(tiny: Tokenizer) -> None:
    tag = id_of(tiny, "<think>")
    for parse_special in (True, False):
        assert tag in tiny.encode("a<think>b", add_special=False, parse_special=parse_special)
    assert tag not in tiny.special_ids


@settings(max_examples=100)
@given(before=_ANY_TEXT, after=_ANY_TEXT)
def test_text_on_the_two_sides_of_a_special_token_does_not_meet(before: str, after: str) -> None:
    tiny = from_metadata("tiny")
    before, after = (text.replace("<", "").replace("|", "") for text in (before, after))
    assert tiny.encode(f"{before}<|eot_id|>{after}", add_special=False) == [
        *tiny.encode(before, add_special=False),
        id_of(tiny, "<|eot_id|>"),
        *tiny.encode(after, add_special=False),
    ]


@settings(max_examples=100)
@given(text=_ANY_TEXT)
def test_nothing_a_user_types_becomes_a_special_token_without_leave(text: str) -> None:
    tiny = from_metadata("tiny")
    assert not tiny.special_ids.intersection(tiny.encode(text, add_special=False, parse_special=False))


def test_special_tokens_are_left_out_only_when_asked(tiny: Tokenizer) -> None:
    ids = tiny.encode("<s>a<|eot_id|><think>b</s>", add_special=False)
    assert tiny.decode(ids) == "<s>a<|eot_id|><think>b</s>"
    assert tiny.decode(ids, skip_special=True) == "a<think>b"


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_around_a_text_come_only_when_asked(name: str) -> None:
    tokenizer = from_metadata(name)
    special = tokenizer.built.special
    bare = tokenizer.encode("the mat", add_special=False)
    assert tokenizer.encode("the mat") == [*special.prefix_ids, *bare, *special.suffix_ids]
    assert tokenizer.add_bos == (name in ("llama2", "llama3_1"))
    assert tokenizer.encode("", add_special=False) == []


def test_the_space_before_the_text_is_found_behind_a_skipped_special_token() -> None:
    tokenizer = from_metadata("llama2")
    ids = tokenizer.encode("hello")
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids, skip_special=True) == "hello"


# --- what is refused


@pytest.mark.parametrize("wrong", [-1, 10**9, 1 << 64])
@pytest.mark.parametrize("name", ALL)
def test_an_id_out_of_range_is_refused(name: str, wrong: int) -> None:
    tokenizer = from_metadata(name)
    for refused in (
        lambda: tokenizer.decode([0, wrong]),
        lambda: tokenizer.decode([wrong], skip_special=True),
        lambda: tokenizer.token_bytes(wrong),
        lambda: tokenizer.piece(wrong),
    ):
        with pytest.raises(InvalidRequest, match="token id"):
            refused()


def test_the_last_id_is_in_range_and_the_next_is_not(tiny: Tokenizer) -> None:
    tiny.decode([tiny.vocab_size - 1])
    with pytest.raises(InvalidRequest, match=str(tiny.vocab_size)):
        tiny.decode([tiny.vocab_size])


def test_a_text_past_measure_is_refused(tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.tokens.tokenizer.MAX_TEXT_CHARS", 10)
    assert tiny.encode("a" * 10)
    for method in (tiny.encode, tiny.count, tiny.explain):
        with pytest.raises(InvalidRequest, match="11"):
            method("a" * 11)


# --- explained


def check_explained(tokenizer: Tokenizer, text: str, explained: list[Explained]) -> None:
    """Tokens cover every byte once, in order, and say the truth about it."""
    raw, position = text.encode(), 0
    for token in explained:
        assert token.byte_start == position
        assert token.byte_end >= token.byte_start
        without_added = token.bytes.removeprefix(b" ") if tokenizer.built.adds_space_prefix else token.bytes
        assert raw[token.byte_start : token.byte_end] in (token.bytes, without_added)
        assert token.bytes == tokenizer.token_bytes(token.id)
        spanned = text[token.char_start : token.char_end].encode()
        assert raw[token.byte_start : token.byte_end] in spanned
        assert token.is_special == (token.id in tokenizer.special_ids)
        position = token.byte_end
    assert position == len(raw)


@pytest.mark.parametrize("name", ALL)
def test_explained_tokens_cover_the_corpus(name: str) -> None:
    tokenizer = from_metadata(name)
    for text in CORPUS:
        if name != "llama2" or "\u2581" not in text:
            explained = tokenizer.explain(text, add_special=False)
            check_explained(tokenizer, text, explained)
            assert [token.id for token in explained] == tokenizer.encode(text, add_special=False)


@pytest.mark.parametrize("name", ["tiny", "llama2"])
@settings(max_examples=100)
@given(text=_ANY_TEXT, parse_special=st.booleans())
def test_explained_tokens_cover_any_text(name: str, text: str, parse_special: bool) -> None:
    tokenizer = from_metadata(name)
    text = text.replace("\u2581", "")
    explained = tokenizer.explain(text, add_special=False, parse_special=parse_special)
    check_explained(tokenizer, text, explained)
    assert [token.id for token in explained] == tokenizer.encode(text, add_special=False, parse_special=parse_special)


def test_pieces_of_plain_words_join_to_the_text(tiny: Tokenizer) -> None:
    text = "the cat sat on the mat, and then"
    assert "".join(token.piece for token in tiny.explain(text, add_special=False)) == text


def test_a_token_with_part_of_a_character_spans_all_of_it(tiny: Tokenizer) -> None:
    text = "a\u0ba8b"  # a letter the tiny vocabulary was not trained on: three bytes, three tokens
    first, *parts, last = tiny.explain(text, add_special=False)
    assert [(token.byte_start, token.byte_end) for token in parts] == [(1, 2), (2, 3), (3, 4)]
    assert {(token.char_start, token.char_end) for token in parts} == {(1, 2)}
    assert all(token.is_byte for token in parts)
    assert [token.piece for token in parts] == ["<0xE0>", "<0xAE>", "<0xA8>"]
    assert not first.is_byte
    assert (last.char_start, last.char_end) == (2, 3)


def test_what_comes_from_no_text_spans_nothing() -> None:
    tokenizer = from_metadata("llama2")
    first, second, *_ = tokenizer.explain("hello")
    assert (first.id, first.byte_start, first.byte_end, first.is_special) == (tokenizer.bos_id, 0, 0, True)
    assert (second.byte_start, second.char_start) == (0, 0)


def test_a_space_added_after_a_special_token_spans_nothing() -> None:
    tokenizer = from_metadata("llama2")
    explained = tokenizer.explain("<s>the", add_special=False)
    assert [(token.piece, token.byte_start, token.byte_end) for token in explained] == [("<s>", 0, 3), (" the", 3, 6)]


def test_a_text_that_the_normalizer_changes_still_gets_places() -> None:
    tokenizer = from_metadata("llama2")
    text = "a \u2581b"
    explained = tokenizer.explain(text, add_special=False)
    assert max(token.char_end for token in explained) == len(text)
    assert all(token.char_start <= token.char_end <= len(text) for token in explained)
    assert all(token.byte_end <= len(text.encode()) for token in explained)


def test_explaining_a_lone_surrogate_reads_it_as_encoding_does(tiny: Tokenizer) -> None:
    check_explained(tiny, clean_text("a\ud800"), tiny.explain("a\ud800", add_special=False))


# --- threads


def test_two_threads_that_want_different_things_both_get_them(tiny: Tokenizer) -> None:
    text = "the <|eot_id|> mat</s>" * 20
    wants = [True, False] * 100
    expected = {want: tiny.encode(text, parse_special=want) for want in (True, False)}
    assert expected[True] != expected[False]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda want: tiny.encode(text, parse_special=want), wants))
    assert got == [expected[want] for want in wants]
