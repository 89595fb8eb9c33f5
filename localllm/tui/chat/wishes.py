"""What the person wishes besides answers: models, files, exports, titles, presets; asked for in sheets."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from localllm.errors import LocalLLMError, UsageError
from localllm.history import Attachment
from localllm.history.exports import FORMATS, exported, file_name
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.chat.answers import Answers
from localllm.tui.chat.files import NoTextFile, completions, expanded, read_text_file
from localllm.tui.chat.panel import ChatPanel
from localllm.tui.chat.parameters import Parameter, changed
from localllm.tui.chat.sheets import AskSheet, ConfirmSheet, Option, TextSheet


class Wishes(Answers):
    """Opens sheets, and does what they answer."""

    # ---- model

    async def action_model(self) -> None:
        """Every model of the daemon; the loaded ones first."""
        try:
            names = await self.local.link.ask(lambda client: client.model_names())
        except LocalLLMError as error:
            self.local.complain(error)
            return
        loaded = {name for name, model in self.local.live.models.items() if model.row.state == "ready"}
        names = sorted(set(names), key=lambda name: (name not in loaded, name))
        options = [
            Option(name, "loaded" if name in loaded else "", "●" if name == self.session.model else " ")
            for name in names
        ]

        def suggest(typed: str) -> list[Option]:
            return [option for option in options if typed.lower() in option.value.lower()]

        hint = "type to find one" if options else "no model is on this machine yet: f5 shows those to pull"
        sheet = AskSheet("Model", placeholder=hint, suggest=suggest, is_listed=True, action="use it")
        self.app.push_screen(sheet, self._use_model)

    def _use_model(self, name: str | None) -> None:
        if name:
            with self.guarded():
                self.session.set(model=name)
            self.show_around()

    # ---- files

    def action_attach(self) -> None:
        base = Path.cwd()

        def suggest(typed: str) -> list[Option]:
            return [Option(path, "folder" if path.endswith("/") else "") for path in completions(typed, base)]

        def check(typed: str) -> str:
            try:
                read_text_file(expanded(typed, base))
            except NoTextFile as error:
                return error.message
            return ""

        sheet = AskSheet(
            "Attach a text file",
            placeholder="path of a file",
            suggest=suggest,
            check=check,
            goes_on=lambda typed: typed.endswith("/") and expanded(typed, base).is_dir(),
            action="attach",
        )
        self.app.push_screen(sheet, lambda typed: self._attach_file(expanded(typed, base)) if typed else None)

    def _attach_file(self, path: Path) -> None:
        with self.guarded():
            self.add_file(read_text_file(path))
        self.composer.focus()

    def add_file(self, file: Attachment) -> None:
        self.set_files((*self.files, file))
        self.run_worker(self._count_tokens(file), group="count")

    async def _count_tokens(self, file: Attachment) -> None:
        """How many tokens a file has, from the preview of nothing but it; a chip without them is fine, too."""
        body = {"model": self.session.model, "messages": [], "draft": file.text}
        try:
            preview = await self.local.link.ask(lambda client: client.looking.preview(body))
        except LocalLLMError:
            return
        counted = Attachment(file.name, file.text, preview.parts.draft)
        if file in self.files:
            self.set_files(tuple(counted if each == file else each for each in self.files))

    # ---- the chat

    def action_export(self) -> None:
        if self.session.chat is None:
            self.local.say("there is nothing to export yet")
            return
        chat, base = self.session.chat, Path.cwd()

        def suggest(typed: str) -> list[Option]:
            return [Option(file_name(chat, kind), _KINDS[kind]) for kind in FORMATS] if not typed else []

        def check(typed: str) -> str:
            path = expanded(typed, base)
            if path.suffix.lstrip(".").lower() not in FORMATS:
                return "the name must end in .md, .json or .html"
            return f"{path.name} is there already" if path.exists() else ""

        sheet = AskSheet("Export this chat", placeholder="file to write", suggest=suggest, check=check, action="write")
        self.app.push_screen(sheet, lambda typed: self._export(expanded(typed, base)) if typed else None)

    def _export(self, path: Path) -> None:
        self.run_worker(self._write_export(path, self.session.chat_id), group="export")

    async def _write_export(self, path: Path, chat_id: int) -> None:
        def write() -> None:
            text = exported(self.history, chat_id, path.suffix.lstrip(".").lower())
            try:
                with path.open("x", encoding="utf-8") as file:  # somebody may have been faster
                    file.write(text)
            except OSError as error:
                raise UsageError(f"{path} cannot be written ({error.strerror})") from None

        try:
            await asyncio.to_thread(write)
        except LocalLLMError as error:
            self.local.complain(error)
        else:
            self.local.say(f"wrote {path.name}")

    def rename_chat(self, chat_id: int) -> None:
        with self.guarded():
            title = self.history.chat(chat_id).title
            sheet = AskSheet("Rename this chat", value=title, action="rename")
            self.app.push_screen(sheet, lambda typed: self._rename(chat_id, typed) if typed else None)

    def _rename(self, chat_id: int, title: str) -> None:
        with self.guarded():
            self.history.change_chat(chat_id, title=one_line(title).strip())
            self.session.reload()
            self.show_chats()
            self.show_around()

    def remove_chat(self, chat_id: int) -> None:
        with self.guarded():
            chat = self.history.chat(chat_id)
            count = words.plural(self.history.num_messages(chat_id), "message")
            sentence = f"“{one_line(chat.title)}” and its {count} will be gone for good."
            self.app.push_screen(
                ConfirmSheet("Remove this chat?", sentence, "remove"),
                lambda answer: self._remove(chat_id) if answer else None,
            )

    def _remove(self, chat_id: int) -> None:
        with self.guarded():
            self.writers.stop(chat_id)
            self.history.remove_chat(chat_id)
            if chat_id == self.session.chat_id:
                self.session.begin_anew()
                self.composer.write("")
                self.set_files(())
                self.show_all()
        self.show_chats()
        self.show_around()

    # ---- parameters and system prompt

    def action_system(self) -> None:
        sheet = TextSheet("System prompt", self.session.system, "how the model is to answer")
        self.app.push_screen(sheet, self._set_system)

    def _set_system(self, text: str | None) -> None:
        if text is not None:
            with self.guarded():
                self.session.set(system=text.strip())
            self.show_around()

    def set_parameters(self, parameters: dict[str, Any]) -> None:
        with self.guarded():
            self.session.set(parameters=parameters)
        self.show_around()

    def ask_parameter(self, parameter: Parameter) -> None:
        value = self.session.parameters.get(parameter.field)

        def check(typed: str) -> str:
            try:
                parameter.read(typed)
            except UsageError as error:
                return error.message
            return ""

        text = "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
        sheet = AskSheet(
            f"{parameter.label}: {parameter.tip}",
            value=text,
            placeholder=parameter.text(None),
            check=check,
            action="set",
        )
        self.app.push_screen(
            sheet,
            lambda typed: (
                None
                if typed is None
                else self.set_parameters(changed(self.session.parameters, parameter, parameter.read(typed)))
            ),
        )

    def next_preset(self, step: int) -> None:
        presets = self.session.presets()
        names = [preset.name for preset in presets]
        place = names.index(self.session.preset) if self.session.preset in names else -1 if step > 0 else 0
        self.set_parameters(dict(presets[(place + step) % len(presets)].parameters))

    def ask_preset(self) -> None:
        presets = {preset.name: preset for preset in self.session.presets()}

        def suggest(typed: str) -> list[Option]:
            return [
                Option(name, ", ".join(f"{key} {value}" for key, value in preset.parameters.items()) or "model's own")
                for name, preset in presets.items()
                if typed.lower() in name.lower()
            ]

        sheet = AskSheet("Preset", placeholder="type to find one", suggest=suggest, is_listed=True, action="use it")
        self.app.push_screen(
            sheet, lambda name: self.set_parameters(dict(presets[name].parameters)) if name in presets else None
        )

    def save_preset(self) -> None:
        sheet = AskSheet("Keep these parameters as a preset", placeholder="name", action="keep")
        self.app.push_screen(sheet, self._save_preset)

    def _save_preset(self, name: str | None) -> None:
        if name and name.strip():
            with self.guarded():
                self.history.save_preset(one_line(name).strip(), self.session.parameters)
                self.session.set()
            self.show_around()

    def panel_wanted(self, wanted: ChatPanel.Wanted) -> None:
        if wanted.what == "preset":
            self.next_preset(wanted.step) if wanted.step else self.ask_preset()
        elif wanted.what == "parameter" and wanted.parameter is not None:
            self.ask_parameter(wanted.parameter)
        elif wanted.what == "system":
            self.action_system()
        elif wanted.what == "save":
            self.save_preset()
        elif wanted.what == "branch":
            with self.guarded():
                self.session.show_branch(wanted.message_id)
                self.show_all()

    def pasted(self, text: str) -> None:
        """Much text at once becomes a file: nobody types on in the middle of it."""
        stamp = time.strftime("%H%M%S")
        self.add_file(Attachment(f"pasted-{stamp}.txt", text))
        self.local.say(f"{words.count(len(text))} characters were pasted as a file")


_KINDS = {"md": "Markdown, the branch shown", "json": "all branches and figures", "html": "a page, the branch shown"}
