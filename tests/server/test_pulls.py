"""Pulls as the daemon's work: they go on by themselves, some at once, stop when paused and go on when told."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from localllm.daemon.shelf import Shelf
from localllm.errors import DiskFull, ModelNotFound, Overloaded
from localllm.server.pulls import AT_ONCE, MAX_LISTED, Progress, Pulls
from localllm.store.entry import PullEvent

MB = 10**6


class SlowShelf:
    """Pulls ten megabytes, one each time it is let go on; `pulled` are those that came to their end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun: list[str] = []
        self.pulled: list[str] = []
        self.error: Exception | None = None
        self.steps = threading.Semaphore(0)
        self.said = threading.Semaphore(0)

    def pull(self, text: str, progress: Callable[[PullEvent], None]) -> None:
        self.begun.append(text)
        partial = self.folder / f"{text}.partial"
        done = partial.stat().st_size if partial.exists() else 0
        while done < 10 * MB:
            progress(event(text, done, partial))
            self.said.release()
            assert self.steps.acquire(timeout=20)
            if self.error:
                raise self.error
            done += MB
            partial.write_bytes(bytes(done))
        progress(event(text, done, partial))
        partial.unlink()
        self.pulled.append(text)


def event(name: str, done: int, partial: Path | None = None, total: int = 10 * MB) -> PullEvent:
    return PullEvent(
        kind="progress", file=name, completed_bytes=done, total_bytes=total, partial=str(partial) if partial else ""
    )


def pulls_of(shelf: SlowShelf) -> Pulls:
    return Pulls(lambda: cast(Shelf, shelf), shelf.folder / "pulls.json")


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)


async def step(shelf: SlowShelf, times: int = 1) -> None:
    """The pulls take so many megabytes, and are asked for the next."""
    for _ in range(times):
        shelf.steps.release()
        await asyncio.to_thread(shelf.said.acquire, timeout=20)


