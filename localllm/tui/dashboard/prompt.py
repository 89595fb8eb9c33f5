"""One line to type in above the footer: for a filter, or for the number of a page."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.widgets import Input


class Prompt(Input):
    """Hidden until it is opened for a purpose; enter keeps what was typed, escape does not."""

    DEFAULT_CSS = """
    Prompt { display: none; dock: bottom; }
    Prompt.-shown { display: block; }
    """

    class Closed(Message):
        """`text` None: it was given up."""

        def __init__(self, purpose: str, text: str | None) -> None:
            super().__init__()
            self.purpose, self.text = purpose, text

    def open(self, purpose: str, value: str = "") -> None:
        self.placeholder, self.value = purpose, value
        self.add_class("-shown")
        self.focus()

    async def action_submit(self) -> None:
        self._close(self.value)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            self._close(None)

    def on_blur(self) -> None:
        """Somebody went elsewhere: what was typed stands."""
        self.remove_class("-shown")

    def _close(self, text: str | None) -> None:
        self.remove_class("-shown")
        self.post_message(self.Closed(self.placeholder, text))
