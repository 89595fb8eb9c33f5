"""Text as it streams: whole characters, stop strings, nothing lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import InvalidRequest
from localllm.tokens.stream import StopWatch, TokenStream
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.worlds import tiny, tiny_spm

ANY_IDS = st.lists(st.integers(0, 255 + 9 + 4))
SPLITS = st.lists(st.integers(1, 4))


def in_chunks(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    chunks, start = [], 0
    for size in [*sizes, len(ids)]:
        chunks.append(ids[start : start + size])
        start += size
    return chunks


def streamed(stream: TokenStream, chunks: Sequence[Sequence[int]]) -> str:
    return "".join(stream.push(chunk).text for chunk in chunks) + stream.finish().text


@pytest.mark.parametrize("tokenizer", [tiny(), tiny_spm()], ids=["byte-level", "sentencepiece"])
@given(ids=ANY_IDS, sizes=SPLITS, skip=st.booleans(), continuation=st.booleans())
def test_all_deltas_together_are_the_decoded_whole(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int], skip: bool, continuation: bool
) -> None:
    stream = TokenStream(tokenizer, skip_special=skip, continuation=continuation)
    whole = tokenizer.decode(ids, skip_special=skip, continuation=continuation)
    assert streamed(stream, in_chunks(ids, sizes)) == whole
    assert stream.num_tokens == len(ids)


@given(ids=ANY_IDS, stops=st.lists(st.text("helow dé", min_size=1, max_size=4), max_size=3), include=st.booleans())
def test_a_stop_string_cuts_where_it_is_first_complete(ids: list[int], stops: list[str], include: bool) -> None:
    whole = tiny().decode(ids)
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    if ends:
        longest = max((stop for stop in stops if whole[: ends[0]].endswith(stop)), key=len)
        expected: str = whole[: ends[0]] if include else whole[: ends[0] - len(longest)]
    else:
        longest, expected = None, whole
    stream = TokenStream(tiny(), stop=stops, include_stop=include, skip_special=False)
    assert streamed(stream, [[token_id] for token_id in ids]) == expected
    assert stream.stop == longest


def test_half_a_character_waits_for_its_other_half() -> None:
    first, second = tiny().encode("ü")
    stream = TokenStream(tiny())
    assert stream.push([first]).text == ""
    assert stream.push([second]).text == "ü"


def test_half_a_character_at_the_end_becomes_one_replacement_character() -> None:
    stream = TokenStream(tiny())
    assert stream.push(tiny().encode("🚀")[:3]).text == ""
    assert stream.finish().text == "\ufffd"


def test_the_beginning_of_a_stop_string_is_held_back_and_released_when_it_goes_on_differently() -> None:
    stream = TokenStream(tiny(), stop=["world"])
    assert stream.push(tiny().encode("hello wo")).text == "hello "
    assert stream.push(tiny().encode("n")).text == "won"


def test_a_stop_string_says_how_many_tokens_counted() -> None:
    ids = tiny().encode("hello world and more")
    delta = TokenStream(tiny(), stop=[" wor"]).push(ids)
    assert (delta.text, delta.stop, delta.num_tokens) == ("hello", " wor", 3)
    assert delta.token_texts == ("hello", " wo", "r")


def test_nothing_is_taken_after_a_stop_string() -> None:
    stream = TokenStream(tiny(), stop=["l"])
    stream.push(tiny().encode("l"))
    assert stream.push(tiny().encode("more")).num_tokens == 0
    assert stream.finish().text == ""
    assert stream.num_tokens == 1


def test_a_stop_string_may_end_inside_a_token() -> None:
    assert TokenStream(tiny(), stop=["ell"]).push(tiny().encode("hello")).text == "h"


def test_a_stop_string_that_only_the_end_completes_still_counts() -> None:
    stream = TokenStream(tiny(), stop=["\ufffd"])
    stream.push(tiny().encode("aü")[:2])
    assert (stream.finish().text, stream.stop) == ("", "\ufffd")


def test_tags_to_be_kept_are_shown_although_special_tokens_are_not() -> None:
    ids = tiny().encode("<|im_start|>hello<|im_end|>")
    assert streamed(TokenStream(tiny(), keep_special=ids[:1]), [ids]) == "<|im_start|>hello"


def test_a_bad_id_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        TokenStream(tiny()).push([10**6])


@given(text=st.text("ab"), stop=st.text("ab", min_size=1, max_size=6))
def test_self_similar_stop_strings_are_found_where_python_finds_them(text: str, stop: str) -> None:
    watch = StopWatch([stop])
    shown = "".join(watch.push(character) for character in text if watch.hit is None)
    shown += "" if watch.hit else watch.finish()
    assert shown == text.split(stop)[0]
    assert (watch.hit is not None) == (stop in text)
