"""`localllm imatrix` and `localllm eval kl`: what a terminal and a script get."""

import json
from pathlib import Path

import pytest

from localllm.formats.blocks import BlockType
from localllm.quantize.imatrix import read_imatrix
from tests.cli.conftest import Cli
from tests.lab.small_files import TEXT, random_model, rounded


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "random.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "clocks.txt"
    path.write_text(TEXT)
    return path


def test_an_importance_matrix_is_written_once(cli: Cli, base: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.gguf"
    command = ("imatrix", str(base), "--text", str(text), "-o", str(out), "--context", "64")
    done = cli(*command)
    assert done.code == 0 and "14 weights" in done.out
    found = read_imatrix(out)
    assert found.datasets == ("clocks.txt",) and found.chunk_size == 64 and len(found.entries) == 14
    again = cli(*command)
    assert again.code == 2 and "is there already" in again.err
    forced = json.loads(cli(*command, "--force", "--json").out)
    assert (forced["file"], forced["weights"], forced["text"]) == (str(out), 14, "clocks.txt")


def test_a_text_that_is_none_is_refused_before_anything_is_read(cli: Cli, base: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    refused = cli("imatrix", str(base), "--text", str(tmp_path / "bytes"), "-o", str(tmp_path / "x.gguf"))
    assert refused.code == 2 and "not a text file in UTF-8" in refused.err and not (tmp_path / "x.gguf").exists()
    refused = cli("imatrix", str(base), "-o", str(tmp_path))
    assert refused.code == 2 and "is a folder" in refused.err


def test_divergence_is_told_in_lines_and_in_json(cli: Cli, base: Path, text: Path, tmp_path: Path) -> None:
    model = rounded(base, tmp_path / "small.gguf", BlockType.Q4_0)
    options = ("--against", str(base), "--file", str(text), "--context", "64", "--backend", "reference")
    said = cli("eval", "kl", str(model), *options, "--chunks", "1")
    assert said.code == 0
    for words in ("mean KL", "(1 chunk of 64)", "same top", "times", "reads", "relative error", "blk.", "Q4_0"):
        assert words in said.out
    found = json.loads(cli("eval", "kl", str(model), *options, "--json").out)
    assert 0 < found["kl_median"] <= found["kl_p99"] <= found["kl_max"] and found["context"] == 64
    assert found["model"]["size_bytes"] < found["base"]["size_bytes"] and len(found["weights"]["layers"]) == 2
    assert found["weights"]["worst"][0]["type"] == "Q4_0" and 0 < found["same_top"] <= 1


def test_without_a_base_there_is_nothing_to_measure(cli: Cli, base: Path) -> None:
    assert cli("eval", "kl", str(base)).code == 2
