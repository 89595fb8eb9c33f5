"""Streamed text: the same characters as decoding all at once, none of them halved, and nothing past a stop string."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import InvalidRequest
from localllm.tokens.stream import TextDelta, TokenStream
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import CORPUS, PUBLISHED, from_metadata

_IDS = st.lists(st.integers(0, 400), max_size=40)
_CUTS = st.lists(st.integers(0, 40), max_size=8)
_FEW_LETTERS = st.text("ab", max_size=30)
_STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture
def tiny() -> Tokenizer:
    return from_metadata("tiny")


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte, so that everything lies across the borders of tokens."""
    alphabet = {tokenizer.token_bytes(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    return [alphabet[bytes([byte])] for byte in text.encode()]


def parts(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    places = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [ids[start:end] for start, end in pairwise(places)]


def pushed(stream: TokenStream, chunks: Sequence[Sequence[int]]) -> list[TextDelta]:
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


def text_of(deltas: Sequence[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


# --- the same as decoding


@settings(max_examples=200)
@given(ids=_IDS, cuts=_CUTS, skip_special=st.booleans())
def test_deltas_joined_are_the_decoded_text_however_it_is_cut(
    ids: list[int], cuts: list[int], skip_special: bool
) -> None:
    tiny = from_metadata("tiny")
    deltas = pushed(TokenStream(tiny, skip_special=skip_special), parts(ids, cuts))
    assert text_of(deltas) == tiny.decode(ids, skip_special=skip_special)
    assert sum(delta.num_tokens for delta in deltas) == len(ids)


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 31_999), max_size=20), cuts=_CUTS, continuation=st.booleans())
def test_sentencepiece_streams_as_it_decodes(ids: list[int], cuts: list[int], continuation: bool) -> None:
    tokenizer = from_metadata("llama2")
    deltas = pushed(TokenStream(tokenizer, continuation=continuation), parts(ids, cuts))
    assert text_of(deltas) == tokenizer.decode(ids, skip_special=True, continuation=continuation)


@pytest.mark.parametrize("name", ["tiny", *PUBLISHED])
def test_the_corpus_comes_through_token_by_token_with_every_character_whole(name: str) -> None:
    tokenizer = from_metadata(name)
    for text in CORPUS:
        ids = tokenizer.encode(text, parse_special=False)
        deltas = pushed(TokenStream(tokenizer), [[one] for one in ids])
        assert text_of(deltas) == tokenizer.decode(ids, skip_special=True)
        assert all("\ufffd" not in delta.text for delta in deltas) or "\ufffd" in text


def test_half_a_character_waits_for_its_other_half(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny)
    ids = letters(tiny, "a🐈b")
    assert [stream.push([one]).text for one in ids] == ["a", "", "", "", "🐈", "b"]
    assert stream.finish().text == ""


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"\xff", "\ufffd"), (b"a\xe2\x82b", "a\ufffdb"), (b"\xf0\x9f\x90", "\ufffd"), (b"\xc3\xc3\xa9", "\ufffdé")],
)
def test_bytes_that_are_no_text_become_one_replacement_character(tiny: Tokenizer, raw: bytes, shown: str) -> None:
    alphabet = {tiny.token_bytes(token_id): token_id for token_id in range(tiny.vocab_size)}
    deltas = pushed(TokenStream(tiny), [[alphabet[bytes([byte])]] for byte in raw])
    assert text_of(deltas) == shown == raw.decode(errors="replace")


def test_finishing_shows_half_a_character_as_one_replacement(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny)
    assert stream.push(letters(tiny, "🐈")[:2]).text == ""
    assert stream.finish() == TextDelta("\ufffd")
    assert stream.finish() == TextDelta("")


@settings(max_examples=100)
@given(ids=_IDS)
def test_token_texts_are_what_each_token_added(ids: list[int]) -> None:
    tiny = from_metadata("tiny")
    stream = TokenStream(tiny, skip_special=False)
    delta = stream.push(ids)
    assert len(delta.token_texts) == delta.num_tokens == len(ids)
    assert "".join(delta.token_texts) + stream.finish().text == tiny.decode(ids)


# --- special tokens


def test_special_tokens_are_hidden_but_for_those_to_keep(tiny: Tokenizer) -> None:
    ids = tiny.encode("<s>a<|eot_id|>b</s>", add_special=False)
    eot = tiny.built.texts.index("<|eot_id|>")
    assert text_of(pushed(TokenStream(tiny), [ids])) == "ab"
    assert text_of(pushed(TokenStream(tiny, keep_special=[eot]), [ids])) == "a<|eot_id|>b"
    assert text_of(pushed(TokenStream(tiny, skip_special=False), [ids])) == "<s>a<|eot_id|>b</s>"


def test_hidden_tokens_count_and_break_no_character(tiny: Tokenizer) -> None:
    first, *rest = letters(tiny, "é")
    eot = tiny.built.texts.index("<|eot_id|>")
    stream = TokenStream(tiny)
    assert stream.push([first, eot, *rest]) == TextDelta("é", 3, ("", "", "é"))


