"""Text files that go with a message: read, or refused in a sentence; and paths completed while they are typed."""

from __future__ import annotations

import os
from pathlib import Path

from localllm.errors import LocalLLMError
from localllm.history import Attachment
from localllm.safe_text import one_line

MAX_BYTES = 4_000_000
"""A million tokens or so: more than any context holds."""
MAX_SHOWN = 200
_SNIFFED = 8192
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class NoTextFile(LocalLLMError):
    """A file that cannot go with a message."""

    code = "no_text_file"


def read_text_file(path: Path) -> Attachment:
    """NoTextFile when it cannot be read, is too large, or holds no text."""
    name = one_line(path.name) or str(path)
    try:
        if path.is_dir():
            raise NoTextFile(f"{name} is a folder", hint="attach the files in it one by one")
        if not path.is_file():
            raise NoTextFile(f"there is no file {name}" if not path.exists() else f"{name} is no plain file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise NoTextFile(
                f"{name} is too large: {size / 1e6:.1f} MB, and {MAX_BYTES / 1e6:.0f} MB go with a message",
                hint="attach the part that matters",
            )
        content = path.read_bytes()
    except OSError as error:
        raise NoTextFile(f"{name} cannot be read ({error.strerror})") from None
    return Attachment(name, _decoded(content, name))


def _decoded(content: bytes, name: str) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:_SNIFFED]:
        raise NoTextFile(f"{name} is no text file", hint="only text can be attached")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise NoTextFile(f"{name} is no text file: it is not UTF-8", hint="only text can be attached") from None


def completions(typed: str, base: Path) -> list[str]:
    """Paths that begin with what was typed, folders with a slash at their end; hidden ones only when asked for."""
    folder_text, _, start = typed.rpartition("/")
    folder = expanded(f"{folder_text}/" if "/" in typed else "", base)
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().startswith(start.lower()) and (start or not entry.name.startswith(".")):
                    is_folder = _is_folder(entry)
                    prefix = f"{folder_text}/" if "/" in typed else ""
                    found.append((not is_folder, f"{prefix}{entry.name}{'/' if is_folder else ''}"))
                if len(found) >= MAX_SHOWN * 10:
                    break
    except (OSError, ValueError):
        return []
    return [path for _, path in sorted(found)][:MAX_SHOWN]


def expanded(typed: str, base: Path) -> Path:
    """A path as a shell would read it."""
    try:
        return base / Path(typed.strip().strip("'\"").replace("\\ ", " ")).expanduser()
    except RuntimeError:  # nobody's home
        return base / typed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
