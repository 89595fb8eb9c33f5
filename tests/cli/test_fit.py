"""`localllm fit`: from a file's header, from the catalog, and what would fit where the wish does not."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def store(cli: Cli, small_model_home: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("LOCALLLM_HOME", str(small_model_home))
    monkeypatch.setattr("localllm.runtime.machine_memory.available_memory_bytes", lambda: 2 * 10**9)
    monkeypatch.setattr("localllm.runtime.machine_memory.total_memory_bytes", lambda: 4 * 10**9)
    return cli


def test_a_model_that_is_here_is_told_from_its_header(store: Cli) -> None:
    outcome = store("fit", "smollm2:135m", "--context", "1000", "--parallel", "2")
    assert outcome.code == 0
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines()[:-1])
    assert lines["page"] == "16 tokens, 0.37 MB"  # 30 layers x 3 heads x 64 x 2 x 2 bytes x 16, and what aligns it
    assert lines["context"].startswith("1,000 tokens for each of 2 chats: ")
    assert lines["memory"] == "2.00 GB of 4.00 GB can be had"
    assert outcome.out.splitlines()[-1].startswith("It fits with ")


def test_a_script_gets_numbers(store: Cli) -> None:
    found = json.loads(store("fit", "smollm2:135m", "--context", "1024", "--json").out)
    assert found["fits"] and found["verdict"] == "fits" and not found["is_estimate"]
    assert found["kv_bytes"] == 64 * found["page_bytes"] and found["weight_bytes"] > 90e6


def test_what_is_not_here_is_estimated_from_the_catalog(store: Cli) -> None:
    found = json.loads(store("fit", "llama3.1:70b", "--json").out)
    assert found["is_estimate"] and found["verdict"] == "too large" and not found["fits"]
    assert "It needs about 48.9 GB" in store("fit", "llama3.1:70b").out


def test_less_is_offered_where_the_wish_is_too_large(store: Cli) -> None:
    told = store("fit", "smollm2:135m", "--context", "8192", "--parallel", "64").out.splitlines()[-1]
    assert told.startswith("That is less than 524,288: --context ") and told.endswith(" fits.")
    context = told.split("--context ")[1].split()[0]
    assert json.loads(store("fit", "smollm2:135m", "--context", context, "--parallel", "64", "--json").out)["fits"]


def test_no_more_is_counted_than_the_model_takes(store: Cli) -> None:
    outcome = store("fit", "smollm2:135m", "--context", "99999999999999999999")
    assert "8,192 tokens: 0.19 GB" in outcome.out and "takes no more than 8,192 tokens" in outcome.out
    most, beyond = (json.loads(store("fit", "smollm2:135m", "--json", "--context", n).out) for n in ("8192", "9" * 20))
    assert most["resident_bytes"] == beyond["resident_bytes"] and most["kv_bytes"] == beyond["kv_bytes"]


def test_a_name_that_nobody_knows_is_a_sentence_and_a_next_step(cli: Cli) -> None:
    outcome = cli("fit", "no-such-model:1b")
    assert outcome.code == 4 and "nobody knows how large" in outcome.err and "\n  `localllm search" in outcome.err


def test_a_path_that_leads_nowhere_is_called_that(cli: Cli) -> None:
    outcome = cli("fit", "./absent.gguf")
    assert outcome.code == 4 and "absent.gguf" in outcome.err and "how large" not in outcome.err
    assert outcome.err.count("\n") == 2
