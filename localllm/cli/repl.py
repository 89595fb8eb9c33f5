"""The conversation in a terminal: prompts, answers and slash commands."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from localllm.cli.answer import Answer, Look, stats_text, stream_answer, warn_if_cut
from localllm.cli.asking import FORMAT, format_fields, thinking_fields, thinking_refused
from localllm.cli.connect import as_seen_by_daemon
from localllm.cli.conversation import Conversation
from localllm.cli.failures import next_step, system_sentence
from localllm.cli.human import aligned
from localllm.cli.library import list_table, open_library
from localllm.cli.line_input import EDIT_COMMAND, QUOTES, LineInput, wants_history
from localllm.cli.output import print_text
from localllm.cli.repl_help import HELP, SET_HELP, SHORTCUTS_HELP, SHOW_HELP
from localllm.errors import DaemonUnreachable, InvalidApiKey, LocalLLMError, ModelNotFound, UsageError
from localllm.safe_text import sanitize

if TYPE_CHECKING:
    from localllm.cli.keeping import Keeper
    from localllm.client import Client
    from localllm.settings import Settings

GREETING = "Send a message (/? for help)"
LEAVE_HINT = "Use Ctrl + d or /bye to exit."


class Repl:
    """One conversation. `talk` returns when the person leaves; errors are said and the conversation goes on."""

    def __init__(
        self,
        settings: "Settings",
        client: "Client",
        conversation: Conversation,
        look: Look,
        *,
        connect: Callable[[Conversation], "Client"],
        load_model: Callable[["Client", Conversation], None],
        keeper: "Keeper | None" = None,
        is_verbose: bool = False,
    ) -> None:
        self._settings, self._client, self._connect, self._load_model = settings, client, connect, load_model
        self._keeper = keeper
        self._conversation, self._look, self._is_verbose = conversation, look, is_verbose
        self._lines = LineInput(settings.repl_history_file if wants_history() else None)
        self._commands: dict[str, Callable[[str], None]] = {
            "/?": self._help,
            "/help": self._help,
            "/set": self._set,
            "/show": self._show,
            "/list": self._list,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            EDIT_COMMAND: self._lines.edit,
        }

    def talk(self) -> None:
        """Reads and answers until /bye, /exit or Ctrl-D."""
        self._note(GREETING)
        try:
            while (text := self._next_text()) is not None:
                self._guarded(text)
        finally:
            self._lines.close()

    def _next_text(self) -> str | None:
        """A message or a command; None at the end. Empty lines are nothing."""
        try:
            line = self._lines.read(">>> ")
            word, _, rest = line.strip().partition(" ")
            if word in ("/bye", "/exit"):
                return None
            opening = rest.removeprefix("system").strip() if word == "/set" else line.strip()
            if opening.startswith(QUOTES):
                quoted = self._lines.read_quoted(opening.removeprefix(QUOTES))
                return f"/set system {quoted}" if word == "/set" else quoted
            return line.strip()
        except KeyboardInterrupt:
            sys.stdout.write(f"\n{LEAVE_HINT}\n")
            return ""
        except EOFError:
            sys.stdout.write("\n")
            return None

    def _guarded(self, text: str) -> None:
        try:
            self._act(text)
        except LocalLLMError as error:
            self._tell(error.message, next_step(error))
        except BrokenPipeError:
            raise
        except OSError as error:  # such as a full disk: no reason to lose the conversation
            self._tell(*system_sentence(error))
        except KeyboardInterrupt:
            sys.stdout.write("\n")

    def _tell(self, message: str, hint: str) -> None:
        sys.stderr.write(f"error: {sanitize(message)}\n" + (f"  {sanitize(hint)}\n" if hint else ""))

    def _act(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/") and "/" not in word[1:]:
            print_text(f"Unknown command '{word}'. Type /? for help")
        elif text:
            self._answer(text)

    def _answer(self, text: str) -> None:
        self._conversation.say("user", text)
        if self._keeper:
            self._keeper.asked(self._conversation, text)
        answer = Answer()
        try:
            with thinking_refused("this model cannot: say /set nothink"):
                self._stream(answer)
        except LocalLLMError:
            if not answer.text:
                self._conversation.messages.pop()  # so that the question can be asked again
            raise
        finally:
            if answer.text:
                self._conversation.say("assistant", answer.text)
            if self._keeper:
                self._keeper.answered(self._conversation, answer)
        warn_if_cut(answer, self._conversation)
        if self._is_verbose and answer.timings:
            sys.stderr.write(stats_text(answer.timings))

    def _stream(self, answer: Answer) -> None:
        """A daemon that has ended, or was started anew with other keys, is found again, or started: once."""
        try:
            stream_answer(self._client, self._conversation.body(), self._look, answer)
        except (DaemonUnreachable, InvalidApiKey):
            if answer.text or answer.reasoning:
                raise
            self._client = self._connect(self._conversation)
            stream_answer(self._client, self._conversation.body(), self._look, answer)

    # ---- slash commands

    def _help(self, topic: str) -> None:
        texts = {"set": SET_HELP, "show": SHOW_HELP, "shortcuts": SHORTCUTS_HELP}
        sys.stderr.write(texts.get(topic.removeprefix("/"), HELP))

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        setters: dict[str, Callable[[str], None]] = {
            "parameter": self._set_parameter,
            "system": self._set_system,
            "format": self._set_format,
            "noformat": self._set_no_format,
            "think": self._set_think,
            "nothink": self._set_nothink,
        }
        if what in setters:
            setters[what](value.strip())
        elif what in self._modes():
            self._modes()[what]()
            print_text(f"Set '{what}' mode.")
        else:
            unknown = f"Unknown command '/set {sanitize(what)}'. Type /? set for help\n"
            sys.stderr.write(unknown if what else SET_HELP)

    def _modes(self) -> dict[str, Callable[[], None]]:
        return {
            "history": lambda: self._lines.keep_history(True),
            "nohistory": lambda: self._lines.keep_history(False),
            "wordwrap": lambda: self._wrap(True),
            "nowordwrap": lambda: self._wrap(False),
            "verbose": lambda: self._be_verbose(True),
            "quiet": lambda: self._be_verbose(False),
        }

    def _set_parameter(self, rest: str) -> None:
        words = rest.split()
        if len(words) < 2:
            sys.stderr.write(SET_HELP)
            return
        name, values = words[0], words[1:]
        self._conversation.set_parameter(name, values)
        print_text(f"Set parameter '{name}' to '{', '.join(values)}'")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text.removesuffix(QUOTES)
        print_text("Set system message.")

    def _set_format(self, text: str) -> None:
        fields = format_fields(text, "/set format")
        if not fields:
            raise UsageError("there is no format", hint="for JSON say /set format json, for any text /set noformat")
        self._conversation.extras.update(fields)
        print_text("Set format to 'json' mode." if text == "json" else "Set format to a JSON schema.")

    def _set_no_format(self, _: str) -> None:
        self._conversation.extras.pop(FORMAT, None)
        print_text("Disabled format.")

    def _set_think(self, level: str) -> None:
        self._conversation.extras.update(thinking_fields(level))
        print_text(f"Set 'think' mode to '{level}'." if level else "Set 'think' mode.")

    def _set_nothink(self, _: str) -> None:
        self._conversation.extras.update(thinking_fields("false"))
        print_text("Set 'nothink' mode.")

    def _wrap(self, is_on: bool) -> None:
        columns = shutil.get_terminal_size().columns if is_on else 0
        self._look = dataclasses.replace(self._look, wrap_columns=columns)

    def _be_verbose(self, is_on: bool) -> None:
        self._is_verbose = is_on

    def _show(self, part: str) -> None:
        from localllm.cli.show import PARTS, info_text, part_text  # the store: only when asked for

        if part != "info" and part not in PARTS:
            sys.stderr.write(SHOW_HELP)
            return
        if part == "parameters":
            text = self._parameters()
        elif part == "system" and self._conversation.system:
            text = self._conversation.system
        else:
            entry = open_library(self._settings).find(self._conversation.model)
            text = info_text(entry) if part == "info" else part_text(entry, part)
        print_text(text or f"No {part} was specified for this model.")

    def _parameters(self) -> str:
        """Those in force: the model's own, and over them what was set here. Of a model elsewhere only the latter."""
        from localllm.cli.show import parameter_rows  # as above

        own = self._conversation.parameters
        try:
            models = open_library(self._settings).find(self._conversation.model).params
        except ModelNotFound:
            if not own:
                raise
            models = {}
        rows = parameter_rows({**models, **own})
        return aligned(rows) if rows else ""

    def _list(self, _: str) -> None:
        print_text(list_table(open_library(self._settings).entries(), time.time()))

    def _load(self, model: str) -> None:
        if not model:
            sys.stderr.write(HELP)
            return
        new = Conversation(
            as_seen_by_daemon(model), parameters=self._conversation.parameters, extras=self._conversation.extras
        )
        print_text(f"Loading model '{model}'")
        self._load_model(self._client, new)
        self._conversation = new
        self._begin_anew()

    def _save(self, name: str) -> None:
        if not name:
            sys.stderr.write(HELP)
            return
        from localllm.cli.saving import save_conversation  # the store: only when asked for

        save_conversation(self._settings, self._conversation, name)
        print_text(f"Created new model '{name}'")

    def _clear(self, _: str) -> None:
        self._conversation.messages.clear()
        self._begin_anew()
        print_text("Cleared session context")

    def _begin_anew(self) -> None:
        if self._keeper:
            self._keeper.begin_anew()

    def _note(self, text: str) -> None:
        sys.stdout.write(f"\x1b[2m{text}\x1b[0m\n" if self._look.has_color else f"{text}\n")
