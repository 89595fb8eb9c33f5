"""The chats of one home: written by whoever talks, read by whoever shows. For several threads and processes."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import ChatNotFound
from localllm.history import searching
from localllm.history.asides import Asides, clean, clean_files, cleaned, json_text, parameters_of
from localllm.history.branch import COLUMNS, Branch, message_of
from localllm.history.database import Database
from localllm.history.records import (
    AnswerStats,
    Attachment,
    Chat,
    Extra,
    Hit,
    Message,
    SampledToken,
)
from localllm.history.tree import Tree
from localllm.safe_text import one_line

TITLE_CHARACTERS = 60

_CHAT = "id, title, model, system, parameters, preset, created, updated, active_leaf"
_CHANGEABLE = ("title", "model", "system", "parameters", "preset", "active_leaf")
_tokens = msgspec.msgpack.Decoder(list[SampledToken])


class History(Asides):
    """Errors of every call: DiskFull, ChatsUnusable; ChatNotFound for an id that is none (any more)."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(path)
        self._clock = clock

    @property
    def path(self) -> Path:
        return self._database.path

    @property
    def notice(self) -> str:
        """A sentence for the person where the file was damaged; else empty."""
        return self._database.notice

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All that is written in the block is one transaction: everything or nothing."""
        with self._database.writing():
            yield

    # ---- chats

    def new_chat(
        self,
        model: str,
        *,
        title: str = "",
        system: str = "",
        parameters: dict[str, Any] | None = None,
        preset: str = "",
        created: float | None = None,
    ) -> Chat:
        now = self._clock() if created is None else created
        with self._database.writing() as connection:
            values = (clean(title), model, clean(system), json_text(parameters or {}), preset, now, now)
            cursor = connection.execute(
                "INSERT INTO chats (title, model, system, parameters, preset, created, updated) VALUES (?,?,?,?,?,?,?)",
                values,
            )
            chat_id = int(cursor.lastrowid or 0)
        return self.chat(chat_id)

    def chat(self, chat_id: int) -> Chat:
        rows = self._database.rows(f"SELECT {_CHAT} FROM chats WHERE id = ?", chat_id)
        if not rows:
            raise ChatNotFound(f"there is no chat {chat_id}")
        return _chat_of(rows[0])

    def chats(self, limit: int = -1) -> list[Chat]:
        """Those used last first."""
        return list(
            map(
                _chat_of,
                self._database.rows(f"SELECT {_CHAT} FROM chats ORDER BY updated DESC, id DESC LIMIT ?", limit),
            )
        )

    def num_chats(self) -> int:
        return int(self._database.rows("SELECT count(*) FROM chats")[0][0])

    def num_messages(self, chat_id: int) -> int:
        """On all branches."""
        return int(self._database.rows("SELECT count(*) FROM messages WHERE chat_id = ?", chat_id)[0][0])

    def latest(self) -> Chat:
        """The chat used last; ChatNotFound when none is kept."""
        for chat in self.chats(1):
            return chat
        raise ChatNotFound("no chat is kept yet", hint="begin one: localllm chat")

    def find(self, words: str) -> Chat:
        """By number, else the one used last whose title has these words."""
        if words.isascii() and words.isdigit() and len(words) < 19:
            return self.chat(int(words))
        query = f"SELECT {_CHAT} FROM chats WHERE title LIKE ? ESCAPE '\\' ORDER BY updated DESC LIMIT 1"
        for row in self._database.rows(query, searching.like(words.strip())):
            return _chat_of(row)
        raise ChatNotFound(f"no chat has {words!r} in its title")

    def change_chat(self, chat_id: int, **fields: Any) -> None:
        """Sets title, model, system, parameters, preset or active_leaf."""
        if unknown := fields.keys() - set(_CHANGEABLE):
            raise TypeError(f"a chat has no {', '.join(sorted(unknown))}")
        values = [json_text(value) if name == "parameters" else cleaned(value) for name, value in fields.items()]
        with self._database.writing() as connection:
            assigned = ", ".join(f"{name} = ?" for name in fields)
            done = connection.execute(f"UPDATE chats SET {assigned} WHERE id = ?", (*values, chat_id))
            if done.rowcount == 0:
                raise ChatNotFound(f"there is no chat {chat_id}")

    def remove_chat(self, chat_id: int) -> None:
        with self._database.writing() as connection:
            if connection.execute("DELETE FROM chats WHERE id = ?", (chat_id,)).rowcount == 0:
                raise ChatNotFound(f"there is no chat {chat_id}")
            connection.execute("DELETE FROM drafts WHERE chat_id = ?", (chat_id,))

    # ---- messages

    def add(
        self,
        chat_id: int,
        parent_id: int | None,
        role: str,
        content: str,
        *,
        reasoning: str = "",
        model: str = "",
        created: float | None = None,
        attachments: tuple[Attachment, ...] = (),
        stats: AnswerStats | None = None,
        origin: str = "",
        tokens: Iterable[msgspec.Struct] = (),
    ) -> Message:
        """A new message below `parent_id`; it becomes the end of the active branch. The first one names the chat, by
        its first line, or by its file where it says nothing."""
        title = title_of(content) or title_of(attachments[0].name if attachments else "")
        now = self._clock() if created is None else created
        extra = _extra_text(Extra(attachments, stats, origin))
        values = (chat_id, parent_id, role, clean(content), clean(reasoning), model, now, extra)
        with self._database.writing() as connection:
            self._check_parent(connection, chat_id, parent_id)
            cursor = connection.execute(
                "INSERT INTO messages (chat_id, parent_id, role, content, reasoning, model, created, extra)"
                " VALUES (?,?,?,?,?,?,?,?)",
                values,
            )
            message_id = int(cursor.lastrowid or 0)
            _write_tokens(connection, message_id, tokens)
            connection.execute(
                "UPDATE chats SET active_leaf = ?, updated = ?, title = CASE title WHEN '' THEN ? ELSE title END"
                " WHERE id = ?",
                (message_id, now, title, chat_id),
            )
        return self.message(message_id)

    def update(
        self,
        message_id: int,
        *,
        content: str,
        reasoning: str = "",
        stats: AnswerStats | None = None,
        tokens: Iterable[msgspec.Struct] = (),
    ) -> Message:
        """The answer so far, or all of it; files and origin stay. `tokens` none: those that are kept stay."""
        kept = self.message(message_id)
        extra = _extra_text(Extra(kept.attachments, stats, kept.origin))
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE messages SET content = ?, reasoning = ?, extra = ? WHERE id = ?",
                (clean(content), clean(reasoning), extra, message_id),
            )
            _write_tokens(connection, message_id, tokens)
        return self.message(message_id)

    def take_back(self, message_id: int) -> int | None:
        """Removes a message that nobody answered; its parent, which is returned, is the end of the branch again."""
        with self._database.writing() as connection:
            kept = self.message(message_id)
            if connection.execute("SELECT 1 FROM messages WHERE parent_id = ?", (message_id,)).fetchone():
                return message_id
            connection.execute("DELETE FROM messages WHERE id = ?", (message_id,))
            connection.execute("UPDATE chats SET active_leaf = ? WHERE active_leaf = ?", (kept.parent_id, message_id))
        return kept.parent_id

    def message(self, message_id: int) -> Message:
        rows = self._database.rows(f"SELECT {COLUMNS} FROM messages WHERE id = ?", message_id)
        if not rows:
            raise ChatNotFound(f"there is no message {message_id}")
        return message_of(rows[0])

    def tokens(self, message_id: int) -> list[SampledToken]:
        """The tokens of an answer, as far as they are known."""
        rows = self._database.rows("SELECT trace FROM tokens WHERE message_id = ?", message_id)
        try:
            return _tokens.decode(rows[0][0]) if rows else []
        except msgspec.MsgspecError:
            return []

    def branch(self, chat_id: int) -> Branch:
        """The active branch, and with it the tree of the whole chat."""
        leaf = self.chat(chat_id).active_leaf
        tree = Tree(self._database.rows("SELECT id, parent_id FROM messages WHERE chat_id = ? ORDER BY id", chat_id))
        return Branch(tree, self._read_messages, leaf if leaf in tree else tree.latest_leaf(None))

    def _read_messages(self, ids: list[int]) -> list[Any]:
        marks = ",".join("?" * len(ids))
        return self._database.rows(f"SELECT {COLUMNS} FROM messages WHERE id IN ({marks})", *ids)

    def _check_parent(self, connection: sqlite3.Connection, chat_id: int, parent_id: int | None) -> None:
        if not connection.execute("SELECT 1 FROM chats WHERE id = ?", (chat_id,)).fetchone():
            raise ChatNotFound(f"there is no chat {chat_id}")
        query = "SELECT 1 FROM messages WHERE id = ? AND chat_id = ?"
        if parent_id is not None and not connection.execute(query, (parent_id, chat_id)).fetchone():
            raise ChatNotFound(f"chat {chat_id} has no message {parent_id}")

    # ---- search

    def search(self, words: str, limit: int = searching.MAX_HITS) -> list[Hit]:
        """Chats that hold all these words; any text is a valid question."""
        return searching.search(self._database, words, limit)


def title_of(text: str) -> str:
    """The first line of a message as the title of its chat."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    title = " ".join(one_line(first).split())
    return title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1].rstrip() + "…"


def _write_tokens(connection: sqlite3.Connection, message_id: int, tokens: Iterable[msgspec.Struct]) -> None:
    """Structs with the fields of SampledToken, in its order: the client has such, too."""
    if trace := list(tokens):
        connection.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?)", (message_id, msgspec.msgpack.encode(trace)))


def _extra_text(extra: Extra) -> str:
    plain = Extra(clean_files(extra.attachments), extra.stats, clean(extra.origin))
    return "" if plain == Extra() else json_text(plain)


def _chat_of(row: Any) -> Chat:
    chat_id, title, model, system, parameters, preset, created, updated, leaf = row
    return Chat(
        id=chat_id,
        title=title,
        model=model,
        system=system,
        parameters=parameters_of(parameters),
        preset=preset,
        created=created,
        updated=updated,
        active_leaf=leaf,
    )
