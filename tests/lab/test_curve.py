"""Sizes against divergences, drawn."""

from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.lab.curve import HEIGHT, Point, drawn, picture

POINTS = [Point("q8_0", 150_000_000, 0.0007), Point("q2_k", 60_000_000, 0.9), Point("q4_k_m", 90_000_000, 0.04)]


def test_smaller_is_left_worse_is_up_and_the_legend_names_the_letters() -> None:
    lines = drawn(POINTS, 80)
    plot = lines[:HEIGHT]
    at = {mark: (row, line.index(mark, 11)) for row, line in enumerate(plot) for mark in "abc" if mark in line[11:]}
    assert at["a"][0] < at["b"][0] < at["c"][0] and at["a"][1] < at["b"][1] < at["c"][1]
    assert at["a"] == (0, 11) and at["c"][0] == HEIGHT - 1
    assert lines[-1] == "a q2_k   b q4_k_m   c q8_0" and "60 MB" in lines[-2] and "150 MB" in lines[-2]
    assert all(len(line) <= 80 for line in lines)


def test_a_terminal_of_ascii_gets_ascii() -> None:
    assert "\n".join(drawn(POINTS, 60, is_plain=True)).isascii()
    assert any("⠉" in line or "⠒" in line for line in drawn(POINTS, 60))


@pytest.mark.parametrize("points", [[], POINTS[:1]])
def test_one_point_is_no_curve(points: list[Point]) -> None:
    assert drawn(points, 80) == []


def test_points_that_fall_together_are_drawn_all_the_same() -> None:
    same = [Point("a", 5, 0.0), Point("b", 5, 0.0)]
    assert len(drawn(same, 10)) > HEIGHT


def test_the_picture_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture(POINTS, "x", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"could not be written"):
        picture(POINTS, "x", tmp_path / "x.nothing")
