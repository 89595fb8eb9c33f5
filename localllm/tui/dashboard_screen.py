"""Dashboard."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widget import Widget

from localllm.tui.frame import FrameScreen


class DashboardScreen(FrameScreen):
    """Dashboard."""

    TAB = "dashboard"

    def compose_body(self) -> ComposeResult:
        yield Widget()
