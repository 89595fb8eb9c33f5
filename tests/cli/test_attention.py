"""`localllm attention`: what a terminal, a script and a file get of a model's attention."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

TEXT = "The cat sat on the mat"


@pytest.fixture
def model(cli: Cli, small_model_home: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("LOCALLLM_HOME", str(small_model_home))
    return cli


def test_a_terminal_gets_a_row_for_each_token(model: Cli) -> None:
    outcome = model("attention", "smollm2:135m", TEXT)
    assert outcome.code == 0
    head, *rows = outcome.out.splitlines()
    assert head == "layer 29, mean of all heads"
    assert [row.split()[0] for row in rows] == ["The", "·cat", "·sat", "·on", "·the", "·mat"]


def test_a_script_gets_the_weights(model: Cli) -> None:
    found = json.loads(model("attention", "smollm2:135m", TEXT, "--layer", "3", "--head", "1", "--json").out)
    assert found["pieces"][1] == " cat" and (found["layer"], found["head"]) == (3, 1)
    assert all(abs(sum(row) - 1) < 1e-4 for row in found["weights"]) and found["weights"][0] == [1, 0, 0, 0, 0, 0]


def test_files_are_written_by_their_endings(model: Cli, tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    assert model("attention", "smollm2:135m", TEXT, "--out", str(page)).code == 0
    assert "Attention of smollm2:135m" in page.read_text()
    refused = model("attention", "smollm2:135m", TEXT, "--out", "map.gif")
    assert refused.code == 2 and "endings: .png, .svg, .html" in refused.err


def test_layers_and_heads_that_are_not_there_are_named(model: Cli) -> None:
    assert "layers: 0 to 29" in model("attention", "smollm2:135m", TEXT, "--layer", "30").err
    assert "heads: 0 to 8" in model("attention", "smollm2:135m", TEXT, "--layer", "0", "--head", "9").err
    assert "--head needs --layer" in model("attention", "smollm2:135m", TEXT, "--head", "1").err
