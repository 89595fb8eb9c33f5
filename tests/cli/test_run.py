"""`run` without a conversation: what is asked, what is printed where, and how it ends."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

CHAT = "/v1/chat/completions"


def test_one_question_prints_the_answer_and_nothing_else(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("run", "tiny", "Why", "is", "the sky blue?")
    assert (outcome.code, outcome.out, outcome.err) == (0, "Hello there.\n", "")
    assert daemon.bodies(CHAT)[0]["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]


def test_what_a_person_should_know_of_the_backend_is_said_on_stderr(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.ready = {"status": "ready", "notes": ["the cpu backend was passed over: no kernels"]}
    outcome = cli("run", "tiny", "hi")
    assert outcome.out == "Hello there.\n"
    assert outcome.err == "Warning: the cpu backend was passed over: no kernels\n"


def test_what_is_piped_in_goes_before_the_prompt(cli: Cli, daemon: FakeDaemon) -> None:
    cli("run", "tiny", "summarize", stdin="a text")
    assert daemon.bodies(CHAT)[0]["messages"][0]["content"] == "a text summarize"


def test_no_prompt_at_all_is_a_usage_error(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("run", "tiny")
    assert outcome.code == 2 and "there is no prompt" in outcome.err


def test_the_next_step_can_be_typed_as_it_stands(cli: Cli, daemon: FakeDaemon) -> None:
    assert "localllm run './my model.gguf' " in cli("run", "./my model.gguf").err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_json_cannot_say_is_refused_and_not_left_out(cli: Cli, daemon: FakeDaemon, value: str) -> None:
    outcome = cli("run", "tiny", "hi", "--temperature", value)
    assert (outcome.code, outcome.out) == (2, "") and "finite number" in outcome.err


def test_sampling_options_travel_and_absent_ones_do_not(cli: Cli, daemon: FakeDaemon) -> None:
    cli("run", "tiny", "hi", "--temperature", "0", "--seed", "7", "--max-tokens", "8", "--stop", "a", "--stop", "b")
    body = daemon.bodies(CHAT)[0]
    assert (body["temperature"], body["seed"], body["max_tokens"], body["stop"]) == (0, 7, 8, ["a", "b"])
    assert "top_p" not in body and "repetition_penalty" not in body


def test_no_limit_is_ollamas_minus_one_and_other_negative_numbers_are_the_daemons_to_refuse(
    cli: Cli, daemon: FakeDaemon
) -> None:
    cli("run", "tiny", "hi", "--max-tokens", "-1")
    cli("run", "tiny", "hi", "--max-tokens", "-3")
    first, second = daemon.bodies(CHAT)
    assert "max_tokens" not in first and second["max_tokens"] == -3


def test_the_system_message_comes_first_and_keepalive_travels_twice(cli: Cli, daemon: FakeDaemon) -> None:
    cli("run", "tiny", "hi", "--system", "Be brief.", "--keepalive", "1h")
    body = daemon.bodies(CHAT)[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["keep_alive"] == "1h" and daemon.bodies("/localllm/v1/load")[0]["keep_alive"] == "1h"


def test_verbose_prints_ollamas_block_to_stderr(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("run", "tiny", "hi", "--verbose")
    assert outcome.out == "Hello there.\n"
    assert outcome.err == (
        "total duration:       1.234567s\n"
        "load duration:        45.1ms\n"
        "prompt eval count:    26 token(s)\n"
        "prompt eval duration: 130ms\n"
        "prompt eval rate:     200.00 tokens/s\n"
        "eval count:           298 token(s)\n"
        "eval duration:        4.799s\n"
        "eval rate:            62.09 tokens/s\n"
    )


def test_thinking_does_not_enter_a_pipe(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.answers = [[{"reasoning": "hmm"}, {"content": "42"}]]
    assert cli("run", "tiny", "hi").out == "42\n"


def test_escape_sequences_of_a_model_do_not_reach_the_output(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.answers = [[{"content": "a\x1b]52;c;"}, {"content": "aGk=\x07b\u202e"}]]
    assert cli("run", "tiny", "hi").out == "ab\n"


def test_an_error_of_the_daemon_is_one_sentence_with_its_exit_code(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.answers = [[{"error": {"message": "does not fit", "code": "not_enough_memory", "hint": "try another"}}]]
    outcome = cli("run", "tiny", "hi")
    assert (outcome.code, outcome.err) == (5, "Error: does not fit\n  try another\n")


def test_an_answer_that_met_a_limit_nobody_asked_for_does_not_look_whole(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.finish_reason = "length"
    outcome = cli("run", "tiny", "hi")
    assert (outcome.code, outcome.out) == (0, "Hello there.\n")
    assert outcome.err.startswith("Warning: the answer is cut off: ") and "`localllm show tiny`" in outcome.err
    assert cli("run", "tiny", "hi", "--max-tokens", "2").err == "" == cli("-q", "run", "tiny", "hi").err


def test_a_model_that_is_not_here_is_pulled_first(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(invocation: Any, settings: Any, model: str, *, to_run: bool) -> None:
        assert to_run
        daemon.models.add(model)

    monkeypatch.setattr("localllm.cli.pull.pull_model", pull)
    outcome = cli("run", "other", "hi")
    assert (outcome.code, outcome.out) == (0, "Hello there.\n")


def test_a_file_is_named_so_that_a_daemon_elsewhere_finds_it(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    daemon.models = {str(tmp_path / "m.gguf")}
    assert cli("run", "./m.gguf", "hi").code == 0


def test_chat_takes_the_default_model(cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLLM_DEFAULT_MODEL", "tiny")
    assert cli("chat", stdin="hi").out == "Hello there.\n"
    assert daemon.bodies(CHAT)[0]["model"] == "tiny"


def test_how_a_model_is_to_be_open_travels_with_the_load_and_with_the_question(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALLLM_KV_TYPE", "f32")
    wish = {"backend": "torch", "device": "cuda:1", "kv_type": "f32", "threads": 3, "quantize": "q4_0"}
    options = ("--backend", "torch", "--device", "cuda:1", "--threads", "3", "--quantize", "q4_0")
    assert cli("run", "tiny", "hi", *options).code == 0
    assert cli("chat", "tiny", *options, stdin="hi").code == 0
    for path in ("/localllm/v1/load", CHAT):
        assert [wish.items() <= body.items() for body in daemon.bodies(path)] == [True, True]


def test_without_a_wish_a_loaded_model_is_taken_as_it_is(cli: Cli, daemon: FakeDaemon) -> None:
    cli("run", "tiny", "hi")
    for body in (daemon.bodies("/localllm/v1/load")[0], daemon.bodies(CHAT)[0]):
        assert not {"backend", "device", "kv_type", "threads", "quantize"} & body.keys()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--backend", "abacus", "one of auto, cpu, torch, metal, reference"),
        ("--kv-type", "f8", "one of auto, f16, f32"),
        ("--quantize", "q3", "q8_0, q4_0, q4_k"),
    ],
)
def test_what_cannot_be_chosen_is_answered_with_the_choices(
    cli: Cli, daemon: FakeDaemon, option: str, value: str, said: str
) -> None:
    outcome = cli("run", "tiny", "hi", option, value)
    assert outcome.code == 2 and said in outcome.err and daemon.requests == []


@pytest.mark.parametrize("line", [("run", "tiny", "hi"), ("chat", "tiny"), ("serve",)])
def test_an_adapter_that_is_not_there_is_a_sentence_and_a_next_step(
    cli: Cli, daemon: FakeDaemon, line: tuple[str, ...]
) -> None:
    outcome = cli(*line, "--lora", "nope", stdin="hi")
    assert outcome.code == 4 and not daemon.requests
    assert "/nope\n  name the adapter's folder or file" in outcome.err and outcome.err.count("\n") == 2
