"""schemathesis: no answer of the 500 class, none that the description does not allow. `scripts/hammer` runs longer."""

from pathlib import Path

import pytest

from tests.server.hammering import hammer


@pytest.mark.xdist_group("schemathesis")
def test_calls_by_the_description_find_no_failure_of_ours_and_nothing_undescribed(tmp_path: Path) -> None:
    """Chance only, single calls and chains of them; the ten thousands of boundary values take minutes."""
    found = hammer(tmp_path, 14, "examples", "fuzzing", "stateful", limit_s=150)
    assert found.failures == [], found.text[-6000:]
    assert found.calls >= 2_000
