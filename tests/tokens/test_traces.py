"""The views of Unigram and WordPiece end where the tokenizer ends, on everything that tokenizers stumble over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.tokens.greedy import MAX_GREEDY_CHARS, explain_matches, read_pieces
from localllm.tokens.lattice import MAX_LATTICE_CHARS, explain_lattices, read_scores
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.corpus import lines
from tests.tokens.trained import UNIGRAMS, WORDPIECES, gguf_of, patient_wordpiece
from tests.tokens.worlds import tiny

LINES = lines()
STRANGE = st.text() | st.text("helo wr_\u2581né<s>/[UNK]#中\u0301 ", max_size=40)
SCORES = {name: read_scores(tokenizer()) for name, tokenizer in UNIGRAMS.items()}
PIECES = {name: read_pieces(tokenizer()) for name, tokenizer in WORDPIECES.items()}


def ids_of_lattices(name: str, tokenizer: Tokenizer, text: str) -> list[int]:
    return [token_id for word in explain_lattices(tokenizer, text, SCORES[name]) for token_id in word.ids]


def ids_of_matches(name: str, tokenizer: Tokenizer, text: str) -> list[int]:
    return [token_id for word in explain_matches(tokenizer, text, PIECES[name]) for token_id in word.ids]


@pytest.mark.parametrize("name", UNIGRAMS)
def test_lattices_end_in_the_ids_of_the_tokenizer_on_the_corpus(name: str) -> None:
    tokenizer = UNIGRAMS[name]()
    checked = [line for line in LINES[::5] if len(line) <= 400]
    assert len(checked) > 900
    wrong = [line for line in checked if ids_of_lattices(name, tokenizer, line) != plain(tokenizer, line)]
    assert wrong == []


@pytest.mark.parametrize("name", UNIGRAMS)
@given(text=STRANGE)
def test_lattices_end_in_the_ids_of_the_tokenizer_on_any_text(name: str, text: str) -> None:
    tokenizer = UNIGRAMS[name]()
    assert ids_of_lattices(name, tokenizer, text) == plain(tokenizer, text)


@pytest.mark.parametrize("name", WORDPIECES)
def test_matches_end_in_the_ids_of_the_tokenizer_on_the_corpus(name: str) -> None:
    tokenizer = WORDPIECES[name]()
    wrong = [line for line in LINES[::5] if ids_of_matches(name, tokenizer, line) != plain(tokenizer, line)]
    assert wrong == []


@pytest.mark.parametrize("name", WORDPIECES)
@given(text=STRANGE)
def test_matches_end_in_the_ids_of_the_tokenizer_on_any_text(name: str, text: str) -> None:
    tokenizer = WORDPIECES[name]()
    assert ids_of_matches(name, tokenizer, text) == plain(tokenizer, text)


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False)


def test_every_way_through_a_lattice_is_there_and_the_best_was_taken() -> None:
    (word,) = explain_lattices(gguf_of([("ab", -1.0), ("a", -2.0), ("b", -2.5), ("abc", -9.0), ("c", -3.0)]), "abc")
    found = {(piece.start, piece.end): piece for piece in word.pieces}
    assert set(found) == {(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)}
    assert [word.text[piece.start : piece.end] for piece in word.path] == ["ab", "c"]
    assert word.score == pytest.approx(-4.0)
    assert found[2, 3].best == pytest.approx(-4.0) and found[0, 3].best == pytest.approx(-9.0)


def test_the_prefixes_that_were_tried_come_longest_first() -> None:
    tokenizer = WORDPIECES["trained"]()
    (word,) = explain_matches(tokenizer, "thewhimat")
    first, *others = word.matches
    assert (first.piece, first.rest) == ("the", "whimat")
    assert first.tried[0] == "thewhimat" and first.tried[-1] == "thew"
    assert all(candidate.startswith("##") for match in others for candidate in match.tried)


def test_a_word_that_is_unknown_says_where_the_search_ended() -> None:
    tokenizer = WORDPIECES["trained"]()
    (word,) = explain_matches(tokenizer, "the🐢")
    assert word.ids == tuple(plain(tokenizer, "the🐢")) and word.matches[-1].piece is None


def test_words_that_are_too_long_to_be_read_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        explain_lattices(gguf_of([("a", -1.0)]), "a" * (MAX_LATTICE_CHARS + 1))
    tokenizer = patient_wordpiece()
    with pytest.raises(InvalidRequest, match="at most"):
        explain_matches(tokenizer, "a" * (MAX_GREEDY_CHARS + 1))


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="BPE"):
        read_scores(tiny())
    with pytest.raises(UnsupportedModel, match="BPE"):
        read_pieces(tiny())


def test_bytes_of_a_unigram_model_are_bytes_again_when_decoded() -> None:
    tokenizer = UNIGRAMS["with bytes"]()
    ids = tokenizer.encode("the 🐢", add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids[-4:])) == "🐢".encode()
    assert tokenizer.decode(ids) == "the 🐢"
