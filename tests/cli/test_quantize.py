"""`localllm quantize`: plans before, receipts after, and a sentence for everything that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest

from localllm.formats.gguf_read import GGUFFile
from tests.cli.conftest import Cli
from tests.road.tiny_llama import make_tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", **WIDE)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALLLM_BACKEND", "reference")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_plan_has_groups_sizes_and_bits_and_writes_nothing(cli: Cli, folder: Path, tmp_path: Path) -> None:
    told = cli("quantize", str(folder), "Q4_k_M", "--dry-run")
    assert told.code == 0 and "blk.*.ffn_up.weight" in told.out and "bits per weight" in told.out
    plan = json.loads(cli("quantize", str(folder), "q4_k_m", "--dry-run", "--json").out)
    assert plan["type"] == "Q4_K_M" and plan["size_bytes"] < plan["source_bytes"] and plan["about_s"] >= 0
    assert sum(group["size_bytes"] for group in plan["groups"]) == plan["size_bytes"]
    assert {group["to"] for group in plan["groups"]} == {"Q4_K", "Q6_K", "F32"}
    assert sum(group["count"] for group in plan["groups"]) == 12
    assert not list(tmp_path.iterdir())


def test_a_file_has_the_planned_size_and_its_receipt_is_shown(cli: Cli, folder: Path, tmp_path: Path) -> None:
    made = json.loads(cli("quantize", str(folder), "q5_0", "-o", "a.gguf", "--json").out)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert sum(each.size_bytes for each in file.tensors.values()) == made["size_bytes"]
    assert made["receipt"]["recipe"] == "Q5_0" and made["file_bytes"] == (tmp_path / "a.gguf").stat().st_size
    shown = cli("show", "./a.gguf").out
    assert "Quantized here" in shown and "Q5_0 (" in shown and "weight error" in shown and "rounded to nearest" in shown
    fields = json.loads(cli("show", "./a.gguf", "--json").out)["receipt"]
    assert fields["source"] == "tiny" and 0 < fields["error"] < 0.1 and len(fields["layers"]) == 1
    refused = cli("quantize", str(folder), "q5_0", "-o", "a.gguf")
    assert refused.code == 2 and "is there already" in refused.err and "--force" in refused.err
    assert cli("quantize", str(folder), "q4_0", "-o", "a.gguf", "--force").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.gguf"]


def test_a_path_without_a_name_becomes_a_file_where_one_works(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("quantize", str(folder), "q8_0").code == 0
    assert (tmp_path / "tiny-Q8_0.gguf").exists()


def test_a_name_is_a_model_of_the_store(cli: Cli, folder: Path) -> None:
    assert cli("quantize", str(folder), "q8_0", "-o", "mine:v1").code == 0
    assert "mine:v1" in cli("list").out
    told = cli("quantize", "mine:v1", "q4_0", "--dry-run")
    assert told.code == 0  # to look at a plan is no harm
    refused = cli("quantize", "mine:v1", "q4_0")
    assert refused.code == 2 and "--allow-requantize" in refused.err
    made = cli("quantize", "mine:v1", "q4_0", "--allow-requantize")
    assert made.code == 0 and made.out.startswith("mine:v1-q4_0 ")
    assert json.loads(cli("show", "mine:v1-q4_0", "--json").out)["receipt"]["source"] == "mine:v1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("q9_k",), "no quantization 'q9_k'"),
        ((), "no type is named"),
        (("q4_0", "--method", "magic"), "no method 'magic'"),
        (("q4_0", "--keep", "attn_v"), "is not REGEX=TYPE"),
        (("q4_0", "--keep", "nothing=q8_0", "-o", "x.gguf"), "no weight"),
        (("q4_0", "-o", "no/such/folder/x.gguf"), "does not exist"),
        (("q4_0", "-o", "bad name!"), "bad name"),
        (("q4_0", "--imatrix", "none.gguf"), "none.gguf"),
        (("q4_0", "--calibrate", "none.txt"), "cannot be read"),
        (("q4_0", "--imatrix", "a", "--calibrate", "b"), "say the same"),
        (("mlx-4bit", "--pure"), "neither recipes nor calibration"),
        (("mlx-4bit", "--group", "48"), "32 or 64"),
        (("mlx-4bit", "-o", "x.gguf"), "names a file"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    cli: Cli, folder: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    refused = cli("quantize", str(folder), *arguments)
    assert refused.code != 0 and sentence in refused.err and "unexpected" not in refused.err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".gguf" or "partial" in path.name]


def test_force_replaces_no_file_of_the_model_itself(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("convert", str(folder), "-o", "a.gguf").code == 0
    (tmp_path / "b.gguf").symlink_to("a.gguf")
    before = (tmp_path / "a.gguf").read_bytes()
    for name in ("a.gguf", "b.gguf"):
        refused = cli("quantize", "./a.gguf", "q4_0", "--force", "-o", name)
        assert refused.code == 2 and name in refused.err and "a file of the model itself" in refused.err
    assert (tmp_path / "a.gguf").read_bytes() == before


def test_models_that_are_not_there_are_named(cli: Cli) -> None:
    for name in ("nothing:here", "./nothing.gguf"):
        refused = cli("quantize", name, "q4_0")
        assert refused.code == 4 and "nothing" in refused.err


def test_calibration_is_told_in_the_receipt(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("What the inputs are like, a text tells. " * 40)
    for method, name in (("rtn", "a.gguf"), ("gptq", "b.gguf")):
        told = cli("quantize", str(folder), "q4_0", "--calibrate", "text.txt", "--method", method, "-o", name)
        assert told.code == 0, told.err
        receipt = json.loads(cli("show", f"./{name}", "--json").out)["receipt"]
        assert receipt["imatrix"] == "text.txt" and receipt["method"] == method
    with GGUFFile.open(tmp_path / "a.gguf") as a, GGUFFile.open(tmp_path / "b.gguf") as b:
        assert not np.array_equal(a.raw("blk.0.attn_q.weight"), b.raw("blk.0.attn_q.weight"))


def test_mlx_is_a_folder_that_is_not_overwritten(cli: Cli, folder: Path, tmp_path: Path) -> None:
    plan = json.loads(cli("quantize", str(folder), "mlx-4bit", "--group", "32", "--dry-run", "--json").out)
    assert plan["type"] == "mlx-4bit" and not (tmp_path / "m").exists()
    assert cli("quantize", str(folder), "MLX-4bit", "--group", "32", "-o", "m").code == 0
    assert "MLX 4-bit" in cli("show", "./m").out
    assert json.loads((tmp_path / "m" / "config.json").read_text())["quantization"]["bits"] == 4
    assert (tmp_path / "m" / "tokenizer.json").exists()
    assert "is there already" in cli("quantize", str(folder), "mlx-8bit", "-o", "m").err
    cli("quantize", str(folder), "q8_0", "-o", "a.gguf")
    assert "made of safetensors" in cli("quantize", "./a.gguf", "mlx-4bit", "-o", "n").err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_types_are_compared_in_a_table_and_a_plot_and_none_is_kept(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("So far apart are two models of one kind. " * 150)
    told = cli("quantize", str(folder), "--compare", "q4_0,Q8_0,q4_0", "--text", "text.txt")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].split()[0] == "TYPE" and [line.split()[0] for line in lines[1:3]] == ["Q4_0", "Q8_0"]
    assert any("KL, nats" in line for line in lines) and "a Q4_0   b Q8_0" in told.out
    assert not [path for path in tmp_path.rglob("*.gguf")] and not (tmp_path / "home" / "store" / "compare").exists()


def test_comparing_refuses_what_does_not_exist_before_it_works(cli: Cli, folder: Path) -> None:
    assert "no quantization 'q9'" in cli("quantize", str(folder), "--compare", "q4_0,q9").err
    assert "does not exist" in cli("quantize", str(folder), "--compare", "q4_0", "--out", "no/x.png").err


@pytest.mark.parametrize("options", [["--calibrate", "default"], ["--method", "gptq"]])
def test_types_are_not_measured_on_the_text_they_were_calibrated_with(
    cli: Cli, folder: Path, options: list[str]
) -> None:
    refused = cli("quantize", str(folder), "--compare", "q4_0", *options)
    assert refused.code == 2 and "--text" in refused.err
