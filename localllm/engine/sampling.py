"""From logits to a token, on the host: edits, mask, temperature, top-k, top-p, min-p, one draw. Pure numpy.

The draw is inverse-CDF over the remaining tokens in order of id, in float64, with a random number that is a function of
(seed, counter) alone: what else is in the batch changes nothing. Log-probabilities are those of the model: of the raw
logits, before edits, mask, temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localllm.engine.step import LogitEdit, Row, RowResult, SampleWant, Want
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.wire import SamplingParams, TokenLogprobs

Logits = NDArray[np.float32]

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class BadLogits(LocalLLMError):
    """The model gave no usable numbers: NaN, infinite, or nothing but minus infinity."""

    code = "bad_logits"


class NothingAllowed(InvalidRequest):
    """Mask and bans together forbid every token."""

    code = "nothing_allowed"


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
    allowed = _masked(edited(logits, want.edits), want, position_index)
    if want.params.temperature == 0.0:
        token = int(allowed.argmax())
        if allowed[token] == -np.inf:
            raise NothingAllowed("the constraints of this request allow no token here")
    else:
        token = _draw(allowed, want.params, uniform(want.seed, want.counter + position_index))
    return token, None if top_logprobs is None else token_logprobs(logits, token, top_logprobs)


def _check_raw(logits: Logits) -> None:
    best = float(logits.max())
    if not np.isfinite(best):  # NaN spreads to the maximum
        raise BadLogits("the model computed no usable logits", hint="the file may be damaged: try `localllm verify`")


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


def _masked(logits: Logits, want: SampleWant, position_index: int) -> Logits:
    if not want.masks:
        return logits
    bits = np.frombuffer(want.masks[position_index], np.uint8)
    allowed = np.unpackbits(bits, count=logits.size, bitorder="little").view(np.bool_)
    return np.where(allowed, logits, np.float32(-np.inf))


def _draw(logits: Logits, params: SamplingParams, random: float) -> int:
    ids, weights = _candidates(logits, params)
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, random * cumulative[-1], side="right"))
    index = min(index, cumulative.size - 1)  # rounding of the product may reach the very end
    return int(index if ids is None else ids[index])


def _candidates(logits: Logits, params: SamplingParams) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """Ids that survive truncation, ascending (None: all), and their unnormalized probabilities."""
    ids: NDArray[np.int64] | None = None
    if 0 < params.top_k < logits.size:
        ids = np.sort(top_ids(logits, params.top_k))
        logits = logits[ids]
    best = logits.max()
    if best == -np.inf:
        raise NothingAllowed("the constraints of this request allow no token here")
    weights = np.exp((logits - best) * np.float32(1.0 / params.temperature))
    if params.top_p < 1.0:
        ids, weights = _keep(ids, weights, _nucleus(weights, params.top_p))
    if params.min_p > 0.0:
        ids, weights = _keep(ids, weights, np.flatnonzero(weights >= np.float32(params.min_p)))  # the best weighs 1
    return ids, weights


def _keep(
    ids: NDArray[np.int64] | None, weights: NDArray[np.float32], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return kept if ids is None else ids[kept], weights[kept]


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Ascending indices of the fewest tokens that hold at least `top_p` of the mass; equals count by lower id first.

    Tokens lighter than (1 - top_p) / n of the mass hold less than 1 - top_p together, so that the nucleus lies within
    the others and only these are sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    heavy = np.flatnonzero(weights >= (1.0 - top_p) / weights.size * total * (1 - 1e-6))
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    held = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(held, top_p * total, side="left")) + 1
    return np.sort(order[:count])


def top_ids(logits: Logits, k: int) -> NDArray[np.int64]:
    """Ids of the k greatest logits, best first; equals by lower id first."""
    k = min(k, logits.size)
    if k == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(logits, logits.size - k)[logits.size - k]
    candidates = np.flatnonzero(logits >= threshold)
    order = np.argsort(-logits[candidates], kind="stable")[:k]
    return candidates[order]


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
