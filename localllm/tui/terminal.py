"""What can be asked of the terminal before the application opens, and the plain signs for one that draws ours badly."""

from __future__ import annotations

import gc
import os
import re
import select
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from rich.cells import cell_len
from rich.segment import Segment
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.color import Color
from textual.filter import LineFilter

from localllm.safe_text import one_line

PATIENCE_S = 0.3
_POSITION = re.compile(rb"\x1b\[\d+;(\d+)R")
PLAIN_SIGNS = str.maketrans(
    "─━╸╺╌┄┈│▀▄▌▐█▁▂▃▅▆▇▏▎▍▋▊▉▸▾▶●◐◔○◆▪·×✓‹›…↵→←↑↓↔–−“”≥≤≈◀▲",
    '-=--...|=_||#__-==#|||###>v>*ooo*x.xv<>.$><^v---""><~<^',
)


TAKEN_FOR_OTHERS = tuple(f"\x1b{letter}" for letter in "123456789f")
"""What most terminals send for alt+1 to alt+9 and alt+f. Textual reads `¡` and ctrl+right: some on macOS mean those."""


def hear_alt() -> None:
    """Such keys are heard as they are pressed. Once, before the first key."""
    table = cast("dict[str, object]", ANSI_SEQUENCES_KEYS)
    for sequence in TAKEN_FOR_OTHERS:
        table.pop(sequence, None)


def draws_wide() -> bool:
    """Whether the terminal draws `─` two columns wide, as those for East Asian languages may: it is asked where the
    cursor stands after one. False where nothing answers."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TEXTUAL_DRIVER"):
        return False
    try:
        import termios
        import tty
    except ImportError:  # not on this system
        return False
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write("\r─\x1b[6n")
        sys.stdout.flush()
        column = _column(lambda: _read(descriptor, time.monotonic() + PATIENCE_S))
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stdout.write("\r\x1b[K")
        sys.stdout.flush()
    return column == 3


def _read(descriptor: int, until: float) -> bytes:
    """What comes within the time, up to the end of an answer."""
    answer = b""
    while not answer.endswith(b"R"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            break
        answer += os.read(descriptor, 64)
    return answer


def _column(read: Callable[[], bytes]) -> int | None:
    found = _POSITION.search(read())
    return int(found[1]) if found else None


def calm_collector() -> None:
    """Pictures that take long are those in which Python looks through everything for garbage: what is there already is
    left alone, and new things are looked through less often. For the whole process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


class TextFilter(LineFilter):
    """Changes what stands there, but neither how it looks nor how many columns it takes."""

    def text(self, text: str) -> str:
        raise NotImplementedError

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.control or (text := self.text(segment.text)) is segment.text
            else Segment(text, segment.style)
            for segment in segments
        ]


class PlainSigns(TextFilter):
    """Draws rules, blocks and marks with ASCII."""

    def text(self, text: str) -> str:
        return text.translate(PLAIN_SIGNS)


class OnlyText(TextFilter):
    """The last gate before the terminal. Lines of ours hold nothing but text; fields, notices and lists of Textual's
    own show what they are given. Columns stay where they are: what goes leaves as many blanks as it took."""

    def text(self, text: str) -> str:
        return text if text.isascii() and text.isprintable() else _cleaned(text)


@lru_cache(8192)
def _cleaned(text: str) -> str:
    if one_line(text) == text:
        return text
    return "".join(one_line(character) or " " * cell_len(character) for character in text)
