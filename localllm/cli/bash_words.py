"""The Tab key in bash, for which a colon ends a word: names of models have one."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

ASKED = ("_LOCALLLM_COMPLETE", "complete_bash")


def is_asked() -> bool:
    """Whether bash runs this to complete a line."""
    return os.environ.get(ASKED[0]) == ASKED[1]


def complete(command: Callable[[], object]) -> None:
    """Runs `command` with the words as they were typed, and prints what it completes as bash wants it: what stands
    behind the last colon."""
    words, at = joined(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(at))
    typed = words[at] if at < len(words) else ""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            command()
    finally:
        head = typed[: typed.rfind(":") + 1]
        sys.stdout.writelines(line.removeprefix(head) for line in said.getvalue().splitlines(keepends=True))


def joined(words: Sequence[str], at: int) -> tuple[list[str], int]:
    """Words that belong together, and which of them the cursor is in; `at` is that among those of bash."""
    whole: list[str] = []
    cursor = at
    for index, word in enumerate(words):
        if whole and word and (word.startswith(":") or whole[-1].endswith(":")):
            whole[-1] += word
        else:
            whole.append(word)
        if index == at:
            cursor = len(whole) - 1
    return whole, cursor
