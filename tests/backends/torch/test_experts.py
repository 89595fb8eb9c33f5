"""Tokens that chose the same experts come together, each choice once, and hardly any room is left empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from localllm.backends.torch.experts import crowds  # needs torch


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.sampled_from([1, 3, 1000]))
def test_every_choice_is_in_one_crowd_at_a_row_of_its_expert(choices: list[int], limit: int) -> None:
    chosen = np.array(choices, np.int64)
    seen: list[int] = []
    for crowd in crowds(chosen, limit):
        assert len(crowd.experts) <= limit
        assert (crowd.experts[crowd.rows // crowd.most] == chosen[crowd.places]).all()
        assert len(set(crowd.rows.tolist())) == len(crowd.rows)
        assert len(crowd.experts) * crowd.most < 2 * len(crowd.rows)
        assert (np.diff(crowd.experts) > 0).all()
        seen += crowd.places.tolist()
    assert sorted(seen) == list(range(len(choices)))
