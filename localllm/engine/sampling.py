"""From logits to a token, on the host: edits, mask, temperature, truncation, one draw. Pure numpy.

The draw is inverse-CDF over the remaining tokens in order of id, in float64, with a random number that is a function of
(seed, counter) alone: what else is in the batch changes nothing. Log-probabilities are those of the model: of the raw
logits, before edits, mask, temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localllm.engine.step import LogitEdit, Row, RowResult, SampleWant, Want
from localllm.errors import BadLogits, LocalLLMError, NothingAllowed
from localllm.wire import SamplingParams, TokenLogprobs

Logits = NDArray[np.float32]

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 256
_SMALL_BLOCK = 64
_NONE = -1
_XTC = 0x5DEECE66D
"""Turns a seed into that of the random numbers which decide about XTC."""
_SPARSE = 8


def mix64(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31


def uniform(seed: int, counter: int) -> float:
    """The random number in [0, 1) of generated token `counter` under `seed`: the top 53 bits of
    mix64(mix64(seed + g) + (counter + 1) * g) modulo 2**64, where g is 0x9E3779B97F4A7C15."""
    start = mix64((seed + _GOLDEN) & _WORD)
    return float(mix64(start + (counter + 1) * _GOLDEN & _WORD) >> 11) * 2.0**-53


def sample_logits(
    logits: Logits, want: SampleWant, position_index: int = 0, top_logprobs: int | None = None
) -> tuple[int, TokenLogprobs | None]:
    """Choose the token after position `position_index` of the want from `logits`, float32 (vocab,), left unchanged.

    With `top_logprobs` its log-probability, the k best and the entropy come along. Greedy ties go to the lowest id.
    BadLogits and NothingAllowed when no choice is possible.
    """
    _check_raw(logits)
    changed = edited(logits, want.edits_at(position_index))
    mask = _bits(want, position_index)
    if want.params.temperature == 0.0:
        token = _best(changed, mask)
    else:
        token = _draw(*_masked(changed, mask), want, want.counter + position_index)
    return token, None if top_logprobs is None else token_logprobs(logits, token, top_logprobs)


def _check_raw(logits: Logits) -> None:
    best = float(logits.max())
    if not np.isfinite(best):  # NaN spreads to the maximum
        raise BadLogits("the model computed no usable logits")


def edited(logits: Logits, edits: Sequence[LogitEdit]) -> Logits:
    """The logits after penalties and additions; the same array when there are none."""
    if not edits:
        return logits
    changed = logits.copy()
    ids = np.fromiter((edit.token_id for edit in edits), np.int64, len(edits))
    penalty = np.fromiter((edit.penalty for edit in edits), np.float32, len(edits))
    add = np.fromiter((edit.add for edit in edits), np.float32, len(edits))
    values = changed[ids]
    changed[ids] = np.where(values > 0, values / penalty, values * penalty) + add
    return changed


def _bits(want: SampleWant, position_index: int) -> NDArray[np.uint8] | None:
    """The mask's bytes; waits for one that is still being computed."""
    return np.frombuffer(bytes(want.masks[position_index]), np.uint8) if want.masks else None


def _best(logits: Logits, mask: NDArray[np.uint8] | None) -> int:
    """The first id of the largest allowed logit. Mostly a model says by itself what it may, so that is tried first."""
    token = int(logits.argmax())
    if mask is not None and not mask[token >> 3] >> (token & 7) & 1:
        ids = np.flatnonzero(_allowed(mask, logits.size))
        token = int(ids[logits[ids].argmax()]) if ids.size else _NONE
    if token == _NONE or logits[token] == -np.inf:
        raise NothingAllowed("the constraints of this request allow no token here")
    return token


def _allowed(mask: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask, count=size, bitorder="little").view(np.bool_)


def _masked(logits: Logits, mask: NDArray[np.uint8] | None) -> tuple[NDArray[np.int64] | None, Logits]:
    """Ids, ascending (None: all), and their logits; what a mask forbids is left out, or -inf where that is cheaper."""
    if mask is None:
        return None, logits
    allowed = _allowed(mask, logits.size)
    if int(np.count_nonzero(allowed)) * _SPARSE > logits.size:
        return None, np.where(allowed, logits, np.float32(-np.inf))
    ids = np.flatnonzero(allowed)
    return ids, logits[ids]


def _draw(ids: NDArray[np.int64] | None, logits: Logits, want: SampleWant, counter: int) -> int:
    params = want.params
    ids, weights = _candidates(ids, logits, params)
    if params.xtc_probability > 0.0 and uniform(want.seed ^ _XTC, counter) < params.xtc_probability:
        ids, weights = _keep(ids, weights, without_top_choices(weights, params.xtc_threshold))
    index = _inverse_cdf(weights, uniform(want.seed, counter))
    return int(index if ids is None else ids[index])


