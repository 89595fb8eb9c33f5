"""Constraints in the worker: grammars over tokens, texts that begin them, and a bound on reasoning."""

import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localllm.engine.guides import Guide, LateMask
from localllm.errors import ConstraintFailed
from localllm.runtime.constraints import Constraints, MaskThreads
from localllm.runtime.token_bytes import TokenBytes, Trigger, mask_of
from localllm.wire import Constraint, Submit, ThinkingBudget

EOS, THINK, END_THINK = 256, 257, 258
LONGER = (
    b"</", b"think", b">\n", b">\n\n", b'>{"', b"k>", b"nk>{", b'{"', b'"a"', b'":', b"ab", b"ab", b"abc", b"</think>x",
    "ö".encode(), "✓".encode()[:2], b"", b"  ", b"12", b"true", b"ink",
)  # fmt: skip
KNOWN = [*(bytes([byte]) for byte in range(256)), b"<eos>", b"<think>", b"</think>", *LONGER]
NUM_KNOWN = len(KNOWN)
VOCAB_SIZE = 299  # some ids that the tokenizer does not know, and a last byte of the mask that is not full
RAWS = [*KNOWN, *[b""] * (VOCAB_SIZE - NUM_KNOWN)]
TEXTS = [token for token in range(NUM_KNOWN) if RAWS[token] and token not in (EOS, THINK, END_THINK)]


def toy(path: Path, vocab_size: int) -> TokenBytes:
    return TokenBytes(KNOWN, vocab_size, control_ids=(EOS, THINK, END_THINK), eog_ids=(EOS,))


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(Path("toy"), VOCAB_SIZE, read=toy)


def lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def regex(pattern: str) -> str:
    return lark(f"start: /{pattern}/")


