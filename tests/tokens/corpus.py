# ruff: noqa: RUF001, SIM905 (the corpus is made of strange characters; a list of words is no clearer)
"""More than five thousand lines of everything that tokenizers stumble over, the same on every machine.

Generated from a seed; the code among it is collected from Python's own library.
"""

import json.decoder
import random
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MAX_LINE_CHARS = 4096
_WORDS = (
    "the of and tokenizer don't isn't I'll we've they're o'clock rock'n'roll naïve café über straße Łódź smørrebrød "
    "ΑΒΓ λόγος Привет мир всё שלום مرحبا नमस्ते สวัสดี 你好 世界 日本語 カタカナ 안녕하세요 ქართული Հայերեն ພາສາ ខ្មែរ "
    "မြန်မာ አማርኛ CamelCase snake_case kebab-case SCREAMING_CASE iPhone HTTPServer x86_64 C++ v1.2.3 a/b U.S.A. x@y.org"
).split()
_SEPARATORS = (*[" "] * 12, "  ", ", ", ". ", "; ", " - ", "—", "\t", "\n", "\n\n", "\u00a0", "\u3000", "/", "…", "")
_EMOJI = (
    "😀 😂 🥲 🫠 👍 🚀 🎉 ❤️ ☺︎ ©️ 1️⃣ #️⃣ 👨‍👩‍👧‍👦 👩🏽‍💻 🧑🏿‍🚀 🏳️‍🌈 🏴‍☠️ 🐈‍⬛ 🐻‍❄️ 👁️‍🗨️ 🧔🏻‍♂️ 🤷🏾‍♀️ "
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
).split()
_TONES = ("", "🏻", "🏼", "🏽", "🏾", "🏿")
_MARKED = (
    *("<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "<|endofprompt|>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>", "<|python_tag|>"),
    *("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<0x0A>", "<0xE2>", "[INST]", "[/INST]", "<<SYS>>"),
    *("<repo_name>", "<file_sep>", "<empty_output>", "[PAD7]", "<think>", "</think>", "<tool_call>", "<|call|>"),
)
_CODE = (
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }  // dot\r\n",
    "SELECT t.id, COUNT(*) FROM t LEFT JOIN u ON t.id=u.t_id WHERE u.x<>'it''s' GROUP BY 1;",
    "<div class=\"a b\" id='c'>&amp;&nbsp;<br/></div><!-- x -->",
    "const f = async ({a, b = 1}) => `${a ?? b}` || /^[a-z]+$/gi.test(s);",
    "fn main() -> Result<(), Box<dyn Error>> { let v: Vec<u8> = vec![0; 16]; Ok(()) }",
    '#!/bin/sh\nset -eu\nfor f in *.txt; do grep -qE \'^\\s*#\' "$f" && echo "${f%.*}"; done',
    '{"a": [1, 2.5e-3, null, true], "b": {"c": "\\u00e9\\n"}}',
    "\\begin{equation}\\label{eq:1} \\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt\\pi}{2} \\end{equation}",
    'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("hi")\n}\n',
    'std::map<std::string, std::vector<int>> m{{"k", {1, 2}}}; auto&& [k, v] = *m.begin();',
    "qsort [] = []\nqsort (p:xs) = qsort [x | x<-xs, x<p] ++ [p] ++ qsort [x | x<-xs, x>=p]",
    "key: &anchor\n  - 'one'\n  - !!int \"2\"\n  - >-\n    folded\n",
)
_SPACES = (
    *" " * 6,
    *"\t" * 2,
    *"\n" * 3,
    "\r",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u2028",
    "\x0b",
    "\x0c",
    "\u200b",
    "\x85",
)
_BLOCKS = {
    "cjk": ((0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x3400, 0x3500), (0xAC00, 0xD7A3), (0x1100, 0x11FF), (0xFF01, 0xFFEF)),
    "rtl": ((0x0590, 0x05F4), (0x0600, 0x06FF), (0x0700, 0x074F), (0x200E, 0x200F), (0x202A, 0x202E), (0xFB50, 0xFBFF)),
    "indic": (
        (0x0900, 0x0DFF),
        (0x0E00, 0x0E5B),
        (0x0E80, 0x0EDF),
        (0x0F00, 0x0FFF),
        (0x1000, 0x109F),
        (0x1780, 0x17F9),
    ),
    "any": ((0x20, 0x24F), (0x370, 0x52F), (0x2000, 0x2BFF), (0xA000, 0xABFF), (0xE000, 0xE0FF), (0x10000, 0x1FAFF)),
    "far": ((0x20000, 0x2A6DF), (0xE0000, 0xE01EF), (0x10FFF0, 0x10FFFF), (0xFFF0, 0xFFFF), (0x1D400, 0x1D7FF)),
}


@cache
def lines() -> tuple[str, ...]:
    """At least 5,000 different texts without lone surrogates, none longer than MAX_LINE_CHARS."""
    made = [line for make, count in _MAKERS for line in _made(make, count)]
    collected = [*dict.fromkeys([*made, *_python_code()])]
    return tuple(line[:MAX_LINE_CHARS] for line in collected)


def broken_lines() -> tuple[str, ...]:
    """Texts from bytes that are no UTF-8, as `surrogateescape` reads them."""
    return tuple(raw.decode("utf-8", "surrogateescape") for raw in broken_bytes())


@cache
def broken_bytes() -> tuple[bytes, ...]:
    """Bytes that are no UTF-8: cut characters, overlong forms, surrogates, bytes that begin nothing."""
    dice = random.Random("bytes")
    return tuple(_broken(dice) for _ in range(300))


