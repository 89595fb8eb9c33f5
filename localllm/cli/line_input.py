"""Lines from the terminal: editing, history and Ctrl-G by readline; texts over several lines in triple quotes."""

import os
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from localllm.cli.files import reason
from localllm.errors import UsageError

HISTORY_LINES = 100
QUOTES = '"""'
EDIT_COMMAND = "/edit"
_EDITOR_HINT = "EDITOR names the program to edit with; a text of several lines also fits between triple quotes"


class LineInput:
    """Reads prompts. `history_file` None keeps no history. Where readline is missing, lines are plain."""

    def __init__(self, history_file: Path | None) -> None:
        self._history_file = history_file
        self._prefill = ""
        try:
            import readline  # not part of every Python
        except ImportError:
            self._readline = None
            return
        self._readline = readline
        self._bind_editor_key()
        self._read_history()

    def read(self, prompt: str) -> str:
        """One line without its newline; a pasted text may hold several. EOFError for Ctrl-D, KeyboardInterrupt."""
        if self._readline and self._prefill:
            self._readline.set_startup_hook(self._insert_prefill)
        try:
            return input(prompt)
        finally:
            if self._readline:
                self._readline.set_startup_hook(None)

    def read_quoted(self, opening: str) -> str:
        """The rest of a text whose first line is `opening`, without its quotes, up to the closing ones."""
        lines = [opening]
        while QUOTES not in lines[-1]:
            lines.append(self.read("... "))
        lines[-1] = lines[-1].partition(QUOTES)[0]
        return "\n".join(lines)

    def edit(self, text: str) -> None:
        """Opens the user's editor on `text`; what is saved stands in the next prompt. UsageError without an editor."""
        command = editor_command()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompt.md"
            path.write_text(text, encoding="utf-8")
            try:
                subprocess.run([*command, str(path)], check=False)
            except OSError as error:
                raise UsageError(f"{command[0]} does not start: {reason(error)}", hint=_EDITOR_HINT) from None
            self._prefill = path.read_text(encoding="utf-8", errors="replace").rstrip("\n")

    def keep_history(self, is_kept: bool) -> None:
        """From now on, lines go to the history or not."""
        if self._readline:
            self._readline.set_auto_history(is_kept)

    def close(self) -> None:
        """Writes the history, for nobody else to read."""
        if self._readline and self._history_file:
            with suppress(OSError):  # a history that cannot be written is no reason to fail at goodbye
                self._history_file.parent.mkdir(parents=True, exist_ok=True)
                self._history_file.touch(mode=0o600)
                self._readline.write_history_file(self._history_file)

    def _read_history(self) -> None:
        assert self._readline
        self._readline.set_history_length(HISTORY_LINES)
        if self._history_file:
            with suppress(OSError):
                self._readline.read_history_file(self._history_file)

    def _bind_editor_key(self) -> None:
        """Ctrl-G sends the line as `/edit LINE`; both kinds of readline can only run such macros of ours."""
        assert self._readline
        if "libedit" in (self._readline.__doc__ or ""):
            self._readline.parse_and_bind(f'bind -s "^G" "^A{EDIT_COMMAND} ^M"')
        else:
            self._readline.parse_and_bind(rf'"\C-g": "\C-a{EDIT_COMMAND} \C-m"')
            self._readline.parse_and_bind("set enable-bracketed-paste on")

    def _insert_prefill(self) -> None:
        assert self._readline
        self._readline.insert_text(self._prefill)
        self._prefill = ""


def editor_command() -> list[str]:
    """LOCALLLM_EDITOR, OLLAMA_EDITOR, VISUAL, EDITOR, or vi. UsageError for one that is no command."""
    names = ("LOCALLLM_EDITOR", "OLLAMA_EDITOR", "VISUAL", "EDITOR")
    wanted = next((os.environ[name] for name in names if os.environ.get(name, "").strip()), "vi")
    try:
        return shlex.split(wanted)
    except ValueError:
        raise UsageError(f"the editor {wanted!r} is no command: a quote is not closed", hint=_EDITOR_HINT) from None


def wants_history() -> bool:
    return not (os.environ.get("LOCALLLM_NOHISTORY") or os.environ.get("OLLAMA_NOHISTORY"))