def schema(wanted: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": wanted}]})


def guide_of(
    constraints: Constraints, grammar: str | None = None, *, thinking: ThinkingBudget | None = None, **fields: Any
) -> Guide:
    constraint = None if grammar is None else Constraint(grammar=grammar, **fields)
    return constraints.open(Submit(request_id="a", prompt=[1], constraint=constraint, thinking=thinking)).result()


def allowed(guide: Guide) -> set[int]:
    mask = guide.mask()
    if mask is None:
        return set(range(VOCAB_SIZE))
    assert len(mask) >= -(-VOCAB_SIZE // 8)
    bits = np.unpackbits(np.frombuffer(bytes(mask), np.uint8), bitorder="little", count=VOCAB_SIZE)
    return set(np.flatnonzero(bits).tolist())


def say(guide: Guide, said: bytes | Sequence[int]) -> None:
    for token in said:
        assert token in allowed(guide), f"{RAWS[token]!r} is not allowed"
        guide.accept(token)


def walk(guide: Guide, choose: Callable[[list[int]], int], most: int = 60) -> tuple[list[int], bool]:
    """What is said by somebody who chooses among what is allowed, and whether it came to an end."""
    said: list[int] = []
    for _ in range(most):
        token = choose(sorted(allowed(guide)))
        if token == EOS:
            return said, True
        guide.accept(token)
        said.append(token)
        if guide.is_finished:
            return said, True
    return said, False


def bytes_of(ids: Sequence[int]) -> bytes:
    return b"".join(RAWS[token] for token in ids)


# ---- grammars


def test_nothing_is_read_before_the_first_guide() -> None:
    def refuse(path: Path, vocab_size: int) -> TokenBytes:
        raise AssertionError("read")

    made = Constraints(Path("nowhere"), VOCAB_SIZE, read=refuse)
    made.compute()
    with pytest.raises(ConstraintFailed, match="read"):
        made.open(Submit(request_id="a", prompt=[1], constraint=Constraint(grammar=regex("a")))).result()


def test_a_grammar_allows_tokens_that_go_on_with_it_and_the_end_only_where_it_may_end(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("(ab|abc)+"))
    ids = {raw: [token for token in range(NUM_KNOWN) if RAWS[token] == raw] for raw in (b"ab", b"abc", b"a", b"c")}
    assert allowed(guide) == {*ids[b"a"], *ids[b"ab"], *ids[b"abc"]}  # both tokens that spell "ab"
    say(guide, [ids[b"ab"][1]])
    assert guide.may_end and not guide.is_finished
    assert allowed(guide) == {*ids[b"a"], *ids[b"ab"], *ids[b"abc"], *ids[b"c"], EOS}
    say(guide, b"a")
    assert not guide.may_end and EOS not in allowed(guide)


def test_a_grammar_that_has_come_to_its_end_ends_the_sequence(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("ab"))
    say(guide, b"a")
    assert not guide.is_finished
    say(guide, b"b")
    assert guide.is_finished and guide.may_end


def test_an_end_that_is_chosen_ends_the_sequence(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("a*"))
    say(guide, [97, EOS])
    assert guide.is_finished


SCHEMA = {
    "type": "object",
    "properties": {
        "ö": {"type": "integer", "minimum": -5, "maximum": 120},
        "a": {"type": "array", "items": {"enum": ["ab", None, 12, True]}, "minItems": 1, "maxItems": 2},
        "ab": {"anyOf": [{"type": "string", "maxLength": 3}, {"const": {"a": []}}]},
    },
    "required": ["ö", "a"],
    "additionalProperties": False,
}


@given(st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_whatever_is_chosen_among_the_allowed_tokens_fits_the_schema(
    constraints: Constraints, chooser: random.Random
) -> None:
    said, is_complete = walk(guide_of(constraints, schema(SCHEMA)), chooser.choice, 80)
    if is_complete:
        jsonschema.validate(json.loads(bytes_of(said)), SCHEMA)
    assert all(token in TEXTS for token in said)


@given(st.randoms(use_true_random=False), st.sampled_from(["(ab)*c?", "[^a]{0,3}✓", "<think>.", "\\\\S+ \\\\d{2,3}"]))
@settings(max_examples=150)
def test_the_end_is_allowed_exactly_where_the_expression_matches(
    constraints: Constraints, chooser: random.Random, pattern: str
) -> None:
    pattern = pattern.replace("\\\\", "\\")
    guide, said = guide_of(constraints, regex(pattern)), b""
    for _ in range(12):
        if guide.is_finished:
            assert re.fullmatch(pattern, said.decode())
            return
        options = allowed(guide)
        assert options <= {*TEXTS, EOS}, "a token that is no text"
        text = _text(said)
        matches = text is not None and re.fullmatch(pattern, text) is not None
        assert (EOS in options) == guide.may_end == matches
        token = chooser.choice(sorted(options))
        if token == EOS:
            return
        guide.accept(token)
        said += RAWS[token]


def _text(said: bytes) -> str | None:
    try:
        return said.decode()
    except UnicodeDecodeError:  # in the middle of a character
        return None


def test_a_control_token_is_not_its_spelling(constraints: Constraints) -> None:
    assert THINK not in allowed(guide_of(constraints, regex("<think>")))
    assert allowed(guide_of(constraints, lark(f'start: <[{THINK}]> "a"'))) == {THINK}


@pytest.mark.parametrize(
    "grammar", ["start: nothing", '{"grammars": 1}', "", schema({"type": "x"}), schema({"$ref": "#"})]
)
def test_a_grammar_that_cannot_be_followed_is_an_error_of_the_one_who_asked(
    constraints: Constraints, grammar: str
) -> None:
    with pytest.raises(ConstraintFailed):
        guide_of(constraints, grammar)
    say(guide_of(constraints, regex("a")), b"a")


def test_a_grammar_that_becomes_too_much_fails_where_it_does(constraints: Constraints) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {} for number in range(900)}}
    guide = guide_of(constraints, lark(f'start: "x" %json {json.dumps(wide)}'))
    say(guide, b"x")
    with pytest.raises(ConstraintFailed):
        say(guide, b'{"p1": 1, "p')


def test_a_model_without_an_end_gets_one_that_it_cannot_say() -> None:
    endless = Constraints(Path("toy"), VOCAB_SIZE, read=lambda path, size: TokenBytes(RAWS[:256], size))
    guide = guide_of(endless, regex("ab?"))
    say(guide, b"a")
    assert allowed(guide) == {ord("b")}
    say(guide, b"b")
    assert guide.is_finished


# ---- what begins them


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=200)
def test_a_grammar_holds_from_behind_the_text_wherever_tokens_are_cut(
    constraints: Constraints, chooser: random.Random, is_lazy: bool
) -> None:
    """The chooser likes the tokens that the text may be made of."""
    liked = {token for token in TEXTS if RAWS[token] and RAWS[token][:1] in b"</think>" and RAWS[token] != b"i"}
    liked |= {END_THINK, 60, 47, *b"think>"}
    guide = guide_of(constraints, regex('\\{"(a|b)*"'), after="</think>", lazy=is_lazy)

    def choose(options: list[int]) -> int:
        better = [token for token in options if token in liked]
        return chooser.choice(better if better and chooser.random() < 0.9 else options)

    said, is_complete = walk(guide, choose)
    _, found, behind = bytes_of(said).partition(b"</think>")
    if found and is_complete:
        assert re.fullmatch(rb'\s*\{"(a|b)*"', behind)
    assert found or is_lazy or not is_complete