def _broken(dice: random.Random) -> bytes:
    parts = [dice.choice(_WORDS).encode() for _ in range(dice.randint(1, 6))]
    bad = (
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xf0\x9f\x92",
        b"\x80",
        dice.randbytes(4),
    )
    for _ in range(dice.randint(1, 4)):
        parts.insert(dice.randint(0, len(parts)), dice.choice(bad))
    return b" ".join(parts) if dice.random() < 0.5 else b"".join(parts)


def _made(make: Callable[[random.Random], str], count: int) -> Iterator[str]:
    dice = random.Random(make.__name__)
    return (make(dice) for _ in range(count))


def _prose(dice: random.Random) -> str:
    parts = [dice.choice(_WORDS) + dice.choice(_SEPARATORS) for _ in range(dice.randint(1, 24))]
    return dice.choice(("", "", " ", "  ", "\n")) + "".join(parts)


def _emoji(dice: random.Random) -> str:
    flag = "".join(chr(0x1F1E6 + dice.randrange(26)) for _ in range(dice.randint(1, 5)))
    hand = dice.choice("👋✋👌👆👍👊👏🙏💪") + dice.choice(_TONES)
    parts = [*dice.choices(_EMOJI, k=dice.randint(0, 5)), flag, hand, *dice.choices("\u200d\ufe0f\ufe0e a!", k=2)]
    dice.shuffle(parts)
    return dice.choice(("", " ")).join(parts)


def _accents(dice: random.Random) -> str:
    letters = "aeiouAEIOUncszyéèêñäüåçÉệğıößđłæœđþ가각힣한글はぱガパが"
    marks = "".join(chr(mark) for mark in range(0x300, 0x36F))
    text = "".join(
        dice.choice(letters) + "".join(dice.choices(marks, k=dice.choice((0, 0, 1, 1, 2, 6)))) for _ in range(14)
    )
    form = dice.choice(("NFC", "NFD", "NFKC", "NFKD", None))
    return unicodedata.normalize(form, text) if form else text


def _characters(block: str) -> Callable[[random.Random], str]:
    def make(dice: random.Random) -> str:
        words = []
        for _ in range(dice.randint(1, 8)):
            low, high = dice.choice(_BLOCKS[block])
            words.append("".join(chr(dice.randint(low, high)) for _ in range(dice.randint(1, 9))))
        return dice.choice(("", " ", " 1", "a", "，")).join(words)

    make.__name__ = f"characters_{block}"
    return make


def _code(dice: random.Random) -> str:
    text = dice.choice(_CODE)
    indent = dice.choice(("", "  ", "    ", "\t", "\t\t", " " * 13))
    return (
        textwrap.indent(text, indent) + dice.choice(("", "\n", "\r\n\r\n")) + dice.choice(_CODE)[: dice.randint(0, 60)]
    )


def _gaps(dice: random.Random) -> str:
    runs = [dice.choice(_SPACES) * dice.choice((1, 1, 2, 3, 4, 7, 16, 33, 80, 129)) for _ in range(dice.randint(1, 8))]
    return "".join(run + dice.choice(("", "", "x", "y.", "1", "the", "#")) for run in runs)


def _numbers(dice: random.Random) -> str:
    digits = dice.choice(("0123456789", "0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "½²①Ⅷ〇一二三"))
    numbers = ["".join(dice.choices(digits, k=dice.randint(1, 13))) for _ in range(dice.randint(1, 6))]
    return dice.choice((" ", ",", ".", "-", ":", "e", "x", " + ", "%, $", "/", "'", "")).join(numbers)


def _look_alikes(dice: random.Random) -> str:
    parts = []
    for mark in dice.choices(_MARKED, k=dice.randint(1, 5)):
        near = dice.choice(
            (mark, mark, mark[:-1], mark[1:], mark.upper(), mark.replace("|", "｜"), f"{mark[:2]} {mark[2:]}")
        )
        parts += [near, dice.choice(("", " ", "\n", "user", "x ", " 12", "  "))]
    return "".join(parts)


def _controls(dice: random.Random) -> str:
    odd = [
        chr(code)
        for code in (*range(32), 0x7F, 0x80, 0x9F, 0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFD, 0xFFFE, 0x2581, 0x120)
    ]
    return "".join(
        dice.choice((dice.choice(odd), dice.choice(("a", " ", "word", "1")))) for _ in range(dice.randint(1, 30))
    )


def _replaced(dice: random.Random) -> str:
    return _broken(dice).decode("utf-8", "replace")


def _long(dice: random.Random) -> str:
    alphabet = dice.choice(
        ("a", "ab", "abcdefghij", " ", "=", "-=", "0", "01234567", "é", "漢字", "🐈", "aB1_", "\n ", "ا")
    )
    return "".join(dice.choices(alphabet, k=dice.choice((100, 300, 1000, 3000))))


def _python_code() -> Iterator[str]:
    """Pieces of one to five lines of the standard library."""
    folder = Path(json.decoder.__file__).parent
    for file in (
        folder / "decoder.py",
        folder / "encoder.py",
        folder.parent / "textwrap.py",
        folder.parent / "heapq.py",
    ):
        found = file.read_text(encoding="utf-8").splitlines(keepends=True)
        yield from ("".join(found[start : start + 1 + start % 5]) for start in range(0, len(found), 2))


_MAKERS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (_prose, 1300),
    (_emoji, 400),
    (_accents, 400),
    (_characters("cjk"), 400),
    (_characters("rtl"), 300),
    (_characters("indic"), 400),
    (_characters("any"), 300),
    (_characters("far"), 200),
    (_code, 400),
    (_gaps, 400),
    (_numbers, 400),
    (_look_alikes, 400),
    (_controls, 300),
    (_replaced, 300),
    (_long, 60),
)
