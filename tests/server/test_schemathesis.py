"""schemathesis: no answer of the 500 class, none that the description does not allow. `scripts/hammer` runs longer."""

from pathlib import Path

from tests.server.hammering import hammer


def test_calls_by_the_description_find_no_failure_of_ours_and_nothing_undescribed(tmp_path: Path) -> None:
    found = hammer(tmp_path, 3, "coverage", "fuzzing", limit_s=45)
    assert found.failures == [], found.text[-6000:]
    assert found.calls >= 500  # some thousands, where nothing else runs
