"""Markdown in a terminal: every construct, in any width, with nothing lost and nothing in it that is not text."""

import pytest

from localllm.tui.markdown.document import MarkdownText
from localllm.tui.palette import MONO, Ink
from tests.tui.markdown_world import READER, look, styled, texts, whole


def drawn(text: str, width: int = 40) -> list[str]:
    return texts(whole(text, look(width)))


def test_paragraphs_are_wrapped_and_parted_by_a_blank_row() -> None:
    assert drawn("one two three\n\nfour", 8) == ["one two", "three", "", "four"]


def test_lines_stay_where_their_author_broke_them() -> None:
    assert drawn("Roses are red\nviolets are  \nblue\\\nsky<br>end") == [
        "Roses are red", "violets are", "blue", "sky", "end",
    ]  # fmt: skip


def test_emphasis_is_bold_italic_and_struck() -> None:
    rows = whole("**bold** *italic* ~~struck~~ ***both*** plain")
    assert styled(rows, "bold") == {"bold", "both"}
    assert styled(rows, "italic") == {"italic", "both"}
    assert styled(rows, "strike") == {"struck"}


def test_inline_code_stands_on_a_ground_and_without_colours_keeps_its_backticks() -> None:
    assert styled(whole("use `a*b*c` here"), "ground") == {"a*b*c"}
    assert texts(whole("use `a*b*c` here", look(ink=Ink(MONO)))) == ["use `a*b*c` here"]


def test_links_show_their_target_and_cannot_be_followed() -> None:
    rows = whole("[text](http://x.y/z) <http://a.b> ![map](m.png)", look(70))
    assert texts(rows) == ["text (http://x.y/z) http://a.b map (m.png)"]
    assert not any(style.link for row in rows for _, style, _ in row.segments if style)


def test_a_target_may_be_defined_anywhere() -> None:
    assert drawn("see [here][1]\n\n> and [1]\n\n[1]: http://x.y") == [
        "see here (http://x.y)", "", "│ and 1 (http://x.y)",
    ]  # fmt: skip


def test_dangerous_targets_stay_text() -> None:
    assert drawn("[x](javascript:alert(1))") == ["[x](javascript:alert(1))"]


def test_headings_belong_to_what_follows_them() -> None:
    rows = whole("intro\n\n# One\n\ntext\n\n#### Four\ntext")
    assert texts(rows) == ["intro", "", "One", "text", "", "Four", "text"]
    assert styled(rows, "bold") == {"One", "Four"}


def test_lists_nest_count_and_hold_other_blocks() -> None:
    text = "Do:\n- one\n  - two\n- three\n\n3. a\n4. b\n\n   ```py\n   x\n   ```\n9. c"
    assert drawn(text, 20) == [
        "Do:", "· one", "  · two", "· three", "", "3. a", "4. b", "", "     py", "     x", "5. c",
    ]  # fmt: skip


def test_items_are_apart_where_their_author_put_a_blank_line() -> None:
    assert drawn("- a\n- b\n\n- c") == ["· a", "· b", "", "· c"]
    assert texts(whole("- a\n- b\n\n- c", look(is_compact=True))) == ["· a", "· b", "· c"]


def test_tasks_are_done_or_open() -> None:
    assert drawn("- [x] done\n- [ ] open\n- [link](u)") == ["✓ done", "○ open", "· link (u)"]


def test_wrapped_items_hang() -> None:
    assert drawn("- one two three four\n10. five six seven", 14) == [
        "· one two",
        "  three four",
        "10. five six",
        "    seven",
    ]


def test_quotes_have_a_bar_at_every_line_and_no_more_of_them_than_there_is_room() -> None:
    assert drawn("> one two three\n> > four", 20) == ["│ one two three", "│", "│ │ four"]
    assert drawn("> one two three\n> > four", 12) == ["│ one two", "│ three", "│", "│ four"]


def test_tables_are_aligned() -> None:
    assert drawn("| name | GB | ok |\n|:--|--:|:-:|\n| a | 12.5 | yes |\n| long name | 3 |  |") == [
        "name          GB   ok",
        "─" * 22,
        "a           12.5   yes",
        "long name      3",
    ]


def test_wide_tables_wrap_their_cells_and_at_last_become_lines() -> None:
    text = "| a | b |\n|--|--|\n| one two three four | five six seven eight |"
    assert drawn(text, 23) == [
        "a            b", "─" * 23, "one two      five six", "three four   seven", "             eight",
    ]  # fmt: skip
    assert drawn(text, 10) == ["a  one two", "three four", "b  five", "six seven", "eight"]


def test_code_stands_on_its_ground_with_its_language_and_is_not_wrapped() -> None:
    rows = whole("a\n\n```python title=x\nif x:\n\treturn 1 + 22222222222222222222222\n```\nb", look(20))
    assert texts(rows)[:4] == ["a", "", "  python", "  if x:"]
    head, first, long = rows[2:5]
    assert head.is_head and [row.code for row in rows[2:5]] == [1, 1, 1]
    assert first.width == 20 and long.width > 20 and long.text.startswith("      return 1")


