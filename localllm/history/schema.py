"""The tables, and the steps from older files to this one. A step that was published never changes."""

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        system TEXT NOT NULL DEFAULT '',
        parameters TEXT NOT NULL DEFAULT '{}',
        preset TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        updated REAL NOT NULL,
        active_leaf INTEGER
    );
    CREATE INDEX chats_by_time ON chats (updated);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent_id INTEGER,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        reasoning TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        extra TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX shapes ON messages (chat_id, id, parent_id);
    CREATE TABLE tokens (
        message_id INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
        trace BLOB NOT NULL
    );
    CREATE TABLE drafts (chat_id INTEGER PRIMARY KEY, draft TEXT NOT NULL);
    CREATE TABLE prompts (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL UNIQUE);
    CREATE TABLE presets (name TEXT PRIMARY KEY, parameters TEXT NOT NULL);
    CREATE TABLE unindexed (message_id INTEGER PRIMARY KEY);
    CREATE TRIGGER message_written AFTER INSERT ON messages
        BEGIN INSERT OR IGNORE INTO unindexed VALUES (new.id); END;
    CREATE TRIGGER message_changed AFTER UPDATE OF content ON messages
        BEGIN INSERT OR IGNORE INTO unindexed VALUES (new.id); END;
    CREATE TRIGGER message_removed AFTER DELETE ON messages
        BEGIN INSERT OR IGNORE INTO unindexed VALUES (old.id); END;
    """,
)
VERSION = len(STEPS)
INDEX = "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (content, tokenize = 'unicode61 remove_diacritics 2')"
"""The index of all words. Not a step: it is made where SQLite can, and filled from `unindexed` when somebody looks."""
