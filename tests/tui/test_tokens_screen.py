"""The Tokens screen: a text through several tokenizers, a cursor that all of them follow, words step by step."""

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import TextArea

from localllm import told
from localllm.client import Client, PullJob
from localllm.errors import DaemonUnreachable
from localllm.safe_text import sanitize
from localllm.tui.app import LocalApp
from localllm.tui.colour import contrast
from localllm.tui.palette import DARK, Ink
from localllm.tui.tokens.asking import first_names
from localllm.tui.tokens.chips import NUM_HUES, chip_colours, hue_of
from localllm.tui.tokens.panel import TokenPanel, laid_out
from localllm.tui.tokens.parts import Panels
from localllm.tui.tokens.screen import TokensScreen
from localllm.tui.tokens.sheet import TokenizerSheet
from localllm.tui.tokens.side import template_lines
from localllm.tui.tokens.state import MAX_CHARS, MAX_LISTED, TokensState, stages, token_text
from localllm.tui.tokens.steps import trace_lines
from tests.tokens import trained
from tests.tokens.worlds import tiny, tiny_spm
from tests.tui import shown_tokenizers
from tests.tui.fakes import FakeClient, app_with
from tests.tui.pictures import cells, screen_text
from tests.tui.real_daemon import real_daemon
from tests.tui.snapshots import held_against
from tests.tui.token_fakes import FakeTokens, client_with

TEXT = "hello the cat, héllo\n  unbelievably"
SIZES = [(80, 24), (120, 40), (200, 60)]


def fake() -> FakeClient:
    tokenizers = {"bpe": tiny(), "spm": tiny_spm(), "uni": trained.unigram(), "word": trained.wordpiece()}
    return client_with(tokenizers, bpe="Tiny", spm="Pieces", uni="T5", word="BERT")


def calls_of(client: FakeClient) -> FakeTokens:
    found: FakeTokens = client.tokens  # type: ignore[attr-defined]
    return found


@asynccontextmanager
async def shown(
    client: Any, home: Path, text: str = TEXT, size: tuple[int, int] = (120, 40), **options: Any
) -> AsyncIterator[tuple[LocalApp, Pilot[None], TokensScreen]]:
    app = app_with(client, home, **{"first": "tokens", **options})
    async with app.run_test(size=size, notifications=True) as pilot:
        screen = app.screen
        await until(pilot, lambda: isinstance(app.screen, TokensScreen) and bool(app.screen.state.names))
        screen = app.screen
        assert isinstance(screen, TokensScreen)
        screen.show_text(text)
        if text:
            await until(pilot, lambda: screen.state.trace is not None and screen.state.facts is not None)
        await pilot.press("escape")
        await pilot.pause()
        yield app, pilot, screen


async def until(pilot: Pilot[None], is_so: Callable[[], object]) -> None:
    for _ in range(400):
        if is_so():
            return
        await pilot.pause(0.02)
    raise AssertionError("it did not come to that")


# ---- what is shown


async def test_four_tokenizers_stand_side_by_side_with_their_ids(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, _, screen):
        text = screen_text(app)
        for title, kind in (("Tiny", "BPE"), ("Pieces", "BPE"), ("T5", "Unigram"), ("BERT", "WordPiece")):
            assert f"{title}  {kind}" in text
        for split in screen.state.splits:
            assert f"{split.count} tokens" in text
        assert f"{len(TEXT)} characters   {len(TEXT.encode())} bytes" in text and "Compare" in text
        first = screen.state.splits[0].tokens[0]
        assert str(first.id) in text and token_text(first, "BPE", TEXT) in text


@pytest.mark.parametrize(
    ("size", "theme"), [*((size, "dark") for size in SIZES), ((120, 40), "light"), ((80, 24), "mono")]
)
async def test_no_line_is_wider_than_the_window_and_the_keys_are_whole(
    tmp_path: Path, size: tuple[int, int], theme: str
) -> None:
    async with shown(fake(), tmp_path, size=size, theme=theme) as (app, pilot, _):
        for keys in ((), ("t",), ("v",), ("i",), ("left_square_bracket",)):
            await pilot.press(*keys)
            await pilot.pause(0.1)
            rows = screen_text(app).splitlines()
            assert all(len(row) <= size[0] for row in rows) and len(rows) == size[1]
            assert rows[-1].rstrip().endswith("ctrl+q leave") and sanitize(screen_text(app)) == screen_text(app)


