"""The step-by-step view ends where the tokenizer ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import InvalidRequest
from localllm.tokens.merges import MAX_TRACED_CHARS, explain_merges, merge_rules
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.worlds import tiny, tiny_metadata, tiny_spm

RULES = {id(tokenizer): merge_rules(tokenizer) for tokenizer in (tiny(), tiny_spm())}
TEXTS = st.text() | st.text("helow rdé<|im_endstart>") | st.just("<|im_start|>hello<|im_end|>")


@pytest.mark.parametrize("tokenizer", [tiny(), tiny_spm()], ids=["byte-level", "sentencepiece"])
@given(text=TEXTS)
def test_traced_merges_end_in_the_ids_of_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    words = explain_merges(tokenizer, text, RULES[id(tokenizer)])
    assert [token_id for word in words for token_id in word.ids] == tokenizer.encode(text, add_special=False)
    for word in words:
        assert len(word.stages()[-1]) == len(word.ids)


def test_the_steps_of_a_word_read_from_characters_to_the_token() -> None:
    (word,) = explain_merges(tiny(), "hello")
    assert word.stages() == [
        ("h", "e", "l", "l", "o"),
        ("he", "l", "l", "o"),
        ("he", "ll", "o"),
        ("hell", "o"),
        ("hello",),
    ]
    assert [step.rank for step in word.steps] == [0, 1, 2, 3]


def test_a_word_that_is_a_token_has_no_steps_where_the_model_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(tiny_metadata(pre="llama-bpe"))
    (word,) = explain_merges(tokenizer, "hello")
    assert (word.symbols, word.steps) == (("hello",), ())


def test_a_control_token_is_a_word_of_its_own() -> None:
    words = explain_merges(tiny(), "<|im_start|>hello")
    assert [word.stages()[-1] for word in words] == [("<|im_start|>",), ("hello",)]


def test_a_long_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        explain_merges(tiny(), "x" * (MAX_TRACED_CHARS + 1))
