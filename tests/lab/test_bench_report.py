"""The definitions of `vllm bench serve`, on answers whose times are written down by hand."""

import math

import pytest

from localllm.lab.bench_events import Usage
from localllm.lab.bench_load import Load, LoadPlan
from localllm.lab.bench_report import Spread, Timing, as_json, report
from localllm.lab.bench_stream import Address, Answer

PLAN = LoadPlan(Address("a", 1), "m", input_len=7, goodput={"ttft": 600.0, "tpot": 400.0})
QUICK = Answer(10.0, [10.5, 11.0, 12.0], Usage(8, 6))  # its three events bring six tokens
SLOW = Answer(10.0, [11.0, 13.0], Usage(9, 2))
SHORT = Answer(20.0, [20.25], Usage(3, 1))
BROKEN = Answer(10.0, [10.5], None, "it broke")


def test_one_answer_by_the_definitions() -> None:
    timing = Timing.of(QUICK, 7)
    assert (timing.ttft, timing.e2el, timing.itl) == (0.5, 2.0, [0.5, 1.0])
    assert timing.tpot == pytest.approx(1.5 / 5)  # by tokens, not by events
    assert Timing.of(SHORT, 7).tpot is None and Timing.of(SHORT, 7).itl == []


def test_where_the_server_counts_nothing_an_event_is_a_token() -> None:
    timing = Timing.of(Answer(0.0, [1.0, 2.0, 3.0]), 7)
    assert (timing.num_input, timing.num_output, timing.is_counted, timing.tpot) == (7, 3, False, 1.0)


def test_throughput_is_over_the_whole_duration_and_of_what_succeeded() -> None:
    found = report(Load([QUICK, SLOW, BROKEN, SHORT], 10.0, 0.1), PLAN)
    assert (found.completed, found.failed, found.num_input, found.num_output) == (3, 1, 20, 9)
    assert (found.request_throughput, found.output_throughput, found.total_token_throughput) == (0.3, 0.9, 2.9)
    assert found.errors == ("it broke",) and found.is_counted


def test_goodput_counts_answers_that_meet_every_goal() -> None:
    found = report(Load([QUICK, SLOW, SHORT], 10.0, 0.1), PLAN)  # SLOW is late; an answer of one token has no TPOT
    assert found.goodput == 0.2
    assert report(Load([QUICK], 10.0, 0.1), LoadPlan(Address("a", 1), "m")).goodput is None


def test_gaps_of_all_answers_are_one_crowd() -> None:
    found = report(Load([QUICK, SLOW], 10.0, 0.1), PLAN)
    assert found.spreads["itl"].mean == pytest.approx(1000 * (0.5 + 1.0 + 2.0) / 3)
    assert found.spreads["itl"].median == pytest.approx(1000.0)
    assert found.spreads["tpot"].mean == pytest.approx(1000 * (0.3 + 2.0) / 2)
    assert found.spreads["ttft"].p99 == pytest.approx(995.0)  # linear between 500 and 1000


def test_a_spread_is_in_milliseconds_with_the_deviation_of_all() -> None:
    assert Spread.of([1.0, 3.0]) == Spread(2000.0, 2000.0, 1000.0, 2980.0)
    assert Spread.of([]) == Spread()


def test_an_answer_without_content_failed() -> None:
    found = report(Load([Answer(0.0), QUICK], 1.0, 0.0), PLAN)
    assert (found.completed, found.failed, found.errors) == (1, 1, ("an answer without content",))


def test_the_figures_have_vllms_names() -> None:
    figures = as_json(report(Load([QUICK, SLOW], 10.0, 0.1), PLAN), PLAN)
    names = {f"{figure}_{name}_ms" for figure in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl", "e2el")}
    assert names <= figures.keys()
    assert figures["request_rate"] == "inf" and math.isinf(PLAN.request_rate)
    assert figures["total_output_tokens"] == 8 and figures["tokens_counted_by"] == "usage"
