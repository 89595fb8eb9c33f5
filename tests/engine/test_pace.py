"""What drafts cost, learned from steps that had some and steps that had none."""

import pytest

from localllm.engine.pace import Pace


def paced(added: float, rows: int = 1, num_drafted: int = 3, steps: int = 60) -> Pace:
    """One that saw every drafted token add this part of a step."""
    pace = Pace()
    for _ in range(steps):
        pace.note(rows, 0, 0.01)
        pace.note(rows, num_drafted, 0.01 * (1 + added * num_drafted))
    return pace


@pytest.mark.parametrize("added", [0.0, 0.05, 0.3, 0.9])
def test_the_measured_cost_is_believed(added: float) -> None:
    assert paced(added).ratio(1, 3) == pytest.approx(1 + 3 * added, rel=0.02)


def test_sizes_never_tried_are_given_a_chance() -> None:
    assert paced(0.5).ratio(1, 5) == Pace().ratio(1, 5)


def test_more_sequences_are_a_matter_of_their_own() -> None:
    assert paced(0.9).ratio(2, 3) == Pace().ratio(2, 3)


def test_no_draft_costs_nothing() -> None:
    assert paced(0.9).ratio(1, 0) == 1.0


def test_one_disturbed_step_is_no_verdict() -> None:
    pace = paced(0.1)
    pace.note(1, 3, 100.0)
    assert pace.ratio(1, 3) < 1.8


def test_a_bad_verdict_fades_with_steps_that_have_no_drafts() -> None:
    pace = paced(1.5)
    before = pace.ratio(1, 3)
    for _ in range(500):
        pace.note(1, 0, 0.01)
    assert pace.ratio(1, 3) < 1 + (before - 1) / 2


def test_a_backend_that_tells_no_time_changes_nothing() -> None:
    pace = Pace()
    pace.note(1, 0, 0.0)
    pace.note(1, 3, 0.0)
    assert pace.ratio(1, 3) == Pace().ratio(1, 3)
