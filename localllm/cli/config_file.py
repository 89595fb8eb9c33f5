"""Edits of the config file: one line changes, comments and order stay. The file is replaced whole or not at all."""

import json
import os
import re
from pathlib import Path
from typing import Any

from localllm.settings import config_text, parse_config


def set_in_file(path: Path, name: str, value: Any) -> None:
    """Sets one top-level key; creates file and folder. UsageError when the file is not valid TOML."""
    lines = _lines(path)
    at = _line_of(lines, name)
    line = f"{name} = {_toml_value(value)}"
    if at is None:
        lines.insert(_end_of_top_level(lines), line + "\n")
    else:
        lines[at] = line + _comment_of(lines[at]) + "\n"
    _replace(path, "".join(lines))


def unset_in_file(path: Path, name: str) -> bool:
    """Removes one top-level key; False when the file has none."""
    lines = _lines(path)
    at = _line_of(lines, name)
    if at is None:
        return False
    del lines[at]
    _replace(path, "".join(lines))
    return True


def _lines(path: Path) -> list[str]:
    text = config_text(path)
    parse_config(text, path)
    # not splitlines: it also breaks at characters that TOML takes for text
    return [line + "\n" for line in text.removesuffix("\n").split("\n")] if text else []


def _line_of(lines: list[str], name: str) -> int | None:
    pattern = re.compile(rf"""\s*(?:{name}|"{name}"|'{name}')\s*=""")
    return next((at for at in range(_end_of_top_level(lines)) if pattern.match(lines[at])), None)


def _end_of_top_level(lines: list[str]) -> int:
    return next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))


def _comment_of(line: str) -> str:
    """The remark behind a value with the blanks before it; empty when there is none."""
    found = re.search(r"""=\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'#\s]*)(\s*#.*)$""", line.rstrip("\n"))
    return found[1] if found else ""


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON lets the delete character stand, TOML does not
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else str(value)


def _replace(path: Path, text: str) -> None:
    parse_config(text, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)  # it may hold keys
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk leaves half of it
        raise
