"""Fields in which one types, pastes or finds a text, which Textual draws: driven in a running application, and looked
at as the terminal gets them."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from textual.app import ComposeResult
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, TextArea

from localllm.tui.chat.composer import Composer
from localllm.tui.chat.sheets import AskSheet, TextSheet
from localllm.tui.tokens.parts import TextField
from tests.tui.fakes import FakeClient, app_with
from tests.tui.hostile_texts import NOT_PLAIN, Texts


class Fields(Screen[None]):
    """One of each."""

    DEFAULT_CSS = "Fields > * { height: 5; } Fields > Input { height: 1; }"

    def compose(self) -> ComposeResult:
        yield Composer(lambda text: None)
        yield TextField()
        yield TextSheet("x", "")._area
        yield AskSheet("x")._input


def composer(screen: Fields, text: str) -> Iterator[Widget]:
    widget = screen.query_one(Composer)
    widget.write(text)
    yield widget
    widget.load_text("")
    widget.address(text)
    yield widget


def text_field(screen: Fields, text: str) -> Iterator[Widget]:
    """Holds the text as it is: people want to know its tokens."""
    widget = screen.query_one(TextField)
    widget.load_text(text)
    yield widget


def text_sheet(screen: Fields, text: str) -> Iterator[Widget]:
    widget = screen.query(TextArea).last()
    widget.load_text(text)
    yield widget


def input_field(screen: Fields, text: str) -> Iterator[Widget]:
    widget = screen.query_one(Input)
    widget.value = text
    yield widget
    widget.value, widget.placeholder = "", text
    yield widget


FIELDS: dict[str, Callable[[Fields, str], Iterator[Widget]]] = {
    "composer": composer, "text_field": text_field, "text_sheet": text_sheet, "input_field": input_field,
}  # fmt: skip


def fill(name: str, texts: Texts, count: int) -> int:
    """Puts so many texts into a field and looks at it each time; gives the number of rows."""
    with TemporaryDirectory() as home:
        return asyncio.run(_fill(name, texts, count, Path(home)))


async def _fill(name: str, texts: Texts, count: int, home: Path) -> int:
    app, rows = app_with(FakeClient(), home), 0
    async with app.run_test(size=(90, 30)):
        screen = Fields()
        await app.push_screen(screen)
        while texts.count < count:
            text = texts()
            for widget in FIELDS[name](screen, text):
                for strip in widget.render_lines(Region(0, 0, *widget.size)):
                    look(strip, text)
                    rows += 1
            if texts.count % 500 == 0:
                await asyncio.sleep(0)
    return rows


def look(strip: Strip, text: str) -> None:
    found = NOT_PLAIN.search(strip.text)
    assert found is None, f"not plain: {strip.text!r} of {text!r}"