def test_a_pause_keeps_the_partial_file_and_going_on_begins_there(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        pulls = pulls_of(shelf)
        pull = pulls.start("m")
        await asyncio.to_thread(shelf.said.acquire, timeout=20)
        await step(shelf, 3)
        (shown,) = pulls.listed()
        assert (shown.state, shown.done_bytes, shown.total_bytes) == ("running", 3 * MB, 10 * MB)
        assert pulls.pause(pull.id).shown().state == "paused"
        shelf.steps.release()  # it stops at its next word
        await until(lambda: (tmp_path / "m.partial").stat().st_size == 4 * MB)
        assert pulls.listed()[0].state == "paused" and pulls.listed()[0].bytes_per_s == 0
        assert pulls.resume(pull.id).shown().state == "running"
        await asyncio.to_thread(shelf.said.acquire, timeout=20)
        assert pulls.listed()[0].done_bytes >= 4 * MB and shelf.begun == ["m", "m"]
        for _ in range(10):
            shelf.steps.release()
        await until(lambda: pulls.listed()[0].state == "done")
        assert shelf.pulled == ["m"]

    asyncio.run(main())


def test_a_few_run_at_once_and_the_others_wait_their_turn(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        pulls = pulls_of(shelf)
        names = [f"m{number}" for number in range(AT_ONCE + 2)]
        started = [pulls.start(name) for name in names]
        assert [pull.state for pull in started] == ["running"] * AT_ONCE + ["queued"] * 2
        pulls.pause(started[0].id)
        assert started[AT_ONCE].state == "running", "a place came free"
        for _ in range(200):
            shelf.steps.release()
        await until(lambda: all(pull.state == "done" for pull in started[1:]))
        assert sorted(shelf.pulled) == names[1:]

    asyncio.run(main())


def test_asking_twice_is_one_pull_and_asking_for_a_paused_one_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        pulls = pulls_of(shelf)
        first = pulls.start("Model:1B")
        assert pulls.start("model:1b") is first and len(pulls.listed()) == 1
        pulls.pause(first.id)
        assert pulls.start("model:1b") is first and first.state == "running"
        for _ in range(30):
            shelf.steps.release()
        await until(lambda: first.state == "done")

    asyncio.run(main())


def test_cancelling_deletes_what_was_fetched_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        pulls = pulls_of(shelf)
        pull = pulls.start("m")
        await asyncio.to_thread(shelf.said.acquire, timeout=20)
        await step(shelf, 2)
        pulls.cancel(pull.id)
        assert pulls.listed() == [] and (tmp_path / "m.partial").exists()
        shelf.steps.release()
        await until(lambda: not (tmp_path / "m.partial").exists())
        assert shelf.pulled == []
        with pytest.raises(ModelNotFound):
            pulls.resume(pull.id)

    asyncio.run(main())


def test_a_failure_is_kept_with_its_sentence_until_it_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        shelf.error = DiskFull("4.90 GB are needed, 2.80 GB are free", hint="free some space")
        pulls = pulls_of(shelf)
        pull = pulls.start("m")
        shelf.steps.release()
        await until(lambda: pull.state == "failed")
        (shown,) = pulls.listed()
        assert shown.error is not None
        assert (shown.error.message, shown.error.code, shown.error.hint) == (
            "4.90 GB are needed, 2.80 GB are free", "disk_full", "free some space",
        )  # fmt: skip
        assert pulls.pause(pull.id).state == "failed", "what is over cannot be paused"
        shelf.error = None
        for _ in range(30):
            shelf.steps.release()
        pulls.resume(pull.id)
        assert pulls.listed()[0].error is None
        await until(lambda: pull.state == "done")

    asyncio.run(main())


def test_there_is_an_end_to_the_list(tmp_path: Path) -> None:
    async def main() -> None:
        pulls = pulls_of(SlowShelf(tmp_path))
        for number in range(MAX_LISTED):
            pulls.start(f"m{number}")
        with pytest.raises(Overloaded):
            pulls.start("one-more")
        pulls.close()
        assert {job.state for job in pulls.listed()} == {"paused"}

    asyncio.run(main())


def test_the_next_daemon_finds_what_was_under_way(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = SlowShelf(tmp_path)
        pulls = pulls_of(shelf)
        pulls.start("m")
        await asyncio.to_thread(shelf.said.acquire, timeout=20)
        await step(shelf, 3)
        pulls.close()
        shelf.steps.release()
        again = pulls_of(shelf)
        (shown,) = again.listed()
        assert (shown.model, shown.state, shown.done_bytes, shown.total_bytes) == ("m", "paused", 3 * MB, 10 * MB)
        again.cancel(shown.id)
        await until(lambda: not (tmp_path / "m.partial").exists())
        assert pulls_of(shelf).listed() == []

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"{", b'[{"model": "a b"}]', b'[{"model": 5}]'])
def test_a_list_that_makes_no_sense_is_begun_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pulls.json").write_bytes(content)
    assert pulls_of(SlowShelf(tmp_path)).listed() == []


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress()
    for second in range(20):
        progress.note(event("m", second * MB, Path("x"), 100 * MB), float(second))
    done, total, rate, is_whole = progress.so_far(19.0)
    assert (done, total, is_whole) == (19 * MB, 100 * MB, False) and rate == pytest.approx(MB)
    assert progress.so_far(29.0)[2] < 0.5 * MB, "it stalls"
    progress.begin_again()
    assert progress.so_far(30.0)[2] == 0


def test_files_of_a_repository_are_added_up_but_not_what_is_taken_out_of_a_package() -> None:
    progress = Progress()
    progress.note(event("a", 5 * MB, Path("a")), 0.0)
    progress.note(event("b", 2 * MB, Path("b")), 1.0)
    assert progress.so_far(1.0)[:2] == (7 * MB, 20 * MB)
    package = Progress()
    package.note(event("wheel", 10 * MB), 0.0)
    package.note(event("inside.gguf", MB, None, 9 * MB), 1.0)
    assert package.so_far(1.0)[:2] == (10 * MB, 10 * MB) and package.so_far(1.0)[3]
