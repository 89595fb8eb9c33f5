"""The token inspector: heat, alternatives, doubts and branches of an answer that is written or still being written."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.events import MouseScrollDown
from textual.pilot import Pilot
from textual.widget import Widget

from localllm.tui.inspector.answer import AnswerPanel, SurprisePanel
from localllm.tui.inspector.flow import Flow
from localllm.tui.inspector.inspected import (
    Alternative,
    BranchWish,
    InspectedAnswer,
    InspectedToken,
    SamplerCuts,
    is_allowed,
)
from localllm.tui.inspector.measure import (
    Surprise,
    columns,
    columns_of,
    context_before,
    cuts_text,
    doubts,
    next_doubt,
    ordinal,
    step_of,
)
from localllm.tui.inspector.screen import InspectorScreen
from localllm.tui.inspector.token import TokenPanel
from localllm.tui.palette import DARK, MONO, Ink
from tests.tui.fakes import FakeClient, app_with
from tests.tui.inspected_answers import OTHERS, TEXT, alternative, answer, said
from tests.tui.pictures import screen_text
from tests.tui.snapshots import held_against

WEIGHT = 26
SIZES = [(80, 24), (120, 40), (200, 60)]
NASTY = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "[bold]x[/]",
    "\u202eevil",
    "a\u200bb",
    "\x00\x07\x08",
    "\x9b2J",
    "\r\n",
    "\t|",
    "👩‍👩‍👧",
    "漢字",
]


def shown(**changes: Any) -> InspectedToken:
    fields: dict[str, Any] = {"token_id": 1, "raw": b"x", "logprob": math.log(0.5)}
    return InspectedToken(**(fields | changes))


class World:
    """The screen in an application over a daemon that is not there."""

    def __init__(self, home: Path, of: InspectedAnswer | None = None) -> None:
        self.answer = of or answer()
        self.wishes: list[BranchWish] = []
        self.screen = InspectorScreen(self.answer, self.wishes.append)
        self.app = app_with(FakeClient(), home, first="models")

    async def open(self, pilot: Pilot[None]) -> None:
        await self.app.push_screen(self.screen)
        await pilot.pause()

    @property
    def text(self) -> str:
        return screen_text(self.app)


# ---- how it looks


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_the_screen_looks_as_it_did(tmp_path: Path, size: tuple[int, int]) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=size) as pilot:
        await world.open(pilot)
        world.screen.go_to(WEIGHT)
        await pilot.pause(0.3)
        held_against(world.app, f"inspector-{size[0]}x{size[1]}")


# ---- measures


def test_heat_has_five_steps_by_probability() -> None:
    chances = (0.99, 0.7, 0.69, 0.5, 0.49, 0.3, 0.29, 0.12, 0.11, 0.001)
    steps = [step_of(shown(logprob=math.log(chance) + 1e-12), "probability") for chance in chances]
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_heat_by_entropy_and_by_rank() -> None:
    assert [step_of(shown(entropy=bits * math.log(2)), "entropy") for bits in (0.5, 1.2, 2.0, 2.5, 5)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    others = tuple(Alternative(number, b"y", -1.0 - number) for number in range(8))
    ranked = [step_of(shown(token_id=number, alternatives=others), "rank") for number in (0, 1, 2, 3, 4, 5, 99)]
    assert ranked == [0, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("measure", ["probability", "entropy", "rank"])
def test_what_nobody_measured_is_no_doubt(measure: Any) -> None:
    assert step_of(InspectedToken(1, b"x"), measure) == 0
    surprise = Surprise()
    surprise.follow([InspectedToken(1, b"x")])
    assert (surprise.mean_bits, surprise.num_doubts, surprise.columns(3)) == (None, 0, [None] * 3)


def test_doubts_are_gone_through_in_a_circle() -> None:
    assert [next_doubt([3, 7, 9], cursor, 1) for cursor in (0, 3, 8, 9)] == [3, 7, 9, 3]
    assert [next_doubt([3, 7, 9], cursor, -1) for cursor in (9, 4, 3, 0)] == [7, 3, 9, 9]
    assert next_doubt([], 5, 1) is None


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=300), st.integers(1, 200))
def test_every_token_is_in_the_columns_it_is_said_to_be_in(logprobs: list[float], width: int) -> None:
    tokens = [shown(logprob=each) for each in logprobs]
    heights = columns([token.surprise_bits for token in tokens], width)
    assert len(heights) == width
    for place, token in enumerate(tokens):
        start, end = columns_of(place, len(tokens), width)
        assert 0 <= start < end <= width
        assert any((heights[at] or 0.0) >= (token.surprise_bits or 0.0) - 1e-9 for at in range(start, end))


def test_surprise_that_is_followed_is_that_of_the_whole() -> None:
    tokens, growing, whole = answer().tokens, Surprise(), Surprise()
    for end in (1, 7, 100, 213):
        growing.follow(tokens[:end])
    whole.follow(tokens)
    assert growing.mean_bits == pytest.approx(whole.mean_bits) and growing.columns(70) == whole.columns(70)
    assert growing.num_doubts == len(doubts(tokens, "probability"))


def test_numbers_are_said_as_people_say_them() -> None:
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th",
    ]  # fmt: skip
    assert cuts_text(SamplerCuts(top_k=40, top_p=0.9, min_p=0.05)) == "top k 40   top p 0.9   min p 0.05"
    assert (cuts_text(SamplerCuts(temperature=0)), cuts_text(SamplerCuts())) == ("greedy", "nothing is cut")


# ---- where the sampler stops


def allowed(cuts: SamplerCuts) -> int:
    flags = is_allowed(said(" weight", 0.273, OTHERS), cuts)
    assert list(flags) == sorted(flags, reverse=True), "what is allowed comes first"
    return sum(flags)


def test_top_p_takes_the_fewest_that_hold_it() -> None:
    assert allowed(SamplerCuts(top_p=0.95)) == 7  # 0.412 + … + 0.022 = 0.94, and one more
    assert allowed(SamplerCuts(top_p=0.4)) == 1 and allowed(SamplerCuts(top_p=1)) == 10


def test_top_k_min_p_and_greed_cut_too() -> None:
    assert (allowed(SamplerCuts(top_k=3)), allowed(SamplerCuts(min_p=0.1)), allowed(SamplerCuts(temperature=0))) == (
        3,
        5,
        1,
    )
    assert allowed(SamplerCuts(top_k=3, top_p=0.6)) == 2  # of the three: 0.803


def test_cold_and_heat_move_the_cut() -> None:
    cold, hot = SamplerCuts(temperature=0.3, top_p=0.9), SamplerCuts(temperature=2.0, top_p=0.9)
    assert allowed(cold) < allowed(SamplerCuts(top_p=0.9)) < allowed(hot)


# ---- the flow of text


def flowing(texts: list[bytes], width: int) -> Flow:
    flow = Flow(width)
    for raw in texts:
        flow.feed(raw)
    return flow


def words_of(flow: Flow) -> list[str]:
    return ["".join(piece.text for piece in row if piece.kind != "break").rstrip() for row in flow.rows()]


def test_words_are_not_torn_though_tokens_are() -> None:
    assert words_of(flowing([b"one un", b"believ", b"able", b" day\n", b"two"], 12)) == [
        "one",
        "unbelievable",
        "day",
        "two",
    ]


def test_half_a_character_stands_with_its_other_half() -> None:
    flow = flowing([b"a", b"\xc3", b"\xa9", b" b"], 20)
    assert words_of(flow) == ["aé b"]
    assert [flow.row_of(token) for token in range(4)] == [0, 0, 0, 0]
    assert flow.token_at(0, 1) == 2 and flow.token_at(5, 0) is None


@settings(max_examples=200)
@given(
    st.lists(st.binary(max_size=9) | st.sampled_from([text.encode() for text in NASTY]) | st.just(b" word")),
    st.integers(4, 60),
)
def test_any_bytes_flow_within_the_width_and_every_token_has_a_row(texts: list[bytes], width: int) -> None:
    flow = flowing(texts, width)
    rows = flow.rows()
    for row in rows:
        column = 0
        for piece in row:
            assert piece.start == column and piece.width == cell_len(piece.text)
            assert piece.text.isprintable()
            column += piece.width
        assert column <= width + 1  # a break may stand behind the last column
    tokens = [piece.token for row in rows for piece in row]
    assert tokens == sorted(tokens)
    assert all(0 <= flow.row_of(token) < len(rows) for token in range(len(texts)))
    plain = b"".join(texts).decode("utf-8", errors="replace")
    if plain.isprintable() and "\ufffd" not in plain:
        assert "".join("".join(p.text for p in row if p.kind == "word") for row in rows) == "".join(plain.split())


def test_text_that_comes_piece_by_piece_flows_as_if_it_came_at_once() -> None:
    tokens = [token.raw for token in answer().tokens]
    step_by_step = Flow(70)
    for count, raw in enumerate(tokens, 1):
        step_by_step.feed(raw)
        if count % 50 == 0:
            assert words_of(step_by_step) == words_of(flowing(tokens[:count], 70))
    first = next(line for line in words_of(step_by_step) if line)
    assert first == "Fair share needs one number for each caller: how much of the step it"


# ---- an answer


def test_a_branch_says_what_it_keeps_and_computes() -> None:
    of = answer()
    assert (of.pages_kept(WEIGHT), of.computed_by_branch(WEIGHT)) == (146, 2)
    wish = of.branch(2, 77)
    assert wish == BranchWish(2, 77, (of.tokens[0].token_id, of.tokens[1].token_id, 77))
    assert context_before(of, WEIGHT) == "Give every caller a"


# ---- the screen


@pytest.mark.parametrize("size", SIZES)
async def test_everything_has_its_place_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=size) as pilot:
        await world.open(pilot)
        world.screen.go_to(WEIGHT)
        await pilot.pause()
        text = world.text
    for expected in (
        "Answer 2 of 3",
        "213 tokens",
        "probability   entropy   rank",
        "Token 27",
        "2nd choice",
        "·weight",
        "0.273",
    ):
        assert expected in text, expected
    assert "Fair share needs one number" in text and "write on from here again" in text
    assert ("Surprise along the answer" in text) == (size[0] >= 100)
    assert all(len(row) <= size[0] for row in text.splitlines())


async def test_keys_go_from_token_to_token_and_from_doubt_to_doubt(tmp_path: Path) -> None:
    world = World(tmp_path)
    found = doubts(world.answer.tokens, "probability")
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        assert world.screen.cursor == found[0], "it begins with the first doubt"
        await pilot.press("n")
        assert world.screen.cursor == found[1]
        await pilot.press("N")
        assert world.screen.cursor == found[0]
        await pilot.press("N")
        assert world.screen.cursor == found[-1]
        await pilot.press("home", "left", "right", "right", "l", "h", "pagedown")
        assert world.screen.cursor == 18
        await pilot.press("end", "right")
        assert world.screen.cursor == len(world.answer.tokens) - 1


async def test_enter_branches_from_the_chosen_alternative_and_goes_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        world.screen.go_to(WEIGHT)
        assert world.screen.chosen == 1, "the token itself is chosen at first"
        await pilot.press("up")
        await pilot.pause()
        assert "go on from “share”" in world.text and "Give every caller a share …" in world.text
        assert "26 tokens, 146 pages shared" in world.text and "2 tokens" in world.text
        await pilot.press("up", "enter")
        await pilot.pause()
        assert world.app.screen is not world.screen
    share = alternative(" share", 0.412).token_id
    kept = tuple(token.token_id for token in world.answer.tokens[:WEIGHT])
    assert world.wishes == [BranchWish(WEIGHT, share, (*kept, share))]


async def test_escape_goes_back_without_a_wish(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        await pilot.press("escape")
        await pilot.pause()
        assert world.app.screen is not world.screen and world.wishes == []


async def test_below_the_cut_the_sampler_never_goes(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        world.screen.go_to(WEIGHT)
        await pilot.pause()
        rows = world.text.splitlines()
    line = next(number for number, row in enumerate(rows) if "below here the sampler never goes" in row)
    assert "·limit" in rows[line - 1] and "·rank" in rows[line + 1] and "top p 0.95" in "".join(rows)
    assert "151,633 more" in rows[line + 4] and rows[line + 4].endswith("0.027")


async def test_m_shows_other_measures_and_their_legends(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        assert "≥ .12" in world.text
        await pilot.press("m")
        await pilot.pause()
        assert world.screen.measure == "entropy" and "< 1 bit" in world.text
        await pilot.press("m")
        await pilot.pause()
        assert world.screen.measure == "rank" and "to 5th" in world.text
        await pilot.press("m")
        assert world.screen.measure == "probability"


def place_of(panel: Widget, text: str, world: World) -> tuple[int, int]:
    """Where a text stands inside a panel."""
    region = panel.region
    for y, row in enumerate(world.text.splitlines()):
        x = row.find(text, region.x)
        if region.y <= y < region.bottom and region.x <= x < region.right:
            return x - region.x + 1, y - region.y
    raise AssertionError(f"{text!r} is not there")


async def test_the_mouse_does_all_that_keys_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        heat, side = world.screen.query_one(AnswerPanel), world.screen.query_one(TokenPanel)
        await pilot.click(heat, offset=place_of(heat, "weight, add", world))
        await pilot.pause()
        assert world.screen.cursor == WEIGHT
        await pilot.click(side, offset=place_of(side, "·budget", world))
        await pilot.pause()
        assert world.screen.chosen == 3 and "go on from “budget”" in world.text
        await pilot.click(heat, offset=place_of(heat, "rank", world))
        await pilot.pause()
        assert world.screen.measure == "rank"
        await pilot.click(world.screen.query_one(SurprisePanel), offset=(69, 4))
        await pilot.pause()
        assert world.screen.cursor > 205
        world.screen.go_to(WEIGHT, 3)
        await pilot.pause()
        await pilot.click(side, offset=place_of(side, "·budget", world))
        await pilot.pause()
    assert [wish.token_id for wish in world.wishes] == [alternative(" budget", 0.064).token_id]


async def test_the_wheel_goes_through_rows_and_alternatives(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        world.screen.go_to(0)
        await pilot.pause()
        await pilot._post_mouse_events([MouseScrollDown], AnswerPanel, offset=(5, 5))
        await pilot.pause()
        assert b"divided" in b"".join(token.raw for token in world.answer.tokens[world.screen.cursor :][:2])
        for _ in range(20):
            await pilot._post_mouse_events([MouseScrollDown], AnswerPanel, offset=(5, 5))
        await pilot.pause()
        assert world.screen.cursor > 200
        world.screen.go_to(WEIGHT, 0)
        for _ in range(3):
            await pilot._post_mouse_events([MouseScrollDown], TokenPanel, offset=(5, 5))
            await pilot.pause()
        assert world.screen.chosen == 3 and world.wishes == []


async def test_an_answer_that_is_written_is_followed_until_somebody_looks_elsewhere(tmp_path: Path) -> None:
    whole = answer().tokens
    world = World(tmp_path, InspectedAnswer("Answer", list(whole[:5]), is_live=True))
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        assert world.screen.cursor == 4 and "▶ writing" in world.text
        world.answer.add(whole[5:40])
        await pilot.pause(0.25)
        assert world.screen.cursor == 39 and "40 tokens" in world.text
        await pilot.press("home")
        world.answer.add(whole[40:])
        world.answer.is_live = False
        await pilot.pause(0.25)
        assert world.screen.cursor == 0 and "213 tokens" in world.text and "writing" not in world.text


async def test_an_empty_answer_and_one_without_probabilities_say_so(tmp_path: Path) -> None:
    world = World(tmp_path, InspectedAnswer("Answer", [], is_live=True))
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        assert "Nothing was written yet." in world.text
        await pilot.press("n", "up", "down", "left", "right", "m", "enter", "end")
        world.answer.add([InspectedToken(5, b"old"), InspectedToken(6, b" words")])
        await pilot.pause(0.25)
        assert "nobody asked when it was written" in world.text and "old words" in world.text
        await pilot.press("enter")
        assert world.wishes == []


async def test_a_token_that_is_none_of_its_alternatives_is_listed_behind_them(tmp_path: Path) -> None:
    odd = shown(
        token_id=9, raw=b" odd", logprob=-9.0, alternatives=(alternative(" usual", 0.9), alternative(" other", 0.05))
    )
    world = World(tmp_path, InspectedAnswer("Answer", [odd]))
    async with world.app.run_test(size=(120, 40)) as pilot:
        await world.open(pilot)
        assert "beyond the 2nd" in world.text and world.screen.chosen == 2
        assert "·odd  ✓" in world.text


@pytest.mark.parametrize("size", SIZES)
async def test_whatever_a_model_says_is_drawn_as_plain_text(tmp_path: Path, size: tuple[int, int]) -> None:
    tokens = [said(text, 0.05, tuple((other, 0.09) for other in NASTY)) for text in NASTY]
    tokens += [shown(raw=bytes([byte])) for byte in range(256)]
    world = World(tmp_path, InspectedAnswer("\x1b[31mAnswer\n[b]", tokens, vocab_size=2))
    async with world.app.run_test(size=size) as pilot:
        await world.open(pilot)
        for place in (*range(len(NASTY)), *range(len(NASTY), len(tokens), 32)):
            world.screen.go_to(place)
            await pilot.pause()
            assert all(row.isprintable() for row in world.text.splitlines())


@pytest.mark.parametrize("ink", [Ink(DARK), Ink(MONO, is_mono=True)], ids=["colour", "mono"])
def test_only_rows_that_changed_look_different(ink: Ink) -> None:
    panel = AnswerPanel(answer())
    panel.cursor = WEIGHT
    before = panel.draw(ink, 70, 29)
    panel.cursor = WEIGHT + 1
    after = panel.draw(ink, 70, 29)
    assert [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [3]
    assert len(TEXT) > 500
