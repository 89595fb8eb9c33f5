"""What goes to stdout: plain lines, and JSON that is safe to show in a terminal."""

import json
import re
import shutil
import sys
from typing import Any

from localllm.safe_text import INVISIBLE, sanitize

# controls, and what only hides, that JSON lets pass unescaped; inside JSON text they can only stand in strings
_UNSAFE = re.compile(f"[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|{INVISIBLE}")


def print_text(text: str) -> None:
    """Sanitized, with a newline at its end."""
    clean = sanitize(text)
    sys.stdout.write(clean if clean.endswith("\n") else clean + "\n")


def terminal_columns() -> int:
    """Of the terminal that stdout is; 0 where it is none, and lines may be as long as they are."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def print_json(value: Any) -> None:
    """One indented JSON document; keys keep their order."""
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if character <= "\uffff" else json.dumps(character)[1:-1]
