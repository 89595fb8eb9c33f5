"""Random models are made as llama.cpp's quantizer would make them, and readers of GGUF agree on what they hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.backends.select import BackendOptions, open_backend
from localllm.engine.step import StepPlan, Want, plain_row, run_step
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.models.mapping import gguf_model
from localllm.tokens.tokenizer import Tokenizer
from tests.scripts.loading import script

synthesize = script("synthesize")
TIED = synthesize.Shape(9, 256, 4, 1, 64, 512, 600, True, 10_000.0, 128)
UNTIED = synthesize.Shape(17, 96, 3, 3, 32, 256, 600, False, 10_000.0, 128)
HYBRID = synthesize.Shape(8, 256, 4, 1, 64, 512, 600, True, 10_000.0, 128, synthesize.DeltaShape(2, 4, 64))
"""More layers than a quarter of eighths, fewer query heads a group, and rows that hold no whole block of 256."""


def write(path: Path, recipe: str, shape: Any = TIED, seed: int = 0) -> Path:
    tensors = synthesize.tensors(shape, recipe, synthesize.Weights(seed))
    write_gguf(path, synthesize.metadata("random", shape, recipe), tensors)
    return path


def types_of(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {name: tensor.type.name for name, tensor in file.tensors.items()}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {shape: write(folder / f"{shape.layers}.gguf", "F16", shape) for shape in (TIED, UNTIED, HYBRID)}


@pytest.mark.parametrize("shape", [TIED, UNTIED, HYBRID], ids=["tied", "untied", "hybrid"])
@pytest.mark.parametrize("recipe", [name for name in synthesize.RECIPES if name not in ("F32", "F16")])
def test_a_recipe_puts_each_matrix_into_the_type_llama_cpp_chooses(
    originals: dict[Any, Path], recipe: str, shape: Any, tmp_path: Path
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the judge")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{recipe}"), 1
    source, target = originals[shape], tmp_path / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    assert types_of(write(tmp_path / "ours.gguf", recipe, shape)) == types_of(target)
    with GGUFFile.open(target) as theirs, GGUFFile.open(tmp_path / "ours.gguf") as ours:
        assert ours.metadata["general.file_type"] == theirs.metadata["general.file_type"]


def test_the_shapes_have_as_many_weights_as_the_models_they_are_named_after() -> None:
    counts = {
        size: sum(rows * columns for *_, rows, columns in synthesize.matrices(shape))
        for size, shape in synthesize.SHAPES.items()
    }
    millions = {size: round(total / 1e6) for size, total in counts.items()}
    plain = {"135m": 134, "1b": 1236, "3b": 3213, "8b": 8030}
    assert millions == plain | {"hybrid-0.8b": 752, "hybrid-1b": 1461, "hybrid-2b": 1881}


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    first, again = (write(tmp_path / f"{name}.gguf", "Q4_0") for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert write(tmp_path / "other.gguf", "Q4_0", seed=1).read_bytes() != first.read_bytes()


@pytest.mark.parametrize("kind", [BlockType.Q4_0, BlockType.Q6_K, BlockType.F16, BlockType.MXFP4])
def test_rows_differ_and_their_values_have_the_size_that_keeps_activations_in_bounds(kind: BlockType) -> None:
    raw = synthesize.Weights().matrix(3, kind, 300, 512)
    rows = decode(kind, raw, (300, 512))
    assert len(np.unique(rows, axis=0)) == 300
    assert np.sqrt((rows**2).mean() * 512) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"])
def test_blocks_without_an_encoder_have_values_of_a_sane_size_by_the_gguf_package(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    raw = synthesize.Weights().matrix(0, BlockType[kind], 64, 512).reshape(64, -1)
    values = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert values.shape == (64, 512)
    assert 0.4 < np.sqrt((values**2).mean() * 512) < 2.5


def test_the_made_up_tokenizer_reads_any_text(tmp_path: Path) -> None:
    with GGUFFile.open(write(tmp_path / "model.gguf", "Q8_0")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
        text = "It's a größe: 12 ∑ \n\tend"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(file.metadata["tokenizer.ggml.tokens"]) == TIED.vocab  # type: ignore[arg-type]  # a list


def test_a_random_model_runs_and_its_logits_are_finite_and_unlike(tmp_path: Path) -> None:
    with GGUFFile.open(write(tmp_path / "model.gguf", "Q4_K_M")) as file:
        config, source = gguf_model(file)
        backend = open_backend("reference", config, source, BackendOptions(context_length=32))
        backend.allocate(2, 0)
        row = plain_row(0, range(20), 0, (0, 1), Want(logits="all"))
        logits = run_step(backend, StepPlan(0, (row,))).rows[0].logits
    assert logits is not None and np.isfinite(logits).all()
    assert 0.5 < logits.std() < 2
    assert len(np.unique(logits[-1])) > TIED.vocab / 2, "rows as narrow as these have repeats; wider ones do not"
