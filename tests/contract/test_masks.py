"""Masks on every backend: a vocabulary that fills no byte, masks that come late, whole sequences under a grammar."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.engine.guides import LateMask
from localllm.engine.step import Mask, RowResult, SampleWant, Want
from localllm.errors import ConstraintFailed
from localllm.runtime.constraints import Constraints
from localllm.runtime.token_bytes import TokenBytes, mask_of
from localllm.wire import Constraint, SamplingParams, Submit
from tests.contract.conftest import PAGE_SIZE, Host
from tests.contract.test_odd_shapes import SHAPES
from tests.contract.walk import Walk

ODD = SHAPES[1]
TOKENS = np.random.default_rng(8).integers(0, ODD.vocab, 20).tolist()
GREEDY = SamplingParams(temperature=0.0)
RANDOM = SamplingParams(temperature=100.0, seed=1)


def open_walk(host: Host) -> Walk:
    return Walk(host.open(*ODD.build()))


def masked(masks: Sequence[Mask], params: SamplingParams = GREEDY, counter: int = 0) -> Want:
    return Want(sample=SampleWant(params, 17, counter, num_positions=max(1, len(masks)), masks=tuple(masks)))


def one(host: Host, want: Want) -> RowResult:
    return open_walk(host).step((1, TOKENS, want))[0]


def allow(ids: Iterable[int], *, more: bytes = b"") -> bytes:
    return mask_of(ids, ODD.vocab) + more


def test_the_vocabulary_fills_no_byte() -> None:
    assert ODD.vocab % 8


def test_the_largest_allowed_logit_is_chosen(host: Host) -> None:
    logits = one(host, Want(logits="last")).logits
    assert logits is not None
    order = np.argsort(-logits[0]).tolist()
    for place in (0, 1, 5, ODD.vocab - 1):
        assert one(host, masked([allow(order[place:])])).sampled == (order[place],)


def test_the_last_token_can_be_allowed_and_bits_behind_it_mean_nothing(host: Host) -> None:
    last = ODD.vocab - 1
    filled = bytearray(allow([last], more=b"\xff\xff"))
    filled[ODD.vocab // 8] |= 0xFF << ODD.vocab % 8 & 0xFF
    for params in (GREEDY, RANDOM):
        assert one(host, masked([bytes(filled)], params)).sampled == (last,)


@pytest.mark.parametrize("num_allowed", [1, 3, 40])
def test_random_choices_keep_to_the_mask(host: Host, num_allowed: int) -> None:
    ids = np.random.default_rng(num_allowed).permutation(ODD.vocab)[:num_allowed].tolist()
    walk = open_walk(host)
    wants = [masked([allow(ids)], RANDOM, counter) for counter in range(12)]
    found = {row.sampled[0] for row in walk.step(*((seq, TOKENS[:9], want) for seq, want in enumerate(wants)))}
    assert found <= set(ids) and len(found) > (num_allowed > 1)


def test_each_position_has_its_own_mask(host: Host) -> None:
    masks = [allow([3]), allow([ODD.vocab - 1]), allow(range(ODD.vocab))]
    free = one(host, masked([], GREEDY)).sampled
    assert one(host, masked(masks)).sampled == (3, ODD.vocab - 1, *free)


def test_rows_with_masks_and_without_share_a_step(host: Host) -> None:
    walk, alone = open_walk(host), one(host, masked([])).sampled
    rows = walk.step(
        (1, TOKENS, masked([allow([5])])), (2, TOKENS, masked([])), (3, TOKENS, masked([allow([6, 7])], RANDOM))
    )
    assert rows[0].sampled == (5,) and rows[1].sampled == alone and rows[2].sampled[0] in (6, 7)


def test_a_mask_may_come_late_and_one_that_fails_fails_alone(host: Host) -> None:
    def fail() -> bytes:
        raise ConstraintFailed("too much")

    size = len(allow([]))
    late, broken = LateMask(size, lambda: allow([9])), LateMask(size, fail)
    walk = open_walk(host)
    rows = walk.step(*((seq, TOKENS, masked([mask], params)) for seq, (mask, params) in enumerate(
        [(late, GREEDY), (broken, GREEDY), (broken, RANDOM), (late, RANDOM)]
    )))  # fmt: skip
    assert [row.sampled for row in rows] == [(9,), (), (), (9,)]
    assert [row.error_code for row in rows] == ["", "constraint_failed", "constraint_failed", ""]


ALPHABET = [*(bytes([byte]) for byte in b'abcdefghij0123456789 .{}":,[]'), b"ab", b'":', b'{"a', b"12", b"<end>"]
EOS = len(ALPHABET) - 1


def letters(path: Path, vocab_size: int) -> TokenBytes:
    return TokenBytes(ALPHABET, vocab_size, control_ids=(EOS,), eog_ids=(EOS,))


def test_whole_sequences_keep_to_their_grammars_beside_others(host: Host) -> None:
    backend = host.open(*ODD.build())
    guides = Constraints(Path("letters"), ODD.vocab, read=letters)
    engine = Engine(backend, context_length=64, num_pages=128, page_size=PAGE_SIZE, guides=guides)
    patterns = [r"(ab|[0-9]){4,9}\.", r'\{"a":(12|3)\}', r"[a-j]{30}"]
    for number in range(12):
        pattern = patterns[number % 4] if number % 4 < 3 else None
        grammar = json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]})
        params = GREEDY if number < 6 else SamplingParams(temperature=1.5, seed=number)
        constraint = Constraint(grammar=grammar) if pattern else None
        prompt = TOKENS[number:]
        engine.add(Submit(request_id=str(number), prompt=prompt, sampling=params, max_tokens=40, stop_ids=[EOS],
                          constraint=constraint))  # fmt: skip
    said: dict[int, bytes] = {}
    while engine.has_work:
        for chunk in engine.step():
            number = int(chunk.request_id)
            said[number] = said.get(number, b"") + b"".join([*ALPHABET, *[b"?"] * 77][token] for token in chunk.ids)
            assert chunk.finish in (None, "stop") or number % 4 == 3
    for number, text in said.items():
        assert number % 4 == 3 or re.fullmatch(patterns[number % 4].encode(), text), text
    assert len(said) == 12
    engine.close()