async def test_chips_of_the_same_id_have_the_same_colour_and_disagreements_are_underlined(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path, "hello hello") as (app, _, screen):
        rows = cells(app)
        chips = [row for row in rows if "·hello" in "".join(cell.text for cell in row)]
        assert chips
        token = next(token for token in screen.state.splits[0].tokens if not token.agrees or token.agrees)
        colours = chip_colours(hue_of(token.id), is_dark=True)
        assert contrast(*colours) >= 7
    for hue in range(NUM_HUES):
        for is_dark in (True, False):
            assert contrast(*chip_colours(hue, is_dark=is_dark)) >= 7, (hue, is_dark)


async def test_the_same_characters_light_up_in_every_panel(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (_, pilot, screen):
        state = screen.state
        await pilot.press("right", "right", "right")
        token = state.current
        assert token is not None
        for panel, split in enumerate(state.splits):
            for number in state.lit(panel):
                other = split.tokens[number]
                assert other.start < token.end and other.end > token.start
        assert any(state.lit(panel) for panel in range(1, 4))


async def test_the_word_under_the_cursor_is_shown_in_the_manner_of_its_tokenizer(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        assert "Merges of “hello”" in screen_text(app)
        await pilot.press("tab", "tab")
        await until(pilot, lambda: screen.state.trace is not None and screen.state.trace.lattice is not None)
        await pilot.pause(0.1)
        assert "Lattice of" in screen_text(app)
        await pilot.press("tab")
        await until(pilot, lambda: screen.state.trace is not None and screen.state.trace.matches is not None)
        await pilot.pause(0.1)
        assert "Greedy matches of" in screen_text(app)
        await pilot.press("shift+tab")
        assert screen.state.panel == 2


async def test_steps_are_walked_back_and_forth(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        assert "step 4 of 4" in screen_text(app)
        await pilot.press("left_square_bracket", "left_square_bracket", "left_square_bracket")
        await pilot.pause()
        assert "step 1 of 4" in screen_text(app)
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert "step 2 of 4" in screen_text(app)
        await pilot.press("right")
        assert screen.state.step is None


async def test_facts_of_the_token_say_where_it_comes_from(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, _, _):
        text = screen_text(app)
        assert "merged from  hell + o" in text and "68 65 6c 6c 6f" in text and "0–5" in text


async def test_typing_is_answered_when_it_rests(tmp_path: Path) -> None:
    client = fake()
    async with shown(client, tmp_path, "") as (_, pilot, screen):
        asked = calls_of(client).asked
        await pilot.press("enter", *"hello")
        assert screen.query_one("#text", TextArea).has_focus
        await until(pilot, lambda: screen.state.explanation is not None)
        assert asked.count("explain") < 5
        assert screen.state.explanation is not None and screen.state.explanation.num_chars == 5
        await pilot.press("escape")
        assert screen.query_one(Panels).has_focus


async def test_the_cursor_stays_on_its_characters_while_the_text_grows(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (_, pilot, screen):
        await pilot.press("right", "right", "right")
        before = screen.state.current
        screen.show_text(TEXT + " and more")
        await until(pilot, lambda: screen.state.explanation and screen.state.explanation.num_chars > len(TEXT))
        assert screen.state.current == before


@pytest.mark.parametrize("size", SIZES)
async def test_the_screen_looks_as_it_did(tmp_path: Path, size: tuple[int, int]) -> None:
    client = client_with(shown_tokenizers.all_four(), **shown_tokenizers.TITLES)
    async with shown(client, tmp_path, shown_tokenizers.TEXT, size=size) as (app, pilot, screen):
        await pilot.press("right", "right", "right", "right")
        state = screen.state
        await until(pilot, lambda: state.facts and state.current and state.facts.id == state.current.id)
        await until(pilot, lambda: state.trace and state.trace.word == " unbelievably")
        if size[0] == 200:
            await until(pilot, lambda: state.template and state.page and state.other_trace)
        await pilot.pause(0.3)
        held_against(app, f"tokens-{size[0]}")


def test_the_tokenizers_of_the_pictures_cut_as_they_were_made_to() -> None:
    for name, split in shown_tokenizers.SPLITS.items():
        pieces = shown_tokenizers.pieces_of(shown_tokenizers.by_hand(name), shown_tokenizers.TEXT)
        assert "|".join(pieces) == split, name


# ---- views


async def test_the_vocabulary_is_looked_up_by_text_by_id_and_by_bytes(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        await pilot.press("slash", *"hell")
        await until(pilot, lambda: screen.state.page and screen.state.page.total == 2)
        await pilot.pause(0.05)
        assert "Vocabulary" in screen_text(app) and "hello" in screen_text(app)
        for query, expected in (("#5", 1), ("0xc3a9", 1), ("hellowo", 0)):
            screen.query_one("#query").value = query  # type: ignore[attr-defined]
            await until(pilot, lambda q=query, e=expected: screen.state.query == q and screen.state.page.total == e)  # type: ignore
        await pilot.pause(0.05)
        assert "not a token" in screen_text(app)
        await pilot.press("escape", "escape")
        await pilot.pause(0.05)
        assert "Compare" in screen_text(app)


async def test_without_a_question_the_vocabulary_around_the_token_is_shown_page_by_page(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (_, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: screen.state.page is not None)
        page, token = screen.state.page, screen.state.current
        assert page is not None and token is not None
        assert token.id in [entry.id for entry in page.entries]
        await pilot.press("pageup")
        await until(pilot, lambda: screen.state.page is not page)
        assert screen.state.page is not None and screen.state.page.offset < page.offset


async def test_one_tokenizer_is_compared_with_nothing(tmp_path: Path) -> None:
    async with shown(client_with({"bpe": tiny()}, bpe="Tiny"), tmp_path) as (app, pilot, _):
        await pilot.pause()
        assert "Compare" not in screen_text(app) and "fewest" not in screen_text(app)


def test_an_empty_line_of_a_message_keeps_its_bar() -> None:
    state = TokensState()
    part = told.TemplatePart(kind="content", role="user", message=0, text="one\n\nthree")
    state.names, state.template = (
        ["m"],
        told.TemplateView(model="m", parts=[part], num_tokens=3, num_special=0, is_exact=True),
    )
    lines = template_lines(Ink(DARK), state, 40)[1:]
    assert [line.text[:2] for line in lines] == ["▌ "] * 3


async def test_the_text_is_shown_as_a_message_in_the_template(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        await pilot.press("t")
        await until(pilot, lambda: screen.state.template is not None)
        await pilot.pause(0.05)
        text = screen_text(app)
        assert "im_start" in text and "the answer begins here" in text and "▌ hello the cat" in text
        await pilot.press("t")
        await pilot.pause()
        assert "Merges of" in screen_text(app)


async def test_everything_is_there_at_once_in_a_wide_window(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path, size=(200, 60)) as (app, pilot, screen):
        await until(pilot, lambda: screen.state.template and screen.state.page and screen.state.other_trace)
        await pilot.pause(0.1)
        text = screen_text(app)
        for title in ("Merges of", "Lattice of", "Compare", "Token 1", "Vocabulary", "Chat template"):
            assert title in text, title


async def test_in_a_small_window_one_panel_is_seen_and_views_take_turns(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path, size=(80, 24)) as (app, pilot, screen):
        assert [panel.number for panel in screen.query(TokenPanel) if panel.display] == [0]
        await pilot.press("tab")
        assert [panel.number for panel in screen.query(TokenPanel) if panel.display] == [1]
        await pilot.press("shift+tab", "left_square_bracket")
        await pilot.pause(0.1)
        assert "Merges of" in screen_text(app) and "Compare" not in screen_text(app)
        await pilot.press("escape")
        await pilot.pause(0.05)
        assert "Compare" in screen_text(app)


async def test_ids_can_be_hidden(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        token = screen.state.splits[0].tokens[0]
        await pilot.press("i")
        await pilot.pause()
        panel = screen.query_one(TokenPanel)
        top = panel.region
        rows = screen_text(app).splitlines()[top.y + 1 : top.y + 3]
        assert str(token.id) not in rows[0] + rows[1] and "hello" in rows[0]


async def test_a_click_puts_the_cursor_on_a_token(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (_, pilot, screen):
        panel = list(screen.query(TokenPanel))[1]
        await pilot.click(panel, offset=(1, 1))
        assert (screen.state.panel, screen.state.token) == (1, 0)


# ---- tokenizers


async def test_tokenizers_are_taken_away_and_added_in_a_sheet(tmp_path: Path) -> None:
    async with shown(fake(), tmp_path) as (app, pilot, screen):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TokenizerSheet))
        await pilot.pause(0.05)
        assert "Far away" in screen_text(app) and "a model's" in screen_text(app)
        await pilot.press("down", "enter", "escape")
        await until(pilot, lambda: screen.state.names == ["bpe", "uni", "word"])
        await until(pilot, lambda: len(screen.state.splits) == 3)
        await pilot.pause(0.05)
        assert "all three" in screen_text(app)


async def test_a_tokenizer_that_is_not_here_is_pulled_and_stands_there_then(tmp_path: Path) -> None:
    client = fake()
    jobs = [PullJob(id="1", model="faraway", state="queued"), PullJob(id="1", model="faraway", state="done")]

    class Library:
        def pull(self, name: str) -> PullJob:
            return jobs[0]

        def pulls(self) -> list[PullJob]:
            calls_of(client).alone = told.TokenizerRow(name="faraway", title="Far away", kind="BPE", is_here=True)
            return jobs[1:]

    client.library = Library()  # type: ignore[attr-defined]
    async with shown(client, tmp_path) as (app, pilot, _):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TokenizerSheet))
        await pilot.press("enter", "end", "enter")
        await until(pilot, lambda: "pulling" in screen_text(app) or "✓ Far away" in screen_text(app))
        await until(pilot, lambda: "✓ Far away" in screen_text(app))


def test_the_first_tokenizers_are_the_wanted_model_then_those_alone() -> None:
    rows = [
        *(told.TokenizerRow(name=f"m{n}", title="", is_model=True, is_here=True) for n in range(5)),
        told.TokenizerRow(name="alone", title="", is_here=True),
        told.TokenizerRow(name="far", title=""),
    ]
    assert first_names(rows, "m3") == ["m3", "alone", "m0"]
    assert first_names(rows[:1], "") == ["m0"] and first_names(rows[-1:], "") == []


# ---- rare states


async def test_without_any_tokenizer_it_says_what_to_do(tmp_path: Path) -> None:
    app = app_with(client_with({}), tmp_path, first="tokens")
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "No tokenizer is here yet: esc, then a adds one." in screen_text(app))
        await pilot.press("escape", "t")
        await until(pilot, lambda: "Chat template" in screen_text(app))
        assert "No tokenizer is here yet" in screen_text(app)


async def test_what_was_explained_stays_when_the_daemon_goes(tmp_path: Path) -> None:
    client = fake()
    async with shown(client, tmp_path) as (app, pilot, screen):
        calls_of(client).error = DaemonUnreachable("no daemon answers")
        client.go()
        screen.show_text(TEXT + " more")
        await until(pilot, lambda: screen.state.problem)
        assert screen.state.splits and "Tiny  BPE" in screen_text(app)
        calls_of(client).error = None
        client.come_back()
        app.link.try_now()
        await until(pilot, lambda: screen.state.explanation and screen.state.explanation.num_chars > len(TEXT))


async def test_the_application_can_be_left_while_an_answer_is_awaited(tmp_path: Path) -> None:
    client, go_on = fake(), threading.Event()
    calls, answer = calls_of(client), calls_of(client).explain

    def late(*given: Any, **options: Any) -> told.Explanation:
        go_on.wait(10)
        return answer(*given, **options)

    async with shown(client, tmp_path, "") as (_, pilot, screen):
        calls.explain = late  # type: ignore[method-assign]
        screen.show_text(TEXT)
        await pilot.pause(0.3)
        go_on.set()


async def test_a_long_text_stays_usable_and_says_where_it_is_cut(tmp_path: Path) -> None:
    text = "hello the unbelievably cat\n" * 5000
    assert len(text) > MAX_CHARS
    client = client_with({"uni": trained.unigram(), "word": trained.wordpiece()})
    async with shown(client, tmp_path, text, size=(200, 60)) as (app, pilot, screen):
        assert screen.state.explanation is not None and screen.state.explanation.num_chars == MAX_CHARS
        assert "the first 100,000 are shown, so that typing stays quick" in screen_text(app)
        assert all(len(split.tokens) == MAX_LISTED < split.count for split in screen.state.splits)
        for _ in range(20):
            screen.action_move(1)
        await pilot.press("end")
        await pilot.pause(0.1)
        assert "tokens are listed; counts are of all" in screen_text(app)


HOSTILE = "\x1b[31mred\x1b]0;x\x07 \u202eabc\u2066 [bold]x[/bold] \u200b\u0301 \ud83d\udc22 \x9b1m\r\n\t"


@pytest.mark.parametrize("size", SIZES)
async def test_whatever_is_typed_only_plain_text_is_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    text = HOSTILE.encode("utf-16", "surrogatepass").decode("utf-16") * 3
    async with shown(fake(), tmp_path, text, size=size) as (_, pilot, screen):
        for key in ("right", "tab", "t", "v", "i", "left_square_bracket"):
            await pilot.press(key)
            await pilot.pause(0.05)
            drawn = "".join(
                strip.text
                for widget in screen.query("TokenPanel, Steps, Facts, Template, VocabularyRows")
                for strip in [widget.render_line(y) for y in range(widget.size.height)]
            )
            assert sanitize(drawn) == drawn and "\u200b" not in drawn


def test_a_word_piece_shows_a_space_only_where_the_text_has_one() -> None:
    def token(raw: bytes, start: int, end: int) -> told.TextToken:
        return told.TextToken(id=1, bytes=raw.hex(), start=start, end=end)

    assert token_text(token(b" the", 0, 3), "WordPiece", "the cat") == "the"
    assert token_text(token(b" cat", 3, 7), "WordPiece", "the cat") == "·cat"
    assert token_text(token(b"s", 7, 8), "WordPiece", "the cats") == "##s"
    assert token_text(token(b" cat", 3, 7), "BPE", "the cat") == "·cat"


def test_rows_of_chips_hold_every_token_in_its_order() -> None:
    tokens = [
        told.TextToken(id=n * 100, bytes=("x" * (n % 9 + 1)).encode().hex(), start=n, end=n + 1) for n in range(99)
    ]
    split = told.SplitText(model="m", title="m", tokens=tokens)
    for width in (8, 20, 55):
        rows = laid_out(split, "", width, has_ids=True, gap=1)
        assert [chip.number for row in rows for chip in row] == list(range(99))
        assert all(chip.x + chip.width <= width for row in rows for chip in row)


def test_a_trace_fits_its_place_whatever_its_length() -> None:
    ink = Ink(DARK)
    word = told.Merges(
        symbols=["61"] * 60, steps=[told.Merge(position=0, left="61" * n, right="61", rank=n) for n in range(1, 60)]
    )
    trace = told.Trace(model="m", kind="BPE", word="a" * 60, start=0, end=60, ids=[1], merges=word)
    assert len(list(stages(word))) == 60
    for height in (1, 2, 4, 9, 40, 80):
        for step in (0, 1, 30, 59):
            lines = trace_lines(ink, trace, 73, height, step)
            assert len(lines) <= height and all(line.width <= 73 for line in lines)
            assert height < 4 or any(line.text.startswith(f"{step:>3} ") for line in lines)
            merged = lines[1].text.index("merged") if height > 1 else 0
            assert all(line.text[merged - 1 : merged] in ("", " ") for line in lines[1:])


def test_the_state_is_calm_without_anything_to_show() -> None:
    state = TokensState()
    state.move(1)
    state.turn(1)
    state.go_step(-1)
    assert state.current is None and list(state.lit(0)) == [] and state.num_steps == 0


# ---- a real daemon


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A home with two tokenizers that come without a model, as pulls leave them."""
    records = tmp_path / "store" / "tokenizers"
    records.mkdir(parents=True)
    for name, tokenizer in (("bert", trained.wordpiece()), ("t5", trained.unigram())):
        file = tmp_path / name / "tokenizer.json"
        file.parent.mkdir()
        file.write_text(tokenizer.built.core.to_str(), encoding="utf-8")
        record = {"path": str(file.parent), "files": [{"path": str(file), "size_bytes": file.stat().st_size}]}
        (records / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


async def test_over_a_real_daemon(house: Path) -> None:
    with real_daemon(house) as url:
        async with shown(Client(url), house) as (app, pilot, screen):
            assert screen.state.names == ["bert", "t5"]
            await pilot.press("tab", "t")
            await until(pilot, lambda: screen.state.template is not None and screen.state.trace is not None)
            await pilot.pause(0.1)
            text = screen_text(app)
            assert "BERT  WordPiece" in text and "T5  Unigram" in text and "Chat template" in text
            await pilot.press("a")
            await until(pilot, lambda: isinstance(app.screen, TokenizerSheet))
            await pilot.pause(0.05)
            assert "GPT-4o" in screen_text(app) and "enter pulls it" in screen_text(app)
            assert Client(url).ps() == []