@pytest.mark.parametrize("said", [[*b"x</think>"], [*b"x", END_THINK], [NUM_KNOWN - 21, 257 + 3, ord(">")]])
def test_the_text_may_be_one_token_or_many(constraints: Constraints, said: list[int]) -> None:
    guide = guide_of(constraints, regex("ab"), after=bytes_of(said).decode().lstrip("x"))
    say(guide, said)
    assert EOS not in allowed(guide)
    say(guide, b"ab")
    assert guide.is_finished


def token(raw: bytes) -> int:
    return RAWS.index(raw)


def test_what_a_token_holds_behind_the_text_counts(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex('\\{"a"\\}'), after="</think>")
    say(guide, [*b"</thin", ord("k"), token(b'>{"'), *b'a"}'])
    assert guide.is_finished


def test_a_token_that_goes_on_behind_the_text_as_it_may_not_is_not_allowed(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("ab"), after="</think>")
    assert token(b"</think>x") not in allowed(guide)
    say(guide, b"</think")
    options = allowed(guide)
    assert token(b'>{"') not in options and token(b">\n") in options and ord(">") in options
    say(guide, [token(b">\n"), *b"ab"])
    assert guide.is_finished


def test_blanks_behind_the_text_belong_to_a_grammar_that_wants_them(constraints: Constraints) -> None:
    guide = guide_of(constraints, lark('start: "\\n" "ab"'), after="</think>")
    say(guide, [*b"</think", token(b">\n"), *b"ab"])
    assert guide.is_finished


def test_before_the_text_the_end_is_for_lazy_constraints(constraints: Constraints) -> None:
    assert EOS not in allowed(guide_of(constraints, regex("ab"), after="</think>"))
    lazy = guide_of(constraints, regex("ab"), after="</think>", lazy=True)
    assert EOS in allowed(lazy) and lazy.may_end
    say(lazy, b"</think>")
    assert allowed(lazy) == {ord("a"), *(i for i, raw in enumerate(RAWS) if raw == b"ab")} and not lazy.may_end


def test_a_lazy_constraint_that_no_token_can_break_has_no_mask_while_it_waits(constraints: Constraints) -> None:
    assert guide_of(constraints, regex("ab"), after="qqq", lazy=True).mask() is None


@given(st.binary(min_size=1, max_size=6), st.lists(st.binary(max_size=5), max_size=8))
@example(b"aab", [b"aa", b"ab", b"x"])
def test_a_trigger_is_found_where_it_first_ends(text: bytes, parts: list[bytes]) -> None:
    trigger, seen = Trigger(text), b""
    for part in parts:
        before, seen = seen, seen + part
        rest = trigger.push(part)
        place = seen.find(text)
        assert (rest is not None) == (place >= 0)
        if rest is not None:
            assert rest == seen[place + len(text) :] and len(rest) < len(seen) - len(before)
            return


SMALL = st.binary(max_size=4).map(lambda raw: bytes(b"ab>"[byte % 3] for byte in raw))


