"""Regular expressions as they are read: how short a match can be, and what their classes mean."""

import asyncio
import re._parser as sre  # type: ignore[import-not-found]  # the only other one that tells the width of a match
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from localllm.daemon.expressions import ascii_classes, shortest
from localllm.daemon.grammar_child import _vocabulary
from localllm.daemon.grammars import Grammars, json_schema_grammar, regex_grammar
from localllm.errors import InvalidGrammar, InvalidSchema


@pytest.mark.parametrize(
    ("pattern", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("a|bc|", 0),
        ("ab|c", 1),
        ("(ab|c)d", 2),
        ("a*b+c?", 1),
        ("a{3}b{2,}c{0,9}", 5),
        ("a{3}?b+?", 4),
        ("(?:ab)(?P<n>c)(?<m>d)(?i)(?s:e)", 5),
        (r"\d\x41\x{1F600}\u{41}\pL\p{Greek}\.", 7),
        (r"^\bword\b$", 4),
        ("[abc][^]x][]x][a[^b]]{2}", 5),
        (r"[\]a]b", 2),
        ("(.*a){90}{90}{90}", 729_000),
        ("(((a{1,99}){1,99}){1,99}){1,99}", 1),
        ("a{,3}", 5),  # no count in this syntax, but characters
        ("(", 0),
        (")a", 0),
        ("(" * 2000 + "a" + ")" * 2000, 1),
    ],
)
def test_the_shortest_match_is_known(pattern: str, width: int) -> None:
    assert shortest(pattern) == width


ATOMS = st.sampled_from(("a", "b", ".", "[ab]", "[^c]", r"\d", r"\.", "^", "x"))
COUNTS = st.sampled_from(("", "", "*", "+", "?", "{2}", "{0,3}", "{3,}", "+?", "{2}?"))


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counted = st.tuples(inner, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    return st.lists(counted, min_size=1, max_size=3).map("".join) | st.tuples(inner, inner).map("|".join)


@given(st.recursive(st.tuples(ATOMS, COUNTS).map(lambda pair: f"(?:{pair[0]}){pair[1]}"), joined, max_leaves=12))
def test_it_is_what_pythons_own_parser_says(pattern: str) -> None:
    assert shortest(pattern) == sre.parse(pattern).getwidth()[0]


@given(st.text(alphabet=r"ab()[]{}|\?*+^,12.dwp-:<>", max_size=24))
def test_anything_may_be_asked(pattern: str) -> None:
    assert 0 <= shortest(pattern) <= 99**12 * len(pattern)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(num_processes=1)
    yield made
    made.close()


def allows(grammar: str, said: str) -> bool:
    vocabulary: LLTokenizer = _vocabulary(512)
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    ids = list(said.encode())
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d", "7", "٣"),
        (r"[\dx]", "x", "७"),
        (r"\w+", "a_1", "ä"),
        (r"\D", "٣", "7"),
        (r"[^\D]", "7", "x"),
        (r"\\d", "\\d", "\\7"),
        (r"[\W]", "ä", "a"),
    ],
)
def test_classes_are_those_of_ascii(grammars: Grammars, pattern: str, yes: str, no: str) -> None:
    grammar = asyncio.run(grammars.checked(regex_grammar(pattern)))
    assert allows(grammar, yes) and not allows(grammar, no)


def test_no_escape_is_taken_for_another() -> None:
    assert ascii_classes(r"\\d\\\d\n\.") == r"\\d\\[0-9]\n\."


def test_an_answer_that_would_never_end_is_refused() -> None:
    with pytest.raises(InvalidGrammar, match="nothing shorter than 729000"):
        regex_grammar("(.*a){90}{90}{90}")
    with pytest.raises(InvalidSchema, match="nothing shorter"):
        json_schema_grammar({"properties": {"a": {"type": "string", "pattern": "(.*a){90}{90}{90}"}}})
