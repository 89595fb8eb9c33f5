"""Sampling draws from exactly the distribution that its parameters describe, and the same token for the same seed."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from localllm.engine.sampling import (
    NothingAllowed,
    _inverse_cdf,
    _nucleus,
    answer_row,
    edited,
    logit_positions,
    mix64,
    sample_logits,
    score_targets,
    token_logprobs,
    top_ids,
    uniform,
)
from localllm.engine.step import LogitEdit, SampleWant, Want, plain_row
from localllm.errors import BadLogits
from localllm.wire import SamplingParams

Logits = NDArray[np.float32]
LOGITS = np.array([1.5, -0.3, 2.2, 0.0, 2.2, -4.0, 0.7, 1.1], np.float32)
vectors = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-20, 20, width=32).map(lambda x: round(x, 1)))


def want_of(counter: int = 0, seed: int = 11, *, edits: Any = (), masks: Any = (), **params: Any) -> SampleWant:
    num_positions = max(1, len(masks))
    return SampleWant(SamplingParams(**params), seed, counter, num_positions, tuple(edits), tuple(masks))


def exact(logits: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """The distribution by the definitions, with a full sort, in float64."""
    scaled = logits.astype(np.float64) / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = sorted(range(p.size), key=lambda i: (-p[i], i))
    if params.top_k:
        p[order[params.top_k :]] = 0
        p /= p.sum()
    before = 0.0
    for i in order:
        weight = p[i]
        if before >= params.top_p and i != order[0]:
            p[i] = 0
        before += weight
    p[p < params.min_p * p.max()] = 0
    shares: NDArray[np.float64] = p / p.sum()
    return shares


def counts_of(logits: Logits, num_draws: int, **params: Any) -> NDArray[np.int64]:
    picks = [sample_logits(logits, want_of(counter, **params))[0] for counter in range(num_draws)]
    return np.bincount(picks, minlength=logits.size)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_k": 1},
        {"top_p": 0.7},
        {"top_p": 0.95, "temperature": 2.0},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
        {"top_p": 0.0},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(params: dict[str, Any]) -> None:
    num_draws = 4000
    expected = exact(LOGITS, SamplingParams(**params)) * num_draws
    counts = counts_of(LOGITS, num_draws, **params)
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    degrees = int(possible.sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees) + 1e-9  # four standard deviations; the seed is fixed


def test_seeds_and_counters_are_independent_streams() -> None:
    for numbers in ([uniform(5, n) for n in range(20_000)], [uniform(n, 5) for n in range(20_000)]):
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert float(((counts - 400) ** 2 / 400).sum()) < 49 + 4 * math.sqrt(98)
        assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) < 0.03


def test_the_random_number_is_the_documented_function() -> None:
    golden = 0x9E3779B97F4A7C15
    assert mix64(golden) == 0xE220A8397B1DCDAF  # first output of splitmix64 with seed 0
    start = mix64((42 + golden) % 2**64)
    assert uniform(42, 3) == (mix64((start + 4 * golden) % 2**64) >> 11) / 2**53


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_random_numbers_lie_in_the_unit_interval(seed: int, counter: int) -> None:
    assert 0.0 <= uniform(seed, counter) < 1.0


@given(vectors, st.floats(0.1, 3), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_a_pick_is_always_one_of_the_possible_tokens(
    logits: Logits, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token, _ = sample_logits(logits, SampleWant(params, seed, 0))
    # float32 weights: accept what is possible for parameters moved by rounding
    loose = msgspec.structs.replace(params, top_p=min(1.0, top_p + 1e-5), min_p=max(0.0, min_p - 1e-5))
    assert exact(logits, loose)[token] > 0


big_vectors = st.tuples(st.integers(0, 2**32), st.integers(300, 3000), st.sampled_from([0.0, 0.1, 1.0, 8.0])).map(
    lambda t: np.round(np.random.default_rng(t[0]).normal(0, t[2], t[1]), 1).astype(np.float32)
)


@given(big_vectors, st.floats(0.01, 0.999))
def test_the_nucleus_of_a_large_vocabulary_is_the_smallest_that_holds_the_mass(logits: Logits, top_p: float) -> None:
    weights = np.exp(logits - logits.max())
    kept = _nucleus(weights, top_p)
    order = np.argsort(-weights, kind="stable")
    held = np.cumsum(weights[order], dtype=np.float64)
    assert kept.tolist() == sorted(order[: kept.size].tolist())
    assert held[kept.size - 1] >= top_p * held[-1] * (1 - 1e-12)
    assert kept.size == 1 or held[kept.size - 2] < top_p * held[-1] * (1 + 1e-12)


@given(big_vectors, st.floats(0, 1, exclude_max=True))
def test_the_draw_is_where_the_running_share_passes_the_random_number(logits: Logits, random: float) -> None:
    weights = np.exp(logits - logits.max())
    weights[::3] = 0
    index = _inverse_cdf(weights, random)
    share = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    assert weights[index] > 0
    assert share[index] >= random - 1e-9
    assert index == 0 or share[index - 1] <= random + 1e-9


@given(big_vectors, st.integers(1, 400))
def test_the_top_ids_of_a_large_vocabulary_are_the_first_of_a_stable_sort(logits: Logits, k: int) -> None:
    assert top_ids(logits, k).tolist() == np.argsort(-logits, kind="stable")[:k].tolist()


def test_a_draw_at_the_very_end_never_takes_a_ruled_out_token() -> None:
    weights = np.array([0.1, 0.7, 0.2, 0.0, 0.0], np.float32)
    assert _inverse_cdf(weights, 1.0 - 2.0**-53) == 2
    assert _inverse_cdf(weights, 1.0) == 2
    assert _inverse_cdf(weights[::-1], 0.0) == 2


@given(vectors)
def test_greedy_takes_the_best_and_of_equals_the_lowest_id(logits: Logits) -> None:
    token, _ = sample_logits(logits, want_of(temperature=0.0))
    assert token == min(i for i in range(logits.size) if logits[i] == logits.max())


@given(vectors, st.integers(0, 45))
def test_the_top_ids_are_the_first_of_a_stable_sort(logits: Logits, k: int) -> None:
    assert top_ids(logits, k).tolist() == sorted(range(logits.size), key=lambda i: (-logits[i], i))[:k]


def test_the_same_seed_and_counter_give_the_same_token_and_others_do_not() -> None:
    flat = np.zeros(1000, np.float32)
    assert len({sample_logits(flat, want_of(3))[0] for _ in range(5)}) == 1
    assert len({sample_logits(flat, want_of(counter))[0] for counter in range(50)}) > 40
    assert len({sample_logits(flat, want_of(0, seed))[0] for seed in range(50)}) > 40


def test_later_positions_of_a_want_draw_what_single_steps_would_have_drawn() -> None:
    flat = np.zeros(1000, np.float32)
    together = [sample_logits(flat, SampleWant(SamplingParams(), 9, 4, 3), i)[0] for i in range(3)]
    assert together == [sample_logits(flat, want_of(4 + i, 9))[0] for i in range(3)]


def test_a_penalty_divides_positive_logits_multiplies_negative_ones_and_then_adds() -> None:
    changed = edited(LOGITS, [LogitEdit(2, 1.0, 2.0), LogitEdit(1, 0.5, 2.0), LogitEdit(3, -math.inf)])
    assert changed[2] == pytest.approx(2.2 / 2 + 1)
    assert changed[1] == pytest.approx(-0.3 * 2 + 0.5)
    assert changed[3] == -math.inf
    assert LOGITS[2] == np.float32(2.2), "the caller's logits stay as they are"


def test_a_mask_allows_only_its_tokens() -> None:
    mask = np.packbits([0, 1, 0, 0, 0, 1, 0, 0], bitorder="little").tobytes()
    assert sample_logits(LOGITS, want_of(temperature=0.0, masks=[mask]))[0] == 1
    assert {sample_logits(LOGITS, want_of(n, temperature=9.0, masks=[mask]))[0] for n in range(50)} == {1, 5}


def test_each_position_has_its_own_mask() -> None:
    masks = [bytes([1 << token]) for token in (3, 5)]
    want = want_of(temperature=0.0, masks=masks)
    assert [sample_logits(LOGITS, want, i)[0] for i in range(2)] == [3, 5]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_allowing_nothing_is_an_error_that_says_so(temperature: float) -> None:
    with pytest.raises(NothingAllowed, match="no token"):
        sample_logits(LOGITS, want_of(temperature=temperature, masks=[b"\0"]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(BadLogits):
        sample_logits(logits, want_of())
    with pytest.raises(BadLogits):
        sample_logits(np.full(4, -math.inf, np.float32), want_of())


def test_logprobs_are_those_of_the_raw_logits() -> None:
    want = want_of(temperature=0.0, edits=[LogitEdit(2, -50.0), LogitEdit(4, -50.0)])
    token, scored = sample_logits(LOGITS, want, top_logprobs=3)
    raw = LOGITS.astype(np.float64)
    expected = raw - math.log(float(np.exp(raw).sum()))
    assert token == 0 and scored is not None
    assert scored.logprob == pytest.approx(expected[0], abs=1e-6)
    assert scored.top_ids == [2, 4, 0]
    assert scored.top_logprobs == pytest.approx(expected[[2, 4, 0]].tolist(), abs=1e-6)
    assert scored.entropy == pytest.approx(float(-(np.exp(expected) * expected).sum()), abs=1e-6)


@given(vectors)
def test_entropy_and_probabilities_are_sound(logits: Logits) -> None:
    scored = token_logprobs(logits, 0, logits.size)
    assert sum(math.exp(p) for p in scored.top_logprobs) == pytest.approx(1, abs=1e-4)
    assert -1e-5 <= scored.entropy <= math.log(logits.size) + 1e-5
    assert scored.top_logprobs == sorted(scored.top_logprobs, reverse=True)


def test_a_token_that_the_model_rules_out_has_no_part_in_the_entropy() -> None:
    scored = token_logprobs(np.array([0, 0, -math.inf], np.float32), 2, 0)
    assert scored.logprob == -math.inf
    assert scored.entropy == pytest.approx(math.log(2))


def test_targets_are_scored_row_by_row() -> None:
    rows = np.stack([LOGITS, LOGITS[::-1]])
    scores = score_targets(rows, [2, 2], 1)
    assert [score.token_id for score in scores] == [2, 2]
    assert scores[0] == token_logprobs(LOGITS, 2, 1)
    assert scores[1] == token_logprobs(np.ascontiguousarray(LOGITS[::-1]), 2, 1)
    assert len(score_targets(rows, [2])) == 1


def test_a_row_needs_only_the_logits_that_its_want_reads() -> None:
    def positions(want: Want) -> list[int]:
        return logit_positions(plain_row(0, [1, 2, 3, 4], 0, [0], want))

    assert positions(Want()) == []
    assert positions(Want(sample=want_of())) == [3]
    assert positions(Want(sample=SampleWant(SamplingParams(), 0, 0, 2), targets=(1,))) == [0, 2, 3]
    assert positions(Want(logits="last")) == [3]
    assert positions(Want(logits="all")) == [0, 1, 2, 3]
    assert positions(Want(pooled="mean")) == []


def test_a_row_that_cannot_be_sampled_carries_its_error() -> None:
    row = plain_row(0, [1], 0, [0], Want(sample=want_of(masks=[b"\0"])))
    result = answer_row(row, LOGITS[None])
    assert result.sampled == () and result.error_code == "nothing_allowed" and "no token" in result.error


def test_the_last_logits_are_the_last_row() -> None:
    row = plain_row(0, [1, 2], 0, [0], Want(logits="last", targets=(3,)))
    result = answer_row(row, np.stack([LOGITS, LOGITS + 1]))
    assert result.logits is not None and result.logits.shape == (1, 8)
    assert result.logits[0, 0] == LOGITS[0] + 1
