"""The file under bad weather: other processes, a full disk, damage, newer versions, other people."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from localllm.errors import ChatsUnusable, DiskFull, LocalLLMError
from localllm.history import History
from localllm.history.database import in_our_words
from localllm.history.schema import VERSION

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from localllm.history import History
history = History(Path(sys.argv[1]))
for place in range(50):
    chat = history.new_chat("tiny", title=f"{sys.argv[2]} {place}")
    history.add(chat.id, None, "user", "hello")
"""


def test_only_the_owner_may_read_what_is_kept(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        history = History(tmp_path / "home" / "chats.db")
        history.new_chat("tiny")
    finally:
        os.umask(old)
    for file in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    history.close()


def test_two_processes_write_at_the_same_time_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], env=environment) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    history = History(path)
    assert sorted(chat.title for chat in history.chats()) == sorted(f"{n} {i}" for n in "ab" for i in range(50))
    history.close()


def test_threads_share_one_history(history: History) -> None:
    chat = history.new_chat("tiny")

    def write(name: str) -> None:
        for place in range(30):
            history.add(chat.id, None, "user", f"{name} {place}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history.num_messages(chat.id) == 90


@pytest.mark.parametrize("damage", ["no database at all " * 400, ""], ids=["other bytes", "a hole"])
def test_a_damaged_file_is_set_aside_and_said_to_be(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "chats.db"
    first = History(path)
    chat = first.new_chat("tiny")
    first.add(chat.id, None, "user", "text " * 4000)
    first.close()
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(damage.encode() or bytes(content))
    again = History(path)
    assert again.chats() == [] and "was damaged" in again.notice
    (kept,) = tmp_path.glob("chats.db.damaged-*")
    assert str(kept) in again.notice and kept.stat().st_size > 4096
    again.new_chat("tiny")
    again.close()
    healthy = History(path)
    assert healthy.notice == "" and healthy.num_chats() == 1
    healthy.close()


def test_damage_that_shows_late_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    first = History(path)
    chat = first.new_chat("tiny")
    for _ in range(40):
        first.add(chat.id, None, "user", "text " * 4000)
    first.close()
    content = bytearray(path.read_bytes())
    for start in range(40 * 4096, len(content) - 30 * 4096, 4096):
        content[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    again = History(path)
    with pytest.raises(ChatsUnusable, match="is damaged") as caught:
        for message in again.branch(chat.id):
            again.update(message.id, content="x")
        again.search("text")
    assert caught.value.hint
    again.close()


def test_a_full_disk_is_said_and_loses_nothing(history: History) -> None:
    chat = history.new_chat("tiny")
    kept = history.add(chat.id, None, "user", "kept")
    pages = history._database.rows("PRAGMA page_count")[0][0]
    history._database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull):
        history.add(chat.id, kept.id, "assistant", "x" * 100_000)
    assert list(history.branch(chat.id)) == [kept] and history.chat(chat.id).active_leaf == kept.id
    history._database.rows("PRAGMA max_page_count = 1000000")
    history.add(chat.id, kept.id, "assistant", "x" * 100_000)
    assert len(history.branch(chat.id)) == 2


@pytest.mark.parametrize(("free_bytes", "kind"), [(0, DiskFull), (1 << 30, ChatsUnusable)])
def test_a_disk_too_full_to_open_the_file_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, kind: type[LocalLLMError]
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE  # SQLite's own words for both
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    found = in_our_words(error, tmp_path / "chats.db")
    assert type(found) is kind and found.hint


def test_a_whole_is_written_or_nothing_of_it(history: History) -> None:
    with pytest.raises(RuntimeError), history.together():
        history.new_chat("tiny")
        raise RuntimeError
    assert history.num_chats() == 0


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    History(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ChatsUnusable, match="newer"):
        History(path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*damaged*"))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChatsUnusable, match="cannot be opened"):
        History(tmp_path / "file" / "chats.db")
    (tmp_path / "chats.db").mkdir()
    with pytest.raises(ChatsUnusable, match="cannot be opened"):
        History(tmp_path / "chats.db")
