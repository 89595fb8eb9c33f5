"""The messages of a chat: how they look, what keys and mouse do, and that a long chat costs what a short one does."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.geometry import Region

from localllm.history import AnswerStats
from localllm.tui.conversation.heights import GUESS, Heights
from localllm.tui.conversation.turn import TurnView, live_line, stats_line, trouble_lines
from localllm.tui.conversation.turns import Live, Siblings, Trouble, Turn
from localllm.tui.conversation.widget import Conversation
from localllm.tui.palette import LIGHT, Ink
from tests.tui.conversation_world import ANSWER, CODE, NOON, QUESTION, STATS, World, many, writing
from tests.tui.markdown_world import INK, READER, look, texts
from tests.tui.test_markdown_stream import markdown

SIZES = [(80, 24), (120, 40), (200, 60)]


def view(turn: Turn) -> TurnView:
    return TurnView(turn, READER, lambda: NOON)


# ---- heights


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), max_size=40), st.integers(0, 400))
def test_heights_are_sums_of_what_was_measured_and_guessed(measured: list[tuple[int, int]], row: int) -> None:
    heights, model = Heights(20), [GUESS] * 20
    for index, rows in measured:
        if index < 20:
            heights.measure(index, rows)
            model[index] = rows
    heights.append()
    model.append(GUESS)
    assert heights.total == sum(model) and [heights.start(index) for index in range(22)] == [
        sum(model[:index]) for index in range(22)
    ]
    assert heights.at(row) == next((index for index in range(21) if row < sum(model[: index + 1])), 20)
    heights.truncate(7)
    assert heights.total == sum(model[:7]) and len(heights) == 7


# ---- a turn


def test_what_others_said_is_quoted_with_chips_and_the_time() -> None:
    rows = texts(view(QUESTION).rows(look(70)))
    assert rows[0].startswith("▌ You    scheduler.py  2,104 tokens ") and rows[0][-5:].replace(":", "").isdigit()
    assert rows[1:] == ["▌ Why does one long prompt stall everyone else?"]


def test_what_others_said_is_no_markdown() -> None:
    assert texts(view(Turn(1, "user", "**a**\n  - b")).rows(look()))[1:] == ["▌ **a**", "▌   - b"]


def test_a_long_message_is_folded_and_says_how_much_is_hidden() -> None:
    said = view(Turn(1, "user", "\n".join(f"line {number}" for number in range(1000))))
    rows = texts(said.rows(look(60)))
    assert rows[20] == "▌ line 19" and rows[21] == "▌ ▸ 8,739 more characters   enter shows them" and len(rows) == 22
    said.fold()
    assert len(said.rows(look(60))) == 1001


def test_an_answer_says_who_what_was_thought_and_its_figures() -> None:
    rows = texts(view(ANSWER).rows(look(76)))
    assert rows[0] == "qwen3-4b   ▸ thought for 3.4 s  214 tokens" + " " * 24 + "‹ 2 of 3 ›"
    assert rows[1:3] == ["", "Your loop gives a whole prompt to one step:"]
    assert rows[-1] == "412 tokens   62.4 tok/s   184 ms first token   2,048 of 2,311 cached   stop"


def test_a_compact_look_spends_blank_rows_between_turns_only() -> None:
    rows = texts(view(ANSWER).rows(look(76, is_compact=True)))
    assert "" not in rows


def test_thoughts_unfold() -> None:
    unfolded = view(ANSWER)
    unfolded.fold()
    assert texts(unfolded.rows(look(60)))[:4] == [texts(unfolded.rows(look(60)))[0], "", "│ Let me think.", ""]
    assert "▾ thought" in texts(unfolded.rows(look(60)))[0]


def test_figures_that_do_not_fit_are_dropped_whole() -> None:
    for width in range(8, 90):
        line = stats_line(INK, STATS, width)
        assert line.width <= width and all(
            part in "412 tokens   62.4 tok/s   184 ms first token   2,048 of 2,311 cached   stop"
            for part in [line.text]
        )
        assert live_line(INK, Live("writing", 48, 62.4, 0.121), width).width <= max(width, 8)


def test_unknown_figures_are_not_shown() -> None:
    assert stats_line(INK, AnswerStats(tokens=3), 80).text == "3 tokens"
    assert view(Turn(1, "assistant", "x", stats=AnswerStats())).rows(look())[-1].text == "x"


def test_the_live_line_stands_where_the_figures_will() -> None:
    line = live_line(INK, Live("writing", 48, 62.4, 0.121), 76).text
    assert line.startswith("▶ writing   48 tokens   62.4 tok/s   first token 121 ms ") and line.endswith(" esc stop")


def test_an_interrupted_answer_says_so_and_what_helps() -> None:
    trouble = Trouble("interrupted", "the first 48 tokens are saved", "ctrl+r", "go on from here")
    (line,) = trouble_lines(INK, trouble, False, 84)
    assert line.text.startswith("▪ interrupted   the first 48 tokens are saved ") and line.width == 84
    assert line.text.endswith("ctrl+r go on from here")
    long = Trouble("out of pages", "needs 312, 288 free, and nothing else can be put off for it", code="out_of_pages")
    lines = trouble_lines(INK, long, True, 40)
    assert lines[0].text.endswith("out_of_pages") and len(lines) == 3 and all(line.width <= 40 for line in lines)


@settings(max_examples=100, deadline=None)
@given(markdown, markdown, st.integers(12, 60), st.booleans())
def test_an_answer_never_gets_shorter_while_it_is_written(
    text: str, thought: str, width: int, is_unfolded: bool
) -> None:
    growing, height = view(writing()), 0
    if is_unfolded:
        growing.fold()
    for number, character in enumerate([*thought, *text]):
        is_text = number >= len(thought)
        growing.write(character if is_text else "", "" if is_text else character)
        rows = growing.rows(look(width))
        assert len(rows) >= height and all(row.width <= width or row.code for row in rows)
        height = len(rows)


@settings(max_examples=60, deadline=None)
@given(markdown, st.lists(st.integers(0, 200), max_size=5), st.integers(12, 60))
def test_a_written_answer_looks_like_a_stored_one(text: str, cuts: list[int], width: int) -> None:
    growing, start = view(writing()), 0
    for cut in sorted(min(cut, len(text)) for cut in cuts):
        growing.write(text[start:cut])
        growing.rows(look(width))
        start = cut
    growing.write(text[start:])
    done = Turn(9, "assistant", text, model="qwen3-4b")
    growing.become(done)
    assert growing.rows(look(width)) == view(done).rows(look(width))


def test_an_interrupted_answer_goes_on_where_it_stopped() -> None:
    cut = Turn(9, "assistant", "a **bo", model="m", state="interrupted", trouble=Trouble("interrupted", "saved"))
    going_on = view(cut)
    assert "a **bo" in texts(going_on.rows(look()))
    going_on.become(Turn(9, "assistant", "a **bo", model="m", state="writing"))
    going_on.write("ld**")
    assert texts(going_on.rows(look()))[1] == "a bold▍"


def test_sealed_rows_are_drawn_once() -> None:
    growing = view(writing())
    growing.write("first **block**\n\nsecond block\n\nthird")
    before = growing.rows(look())
    growing.write(" goes on")
    after = growing.rows(look())
    assert before[1].segments is after[1].segments and before[3].segments is after[3].segments
    assert before[5].segments is not after[5].segments


# ---- on a screen


@pytest.mark.parametrize("size", SIZES)
async def test_a_chat_is_aligned_in_every_size(size: tuple[int, int]) -> None:
    app = World([QUESTION, ANSWER, Turn(3, "user", "And then?"), writing()])
    async with app.run_test(size=size) as pilot:
        app.conversation.stream("A **litt")
        app.conversation.tell(Live("writing", 48, 62.4, 0.121))
        await app.drawn(pilot)
        rows, width = app.rows, size[0]
        left, right = (1, width - 1) if width < 100 else (3, width - 3)
        offset = app.conversation.region.x
        head = next(row for row in rows if "qwen3-4b" in row)
        assert head.index("qwen3-4b") + offset == left and len(head) + offset == right
        assert "A little▍" in "\n".join(row for row in rows).replace("A litt▍", "A little▍")
        assert all(len(row) + offset <= right for row in rows)
        assert rows[-1].endswith("esc stop") or "esc stop" in "\n".join(rows)


async def test_it_follows_the_end_only_from_the_end() -> None:
    app = World([*many(20), writing()])
    async with app.run_test(size=(80, 20)) as pilot:
        chat = app.conversation
        chat.stream("a\n\n" * 30)
        chat.tell(Live("writing", 30))
        await app.drawn(pilot)
        assert chat.is_following and "▶ writing" in app.rows[-1]
        await pilot.press("pageup")
        before = app.rows
        chat.stream("b\n\n" * 30)
        chat.tell(Live("writing", 78))
        await app.drawn(pilot)
        assert app.rows[:-1] == before[:-1] and "▾ 48 new tokens" in app.rows[-1]
        chat.finish(Turn(9, "assistant", chat.turns[-1].text, stats=AnswerStats(tokens=80)))
        await pilot.pause()
        assert app.rows[:-1] == before[:-1] and "▾ 50 new tokens" in app.rows[-1]
        await pilot.press("end")
        assert chat.is_following and "80 tokens" in app.rows[-1]
        await pilot.press("pageup")
        assert "new token" not in app.rows[-1]


async def test_the_notice_of_new_tokens_can_be_clicked() -> None:
    app = World([*many(20), writing()])
    async with app.run_test(size=(80, 20)) as pilot:
        app.conversation.stream("a\n\n" * 30)
        await app.drawn(pilot)
        await pilot.press("pageup")
        app.conversation.tell(Live("writing", 5))
        await app.drawn(pilot)
        await pilot.click(Conversation, offset=(5, 19))
        assert app.conversation.is_following


@pytest.mark.parametrize("key", ["pageup", "up"])
async def test_scrolling_through_turns_that_nobody_measured_does_not_jump(key: str) -> None:
    app = World(many(200))
    async with app.run_test(size=(80, 20)) as pilot:
        for _ in range(25):
            before = app.rows
            await pilot.press(key)
            after = app.rows
            kept = [row.strip("▌ ") for row in before[:2] if "turn" in row or "question" in row]
            assert all(any(row.strip("▌ ") == each for row in after) for each in kept)


async def test_the_wheel_and_the_scrollbar_move_it_too() -> None:
    app = World(many(100))
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        end = app.rows
        app.conversation.scroll_to(y=0, animate=False)
        await pilot.pause()
        assert "question 0" in "\n".join(app.rows) and not app.conversation.is_following
        app.conversation.scroll_end(animate=False, immediate=True)
        await pilot.pause()
        app.conversation.scroll_end(animate=False, immediate=True)
        await pilot.pause()
        assert app.rows == end and app.conversation.is_following


async def test_only_visible_turns_are_read() -> None:
    read: set[int] = set()

    class Lazy(Sequence[Turn]):
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: Any) -> Any:
            read.add(index)
            return Turn(index, "user", f"question {index}")

    app = World()
    async with app.run_test(size=(80, 20)) as pilot:
        app.conversation.show(Lazy())
        await pilot.pause()
        assert "question 9999" in app.rows[-1] and len(read) < 20
        app.conversation.go_to(4000)
        await pilot.pause()
        assert "question 4000" in app.rows[1] and len(read) < 40


async def test_a_chat_can_be_opened_at_a_turn_before_it_has_a_size() -> None:
    app = World(many(100))
    app.conversation.show(many(100), at=40)
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        assert "You" in app.rows[0] and "question 40" in app.rows[1]


async def test_a_lower_window_keeps_the_end_or_the_place() -> None:
    app = World(many(100))
    async with app.run_test(size=(80, 30)) as pilot:
        end = app.rows[-1]
        await pilot.resize_terminal(80, 20)
        await pilot.pause()
        assert app.rows[-1] == end and app.conversation.is_following
        app.conversation.go_to(50)
        await pilot.resize_terminal(80, 25)
        await pilot.pause()
        assert "question 50" in app.rows[1]


async def test_the_cursor_moves_over_turns_and_wishes_come_from_it() -> None:
    app = World([QUESTION, ANSWER, Turn(3, "user", "And then?")])
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("k", "k", "e", "r", "t")
        assert app.conversation.cursor == 1 and app.conversation.current == ANSWER
        kinds = [type(wish).__name__ for wish in app.wishes]
        assert kinds == ["Moved", "Moved", "Edit", "Again", "Inspect"]
        assert all(wish.turn == ANSWER for wish in app.wishes[2:])
        assert next(row for row in app.rows if "qwen3" in row).startswith("▌ qwen3-4b")
        await pilot.press("j", "j")
        assert app.conversation.cursor == 2


async def test_copying_gives_the_source_exactly() -> None:
    text = "a **b**\n\n\x1b[1m\tc \n"
    app = World([Turn(1, "assistant", text), ANSWER])
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("k", "k", "y")
        assert app.clipboard == text
        await pilot.press("j")
        assert app.conversation.copy_block(1) and app.clipboard == CODE
        assert not app.conversation.copy_block(2)
        await pilot.pause()
        assert [wish.what for wish in app.wishes if isinstance(wish, Conversation.Copied)] == [
            "copied 3 lines",
            "copied 2 lines",
        ]


async def test_code_can_be_copied_by_a_click_on_its_head() -> None:
    app = World([QUESTION, ANSWER])
    async with app.run_test(size=(120, 40)) as pilot:
        y = next(number for number, row in enumerate(app.rows) if "alt+1 copy" in row)
        await pilot.click(Conversation, offset=(app.rows[y].index("copy"), y))
        assert app.clipboard == CODE


async def test_siblings_and_thoughts_can_be_clicked() -> None:
    app = World([QUESTION, ANSWER])
    async with app.run_test(size=(120, 40)) as pilot:
        y, head = next((number, row) for number, row in enumerate(app.rows) if "qwen3" in row)
        await pilot.click(Conversation, offset=(head.index("‹"), y))
        await pilot.click(Conversation, offset=(head.index("›"), y))
        await pilot.pause()
        steps = [(wish.turn, wish.step) for wish in app.wishes if isinstance(wish, Conversation.Sibling)]
        assert steps == [(ANSWER, -1), (ANSWER, 1)]
        await pilot.click(Conversation, offset=(head.index("thought"), y))
        assert "│ Let me think." in "\n".join(app.rows)
        await pilot.press("enter")
        assert "│" not in "\n".join(app.rows)


async def test_only_one_answer_numbers_its_blocks() -> None:
    app = World([ANSWER, QUESTION, ANSWER])
    async with app.run_test(size=(120, 60)) as pilot:
        assert "\n".join(app.rows).count("alt+1 copy") == 1 and "\n".join(app.rows).count("copy") == 2
        await pilot.press("k", "k", "k")
        first = next(row for row in app.rows if "python" in row)
        assert "alt+1 copy" in first


async def test_wide_code_moves_sideways_with_keys() -> None:
    app = World([Turn(1, "assistant", "```\n" + "".join(f"{number:03}" for number in range(100)) + "\n```")])
    async with app.run_test(size=(80, 20)) as pilot:
        assert "000001" in app.rows[1 + 1] and app.rows[2].rstrip().endswith("›")
        await pilot.press("right")
        assert "000001" not in app.rows[2] and "002003" in app.rows[2]
        await pilot.press(*["right"] * 60)
        assert "098099" in app.rows[2] and not app.rows[2].rstrip().endswith("›")
        await pilot.press(*["left"] * 60)
        assert "000001" in app.rows[2]


async def test_turns_are_replaced_cut_and_finished() -> None:
    app = World([QUESTION, writing(2)])
    async with app.run_test(size=(120, 40)) as pilot:
        chat = app.conversation
        chat.stream("half an ans")
        assert chat.turns[-1].text == "half an ans"
        chat.finish(Turn(2, "assistant", "half an ans", state="interrupted", trouble=Trouble("interrupted", "saved")))
        await pilot.pause()
        assert "▪ interrupted   saved" in "\n".join(app.rows) and "▍" not in "\n".join(app.rows)
        chat.replace(0, Turn(1, "user", "Another question", siblings=Siblings(1, 2)))
        assert "‹ 1 of 2 ›" in app.rows[0] and "Another question" in app.rows[1]
        chat.truncate(1)
        assert len(chat.turns) == 1 and "interrupted" not in "\n".join(app.rows)
        chat.append(writing(3))
        chat.stream("", "hmm")
        await app.drawn(pilot)
        assert "▸ thinking" in "\n".join(app.rows)
        chat.show([])
        await pilot.pause()
        assert "".join(app.rows) == "" and chat.current is None


async def test_another_theme_and_another_width_draw_it_anew() -> None:
    app = World([QUESTION, ANSWER])
    async with app.run_test(size=(120, 40)) as pilot:
        dark = app.conversation.render_line(0)
        app.ink = Ink(LIGHT)
        app.theme = "localllm-light"
        await pilot.pause()
        light = app.conversation.render_line(0)
        assert light.text == dark.text and light != dark
        await pilot.resize_terminal(100, 40)
        await pilot.pause()
        assert next(row for row in app.rows if "qwen3" in row).index("›") < 100


async def test_text_selected_with_the_mouse_is_what_stands_there() -> None:
    app = World([QUESTION, ANSWER])
    async with app.run_test(size=(120, 40)) as pilot:
        y = next(number for number, row in enumerate(app.rows) if "Your loop" in row)
        x = app.rows[y].index("Your loop")
        await pilot.mouse_down(Conversation, offset=(x, y))
        await pilot.hover(Conversation, offset=(x + 9, y))
        await pilot.mouse_up(Conversation, offset=(x + 9, y))
        await pilot.pause()
        assert (app.screen.get_selected_text() or "").startswith("Your loo")


async def test_what_is_streamed_is_drawn_by_itself() -> None:
    app = World([writing()])
    async with app.run_test(size=(80, 20)) as pilot:
        app.conversation.stream("some words")
        for _ in range(200):
            await pilot.pause(0.01)
            if "some words" in "\n".join(app.rows):
                break
        assert "some words▍" in app.rows[1]


async def test_a_token_paints_the_rows_that_it_changes_and_no_others() -> None:
    app = World([*many(6), writing()])
    async with app.run_test(size=(80, 20)) as pilot:
        chat = app.conversation
        chat.stream("first\n\nsecond")
        await app.drawn(pilot)
        chat.stream(" third")
        await app.drawn(pilot)
        painted: list[Region] = []
        paint = chat.refresh
        chat.refresh = lambda *regions, **kinds: painted.extend(regions) or paint(*regions, **kinds)  # type: ignore
        chat.stream(" word")
        await app.drawn(pilot)
        rows = [y for region in painted for y in region.line_range]
        assert [app.rows[y] for y in rows] == [" second third word▍"]
