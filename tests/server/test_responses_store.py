"""Kept responses: whose they are, how long, and how many."""

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from localllm.errors import InvalidRequest, StoreError
from localllm.server import response_store
from localllm.server.response_store import Bounds, ResponseStore, Stored


def stored(name: str, previous: str | None = None, size: int = 10) -> Stored:
    return Stored(name, previous, b"b" * size, b"[]")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


async def test_what_was_put_in_is_found_by_its_owner_alone(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    store.put("ada", partial(stored, "one"))
    assert await store.find("ada", "one") == stored("one")
    assert await store.find("bob", "one") is None and await store.find("ada", "two") is None
    assert not await store.delete("bob", "one") and await store.delete("ada", "one")
    assert await store.find("ada", "one") is None
    store.close()


async def test_nothing_is_written_until_something_is_kept(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    assert await store.find("", "one") is None and not await store.delete("", "one")
    store.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_conversation_is_all_that_led_to_a_response(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    for name, previous in (("one", None), ("two", "one"), ("branch", "one"), ("three", "two")):
        store.put("", partial(stored, name, previous))
    assert [each.id for each in await store.conversation("", "three")] == ["one", "two", "three"]
    assert [each.id for each in await store.conversation("", "branch")] == ["one", "branch"]
    assert await store.conversation("", "nobody") == []
    store.close()


async def test_a_conversation_with_a_hole_is_refused(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    store.put("", partial(stored, "one"))
    store.put("", partial(stored, "two", "one"))
    await store.delete("", "one")
    with pytest.raises(InvalidRequest) as caught:
        await store.conversation("", "two")
    assert caught.value.param == "previous_response_id"
    store.close()


async def test_a_chain_never_leads_to_another_owner(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    store.put("ada", partial(stored, "one"))
    store.put("bob", partial(stored, "two", "one"))
    with pytest.raises(InvalidRequest):
        await store.conversation("bob", "two")
    store.close()


async def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db", Bounds(max_responses=3, trim_every=1), Clock())
    for name in ("one", "two", "three"):
        store.put("", partial(stored, name))
    await store.find("", "one")
    store.put("", partial(stored, "four"))
    assert [name for name in ("one", "two", "three", "four") if await store.find("", name)] == ["one", "three", "four"]
    store.close()


async def test_large_ones_are_bounded_in_bytes(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db", Bounds(max_bytes=3000, trim_every=1), Clock())
    for name in ("one", "two", "three", "four"):
        store.put("", partial(stored, name, size=1000))
    assert [name for name in ("one", "two", "three", "four") if await store.find("", name)] == ["three", "four"]
    store.close()


async def test_old_ones_go(tmp_path: Path) -> None:
    clock = Clock()
    store = ResponseStore(tmp_path / "responses.db", Bounds(max_age_s=100, trim_every=1), clock)
    store.put("", partial(stored, "old"))
    await store.find("", "old")
    clock.now_s += 200
    store.put("", partial(stored, "new"))
    assert await store.find("", "old") is None and await store.find("", "new")
    store.close()


async def test_closing_finishes_what_was_put_in(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    kept = [store.put("", partial(stored, str(number))) for number in range(100)]
    store.close()
    assert all(each.done() and each.exception() is None for each in kept)
    with sqlite3.connect(tmp_path / "responses.db") as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (100,)
    connection.close()


async def test_that_something_can_be_kept_is_tried_out_by_writing(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    await store.ready()
    log = tmp_path / "responses.db-wal"
    before = log.stat().st_size
    await store.ready()
    assert log.stat().st_size > before
    store.close()


NO_DATABASE = b"not a database, but long enough to look like one" * 100


async def test_a_file_that_is_no_database_is_set_aside_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "responses.db"
    path.write_bytes(NO_DATABASE)
    store = ResponseStore(path)
    assert await store.find("", "one") is None
    await store.ready()
    store.put("", partial(stored, "one")).result(10)
    assert await store.find("", "one")
    store.close()
    (kept,) = tmp_path.glob("responses.db.damaged-*")
    assert kept.read_bytes() == NO_DATABASE and kept.name in caplog.text


async def test_damage_that_shows_late_is_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    store = ResponseStore(path)
    for number in range(50):
        store.put("", partial(stored, str(number), size=2000)).result(10)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    again = ResponseStore(path)
    again.put("", partial(stored, "new")).result(10)
    assert await again.find("", "new")
    again.close()
    assert list(tmp_path.glob("responses.db.damaged-*"))


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 999")
    newer.close()
    before = path.read_bytes()
    store = ResponseStore(path)
    for _ in range(2):
        with pytest.raises(StoreError, match="newer localllm"):
            await store.ready()
    store.close()
    assert path.read_bytes() == before


async def test_a_file_that_another_program_holds_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_store, "BUSY_S", 0.0)
    path = tmp_path / "responses.db"
    store = ResponseStore(path)
    await store.ready()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program holds") as refused:
        await store.ready()
    assert "move" not in refused.value.hint
    other.close()
    await store.ready()
    store.close()


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "responses.db").symlink_to(tmp_path / "elsewhere.db")
    store = ResponseStore(tmp_path / "responses.db")
    with pytest.raises(StoreError):
        store.put("", partial(stored, "one")).result(10)
    store.close()
    assert not (tmp_path / "elsewhere.db").exists()
