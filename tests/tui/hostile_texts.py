"""Texts written to do harm: a fixed corpus, and random mixtures of everything that a terminal could take for more than
text; and the check that what is drawn of them is text of the width it claims."""

import random
import re
from collections.abc import Callable

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip

from localllm.tui.lines import Line
from tests.security.test_terminal import HOSTILE
from tests.test_safe_text import FORBIDDEN

NOT_PLAIN = re.compile(f"[\n\t\u2028\u2029]|{FORBIDDEN.pattern}")
"""What no row of the screen may hold; U+200C, U+200D, variation selectors and combining marks may stand there."""
EMOJI = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f"
CORPUS = (
    *HOSTILE.values(),
    "pass\u200bword\u2060\ufeff\u00ad", "a\U000e0049\U000e0067\U000e007fb", "a\u2028b\u2029c\x85d\x0be\x0cf",
    "e" + "\u0301" * 300, "\u0301\u200d\ufe0f", "\u200d" * 50, "\ufe0f\ufe0e", EMOJI, "\u6f22\u5b57" * 90,
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u05e9\u05dc\u05d5\u05dd", "\ue000\uf8ff\U000f0000\U0010ffff",
    "\ufffe\uffff\U0001fffe", "\u3164\u115f\u1160\uffa0\u034f", "\udcff\udfff", "x" * 4000, "[" * 300, "[[" + "]" * 99,
    "[@click=app.quit]x[/]", "[bold", "[/]", "\\[x]", "$x{y}%s%(z)s{0}", "", " ", "\n", "\r\n", "\x00", "\t\t",
    "`" * 40,
    "| a | b |\n|---|---|\n| \x1b[2J | \u202e |", "```\x1b[2J\n\x1b]0;x\x07\n```", "# \x1b[2J", "[a](\x1b]0;x\x07)",
    "<script>\x9b2J</script>", "&#27;[2J &#x202e; &ZeroWidthSpace;", "![\u202e](data:\x1b[2J)", "- [ ] \x9b2J\n- [x] y",
    "$\u202e$ ~~\x1b~~ **\x9b** _\u200b_", "a\\\nb  \nc<br>\x1bc", "www.\u202eevil.example http://\u200b.x",
)  # fmt: skip
"""Payloads; also what names of objects, markup of Rich and Textual, Markdown and formats of strings make of them."""

_WORDS = (
    "the", "quick", "tokens", "of", "model", "qwen3:4b", "are", "/home/me/x.gguf", "12,345", "\u00dcber", "na\u00efve",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\u6f22\u5b57", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
)  # fmt: skip
_ESCAPES = (
    "\x1b", "\x9b", "\x1b[", "\x1b]", "\x1bP", "\x1b_", "\x1b^", "\x1bX", "\x1b[1;", "\x1b]8;;", "\x1b\\", "\x07",
    "\x9c", "\x90", "\x9d", "m", "H", "J", "0;t", "2004h",
)  # fmt: skip
_MARKUP = (
    "[bold]", "[/bold]", "[/]", "[link=x]", "[@click=f]", "[red on blue]", "[", "]", "\\[", "**", "__", "`", "```",
    "~~",
    "#", ">", "-", "|", "<br>", "&#27;", "](", "![", "(a",
)  # fmt: skip
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_NOTHING = "\u200b\u200c\u200d\u2060\u2061\u2064\ufeff\u00ad\u034f\u180e\u3164\u115f\u206a\ufff9\u17b5"
_MARKS = "\u0301\u0308\u0332\u20dd\u0489\u0e47\u064b\u05b0\u093f\ufe0e\ufe0f\U000e0100\U0001f3fb"
_WIDE = "漢字ｗｉｄｅ한글\U0001f600\U0001f468\U0001f469\u2764\u231a\U0001f1e9\U0001f1ea\u3000\uff5e\ufdfd\u2e3b"
_BREAKS = "\n\r\t\x0b\x0c\x85\u2028\u2029 \u00a0\u2003"


def random_text(dice: random.Random) -> str:
    """Mostly short; one in a hundred is a very long run."""
    if dice.random() < 0.01:
        return _piece(dice) * dice.randint(50, 400) + _piece(dice)
    return "".join(_piece(dice) for _ in range(dice.choice((0, 1, 1, 2, 3, 5, 8, 13))))


def _piece(dice: random.Random) -> str:
    match dice.randrange(11):
        case 0 | 1:
            return dice.choice(_WORDS) + dice.choice(("", " "))
        case 2:
            return "".join(dice.choices(_ESCAPES, k=dice.randint(1, 4)))
        case 3:
            return dice.choice(_MARKUP) + dice.choice(_WORDS) + dice.choice(_MARKUP)
        case 4:
            return chr(dice.choice((*range(0x20), *range(0x7F, 0xA0))))
        case 5:
            return dice.choice(_BIDI) + dice.choice(_WORDS)
        case 6:
            return "".join(dice.choices(_NOTHING + _MARKS, k=dice.randint(1, 3)))
        case 7:
            return "".join(dice.choices(_WIDE, k=dice.randint(1, 4)))
        case 8:
            return dice.choice(_BREAKS)
        case 9:
            return dice.choice(CORPUS)[:80]
        case _:
            return chr(dice.choice((dice.randrange(0x3000), dice.randrange(0x110000), 0xD800 + dice.randrange(0x800))))


class Texts:
    """Gives texts one by one and counts them: those of `given` in turn, else random ones."""

    def __init__(self, seed: int = 1, given: tuple[str, ...] = ()) -> None:
        self.dice, self.given, self.count = random.Random(seed), given, 0

    def __call__(self) -> str:
        self.count += 1
        return self.given[self.count % len(self.given)] if self.given else random_text(self.dice)

    def sendable(self) -> str:
        """Without half pairs: what comes as JSON holds none."""
        return self().encode("utf-8", "replace").decode()

    def raw(self) -> bytes:
        """Bytes of a token, maybe cut in a character."""
        data = self().encode("utf-8", "surrogatepass")
        return data[: self.dice.randint(0, len(data))] if self.dice.random() < 0.3 else data


Drawing = Line | Strip | Callable[[], Line | Strip]


def check(drawn: Line | Strip, width: int | None = None) -> None:
    """`width`: that a row was drawn for; a strip fills it, a line may be shorter."""
    segments: list[Segment] = list(drawn.segments) if isinstance(drawn, Line) else list(drawn)
    text = "".join(segment.text for segment in segments)
    found = NOT_PLAIN.search(text)
    assert found is None, f"not plain: {text[max(0, found.start() - 30) : found.end() + 30]!r}"
    claimed = drawn.width if isinstance(drawn, Line) else drawn.cell_length
    told = sum(cell_len(segment.text) for segment in segments)
    assert told == claimed, f"claims {claimed}, its parts take {told}: {text!r}"
    assert cell_len(text) == claimed, f"claims {claimed}, takes {cell_len(text)}: {text!r}"
    if width is not None:
        assert claimed == width if isinstance(drawn, Strip) else claimed <= width, f"{claimed} for {width}: {text!r}"