def test_a_row_of_the_model_that_has_no_token_is_no_text(tiny: Tokenizer) -> None:
    (letter,) = letters(tiny, "a")
    stream = TokenStream(tiny)
    assert stream.push([letter, tiny.vocab_size, letter]) == TextDelta("aa", 3, ("a", "", "a"))


def test_an_id_below_0_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="token id"):
        TokenStream(tiny).push([-1])


# --- stop strings


def oracle(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, the longest if several are complete together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400)
@given(text=_FEW_LETTERS, stops=_STOPS, cuts=_CUTS)
def test_the_first_completed_stop_string_ends_the_text(text: str, stops: list[str], cuts: list[int]) -> None:
    tiny = from_metadata("tiny")
    before, hit = oracle(text, stops)
    for include_stop in (False, True):
        stream = TokenStream(tiny, stop=stops, include_stop=include_stop)
        deltas = pushed(stream, parts(letters(tiny, text), cuts))
        assert text_of(deltas) == before + (hit or "" if include_stop else "")
        assert stream.stop == deltas[-1].stop == hit
        assert (
            sum(delta.num_tokens for delta in deltas)
            == stream.num_tokens
            == len(before) + len(hit or text[len(before) :])
        )


@settings(max_examples=200)
@given(text=_FEW_LETTERS, stops=_STOPS)
def test_text_is_held_back_no_longer_than_it_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    tiny = from_metadata("tiny")
    stream, shown = TokenStream(tiny, stop=stops), ""
    for seen, token_id in enumerate(letters(tiny, text), start=1):
        shown += stream.push([token_id]).text
        if stream.stop is not None:
            return
        held = text[len(shown) : seen]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_stop_string_across_tokens_is_found(tiny: Tokenizer, cut: int) -> None:
    ids = letters(tiny, "the END of it")
    stream = TokenStream(tiny, stop=["END"])
    assert text_of(pushed(stream, [ids[:cut], ids[cut:]])) == "the "
    assert stream.num_tokens == 7


def test_a_stop_string_within_one_token_is_found(tiny: Tokenizer) -> None:
    longest = max((text for text in tiny.built.texts[:400] if text.isascii() and text.isalpha()), key=len)
    stream = TokenStream(tiny, stop=[longest[1:-1]])
    delta = stream.push([tiny.built.texts.index(longest)])
    assert (delta.text, delta.num_tokens, delta.stop) == (longest[0], 1, longest[1:-1])


def test_a_false_start_is_released(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["</end>"])
    assert stream.push(letters(tiny, "a</en")).text == "a"
    assert stream.push(letters(tiny, "x")).text == "</enx"


def test_of_stop_strings_that_end_together_the_longest_counts(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["b", "ab", "aab"])
    delta = stream.push(letters(tiny, "xaab"))
    assert (delta.text, delta.stop) == ("x", "aab")


def test_a_stop_string_of_many_bytes_is_found_between_its_bytes(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["🐈"])
    texts = [stream.push([one]).text for one in letters(tiny, "a🐈b")]
    assert texts == ["a", "", "", "", "", ""]
    assert (stream.stop, stream.num_tokens) == ("🐈", 5)


def test_the_same_text_written_as_a_special_token_is_found_where_it_is_shown(tiny: Tokenizer) -> None:
    ids = tiny.encode("a<|eot_id|>b", add_special=False)
    assert text_of(pushed(TokenStream(tiny, stop=["<|eot_id|>"], skip_special=False), [ids])) == "a"
    assert text_of(pushed(TokenStream(tiny, stop=["<|eot_id|>"]), [ids])) == "ab"


def test_nothing_comes_after_a_stop_string(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["b"])
    assert stream.push(letters(tiny, "abc")) == TextDelta("a", 2, ("a", "b"), "b")
    assert stream.push(letters(tiny, "more")) == TextDelta("", 0, (), "b")
    assert stream.finish() == TextDelta("", stop="b")
    assert stream.num_tokens == 2


def test_what_was_held_back_comes_out_at_the_end(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["stop"])
    assert stream.push(letters(tiny, "do not sto")).text == "do not "
    assert stream.finish() == TextDelta("sto")


def test_the_last_replacement_character_may_complete_a_stop_string(tiny: Tokenizer) -> None:
    stream = TokenStream(tiny, stop=["a\ufffd"])
    assert stream.push(letters(tiny, "xaé")[:3]).text == "x"
    assert stream.finish() == TextDelta("", stop="a\ufffd")


def test_empty_stop_strings_stop_nothing(tiny: Tokenizer) -> None:
    assert text_of(pushed(TokenStream(tiny, stop=["", ""]), [letters(tiny, "abc")])) == "abc"


def test_a_long_stop_string_costs_no_more_per_character(tiny: Tokenizer) -> None:
    stop = "a" * 20_000 + "b"
    stream = TokenStream(tiny, stop=[stop])
    ids = letters(tiny, "a") * 30_000
    assert stream.push(ids).text == "a" * 10_000
    assert stream.finish().text == "a" * 20_000
