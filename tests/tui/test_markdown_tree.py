"""What we read is what markdown-it reads: examples in the manner of the CommonMark specification, block by block."""

from collections.abc import Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from localllm.tui.markdown.inline import runs
from localllm.tui.markdown.tree import (
    Bullets,
    Code,
    Heading,
    Paragraph,
    Placed,
    Plain,
    Quote,
    Rule,
    Table,
    parse,
    parser,
    tree,
)

PLAIN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
OURS = parser()
EXAMPLES = (
    "\tfoo\tbaz\t\tbim", "  - foo\n\n\tbar", "- foo\n\n\t\tbar", ">\t\tfoo", "    foo\n\tbar",
    " - foo\n   - bar\n\t - baz",
    "- `one\n- two`", "***\n---\n___", " ***\n  ***\n   ***\n    ***", "Foo\n***\nbar", "Foo\n---\nbar",
    "* Foo\n* * *\n* Bar",
    "# foo\n## foo\n### foo\n####### foo\n#hash\n# ", "Foo *bar\nbaz*\n====", "`Foo\n----\n`", "> Foo\n---",
    "- Foo\n---",
    "    a simple\n      indented code block\n\n\n      chunk", "Foo\n    bar", "```\n<\n >\n```",
    "~~~\naaa\n```\n~~~", "```\n\n  \n```",
    "  ```\naaa\n  aaa\naaa\n  ```", "> ```\n> aaa\n\nbbb", "```ruby startline=3\ndef foo(x)\n```",
    "foo\n```\nbar\n```\nbaz",
    "<table><tr><td>\n<pre>\n**Hello**,\n\n_world_.\n</pre>\n</td></tr></table>", "<!-- Foo\n\nbar -->\nokay",
    "<div>\n*foo*\n\n*bar*\n</div>",
    "[foo]: /url \"title\"\n\n[foo]", "[foo]: \n   /url  \n           'the title'  \n\n[foo]",
    "Foo\n[bar]: /baz\n\n[bar]",
    "aaa\n             bbb\n                                       ccc", "> # Foo\n> bar\n> baz",
    "># Foo\nbar\n> baz", "> - foo\n- bar",
    "> ```\nfoo\n```", ">\n> foo\n>  ", "> foo\n\n> bar", ">>> foo\n> bar\n>>baz", "A paragraph\n\n    code\n\n> quote",
    "1.  A paragraph\n    with two lines.\n\n        indented code\n\n    > A block quote.", "- one\n\n two",
    "- foo\n\n\n  bar", "-one\n\n2.two",
    "1. ```\n   foo\n   ```\n\n   baz", "123456789. ok", "1234567890. not ok", "0. ok", "-1. not ok",
    "- foo\n\n      bar", "-\n  foo\n-\n  ```\n  bar\n  ```",
    "-   \n  foo", "-\n\n  foo", "- foo\n-\n- bar", "*", "foo\n*", "foo\n1.",
    "- foo\n  - bar\n    - baz\n      - boo", "10) foo\n    - bar",
    "- - foo", "1. - 2. foo", "- # Foo\n- Bar\n  ---\n  baz", "- foo\n- bar\n+ baz", "1. foo\n2. bar\n3) baz",
    "Foo\n- bar\n- baz",
    "The number\n14.  windows", "The number\n1.  door", "- foo\n\n- bar\n\n\n- baz",
    "- foo\n  - bar\n    - baz\n\n\n      bim",
    "- foo\n- bar\n\n<!-- -->\n\n- baz", "- a\n - b\n  - c\n   - d\n  - e", "1. a\n\n  2. b\n\n   3. c",
    "- a\n - b\n  - c\n   - d\n    - e",
    "- a\n- b\n\n  [ref]: /url\n- d", "- a\n- ```\n  b\n\n\n  ```\n- c", "* a\n  > b\n  >\n* c",
    "| a | b |\n| - | - |\n| c |\n\nd", "a | b\n- | -\nc | d\ne",
    "| a |\n| - | - |", "> | a |\n> | - |\n> | b |\nc", "- | a |\n  | - |\n  | b |", "\\# no heading",
    "&#35; no heading", "***bold***\n***",
)  # fmt: skip
OPENERS = {
    "paragraph_open": "paragraph", "heading_open": "heading", "fence": "code", "code_block": "code",
    "html_block": "plain",
    "hr": "rule", "blockquote_open": "quote", "bullet_list_open": "list", "ordered_list_open": "list",
    "list_item_open": "item",
    "table_open": "table",
}  # fmt: skip


def expected(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        if kind := OPENERS.get(token.type):
            told = token.tag if kind == "heading" else token.content if kind in ("code", "plain") else ""
            yield f"{kind} {told}".strip()


def found(blocks: tuple[Placed, ...]) -> Iterator[str]:
    for placed in blocks:
        match placed.block:
            case Paragraph():
                yield "paragraph"
            case Heading(level):
                yield f"heading h{level}"
            case Code(_, text):
                yield f"code {text}".strip()
            case Plain(text):
                yield f"plain {text}".strip()
            case Rule():
                yield "rule"
            case Table():
                yield "table"
            case Quote(inner):
                yield "quote"
                yield from found(inner)
            case Bullets(items):
                yield "list"
                for item in items:
                    yield "item"
                    yield from found(item.blocks)


@pytest.mark.parametrize("text", EXAMPLES)
def test_blocks_are_those_of_markdown_it(text: str) -> None:
    assert list(found(tree(parse(OURS, text, {}), text))) == list(expected(PLAIN.parse(text)))


@pytest.mark.parametrize(
    "text",
    ["*foo bar*", "a * foo bar*", 'a*"foo"*', "foo*bar*", "_foo bar_", "foo_bar_baz", "**foo bar**", "**foo*bar**",
    "*foo**bar*", "***foo** bar*",
     "`foo`", "`` foo ` bar ``", "`foo`bar`", "*foo`*`", "[link](/uri \"t\")", "[a](<b)c>)", "[link](foo(and(bar)))",
     "![foo](/url)", "<http://foo.bar>",
     "<b>bold</b>", "foo\\\nbar", "&copy; &ouml;", "\\*not emphasized*", "~~a~~ b", "[a][b]", "**a [b](c) d**"],
)  # fmt: skip
def test_words_are_those_of_markdown_it(text: str) -> None:
    def words(tokens: list[Token]) -> str:
        return "".join("\n" if token.type in ("hardbreak", "softbreak") else token.content for token in tokens)

    inline = PLAIN.parse(text)[1]
    assert "".join(run.text for run in runs(OURS, text, {}) if not run.marks.is_target) == words(inline.children or [])


def test_marks_are_those_of_markdown_it() -> None:
    marks = {run.text: run.marks for run in runs(OURS, "*a **b** `c`* ~~d~~ [e](f)", {})}
    assert marks["b"].is_strong and marks["b"].is_emphasis and marks["c"].is_code and marks["c"].is_emphasis
    assert marks["d"].is_struck and marks["e"].is_link and marks[" (f)"].is_target