@given(SMALL.filter(len), st.lists(SMALL, max_size=5), st.lists(SMALL, min_size=1, max_size=12))
def test_tokens_that_end_a_trigger_inside_are_known_beforehand(
    text: bytes, said: list[bytes], vocabulary: list[bytes]
) -> None:
    tokens, trigger = TokenBytes(vocabulary, len(vocabulary)), Trigger(text)
    if any(trigger.push(part) is not None for part in said):
        return
    expected = {}
    for number, raw in enumerate(vocabulary):
        fresh = Trigger(text)
        assert fresh.push(b"".join(said)) is None
        rest = fresh.push(raw)
        if rest:
            expected[number] = rest
    assert dict(tokens.ending_inside(trigger)) == expected


# ---- a bound on reasoning


def budget(most: int, *, start: str = "", end_ids: Sequence[int] = (10, END_THINK)) -> ThinkingBudget:
    return ThinkingBudget(max_tokens=most, start=start, end="</think>", end_ids=list(end_ids))


def test_reasoning_is_ended_after_so_many_tokens(constraints: Constraints) -> None:
    guide = guide_of(constraints, thinking=budget(3))
    for _ in range(3):
        assert guide.mask() is None and not guide.is_forced
        guide.accept(97)
    for forced in (10, END_THINK):
        assert guide.is_forced and allowed(guide) == {forced} and not guide.may_end
        guide.accept(forced)
    assert not guide.is_forced and guide.mask() is None and not guide.is_finished and guide.may_end


def test_reasoning_that_ends_in_time_is_left_alone(constraints: Constraints) -> None:
    guide = guide_of(constraints, thinking=budget(9))
    say(guide, b"</think>" + b"a" * 20)
    assert guide.mask() is None


def test_an_end_with_the_last_token_needs_no_forcing(constraints: Constraints) -> None:
    guide = guide_of(constraints, thinking=budget(8))
    say(guide, b"</think>")
    assert not guide.is_forced


def test_no_reasoning_at_all_is_a_bound_too(constraints: Constraints) -> None:
    assert allowed(guide_of(constraints, thinking=budget(0))) == {10}


def test_only_what_comes_behind_the_start_is_reasoning(constraints: Constraints) -> None:
    guide = guide_of(constraints, thinking=budget(2, start="<think>"))
    say(guide, b"abcdefgh")
    say(guide, [THINK])
    assert not guide.is_forced
    say(guide, b"ab")
    assert guide.is_forced
    never = guide_of(constraints, thinking=budget(0, start="<think>"))
    say(never, b"abc")
    assert not never.is_forced
    say(never, [THINK])
    assert allowed(never) == {10}


def test_after_a_forced_end_the_constraint_holds(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("ab"), after="</think>", thinking=budget(2, end_ids=[END_THINK, 10, 10]))
    say(guide, [*b"xy", END_THINK, 10, 10, *b"ab"])
    assert guide.is_finished


def test_a_grammar_from_the_first_token_on_leaves_no_reasoning_to_bound(constraints: Constraints) -> None:
    guide = guide_of(constraints, regex("aaaa"), thinking=budget(1))
    say(guide, b"aaaa")
    assert guide.is_finished


# ---- beside the step


def test_masks_are_computed_without_anybody_reading_them() -> None:
    threads, computed = MaskThreads(2), [threading.Event() for _ in range(40)]
    masks = [LateMask(1, lambda event=event: event.set() or b"\1") for event in computed]  # type: ignore[misc]
    for mask in masks:
        threads.add(mask)
    threads.compute()
    assert all(event.wait(10) for event in computed)
    assert [bytes(mask) for mask in masks] == [b"\1"] * 40


@given(st.sets(st.integers(0, VOCAB_SIZE - 1)), st.integers(VOCAB_SIZE, VOCAB_SIZE + 9))
def test_masks_are_bits_from_the_lowest_on(ids: set[int], size: int) -> None:
    for inverted in (False, True):
        mask = mask_of(ids, size, inverted=inverted)
        assert len(mask) == -(-size // 8)
        assert all(bool(mask[one // 8] >> one % 8 & 1) == ((one in ids) != inverted) for one in range(size))
        assert not inverted or mask[-1] >> ((size - 1) % 8 + 1) == 0, "ids beyond the vocabulary"


@given(st.binary(max_size=12))
def test_any_bytes_are_cut_into_tokens(raw: bytes) -> None:
    ids = toy(Path("toy"), VOCAB_SIZE).ids_of(raw)
    assert bytes_of(ids) == raw and not {EOS, THINK, END_THINK} & set(ids)
