"""What an engine refuses when a request is added, and that nothing is left behind."""

from typing import Any

import pytest

from localllm.errors import ContextExceeded, InvalidRequest, NotEnoughMemory
from localllm.wire import SamplingParams

from .worlds import (
    PROMPT,
    VOCAB_SIZE,
    alone,
    answers_of,
    ask,
    engine_on,
    fake,
    finish,
    oracle,
)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    engine = engine_on(fake(), context_length=20)
    with pytest.raises(ContextExceeded, match=r"20 tokens.*length is 20 tokens"):
        engine.add(ask("a", range(20), 1))
    engine.add(ask("b", range(20), 0))
    engine.add(ask("c", range(19), 9))
    assert len(finish(engine)["c"].ids) == 1


def test_a_prompt_larger_than_the_whole_pool_is_refused() -> None:
    engine = engine_on(fake(), num_pages=4)
    with pytest.raises(NotEnoughMemory, match=r"17 tokens.*holds 16"):
        engine.add(ask("a", range(17), 1))
    assert len(answers_of(engine, [ask("b", range(16), 9)])["b"].ids) == 1
    assert not engine.has_work


def test_windows_make_room_for_sequences_longer_than_the_pool() -> None:
    backend = fake("windows only")
    answer = answers_of(engine_on(backend, num_pages=5), [ask("a", PROMPT, None)])["a"]
    assert len(PROMPT) + len(answer.ids) == 128
    assert answer.ids == oracle(backend, ask("a", PROMPT, None)).ids


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCAB_SIZE]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"sampling": SamplingParams(logit_bias={VOCAB_SIZE: 1.0})}, "logit_bias"),
        ({"sampling": SamplingParams(temperature=-1.0)}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
    ids=str,
)
def test_a_bad_field_is_refused_by_name_and_leaves_nothing_behind(fields: dict[str, Any], param: str) -> None:
    engine = engine_on(fake())
    with pytest.raises(InvalidRequest) as caught:
        engine.add(ask("a", **({"prompt": PROMPT} | fields)))
    assert caught.value.param == param
    assert not engine.has_work


def test_a_running_id_is_refused_and_the_first_goes_on() -> None:
    engine = engine_on(fake())
    engine.add(ask("a", PROMPT))
    with pytest.raises(InvalidRequest, match="already"):
        engine.add(ask("a", [1]))
    assert finish(engine)["a"].ids == alone().ids


def test_a_backend_with_another_page_size_is_refused() -> None:
    with pytest.raises(ValueError, match="pages of 4"):
        engine_on(fake(), page_size=16)
