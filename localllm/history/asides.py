"""What the chats' file keeps besides chats: prompts, presets and drafts; and how values become columns."""

from typing import Any

import msgspec

from localllm.history.database import Database
from localllm.history.records import Attachment, Draft, Preset

DRAFT_OF_NEW = 0
"""In place of a chat's id: the draft of the chat that has no message yet."""
MAX_PROMPTS = 500

_draft = msgspec.json.Decoder(Draft)


class Asides:
    """The part of History that belongs to the person, not to a chat."""

    _database: Database

    def prompts(self, limit: int = MAX_PROMPTS) -> list[str]:
        """What was asked before, the latest first, nothing twice."""
        return [row[0] for row in self._database.rows("SELECT text FROM prompts ORDER BY id DESC LIMIT ?", limit)]

    def remember_prompt(self, text: str) -> None:
        with self._database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO prompts (text) VALUES (?)", (clean(text),))
            connection.execute(
                "DELETE FROM prompts WHERE id NOT IN (SELECT id FROM prompts ORDER BY id DESC LIMIT ?)", (MAX_PROMPTS,)
            )

    def presets(self) -> list[Preset]:
        """By name."""
        rows = self._database.rows("SELECT name, parameters FROM presets ORDER BY name")
        return [Preset(name, parameters_of(text)) for name, text in rows]

    def save_preset(self, name: str, parameters: dict[str, Any]) -> None:
        with self._database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO presets VALUES (?, ?)", (clean(name), json_text(parameters)))

    def remove_preset(self, name: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM presets WHERE name = ?", (name,))

    def draft(self, chat_id: int = DRAFT_OF_NEW) -> Draft:
        rows = self._database.rows("SELECT draft FROM drafts WHERE chat_id = ?", chat_id)
        try:
            return _draft.decode(rows[0][0]) if rows else Draft()
        except msgspec.MsgspecError:
            return Draft()

    def keep_draft(self, chat_id: int, draft: Draft) -> None:
        """An empty one is forgotten."""
        text = json_text(Draft(clean(draft.text), clean_files(draft.attachments)))
        with self._database.writing() as connection:
            if draft != Draft():
                connection.execute("INSERT OR REPLACE INTO drafts VALUES (?, ?)", (chat_id, text))
            else:
                connection.execute("DELETE FROM drafts WHERE chat_id = ?", (chat_id,))


def clean(text: str) -> str:
    """Without the halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def cleaned(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


def json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def clean_files(files: tuple[Attachment, ...]) -> tuple[Attachment, ...]:
    return tuple(Attachment(clean(file.name), clean(file.text), file.num_tokens) for file in files)


def parameters_of(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}