def test_code_blocks_are_numbered_and_can_be_copied_as_they_were_written() -> None:
    made = MarkdownText(READER)
    made.feed("```\na\n\n  b\t\n```\n\n- x\n  ```js\n  c\n  ```\n\n    indented\n")
    assert made.codes() == ["a\n\n  b\t", "c"]
    made.finish()
    assert [row.code for row in made.rows(look()) if row.is_head] == list(range(1, len(made.codes()) + 1))


def test_code_is_coloured_by_its_language_and_any_name_will_do() -> None:
    def inks(language: str) -> int:
        rows = whole(f'```{language}\ndef f(x):  # note\n    return "text" + 1\n```')
        return len({style.color for row in rows[1:] for _, style, _ in row.segments if style})

    assert inks("python") >= 5 and inks("py") == inks("{.python}") == inks("python") and inks("no-such-language") == 1


def test_colours_know_texts_that_began_many_lines_before() -> None:
    code = 'x = """\n' + "word\n" * 60 + '"""\ny = 1\n'
    rows = whole(f"```python\n{code}```")
    assert len({str(row.segments[1].style) for row in rows[4:60]}) == 1


@pytest.mark.parametrize("formula", ["\\( x_1 * y_1 * z \\)", "$a_1*b_1*c$", "\\[ x_{1} \\]", "$$ a_1 * b_1 * c $$"])
def test_formulas_stay_as_they_were_written(formula: str) -> None:
    assert drawn(f"See {formula} here.") == [f"See {formula} here."]


def test_formulas_of_their_own_lines_stay_too() -> None:
    for text in ("\\[\nx_1\n= - y_1\n\\]", "$$\n- a\n= b\n$$"):
        assert drawn(f"So\n{text}\n\nthen") == ["So", "", *text.split("\n"), "", "then"]


def test_prices_are_no_formulas() -> None:
    assert styled(whole("from $5 to $10 **now**"), "bold") == {"now"}


def test_html_is_text() -> None:
    assert drawn("a <b>bold</b>\n\n<details>\nx *y*\n</details>") == [
        "a <b>bold</b>",
        "",
        "<details>",
        "x *y*",
        "</details>",
    ]


def test_rules_fill_the_width() -> None:
    assert drawn("a\n\n***\n\nb", 9) == ["a", "", "─" * 9, "", "b"]


def test_wide_characters_break_anywhere_but_not_before_a_full_stop() -> None:
    assert drawn("日本語です。はい", 9) == ["日本語で", "す。はい"]
    assert drawn("日本語です。はい", 11) == ["日本語で", "す。はい"]
    assert drawn("日本語です。はい", 12) == ["日本語です。", "はい"]


def test_a_family_of_emoji_is_one_character() -> None:
    rows = whole("👩\u200d👩\u200d👧" * 3, look(4))
    assert all(row.width <= 4 for row in rows) and "".join(texts(rows)).count("👧") == 3


@pytest.mark.parametrize(
    "payload",
    [
        "\x1b]8;;http://evil\x07click\x1b]8;;\x07", "&#x202e;evil", "\u202eevil", "`\x1b[31m`",
        "[a](http://x\u202e)", "\u200bzero",
        "```\x1b]0;t\x07\n\u202ecode\n```", "| \x1b[2J |\n|-|\n| \u2066 |", "# \x9b31m", "&#27;[31m", "<\x1b[0m>",
        "\U000e0041tag",
    ],
)  # fmt: skip
def test_payloads_are_neutralised_wherever_they_stand(payload: str) -> None:
    shown = "".join(row.text for row in whole(payload))
    assert not set(shown) & set("\x1b\x07\x9b\u202e\u2066\u200b\U000e0041")


def test_what_is_nested_too_deep_is_shown_as_it_was_written() -> None:
    assert "innermost" in "".join(drawn(">" * 500 + " innermost", 60))
    assert "innermost" in "".join(drawn("- " * 500 + "innermost", 60))
    assert "leaf" in "".join(drawn("\n".join("  " * depth + "- leaf" for depth in range(100)), 60))


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000, "word " * 20_000, "日本" * 50_000, "```\n" * 5_000, "[" * 100_000, "![" * 30_000,
        "*a_ " * 25_000,
        "| a " * 200 + "|\n" + "|-" * 200 + "|\n", "~~a" * 30_000, "<" * 50_000, "a\u0301" + "\u0301" * 50_000,
        "\n" * 50_000,
        "```python\n" + "x" * 100_000 + "\n```", "$a " * 30_000, "\t" * 20_000 + "x",
    ],
    ids=lambda text: text[:8].encode("unicode_escape").decode(),
)  # fmt: skip
def test_monsters_are_drawn(text: str) -> None:
    made = MarkdownText(READER)
    made.feed(text)
    made.rows(look(80))
    made.finish()
    assert all(row.width <= 80 or row.code for row in made.rows(look(80)))


def test_a_line_of_code_that_is_too_long_says_what_is_left_out() -> None:
    rows = whole("```\n" + "x" * 10_000 + "\n```", look(40))
    assert "6,000 more characters" in rows[1].text
