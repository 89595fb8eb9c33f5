"""When models were used and how fast they answered: told by the journal, kept over a restart."""

import time
from pathlib import Path

import pytest

from localllm.daemon.habits import LEAST_TOKENS, Habit, Habits
from localllm.daemon.journal import Journal, Record


def answered(journal: Journal, model: str, tokens: int, seconds: float, *, beside: bool = False) -> Record:
    """One request from its arrival to its end; `beside`: another one comes in the middle."""
    record = journal.open("/v1/chat/completions", model)
    start = record.events[0].at
    record.note("admitted", at=start + 0.1)
    record.note("first_token", at=start + 1.0)
    if beside:
        journal.close(journal.open("/v1/chat/completions", "other"))
    record.note_tokens(tokens, 0.0)
    record.note("finished", at=start + 1.0 + seconds)
    journal.close(record)
    return record


def test_a_long_answer_that_had_the_machine_for_itself_is_a_measurement(tmp_path: Path) -> None:
    journal = Journal()
    habits = Habits(tmp_path / "habits.json", journal)
    before = time.time()
    answered(journal, "m", 101, 2.0)
    assert habits.of("m").tokens_per_s == pytest.approx(50.0) and habits.of("m").used >= before
    answered(journal, "m", 11, 2.0)
    assert habits.of("m").tokens_per_s == pytest.approx(50.0), f"less than {LEAST_TOKENS} tokens say little"
    answered(journal, "m", 101, 20.0, beside=True)
    assert habits.of("m").tokens_per_s == pytest.approx(50.0), "it shared the machine"
    assert habits.of("never") == Habit()


def test_a_refused_request_is_no_use_of_a_model(tmp_path: Path) -> None:
    journal = Journal()
    habits = Habits(tmp_path / "habits.json", journal)
    record = journal.open("/v1/chat/completions", "m")
    record.note("failed", code="context_length_exceeded")
    journal.close(record)
    assert habits.of("m") == Habit()


def test_habits_are_found_again(tmp_path: Path) -> None:
    journal = Journal()
    habits = Habits(tmp_path / "habits.json", journal)
    answered(journal, "m", 101, 2.0)
    habits.save()
    assert Habits(tmp_path / "habits.json", Journal()).of("m") == habits.of("m")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"m": 5}', b"\xff"])
def test_a_damaged_file_is_begun_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "habits.json").write_bytes(content)
    assert Habits(tmp_path / "habits.json", Journal()).of("m") == Habit()


def test_a_home_that_cannot_be_written_to_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    habits = Habits(tmp_path / "file" / "habits.json", Journal())
    habits.save()
    assert habits.of("m") == Habit()
