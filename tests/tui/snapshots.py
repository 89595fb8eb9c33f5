"""Screens as text, held against files; those that the documentation shows also as pictures, colours and all.
`WRITE_SNAPSHOTS=1 pytest ...` writes both anew: look at what changed."""

import os
from pathlib import Path

from localllm.tui.app import LocalApp
from tests.tui.pictures import screen_text, svg

FOLDER = Path(__file__).with_name("snapshots")
PICTURES = Path(__file__).parents[2] / "docs" / "screens"
SHOWN = {
    "chat-120x40": "chat", "inspector-120x40": "inspector", "tokens-120": "tokens", "dashboard-120x40": "dashboard",
    "dashboard-200x60": "dashboard-wide", "models-120x40": "models",
}  # fmt: skip
"""Snapshots that the documentation shows, by the names of their pictures."""


def held_against(app: LocalApp, name: str) -> None:
    """The screen is as it was when the file was written."""
    _compare(FOLDER / f"{name}.txt", screen_text(app) + "\n")
    if name in SHOWN:
        picture = SHOWN[name]
        _compare(PICTURES / f"{picture}.svg", svg(app, f"The screen {picture.replace('-', ', ')} of localllm"))


def _compare(path: Path, now: str) -> None:
    if os.environ.get("WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(now, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing: WRITE_SNAPSHOTS=1 writes it"
    assert now == path.read_text(encoding="utf-8"), path.name
