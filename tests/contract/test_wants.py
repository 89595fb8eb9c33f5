"""What rows want, on every backend: samples, scores, vectors, logits; tokens that only the backend knows."""

import numpy as np
import pytest

from localllm.engine.sampling import token_logprobs
from localllm.engine.step import NOTHING, SAMPLED_LAST, CommitDraft, LogitEdit, RowResult, SampleWant, SeqId, Want
from localllm.wire import SamplingParams
from tests.contract.conftest import Host
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, build, plain

LLAMA, HYBRID = BY_NAME["llama"], BY_NAME["hybrid"]
TOKENS = np.random.default_rng(8).integers(0, 80, 30).tolist()
GREEDY = SamplingParams(temperature=0.0)


def sample(params: SamplingParams = GREEDY, counter: int = 0, positions: int = 1) -> SampleWant:
    return SampleWant(params, seed=17, counter=counter, num_positions=positions)


def open_walk(host: Host) -> Walk:
    return Walk(host.open_world(LLAMA)[0])


def one(host: Host, want: Want, tokens: list[int] = TOKENS) -> RowResult:
    """The answer to a want about the whole prompt, from a backend that saw nothing else."""
    return open_walk(host).step((1, tokens, want))[0]


def test_a_greedy_sample_is_the_largest_logit(host: Host) -> None:
    logits = one(host, Want(logits="last")).logits
    assert logits is not None and logits.shape == (1, 80)
    assert one(host, Want(sample=sample())).sampled == (int(logits.argmax()),)


def test_the_token_sampled_last_need_not_be_named(host: Host) -> None:
    walk, named = open_walk(host), open_walk(host)
    want = Want(sample=sample())
    (result,), (told,) = walk.step((1, TOKENS, want)), named.step((1, TOKENS, want))
    for _ in range(4):
        (told,) = named.step((1, list(told.sampled), want))
        (result,) = walk.step((1, [SAMPLED_LAST], want))
        assert result.sampled == told.sampled


def test_rows_that_sampled_last_are_told_apart(host: Host) -> None:
    walk = open_walk(host)
    want, ids = Want(sample=sample()), (3, 1, 2)
    prompts = {1: TOKENS[:9], 2: TOKENS[9:13], 3: TOKENS[13:]}
    together: dict[int, list[int]] = {seq: [] for seq in ids}
    for result in walk.step(*((seq, prompts[seq], want) for seq in ids)):
        together[result.seq] += result.sampled
    for _ in range(3):
        for result in walk.step(*((seq, [SAMPLED_LAST], want) for seq in reversed(ids))):
            together[result.seq] += result.sampled
    for seq in ids:
        alone = open_walk(host)
        expected = list(alone.step((seq, prompts[seq], want))[0].sampled)
        expected += [alone.step((seq, [SAMPLED_LAST], want))[0].sampled[0] for _ in range(3)]
        assert together[seq] == expected


def test_draft_positions_are_sampled_each(host: Host) -> None:
    result = one(host, Want(sample=sample(positions=4), logits="all"))
    assert result.logits is not None
    assert result.sampled == tuple(result.logits[-4:].argmax(axis=1).tolist())


def test_after_a_commit_the_token_after_the_accepted_ones_counts_as_sampled_last(host: Host) -> None:
    walk, named = open_walk(host), open_walk(host)
    drafted = TOKENS[20:24]
    for each in (walk, named):
        each.step((1, TOKENS[:20], NOTHING))
    (checked,) = walk.step((1, drafted, Want(sample=sample(positions=4))))
    named.step((1, drafted, NOTHING))
    for each in (walk, named):
        each.held[1].position = 22  # the first token and one draft token stand
    want = Want(sample=sample())
    (result,) = walk.step((1, [SAMPLED_LAST], want), memory=[CommitDraft(SeqId(1), 1, 3)])
    (expected,) = named.step((1, [checked.sampled[1]], want))
    assert result.sampled == expected.sampled


def test_random_samples_depend_on_seed_and_counter_only(host: Host) -> None:
    params = SamplingParams(temperature=1.5, top_p=0.95)
    alone = one(host, Want(sample=sample(params, counter=3)))
    walk = open_walk(host)
    crowd = walk.step((2, TOKENS[:4], Want(sample=sample())), (1, TOKENS, Want(sample=sample(params, counter=3))))
    assert crowd[1].sampled == alone.sampled
    picks = {one(host, Want(sample=sample(params, counter=counter))).sampled for counter in range(8)}
    assert len(picks) > 1


