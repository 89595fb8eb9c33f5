"""Chat."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widget import Widget

from localllm.tui.frame import FrameScreen


class ChatScreen(FrameScreen):
    """Chat."""

    TAB = "chat"

    def compose_body(self) -> ComposeResult:
        yield Widget()
