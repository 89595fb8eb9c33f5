"""The words of all chats: an index where SQLite has one, else every message is read. Any text is a valid question."""

from typing import Any

from localllm.history.database import Database
from localllm.history.records import Hit
from localllm.safe_text import one_line

MAX_HITS = 200
SNIPPET_CHARACTERS = 80
_BATCH = 2000

_BY_TITLE = """
    SELECT id, title, updated, NULL, title FROM chats WHERE title LIKE ? ESCAPE '\\'
    ORDER BY updated DESC LIMIT ?
"""
_BY_INDEX = """
    SELECT chats.id, chats.title, chats.updated, messages.id, snippet(words, 0, '', '', '…', 12)
    FROM words JOIN messages ON messages.id = words.rowid JOIN chats ON chats.id = messages.chat_id
    WHERE words MATCH ? ORDER BY chats.updated DESC, messages.id DESC LIMIT ?
"""
_BY_READING = """
    SELECT chats.id, chats.title, chats.updated, messages.id, messages.content
    FROM messages JOIN chats ON chats.id = messages.chat_id
    WHERE messages.content LIKE ? ESCAPE '\\' ORDER BY chats.updated DESC, messages.id DESC LIMIT ?
"""


def search(database: Database, text: str, limit: int = MAX_HITS) -> list[Hit]:
    """Chats with all words of `text`, beginnings of words included; one hit for each, those used last first."""
    wanted = text.replace("\0", "").strip()
    if not wanted:
        return []
    rows = database.rows(_BY_TITLE, like(wanted), limit)
    found = _by_index(database, wanted, limit)
    # words of a language without blanks, and parts of words, are no entries of the index
    rows += found or database.rows(_BY_READING, like(wanted), limit)
    first: dict[int, Hit] = {}
    for row in rows:
        first.setdefault(row[0], _hit(row, wanted))
    return sorted(first.values(), key=lambda hit: -hit.updated)[:limit]


def like(text: str) -> str:
    """A pattern for LIKE that finds `text` anywhere, whatever characters it is made of."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def match(text: str) -> str:
    """A question for the index: every word quoted, so that none is an operator; each may be the beginning of one."""
    return " ".join('"' + word.replace('"', '""') + '"*' for word in text.split())


def catch_up(database: Database) -> None:
    """Takes what was written since the last time into the index; a part at a time, so that others may write, too."""
    if not database.has_index:
        return
    while ids := [row[0] for row in database.rows(f"SELECT message_id FROM unindexed LIMIT {_BATCH}")]:
        with database.writing() as connection:
            marks = ",".join("?" * len(ids))
            connection.execute(f"DELETE FROM words WHERE rowid IN ({marks})", ids)
            connection.execute(
                f"INSERT INTO words (rowid, content) SELECT id, content FROM messages WHERE id IN ({marks})", ids
            )
            connection.execute(f"DELETE FROM unindexed WHERE message_id IN ({marks})", ids)


def _by_index(database: Database, wanted: str, limit: int) -> list[Any]:
    if not database.has_index:
        return []
    catch_up(database)
    return database.rows(_BY_INDEX, match(wanted), limit)


def _hit(row: Any, wanted: str) -> Hit:
    chat_id, title, updated, message_id, text = row
    return Hit(chat_id, title, updated, message_id, _around(one_line(text), wanted))


def _around(text: str, wanted: str) -> str:
    """The part of `text` that holds `wanted`, not longer than a line."""
    if len(text) <= SNIPPET_CHARACTERS:
        return text
    start = max(0, text.lower().find(wanted.lower()) - SNIPPET_CHARACTERS // 3)
    end = start + SNIPPET_CHARACTERS
    return ("…" if start else "") + text[start:end].strip() + ("…" if end < len(text) else "")
