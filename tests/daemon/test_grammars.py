"""Grammars of requests: what they become, what is refused, and that any answer is there within a second."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from localllm.daemon.bounds import readable
from localllm.daemon.formats import Format, settled
from localllm.daemon.grammars import (
    CHECK_S,
    MAX_DEPTH,
    MAX_NODES,
    Draft,
    Grammars,
    choice_grammar,
    embedded_schema,
    gbnf_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    lark_text,
    regex_grammar,
)
from localllm.daemon.replies import Ask
from localllm.errors import InvalidGrammar, InvalidRequest, InvalidSchema, Overloaded
from localllm.tokens.confined import Confined
from localllm.wire import SamplingParams
from tests.daemon.explosive import EXPLOSIVE

EOS = 256


class Bytes:
    eos_token_id = EOS
    bos_token_id = None
    special_token_ids = (EOS, 257)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>", b"<call>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(num_processes=1)
    made.warm()
    yield made
    made.close()


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes()), eos_token=[EOS], slices=[])


Judge = Callable[[Draft, "str | list[int]"], bool]


@pytest.fixture(scope="module")
def allows(grammars: Grammars, vocabulary: LLTokenizer) -> Judge:
    """Whether a draft, once checked, lets somebody say exactly this."""

    def judge(draft: Draft, said: str | list[int]) -> bool:
        matcher = LLMatcher(vocabulary, asyncio.run(grammars.checked(draft)), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = list(said.encode()) if isinstance(said, str) else said
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return judge


def refusal(grammars: Grammars, draft: Draft, param: str = "response_format") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(grammars.checked(draft, param=param))
    return caught.value


# ---- what is allowed


def test_any_object_is_an_object_and_nothing_else(allows: Judge) -> None:
    assert allows(json_object_grammar(), '{"a": [1, null, {"b": "c"}], "d": true}')
    assert not allows(json_object_grammar(), "[1]")
    assert not allows(json_object_grammar(), '{"a": 1} and more')


def test_a_schema_binds_names_types_and_bounds(allows: Judge) -> None:
    draft = json_schema_grammar(
        {
            "type": "object",
            "properties": {"größe": {"type": "integer", "minimum": 3, "maximum": 12}},
            "required": ["größe"],
            "additionalProperties": False,
        }
    )
    assert allows(draft, '{"größe": 12}')
    assert not allows(draft, '{"größe": 13}')
    assert not allows(draft, "{}")


def test_blanks_between_the_tokens_of_json_come_to_an_end(allows: Judge) -> None:
    draft = json_schema_grammar({"type": "array", "items": {"type": "integer"}})
    assert allows(draft, "[\n    1, 2\n]")
    assert allows(draft, "[\r\n" + " " * 64 + "1]")
    assert not allows(draft, "[" + " " * 65 + "1]")
    assert not allows(draft, "[\n\n1]")


def test_true_is_a_schema_and_false_allows_nothing(allows: Judge) -> None:
    assert allows(json_schema_grammar(True), "[1]")
    with pytest.raises(InvalidSchema, match="is an object"):
        json_schema_grammar(False)


def test_a_regular_expression_matches_the_whole_answer(allows: Judge) -> None:
    draft = regex_grammar(r"[a-z]{2}/\d+\n")
    assert allows(draft, "ab/17\n")
    assert not allows(draft, "xab/17\n")


@pytest.mark.parametrize("choice", ["yes", "ye", 'a "quoted" one', "two\nlines\t", "back\\slash", "ß ✓", "\x01", ""])
def test_a_choice_is_taken_letter_by_letter(allows: Judge, choice: str) -> None:
    draft = choice_grammar(["yes", "ye", 'a "quoted" one', "two\nlines\t", "back\\slash", "ß ✓", "\x01", ""])
    assert allows(draft, choice)
    assert not allows(draft, choice + "!")


def test_lark_may_hold_json_and_control_tokens(allows: Judge) -> None:
    schema = embedded_schema(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    )
    draft = lark_grammar(f"start: {lark_text('<call>say:', {'<call>': 257})} %json {schema}\n")
    assert allows(draft, [257, *b'say:{"a": 1}'])
    assert not allows(draft, '<call>say:{"a": 1}')


def test_gbnf_is_understood(allows: Judge) -> None:
    draft = gbnf_grammar('root ::= "a" digit+ # a comment\ndigit ::= [0-9]\n')
    assert allows(draft, "a42")
    assert not allows(draft, "b42")


@given(st.text(max_size=30))
def test_a_text_in_lark_is_itself(text: str) -> None:
    matcher_text = lark_text(text, {})
    assert json.loads(matcher_text) == text


@given(st.lists(st.sampled_from(["<a>", "<a>b", "x", '"', "<", "\n"]), max_size=8).map("".join))
def test_control_tokens_in_lark_are_found_longest_first(text: str) -> None:
    parts = lark_text(text, {"<a>": 1, "<a>b": 2, "": 3}).split(" ")
    names = {"<[1]>": "<a>", "<[2]>": "<a>b"}
    assert "".join(names.get(part) or json.loads(part) for part in parts) == text
    assert ("<[2]>" in parts) == ("<a>b" in text)


# ---- what is refused


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (json_schema_grammar({"type": "strin"}), "strin"),
        (json_schema_grammar({"type": "object", "unevaluatedProperties": False}), "unevaluatedProperties"),
        (json_schema_grammar({"not": {"type": "string"}}), "not"),
        (json_schema_grammar({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_schema_grammar({"$ref": "http://example.com/x"}), "example.com"),
        (json_schema_grammar({"type": "string", "format": "zip-code"}), "zip-code"),
        (json_schema_grammar({"type": "string", "pattern": "(?=a)b"}), "look"),
        (json_schema_grammar({"minLength": 5, "maxLength": 2, "type": "string"}), "minLength"),
        (json_schema_grammar({"$ref": "#"}), "kept to"),
        (json_schema_grammar({"const": "\ud800"}), "kept to"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_the_reason(
    grammars: Grammars, draft: Draft, reason: str
) -> None:
    error = refusal(grammars, draft)
    assert isinstance(error, InvalidSchema) and error.http_status == 400
    assert (error.code, error.param) == ("invalid_schema", "response_format")
    assert reason in error.message


@pytest.mark.parametrize(
    "draft",
    [
        regex_grammar("(a"),
        regex_grammar(r"(a)\1"),
        lark_grammar("start: foo"),
        lark_grammar("nothing here"),
        lark_grammar("start: <|unheard_of|>"),
        lark_grammar("start: x\nx: x"),
        gbnf_grammar('other ::= "a"'),
        gbnf_grammar("root ::= ["),
        gbnf_grammar('root ::= "\\'),
        gbnf_grammar("root ::= " + "(" * 30_000),
    ],
)
def test_a_grammar_that_is_none_is_refused(grammars: Grammars, draft: Draft) -> None:
    error = refusal(grammars, draft, "guided_grammar")
    assert isinstance(error, InvalidGrammar)
    assert (error.code, error.param) == ("invalid_grammar", "guided_grammar")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "make",
    [
        lambda: json_schema_grammar(nested(2 * MAX_DEPTH)),
        lambda: json_schema_grammar(nested(50_000)),
        lambda: json_schema_grammar({"enum": list(range(MAX_NODES))}),
        lambda: json_schema_grammar({"pattern": "a" * 1025}),
        lambda: json_schema_grammar({"patternProperties": {"a" * 1025: {}}}),
        lambda: json_schema_grammar({"x-guidance": {"lenient": True}}),
        lambda: json_schema_grammar({"minimum": float("nan")}),
        lambda: json_schema_grammar([]),
        lambda: regex_grammar("a" * 1025),
        lambda: choice_grammar([]),
        lambda: choice_grammar(["x"] * 1001),
        lambda: choice_grammar(["x" * 70_000]),
        lambda: lark_grammar("x" * 70_000),
        lambda: gbnf_grammar("x" * 70_000),
    ],
)
def test_what_is_out_of_measure_is_refused_without_a_look(make: Callable[[], Draft]) -> None:
    with pytest.raises((InvalidSchema, InvalidGrammar)):
        make()


def test_the_deepest_schema_is_taken(allows: Judge) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(MAX_DEPTH - 1):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    assert allows(json_schema_grammar(schema), '{"a":' * (MAX_DEPTH - 1) + "1" + "}" * (MAX_DEPTH - 1))


# ---- within a second


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_explosive_grammars_are_answered_within_a_second(grammars: Grammars, name: str) -> None:
    draft = EXPLOSIVE[name]
    fastest = min(seconds_for(grammars, draft) for _ in range(3))  # a busy machine may take the time for itself
    assert fastest < 1.0


def seconds_for(grammars: Grammars, draft: Callable[[], Draft]) -> float:
    started = time.monotonic()
    try:
        asyncio.run(grammars.checked(draft()))
    except InvalidRequest as error:
        assert error.code in ("invalid_schema", "invalid_grammar")
    except Overloaded:
        pytest.skip("the machine is too busy to measure it")
    return time.monotonic() - started


def test_a_check_that_takes_too_long_is_ended_and_the_next_one_is_answered(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(child_of(grammars).pid, signal.SIGSTOP)
    monkeypatch.setattr("localllm.daemon.grammars.CHECK_S", 0.0)
    assert grammars._ask(regex_grammar("b" * 1000)) is None  # late
    monkeypatch.setattr("localllm.daemon.grammars.CHECK_S", CHECK_S)
    assert "grammar" in (grammars._ask(regex_grammar("c")) or {})


def test_a_check_that_met_its_limit_is_a_refusal(grammars: Grammars) -> None:
    child = child_of(grammars)
    os.kill(child.pid, signal.SIGSTOP)  # so that it dies over the question, as by its limits
    threading.Timer(0.05, child.kill).start()
    assert "too much" in (grammars._ask(regex_grammar("b")) or {})["failure"]
    assert "grammar" in (grammars._ask(regex_grammar("c")) or {})


def child_of(grammars: Grammars) -> "subprocess.Popen[bytes]":
    """That of its only process, started."""
    assert grammars._ask(regex_grammar("a"))
    child = grammars._idle[0]._process
    assert child is not None
    return child


def test_a_machine_that_is_too_busy_is_no_refusal_of_the_grammar(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = regex_grammar("only here")
    os.kill(child_of(grammars).pid, signal.SIGSTOP)  # it does not answer, however fast the machine is
    monkeypatch.setattr("localllm.daemon.grammars.CHECK_S", 0.0)
    with pytest.raises(Overloaded):
        asyncio.run(grammars.checked(draft))
    monkeypatch.undo()
    assert asyncio.run(grammars.checked(draft))


def test_what_was_found_is_remembered(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = regex_grammar("remembered"), regex_grammar("(remembered")
    accepted, refused = asyncio.run(grammars.checked(good)), refusal(grammars, bad).message
    monkeypatch.setattr(Confined, "ask", lambda *_: pytest.fail("asked again"))
    assert asyncio.run(grammars.checked(good)) == accepted
    assert refusal(grammars, bad).message == refused


def test_a_process_that_died_is_started_again(grammars: Grammars) -> None:
    child = child_of(grammars)
    child.kill()
    child.wait()
    assert grammars._ask(regex_grammar("a"))


KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$defs",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "required",
        "additionalProperties",
        "patternProperties",
        "minItems",
        "maxItems",
        "prefixItems",
        "format",
        "multipleOf",
        "not",
        "title",
        "x-other",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.dictionaries(KEYWORDS, JSON, max_size=5))
def test_whatever_comes_as_a_schema_is_taken_or_refused(grammars: Grammars, schema: dict[str, Any]) -> None:
    try:
        assert json.loads(asyncio.run(grammars.checked(json_schema_grammar(schema))))
    except InvalidSchema as error:
        assert error.message


@settings(max_examples=150)
@given(st.sampled_from(["regex", "lark", "gbnf"]), st.text(max_size=40))
def test_whatever_comes_as_a_grammar_is_taken_or_refused(grammars: Grammars, kind: Any, text: str) -> None:
    try:
        assert json.loads(asyncio.run(grammars.checked(Draft(kind, text))))
    except InvalidGrammar as error:
        assert error.message


# ---- bounds as floats


@settings(max_examples=60, deadline=None)
@given(
    bound=st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6, allow_subnormal=False)),
    digits=st.integers(1, 24),
    is_upper=st.booleans(),
)
def test_what_lies_inside_an_exclusive_bound_does_so_when_it_is_read_as_a_float(
    allows: Judge, bound: float, digits: int, is_upper: bool
) -> None:
    assume(abs(bound) > 1e-3)
    schema = {"type": "number", "exclusiveMaximum" if is_upper else "exclusiveMinimum": bound}
    step = Decimal(10) ** -digits
    said = format(Decimal(repr(bound)) + (-step if is_upper else step), "f")
    is_inside = json.loads(said) < bound if is_upper else json.loads(said) > bound
    if allows(json_schema_grammar(schema), said):
        assert is_inside, said
    elif len(said.partition(".")[2]) < 6:
        assert not is_inside, said


def test_a_decimal_that_rounds_to_the_bound_is_not_allowed(allows: Judge) -> None:
    grammar = json_schema_grammar({"type": "number", "exclusiveMaximum": -76.5, "minimum": -100})
    assert allows(grammar, "-76.51") and not allows(grammar, "-76.5")
    assert not allows(grammar, "-76.5000000000000002")
    share = json_schema_grammar({"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 100})
    for said in ("99.9", "99.99", "99", "0", "0.5", "12.25", "null"):
        assert allows(share, said), said
    for said in ("100", "100.0", "99.99999999999999999999", "-1", "-0.5", '"x"'):
        assert not allows(share, said), said


def test_only_numbers_with_exclusive_bounds_have_their_decimals_bounded() -> None:
    inner, whole = {"exclusiveMinimum": 12.5, "minimum": 2}, {"type": "integer", "exclusiveMinimum": 3}
    schema = {
        "properties": {"exclusiveMaximum": {"type": "string"}, "enum": inner, "whole": whole},
        "default": {"exclusiveMinimum": 1.5}, "anyOf": [inner, True], "exclusiveMaximum": True,
    }  # fmt: skip
    found, bounded = readable(schema), inner | {"multipleOf": 1e-9}
    assert found == schema | {"properties": schema["properties"] | {"enum": bounded}, "anyOf": [bounded, True]}
    for other in ({"exclusiveMaximum": 0}, {"exclusiveMaximum": 5, "multipleOf": 2}, {"maximum": 7.5}):
        assert readable(other) == other


def test_a_process_is_started_beforehand_once() -> None:
    made = Grammars(num_processes=1)
    try:
        for _ in range(2):
            made.warm()
        made._threads.submit(lambda: None).result(20)
        (process,) = made._idle
        assert process._is_ready
    finally:
        made.close()


# ---- put together


class Recorder(Grammars):
    """Refuses what is put together."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def checked(self, draft: Draft, *, param: str = "response_format") -> str:
        self.kinds.append(draft.kind)
        if draft.kind == "composed":
            raise InvalidGrammar("it is too much", param=param)
        return draft.text


def test_good_parts_are_checked_again_as_a_whole() -> None:
    both = Format(regex_grammar("a"), "guided_regex", calls=lark_grammar('start: "x"', param="tools"))
    seen = Recorder()
    with pytest.raises(InvalidGrammar, match="too much"):
        asyncio.run(settled([Ask([1], SamplingParams(), format=both)], seen))
    assert seen.kinds == ["regex", "lark", "composed"]


def test_one_grammar_alone_is_checked_once() -> None:
    seen = Recorder()
    asyncio.run(settled([Ask([1], SamplingParams(), format=Format(lark_grammar('start: "x"'), "grammar"))], seen))
    assert seen.kinds == ["lark"]