def test_edits_and_masks_bind(host: Host) -> None:
    best = one(host, Want(sample=sample())).sampled[0]
    banned = SampleWant(GREEDY, 0, 0, edits=(LogitEdit(best, add=-np.inf),))
    assert one(host, Want(sample=banned)).sampled[0] != best
    only = (best + 5) % 80
    mask = bytearray(10)
    mask[only // 8] |= 1 << only % 8
    assert one(host, Want(sample=SampleWant(GREEDY, 0, 0, masks=(bytes(mask),)))).sampled == (only,)


def test_a_row_that_may_choose_nothing_fails_alone(host: Host) -> None:
    walk = open_walk(host)
    nothing = SampleWant(GREEDY, 0, 0, masks=(bytes(10),))
    first, second = walk.step((1, TOKENS, Want(sample=nothing)), (2, TOKENS[:5], Want(sample=sample())))
    assert first.error and first.sampled == ()
    assert not second.error and len(second.sampled) == 1


def test_logits_that_are_no_numbers_are_an_error_and_no_token(host: Host) -> None:
    config, source = build(LLAMA)
    norm = source.raw("output_norm.weight").view(np.float32).copy()
    norm[3] = np.nan
    source.put("output_norm.weight", norm)
    walk = Walk(host.open(config, source))
    greedy, random, all_of_them = walk.step(
        (1, TOKENS, Want(sample=sample())),
        (2, TOKENS[:5], Want(sample=sample(SamplingParams(temperature=1.0)))),
        (3, TOKENS[:7], Want(logits="all", targets=(1,))),
    )
    assert [row.error_code for row in (greedy, random, all_of_them)] == ["bad_logits"] * 3
    assert greedy.sampled == random.sampled == ()


def test_log_probabilities_belong_to_the_logits(host: Host) -> None:
    result = one(host, Want(sample=sample(), top_logprobs=3, logits="last"))
    assert result.logits is not None
    expected = token_logprobs(result.logits[0], result.sampled[0], 3)
    (scored,) = result.logprobs
    assert scored.top_ids == expected.top_ids
    assert scored.logprob == pytest.approx(expected.logprob, abs=1e-5)
    assert scored.entropy == pytest.approx(expected.entropy, abs=1e-5)


@pytest.mark.parametrize("count", [30, 29, 4])
def test_targets_are_scored_from_the_start_of_the_row(host: Host, count: int) -> None:
    targets = (*TOKENS[1:], 0)[:count]
    result = one(host, Want(targets=targets, target_top=2, sample=sample(), logits="all"))
    assert result.logits is not None
    assert [scored.token_id for scored in result.targets] == list(targets)
    for scored, line in zip(result.targets, result.logits, strict=False):
        assert scored.logprob == pytest.approx(token_logprobs(line, scored.token_id, 0).logprob, abs=1e-5)
        assert scored.top_ids[0] == int(line.argmax())
    assert result.sampled == (int(result.logits[-1].argmax()),)


def test_targets_without_whole_logits_score_the_same(host: Host) -> None:
    targets = tuple(TOKENS[1:11])
    with_logits = one(host, Want(targets=targets, logits="all"))
    without = one(host, Want(targets=targets, sample=sample()))
    assert without.logits is None
    for ours, theirs in zip(without.targets, with_logits.targets, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)
    assert with_logits.logits is not None
    assert without.sampled == (int(with_logits.logits[-1].argmax()),)


@pytest.mark.parametrize("kind", ["mean", "last", "first"])
def test_pooled_vectors_are_of_the_final_hidden_states(host: Host, kind: str) -> None:
    backend, config, source = host.open_world(LLAMA)
    want = Want(pooled=kind)  # type: ignore[arg-type]  # one of the three literals
    others, result = Walk(backend).step((2, TOKENS[:7], Want(sample=sample())), (1, TOKENS, want))
    hidden = plain(config, source).hidden(TOKENS)
    expected = {"mean": hidden.mean(axis=0), "last": hidden[-1], "first": hidden[0]}[kind]
    host.check(result.pooled, expected, LLAMA)
    assert others.pooled is None and result.logits is None


@pytest.mark.parametrize("name", ["llama", "window on every layer"])
def test_an_atomic_row_sees_itself_in_both_directions(host: Host, name: str) -> None:
    world = BY_NAME[name]
    backend, config, source = host.open_world(world)
    walk = Walk(backend)
    rows = (
        walk.row(2, TOKENS[:6], Want(logits="all")),
        walk.row(1, TOKENS[:17], Want(logits="all"), atomic=True),
    )
    causal, both = walk.run(rows)
    host.check(both.logits, plain(config, source, sees_ahead=True).logits(TOKENS[:17]), world)
    host.check(causal.logits, plain(config, source).logits(TOKENS[:6]), world)


def test_returned_arrays_are_not_overwritten_by_the_next_step(host: Host) -> None:
    walk = open_walk(host)
    (result,) = walk.step((1, TOKENS[:10], Want(logits="all", pooled="last")))
    assert result.logits is not None and result.pooled is not None
    logits, pooled = result.logits.copy(), result.pooled.copy()
    walk.step((1, TOKENS[10:20], Want(logits="all", pooled="last")))
    np.testing.assert_array_equal(result.logits, logits)
    np.testing.assert_array_equal(result.pooled, pooled)


def test_info_and_layout_are_known_before_the_pools_are(host: Host) -> None:
    backend, config, _ = host.open_world(HYBRID)
    assert backend.info.name == host.name and backend.vocab_size == config.vocab_size
    assert backend.layout.has_state and backend.layout.page_bytes > 0
    assert backend.info.weight_bytes > 0
