"""Typical, top-n-sigma, XTC, DRY, allowed tokens and banned sequences against plain rewordings of what they promise."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.backends.batch import is_greedy
from localllm.engine.repeats import Repeats
from localllm.engine.sampling import near_the_best, sample_logits, typical, without_top_choices
from localllm.engine.speculative import LookupDrafter
from localllm.engine.step import SampleWant
from localllm.errors import InvalidRequest
from localllm.wire import SamplingParams

from .worlds import GREEDY, PROMPT, VOCAB_SIZE, alone, answers_of, ask, engine_on, fake, true_logits

weights = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).filter(lambda values: max(values) > 0)


@given(weights, st.floats(0, 1))
def test_typical_keeps_the_least_surprising_surprises(values: list[float], mass: float) -> None:
    shares = np.asarray(values, np.float32).astype(np.float64)
    shares /= shares.sum()
    surprise = {index: -math.log(share) for index, share in enumerate(shares) if share > 0}
    entropy = sum(shares[index] * each for index, each in surprise.items())
    kept = typical(np.asarray(values, np.float32), mass).tolist()
    assert kept == sorted(set(kept)) and kept and set(kept) <= set(surprise)
    worst = max(abs(surprise[index] - entropy) for index in kept)
    assert all(abs(surprise[index] - entropy) >= worst - 1e-9 for index in surprise if index not in kept)
    assert sum(shares[kept]) >= min(mass, 1.0) - 1e-9
    if len(kept) > 1:
        last = max(kept, key=lambda index: (abs(surprise[index] - entropy), index))
        assert sum(shares[index] for index in kept if index != last) < mass + 1e-9


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40), st.floats(0.01, 5))
def test_top_n_sigma_keeps_what_is_near_the_best(values: list[float], num_sigma: float) -> None:
    logits = np.asarray([*values, -np.inf], np.float32)
    kept = near_the_best(logits, num_sigma)
    finite = logits[:-1]
    bound = finite.max() - np.float32(num_sigma) * finite.std()
    assert kept.tolist() == [index for index, logit in enumerate(logits) if logit >= bound]
    assert int(logits.argmax()) in kept


@given(weights, st.floats(0.01, 1))
def test_xtc_takes_away_the_top_choices_but_the_lightest(values: list[float], threshold: float) -> None:
    array = np.asarray(values, np.float32)
    total = float(array.sum(dtype=np.float64))
    top = [index for index, weight in enumerate(array) if weight >= threshold * total]
    kept = without_top_choices(array, threshold).tolist()
    if len(top) < 2:
        assert kept == list(range(len(values)))
    else:
        lightest = min(top, key=lambda index: array[index])
        assert kept == [index for index in range(len(values)) if index == lightest or index not in top]


def test_xtc_happens_as_often_as_it_is_asked_to() -> None:
    logits = np.asarray([2.0, 1.5, -20.0], np.float32)
    params = SamplingParams(xtc_probability=0.5, xtc_threshold=0.2)
    drawn = [sample_logits(logits, SampleWant(params, seed=5, counter=n))[0] for n in range(2000)]
    assert 0.27 < drawn.count(0) / 2000 < 0.36, "half of the share that it has without"
    assert sample_logits(logits, SampleWant(params, seed=5, counter=7)) == sample_logits(
        logits, SampleWant(params, seed=5, counter=7)
    )


# ---- repetitions


def plain_dry(params: SamplingParams, ids: list[int]) -> dict[int, float]:
    """Every place, every length, no shortcut."""
    start = 0 if params.dry_penalty_last_n < 0 else max(0, len(ids) - params.dry_penalty_last_n)
    longest: dict[int, int] = {}
    for end in range(start + 1, len(ids)):
        for length in range(1, end - start + 1):
            run = ids[end - length : end]
            if run != ids[len(ids) - length :] or set(run) & set(params.dry_breakers):
                continue
            if ids[end] not in params.dry_breakers:
                longest[ids[end]] = max(longest.get(ids[end], 0), length)
    return {
        token: params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
        for token, length in longest.items()
        if length >= params.dry_allowed_length
    }


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), max_size=1),
    st.sampled_from([-1, 0, 1, 5, 12, 100]),
    st.integers(1, 4),
)
def test_dry_is_what_it_says_in_plain_words(ids: list[int], breakers: list[int], last_n: int, allowed: int) -> None:
    params = SamplingParams(
        dry_multiplier=0.8, dry_allowed_length=allowed, dry_penalty_last_n=last_n, dry_breakers=breakers
    )
    assert Repeats(params, ids).penalties() == pytest.approx(plain_dry(params, ids))


def test_dry_ends_a_loop_and_off_changes_nothing() -> None:
    loop = {"answer": lambda visible: (visible[-1] + 1) % 4}
    engine = engine_on(fake(**loop))
    assert answers_of(engine, [ask("a", [0, 1, 2, 3, 0], 8)])["a"].ids == [1, 2, 3, 0, 1, 2, 3, 0]
    dry = SamplingParams(temperature=0.0, dry_multiplier=100.0)
    assert answers_of(engine, [ask("b", [0, 1, 2, 3, 0], 8, sampling=dry)])["b"].ids != [1, 2, 3, 0, 1, 2, 3, 0]
    off = SamplingParams(temperature=0.0, dry_multiplier=0.0, dry_base=3.0)
    assert answers_of(engine, [ask("c", [0, 1, 2, 3, 0], 8, sampling=off)])["c"].ids == [1, 2, 3, 0, 1, 2, 3, 0]


def test_a_very_long_repetition_has_a_finite_penalty() -> None:
    params = SamplingParams(dry_multiplier=100.0, dry_base=100.0)
    (penalty,) = Repeats(params, [7] * 5000).penalties().values()
    assert math.isfinite(penalty)


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_banned_sequence_is_never_completed(overlaps: bool) -> None:
    free = alone(max_tokens=20, overlaps=overlaps).ids
    bad = [free[3:5], free[:1], free[7:10]]
    told = alone(max_tokens=40, overlaps=overlaps, sampling=SamplingParams(temperature=0.0, bad_sequences=bad)).ids
    for sequence in bad:
        assert not any(told[n : n + len(sequence)] == sequence for n in range(len(told)))
    assert len(told) == 40


def test_the_prompt_does_not_begin_a_banned_sequence() -> None:
    free = alone(max_tokens=4).ids
    params = SamplingParams(temperature=0.0, bad_sequences=[[PROMPT[-1], free[0]]])
    assert alone(max_tokens=4, sampling=params).ids == free


# ---- allowed tokens


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_but_the_allowed_tokens_is_said(temperature: float, overlaps: bool) -> None:
    params = SamplingParams(temperature=temperature, seed=3, allowed_token_ids=[1, 9, 62, VOCAB_SIZE - 1])
    told = alone(max_tokens=30, overlaps=overlaps, sampling=params, stop_ids=[5]).ids
    assert len(told) == 30 and set(told) <= {1, 9, 62, VOCAB_SIZE - 1}
    if not temperature:
        logits = true_logits(fake(), PROMPT)
        assert told[0] == max([1, 9, 62, VOCAB_SIZE - 1], key=lambda token: logits[token])


@pytest.mark.parametrize(
    "params",
    [
        {"dry_multiplier": 1.0, "dry_allowed_length": 1},
        {"bad_sequences": [[1, 2], [0, 0], [2]]},
        {"allowed_token_ids": [0, 1, 2]},
        {"xtc_probability": 0.5, "temperature": 1.0, "seed": 4},
        {"typical_p": 0.5, "top_n_sigma": 1.0, "temperature": 1.0, "seed": 4},
    ],
    ids=str,
)
def test_drafts_and_overlap_change_no_token(params: dict[str, Any]) -> None:
    """The model itself loops, so that drafts are made."""
    sampling = SamplingParams(**{"temperature": 0.0} | params)
    asked = ask("a", [0, 1, 2, 0, 1, 2, 0, 1, 2], 40, sampling=sampling)
    loop = {"answer": lambda visible: (visible[-1] + 1) % 3}
    plain = answers_of(engine_on(fake(**loop)), [asked])["a"].ids
    assert answers_of(engine_on(fake(**loop, overlaps=True)), [asked])["a"].ids == plain
    assert answers_of(engine_on(fake(**loop), drafter=LookupDrafter()), [asked])["a"].ids == plain


def test_what_is_off_keeps_the_fast_path() -> None:
    assert is_greedy(SampleWant(GREEDY, 0, 0))
    backend = fake()
    answers_of(engine_on(backend), [ask("a", PROMPT, 4)])
    wants = [row.want.sample for plan in backend.plans for row in plan.rows if row.want.sample]
    assert wants and all(is_greedy(want) and not want.masks for want in wants)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"typical_p": 1.5}, "typical_p"),
        ({"xtc_threshold": -0.1}, "xtc_threshold"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"bad_sequences": [[]]}, "bad_words"),
        ({"bad_sequences": [[VOCAB_SIZE]]}, "bad_words"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"dry_breakers": [VOCAB_SIZE]}, "dry_sequence_breakers"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine_on(fake()).add(ask("a", PROMPT, 4, sampling=SamplingParams(**fields)))
    assert caught.value.param == param
