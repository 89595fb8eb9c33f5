"""Text from models and files on its way to a terminal: nothing passes that could move, recolour or reorder it, or that
hides in it.

What joins and marks letters stays, because writing needs it: U+200C and U+200D (Persian, Hindi, families of emoji),
variation selectors up to U+FE0F, combining marks.
"""

import re

# an unfinished sequence longer than this is text that happens to hold an escape character
MAX_HELD = 256

# what a string holds; without the characters that begin one, else a text of nothing but those takes quadratic time
_INSIDE = r"[^\x07\x1b\x9c\n\x90\x98\x9d\x9e\x9f]*"
# ECMA-48: CSI, then OSC/DCS/SOS/PM/APC strings up to their terminator, then the two-character sequences
_SEQUENCES = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    rf"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]){_INSIDE}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
# characters without a picture that no writing needs: they hide text (tags), or make a word look like another one
INVISIBLE = "[\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
_UNWANTED = re.compile(f"{_SEQUENCES}|{_CONTROLS}|{INVISIBLE}")
_BREAKS = str.maketrans(dict.fromkeys("\n\t\u2028\u2029", " "))
_UNFINISHED = re.compile(
    rf"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]){_INSIDE}\x1b?|\x1b[ -/]*)\Z"
)


def sanitize(text: str) -> str:
    """`text` without escape sequences, control characters (but newline and tab), bidirectional controls and characters
    that only hide."""
    return _UNWANTED.sub("", text)


def one_line(text: str) -> str:
    """Sanitized, with newlines, separators of lines and tabs as spaces: for names in tables."""
    return sanitize(text).translate(_BREAKS)


class StreamSanitizer:
    """`sanitize` for text that comes in chunks: a sequence cut in two is still recognized."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, chunk: str) -> str:
        """The part of all text so far that is safe to print now."""
        text = self._held + chunk
        cut = _UNFINISHED.search(text)
        start = cut.start() if cut and len(text) - cut.start() <= MAX_HELD else len(text)
        self._held = text[start:]
        return sanitize(text[:start])

    def finish(self) -> str:
        text, self._held = self._held, ""
        return sanitize(text)
