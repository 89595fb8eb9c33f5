"""`localllm embed`: what a terminal and a script get of texts as vectors."""

import json

from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon


def test_a_terminal_gets_the_first_numbers_and_how_near_the_texts_are(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("embed", "tiny", "a cat", "a feline")
    assert outcome.code == 0
    first, second = outcome.out.splitlines()
    assert first.split() == ["0.5000"] * 4 + ["0.0000"] * 4 + ["...", "10", "numbers", "cosine", "1.0000"]
    assert second.split()[1] == "-0.5000" and second.endswith("cosine 0.5000")
    assert daemon.bodies("/v1/embeddings") == [{"model": "tiny", "input": ["a cat", "a feline"]}]


def test_one_text_has_nothing_to_be_near_to(cli: Cli, daemon: FakeDaemon) -> None:
    assert "cosine" not in cli("embed", "tiny", "a cat").out


def test_a_script_gets_the_whole_vectors(cli: Cli, daemon: FakeDaemon) -> None:
    found = json.loads(cli("embed", "tiny", "-", "--json", "--dimensions", "10", stdin="piped").out)
    assert found["model"] == "tiny" and found["dimensions"] == 10 and len(found["embeddings"][0]) == 10
    assert daemon.bodies("/v1/embeddings")[0] == {"model": "tiny", "input": ["piped"], "dimensions": 10}


def test_an_unknown_model_is_named(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("embed", "nope", "a cat")
    assert outcome.code != 0 and "nope" in outcome.err
