"""The index of a text over itself, against looking at every place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.engine.lookup import ENOUGH, LONG, MOST_PLACES, Lookup
from localllm.engine.penalties import Penalties
from localllm.wire import SamplingParams

texts = st.lists(st.integers(0, 3), min_size=1, max_size=120)


def agreement(ids: list[int], place: int) -> int:
    """Tokens before `place` that agree with the end of the text."""
    length = 0
    while length < min(place, LONG) and ids[place - length - 1] == ids[len(ids) - length - 1]:
        length += 1
    return length


def best_agreement(ids: list[int]) -> int:
    """Over the newest places that agree in two tokens at least."""
    places = [place for place in range(len(ids) - 1, 1, -1) if agreement(ids, place) >= 2]
    return max((agreement(ids, place) for place in places[:MOST_PLACES]), default=0)


def followed(ids: list[int]) -> Lookup:
    """One that saw the text token by token."""
    growing: list[int] = []
    lookup = Lookup(growing)
    for token in ids:
        growing.append(token)
        assert lookup.follow()
    return lookup


@given(texts)
def test_the_source_is_a_place_where_the_text_went_on_from_the_same_tokens(ids: list[int]) -> None:
    lookup = followed(ids)
    if lookup.source is None:
        assert best_agreement(ids) == 0
        return
    assert agreement(ids, lookup.source) >= min(lookup.length, LONG)
    assert lookup.length >= min(best_agreement(ids), ENOUGH)


@given(st.lists(st.integers(0, 3), min_size=66, max_size=150), st.integers(65, 90))
def test_a_prompt_taken_in_at_once_gives_a_match_as_good(ids: list[int], piece: int) -> None:
    lookup = Lookup(ids)
    while not lookup.follow(piece):
        assert lookup.source is None, "nothing is guessed before all is known"
    assert lookup.length >= min(best_agreement(ids), ENOUGH)
    assert lookup.source is None or agreement(ids, lookup.source) >= min(lookup.length, LONG)


def test_the_longest_of_several_matches_wins_and_the_newest_of_equals() -> None:
    lookup = followed([9, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2, 7, 9, 1, 2])
    assert (lookup.length, lookup.draft(1)) == (3, (5,))
    lookup = followed([1, 2, 5, 3, 1, 2, 6, 4, 1, 2])
    assert (lookup.length, lookup.draft(1)) == (2, (6,))


def test_a_draft_goes_round_where_its_source_reaches_the_end() -> None:
    assert followed([1, 2, 3, 1, 2, 3, 1, 2]).draft(7) == (3, 1, 2, 3, 1, 2, 3)


def test_nothing_is_drafted_where_nothing_repeats() -> None:
    lookup = followed(list(range(30)))
    assert lookup.draft(5) == () and lookup.worth(5) == [1.0]


def test_longer_matches_promise_more() -> None:
    short, long = followed([1, 2, 3, 4, 1, 2]), followed([*range(20), *range(15)])
    assert 1.0 < short.worth(4)[4] < long.worth(4)[4] < 5.0


def test_the_promise_follows_what_came_true() -> None:
    copying = followed(list(range(50)) * 4)
    assert copying.worth(10)[10] > 9.5
    misled: list[int] = []
    for number in range(40):  # the same two tokens, and always another one after them
        misled += [100, 101, number]
    lookup = followed([*misled, 100, 101])
    assert lookup.worth(1)[1] < 1.1


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 5), max_size=12),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.sampled_from([-1, 0, 1, 3, 7, 64]),
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 15),
)
def test_edits_along_a_draft_are_those_of_its_tokens_one_by_one(
    prompt: list[int], said: list[int], drafted: list[int], last_n: int, penalty: float, presence: float, least: int
) -> None:
    params = SamplingParams(
        repetition_penalty=penalty, repeat_last_n=last_n, presence_penalty=presence, min_tokens=least
    )

    def after(tokens: list[int]) -> Penalties:
        ids = list(prompt)
        made = Penalties(params, [9], ids)
        for token in tokens:
            ids.append(token)
            made.note(token)
        return made

    penalties = after(said)
    before = set(penalties.edits(len(said)))
    along = penalties.edits_along(len(said), drafted)
    expected = [set(after([*said, *drafted[:n]]).edits(len(said) + n)) for n in range(1, len(drafted) + 1)]
    assert [set(edits) for edits in along] == (expected if along else [])
    assert along or all(edits == before for edits in expected), "left out where no token changes any"
    assert set(penalties.edits(len(said))) == before, "and nothing of it stays"


@pytest.mark.parametrize("length", [1, 2])
def test_very_short_texts_are_no_trouble(length: int) -> None:
    assert followed([7] * length).draft(3) in ((), (7, 7, 7))
