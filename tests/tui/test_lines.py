"""Lines end where they should, whatever is put into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from localllm.tui.lines import (
    Line,
    area,
    cell,
    clip,
    gauge,
    heading,
    joined,
    left_right,
    plain_text,
    plot,
    shortened,
)  # fmt: skip
from localllm.tui.palette import DARK, Ink

INK = Ink(DARK)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Mn", "Me", "Zl", "Zp")), max_size=40)
WIDTHS = st.integers(0, 60)


@given(st.lists(TEXTS, max_size=4), WIDTHS, st.sampled_from(["left", "right"]))
def test_a_fitted_line_is_exactly_so_wide(texts: list[str], width: int, align: str) -> None:
    line = Line(*((text, INK()) for text in texts))
    assert line.width == cell_len("".join(texts))
    fitted = line.fit(width, "left" if align == "left" else "right")
    assert fitted.width == width == cell_len(fitted.text)
    assert line.strip(width).cell_length == width


@given(TEXTS, WIDTHS)
def test_cells_and_cuts_never_pass_their_width(text: str, width: int) -> None:
    assert cell_len(clip(text, width)) <= width and plain_text(text)[0].startswith(clip(text, width))
    assert cell_len(shortened(text, width)) <= width and cell_len(shortened(text, width, "middle")) <= width
    assert cell_len(cell(text, width)) == width


def test_what_is_cut_says_so() -> None:
    assert (
        shortened("unbelievably", 6) == "unbel…" and shortened("Meta-Llama-Q4_K_M.gguf", 12, "middle") == "Meta-…M.gguf"
    )
    assert cell("412", 6, "right") == "   412" and Line(("abcdef", INK())).fit(4).text == "abc…"


@given(TEXTS, TEXTS, WIDTHS)
def test_the_right_part_ends_on_the_margin(left: str, right: str, width: int) -> None:
    line = left_right(Line((left, INK())), Line((right, INK())), max(width, cell_len(right) + 1))
    assert line.text.endswith(Line((right, INK())).text) and line.width == max(width, cell_len(right) + 1)


@pytest.mark.parametrize("width", range(1, 60))
def test_a_heading_fills_its_width_and_drops_what_does_not_fit(width: int) -> None:
    line = heading(INK, width, "Pages", Line(("718 free", INK())), note="2,048 × 16 tokens")
    assert line.width == width
    assert ("718 free" in line.text) == (width >= len("Pages ") + 1 + len(" 718 free") + 1) or "─" in line.text
    if width >= 40:
        assert line.text.startswith("Pages  2,048 × 16 tokens ─") and line.text.endswith(" 718 free")


@given(st.floats(-1, 2), st.integers(1, 40))
def test_a_gauge_shows_its_share(share: float, width: int) -> None:
    line = gauge(INK, share, width)
    assert line.width == width
    filled = line.segments[0].text.count("━") if line.segments[0].style == INK("accent") else 0
    assert abs(filled - min(1, max(0, share)) * width) <= 1
    assert gauge(INK, share, width, track=None).width == width


def test_gauges_at_their_ends() -> None:
    assert (
        gauge(INK, 0.5, 8).text == "━━━━╺━━━"
        and gauge(INK, 1, 4).text == "━━━━"
        and gauge(INK, 0.56, 8).text == "━━━━╺━━━"
    )
    assert gauge(INK, 0.6, 8).text == "━━━━╸━━━"


@given(st.lists(st.none() | st.floats(0, 500), max_size=50), st.integers(1, 30), st.integers(1, 6))
def test_plots_are_as_large_as_they_are_asked_for(samples: list[float | None], width: int, height: int) -> None:
    for lines in (area(INK, samples, width, height, 400), plot(INK, [(samples, "accent")], width, height, 400)):
        assert [line.width for line in lines] == [width] * height


def test_an_area_grows_from_below_and_the_newest_is_at_the_right() -> None:
    assert [line.text for line in area(INK, [0, 8, 16], 4, 2, 16)] == ["   █", " ▁██"]
    assert [line.text for line in area(INK, [None, 12], 2, 2, 16)] == [" ▄", " █"]


def test_a_plot_joins_its_samples() -> None:
    dots = plot(INK, [([0.0, 1.0], "accent")], 1, 1, 1.0)[0].text
    assert dots == chr(0x2800 + 0b01000000 + 0b00111000)  # low left, then the whole way up at the right


def test_lines_join_with_gaps() -> None:
    assert joined([Line(("a", INK())), Line(("b", INK()))], 3).text == "a   b"


def test_what_would_change_the_width_of_a_neighbour_is_not_drawn() -> None:
    family, heart = "\U0001f468\u200d\U0001f469", "\u2764\ufe0f"
    line = Line((f"{family} {heart} 1\ufe0f\u20e3", INK())).put("\u200d", INK()).put("\ufe0fb\u200d c", INK())
    assert line.text == f"{family} {heart} 1\ufe0f\u20e3b c" and line.width == cell_len(line.text)


def test_a_line_takes_nothing_but_text() -> None:
    line = Line(("a\x1b[31mb\u202e\u200b\nc\td\u2028e\U000e0041", INK()))
    assert line.text == "ab c d e" and line.width == 8
