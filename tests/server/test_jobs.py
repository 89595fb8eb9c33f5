"""Long work that several wait for: shared, told to all, stopped when nobody waits any more."""

import asyncio
import threading

import pytest

from localllm.errors import DiskFull, LocalLLMError, Overloaded
from localllm.server.jobs import MAX_JOBS, Job, Jobs, Say
from localllm.store.entry import PullEvent


def status(text: str) -> PullEvent:
    return PullEvent(kind="status", message=text)


async def told(job: Job) -> list[str]:
    with job.watched():
        return [event.message async for event in job.events()]


def test_everyone_who_asks_for_the_same_hears_all_of_it() -> None:
    go_on = threading.Event()

    def work(say: Say) -> None:
        say(status("one"))
        assert go_on.wait(10)
        say(status("two"))

    async def main() -> tuple[list[str], list[str], bool]:
        jobs = Jobs()
        first, second = jobs.join("x", work), jobs.join("x", lambda say: None)
        heard = asyncio.create_task(told(first))
        await first.begun(10)
        late = asyncio.create_task(told(second))
        go_on.set()
        return await heard, await late, jobs.join("x", lambda say: None) is first

    first, second, is_kept = asyncio.run(main())
    assert first == second == ["one", "two"] and not is_kept, "what is over is forgotten"


def test_when_the_last_one_leaves_the_work_stops_at_its_next_word() -> None:
    go_on, ended = threading.Event(), threading.Event()
    words: list[str] = []

    def work(say: Say) -> None:
        try:
            say(status("one"))
            assert go_on.wait(10)
            say(status("two"))
            words.append("went on")
        finally:
            ended.set()

    async def main() -> bool:
        jobs = Jobs()
        job = jobs.join("x", work)
        watchers = [asyncio.create_task(told(job)) for _ in range(2)]
        await job.begun(10)
        for watcher in watchers:
            assert not job.is_abandoned
            watcher.cancel()
            await asyncio.wait({watcher})
        assert job.is_abandoned
        fresh = jobs.join("x", lambda say: None)
        go_on.set()
        return await asyncio.to_thread(ended.wait, 10) and fresh is not job

    assert asyncio.run(main()) and words == []


def test_a_failure_is_everyones() -> None:
    def work(say: Say) -> None:
        raise DiskFull("no room")

    async def main() -> None:
        job = Jobs().join("x", work)
        for _ in range(2):
            with pytest.raises(DiskFull):
                await told(job)
        with pytest.raises(DiskFull):
            await job.begun(10)

    asyncio.run(main())


def test_what_should_not_fail_is_a_sentence() -> None:
    def work(say: Say) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(LocalLLMError, match="failed inside the daemon"):
            await told(Jobs().join("x", work))

    asyncio.run(main())


def test_too_much_at_once_is_refused() -> None:
    go_on = threading.Event()

    async def main() -> None:
        jobs = Jobs()
        running = [jobs.join(str(number), lambda say: go_on.wait(10)) for number in range(MAX_JOBS)]
        with pytest.raises(Overloaded):
            jobs.join("one more", lambda say: None)
        go_on.set()
        for job in running:
            await told(job)
        await told(jobs.join("one more", lambda say: None))

    asyncio.run(main())


def test_progress_is_told_at_its_newest_and_the_end_of_a_file_in_any_case() -> None:
    def work(say: Say) -> None:
        for done in range(1001):
            say(PullEvent(kind="progress", file="f", completed_bytes=done, total_bytes=1000))

    async def main() -> list[int]:
        job = Jobs().join("x", work)
        with job.watched():
            return [event.completed_bytes async for event in job.events()]

    counts = asyncio.run(main())
    assert counts[-1] == 1000 and counts == sorted(counts) and len(counts) < 100
