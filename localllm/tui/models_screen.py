"""Models."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widget import Widget

from localllm.tui.frame import FrameScreen


class ModelsScreen(FrameScreen):
    """Models."""

    TAB = "models"

    def compose_body(self) -> ComposeResult:
        yield Widget()
