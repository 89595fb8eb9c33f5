"""Text sides of models that are not loaded: read once, shared, put away again, whatever becomes of who asked."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from localllm.daemon.residency import Residency
from localllm.daemon.texts import Texts
from localllm.errors import BadModelFile
from localllm.store.entry import Entry
from tests.daemon.toy import toy_entry

T = TypeVar("T")
ONE, TWO = toy_entry("toy:1b"), toy_entry("toy:2b")


class FakeResidency:
    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)


class Shelf:
    """Loads text sides that count how they fare."""

    def __init__(self, kept_s: float = 60.0) -> None:
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.error: Exception | None = None
        self.texts = Texts(cast(Residency, FakeResidency()), self.load, kept_s)

    def load(self, entry: Entry) -> Any:
        self.may_load.wait(10)
        self.loaded.append(entry.name)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(template=SimpleNamespace(close=lambda: self.closed.append(entry.name)))

    async def use(self, entry: Entry) -> None:
        async with self.texts.using(entry) as text:
            assert text is not None


async def test_one_is_kept_until_another_is_wanted() -> None:
    shelf = Shelf()
    for entry in (ONE, ONE, TWO):
        await shelf.use(entry)
    assert (shelf.loaded, shelf.closed) == (["toy:1b", "toy:2b"], ["toy:1b"])
    shelf.texts.close()
    assert shelf.closed == ["toy:1b", "toy:2b"]


async def test_what_nobody_uses_is_put_away_after_a_while() -> None:
    shelf = Shelf(kept_s=0.0)
    await shelf.use(ONE)
    async with asyncio.timeout(5):
        while not shelf.closed:
            await asyncio.sleep(0)
    await shelf.use(ONE)
    assert shelf.loaded == ["toy:1b", "toy:1b"]
    shelf.texts.close()


async def test_who_leaves_while_it_is_read_leaves_nothing_behind() -> None:
    shelf = Shelf()
    shelf.may_load.clear()
    asking = asyncio.create_task(shelf.use(ONE))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    shelf.may_load.set()
    await shelf.use(ONE)
    assert shelf.loaded == ["toy:1b"], "it was read on for the next one"
    shelf.texts.close()
    assert shelf.closed == ["toy:1b"]


async def test_one_that_is_still_read_at_the_end_is_put_away_when_it_is_there() -> None:
    shelf = Shelf()
    shelf.may_load.clear()
    asking = asyncio.create_task(shelf.use(ONE))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    shelf.texts.close()
    shelf.may_load.set()
    async with asyncio.timeout(5):
        while not shelf.closed:
            await asyncio.sleep(0)


async def test_a_file_that_could_not_be_read_is_tried_again() -> None:
    shelf = Shelf()
    shelf.error = BadModelFile("broken")
    with pytest.raises(BadModelFile):
        await shelf.use(ONE)
    shelf.error = None
    await shelf.use(ONE)
    assert shelf.loaded == ["toy:1b", "toy:1b"]
    shelf.texts.close()