def _inverse_cdf(weights: NDArray[np.float32], random: float) -> int:
    """The first index at which the running share of the mass exceeds `random`; first the block, then the place in it,
    because a running sum over a whole vocabulary is slower than everything else here."""
    exact = weights.astype(np.float64)
    starts = np.arange(0, exact.size, _BLOCK)
    blocks = np.cumsum(np.add.reduceat(exact, starts))
    aim = random * float(blocks[-1])
    block = _first_above(blocks, aim)
    before = float(blocks[block - 1]) if block else 0.0
    inside = np.cumsum(exact[block * _BLOCK : (block + 1) * _BLOCK])
    return block * _BLOCK + _first_above(inside, aim - before)


def _first_above(cumulative: NDArray[np.float64], aim: float) -> int:
    """Where a running sum exceeds `aim`; where rounding keeps it below, its last increase: never a weight of 0."""
    index = int(np.searchsorted(cumulative, aim, side="right"))
    return index if index < cumulative.size else int(np.searchsorted(cumulative, cumulative[-1], side="left"))


def _candidates(
    ids: NDArray[np.int64] | None, logits: Logits, params: SamplingParams
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """Ids that survive truncation, ascending (None: all), and their unnormalized probabilities."""
    if params.top_n_sigma > 0.0:
        ids, logits = _keep(ids, logits, near_the_best(logits, params.top_n_sigma))
    if 0 < params.top_k < logits.size:
        ids, logits = _keep(ids, logits, np.sort(top_ids(logits, params.top_k)))
    best = logits.max(initial=-np.inf)
    if best == -np.inf:
        raise NothingAllowed("the constraints of this request allow no token here")
    weights = np.exp((logits - best) * np.float32(1.0 / params.temperature))
    if params.typical_p < 1.0:
        ids, weights = _keep(ids, weights, typical(weights, params.typical_p))
    if params.top_p < 1.0:
        ids, weights = _keep(ids, weights, _nucleus(weights, params.top_p))
    if params.min_p > 0.0:
        ids, weights = _keep(ids, weights, np.flatnonzero(weights >= np.float32(params.min_p)))  # the best weighs 1
    return ids, weights


def _keep(
    ids: NDArray[np.int64] | None, weights: NDArray[np.float32], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return kept if ids is None else ids[kept], weights[kept]


def near_the_best(logits: Logits, num_sigma: float) -> NDArray[np.int64]:
    """Ascending indices of the logits within so many standard deviations of the largest (Tang et al. 2024,
    "Top-nsigma: not all logits are you need"); what is forbidden does not count."""
    usable = logits[logits > -np.inf]
    if not usable.size:
        return np.arange(logits.size)
    return np.flatnonzero(logits >= usable.max() - np.float32(num_sigma) * usable.std())


def typical(weights: NDArray[np.float32], mass: float) -> NDArray[np.int64]:
    """Ascending indices of the tokens whose surprise is nearest to the entropy, as many as hold `mass` (Meister et al.
    2022, "Locally typical sampling"); equals by lower index first."""
    known = np.flatnonzero(weights > 0)
    shares = weights[known].astype(np.float64)
    shares /= shares.sum()
    surprise = -np.log(shares)
    order = np.argsort(np.abs(surprise - float((shares * surprise).sum())), kind="stable")
    count = int(np.searchsorted(np.cumsum(shares[order]), mass, side="left")) + 1
    return np.sort(known[order[:count]])


def without_top_choices(weights: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Ascending indices without the tokens that have at least `threshold` of the mass, but for the lightest of them:
    XTC, "exclude top choices" (p-e-w 2024, text-generation-webui)."""
    total = float(weights.sum(dtype=np.float64))
    top = np.flatnonzero(weights >= threshold * total)
    if top.size < 2:
        return np.arange(weights.size)
    lightest = top[weights[top].argmin()]
    return np.setdiff1d(np.arange(weights.size), top[top != lightest], assume_unique=True)


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Ascending indices of the fewest tokens that hold at least `top_p` of the mass; equals count by lower id first."""
    cut, num_equal = _cut(weights, top_p * float(weights.sum(dtype=np.float64)))
    kept = np.flatnonzero(weights >= cut)
    equal = kept[weights[kept] == cut]
    return kept if num_equal >= equal.size else np.setdiff1d(kept, equal[num_equal:], assume_unique=True)


def _cut(weights: NDArray[np.float32], mass: float) -> tuple[np.float32, int]:
    """The weight of the lightest of the heaviest tokens that hold `mass`, and how many of just this weight are needed.

    Narrows by halving the range of bit patterns (positive floats are ordered as their bits), and sorts only the rest.
    """
    rest = weights
    low, high = (int(end.view(np.uint32)) for end in (weights.min(), weights.max()))
    while rest.size > _BLOCK and low < high:
        middle = (low + high + 1) // 2
        is_heavy = rest >= np.uint32(middle).view(np.float32)
        heavy = rest[is_heavy]
        held = float(heavy.sum(dtype=np.float64))
        if held >= mass:
            rest, low = heavy, middle
        else:
            rest, high, mass = rest[~is_heavy], middle - 1, mass - held
    values = np.sort(rest)[::-1]
    last = min(int(np.searchsorted(np.cumsum(values, dtype=np.float64), mass, side="left")), values.size - 1)
    return values[last], last + 1 - int((values > values[last]).sum())


def top_ids(logits: Logits, k: int) -> NDArray[np.int64]:
    """Ids of the k greatest logits, best first; equals by lower id first."""
    k = min(k, logits.size)
    if k == 0:
        return np.empty(0, np.int64)
    candidates = np.flatnonzero(logits >= _at_most_kth(logits, k))
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


def _at_most_kth(logits: Logits, k: int) -> np.float32:
    """A value that at least k logits reach, and few more: the k-th best of the blocks' maxima."""
    maxima = np.maximum.reduceat(logits, np.arange(0, logits.size, _SMALL_BLOCK))
    values = maxima if k <= maxima.size // 2 else logits
    kth: np.float32 = np.partition(values, values.size - k)[values.size - k]
    return kth


def token_logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Natural-log probability of a token, of the `num_top` best, and the entropy in nats, of raw logits (vocab,)."""
    best = float(logits.max())
    shifted = logits - np.float32(best)
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    log_total = float(np.log(total))
    # 0 * -inf, a token that the model itself rules out, counts as 0
    surprise = np.multiply(weights, shifted, out=np.zeros_like(weights), where=weights > 0)
    entropy = log_total - float(surprise.sum(dtype=np.float64)) / total
    ids = top_ids(logits, num_top)
    tops = [float(shifted[i]) - log_total for i in ids]
    return TokenLogprobs(token_id, float(shifted[token_id]) - log_total, ids.tolist(), tops, entropy)


def score_targets(logits: Logits, targets: Sequence[int], num_top: int = 0) -> tuple[TokenLogprobs, ...]:
    """Score target i with row i of `logits`, float32 (at least len(targets), vocab)."""
    return tuple(token_logprobs(row, target, num_top) for row, target in zip(logits, targets, strict=False))


def logit_positions(row: Row) -> list[int]:
    """Indices of the row's tokens whose logits its want needs, ascending; empty when it needs none."""
    want, num_tokens = row.want, len(row.token_ids)
    if want.logits == "all":
        return list(range(num_tokens))
    needed = set(range(len(want.targets)))
    if want.logits == "last":
        needed.add(num_tokens - 1)
    if want.sample is not None:
        needed.update(range(num_tokens - want.sample.num_positions, num_tokens))
    return sorted(needed)


def answer_row(row: Row, logits: Logits, pooled: NDArray[np.float32] | None = None) -> RowResult:
    """What a backend that samples on the host answers for a row: `logits` float32 (len(logit_positions(row)), vocab)
    in that order. A row that cannot be sampled carries the error; the others of the step are not touched."""
    want = row.want
    try:
        _check_rows(logits)
        sampled, logprobs = _sample_positions(want, logits)
        targets = score_targets(logits, want.targets, want.target_top)
    except LocalLLMError as error:
        return RowResult(row.seq, error=error.message, error_code=error.code)
    return RowResult(row.seq, sampled, logprobs, targets, pooled, _wanted_logits(want, logits))


def _check_rows(logits: Logits) -> None:
    for row in logits:
        _check_raw(row)


def _sample_positions(want: Want, logits: Logits) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]:
    sample = want.sample
    if sample is None:
        return (), ()
    last = logits[len(logits) - sample.num_positions :]
    picks = [sample_logits(row, sample, i, want.top_logprobs) for i, row in enumerate(last)]
    return tuple(token for token, _ in picks), tuple(scored for _, scored in picks if scored is not None)


def _wanted_logits(want: Want, logits: Logits) -> Logits | None:
    if want.logits is None:
        return None
    return logits.copy() if want.logits == "all" else logits[-1:].copy()
