"""Files that a command line names: read and written, or one sentence on why not."""

import os
from pathlib import Path

from localllm.errors import UsageError

READ_HINT = "name a text file in UTF-8"
WRITE_HINT = "name a file in a folder that you may write to"


def text_of(path: Path, hint: str = READ_HINT) -> str:
    """A text file's text, or a UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UsageError(f"{path} cannot be read: {reason(error)}", hint=hint) from None


def bytes_of(path: Path, hint: str) -> bytes:
    """All of a file, or a UsageError."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}", hint=hint) from None


def check_target(path: Path) -> None:
    """UsageError where no file can be written: said before the work, not after it. Writes nothing."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name the file to write")
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", hint=f"make it, or {WRITE_HINT}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: permission denied", hint=WRITE_HINT)


def write_text(path: Path, text: str) -> None:
    """UsageError where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}", hint=WRITE_HINT) from None


def reason(error: Exception) -> str:
    """What the system says, as the end of a sentence."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said[:1].lower() + said[1:]
