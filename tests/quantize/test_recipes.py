"""Which tensor gets which type: as llama.cpp's quantizer chooses, kind of model by kind of model."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.quantize.plans import fitting, kept
from localllm.quantize.quantize import plan
from localllm.quantize.recipes import RECIPES, recipe_of
from localllm.quantize.weights import gguf_weights
from tests.quantize.tiny_files import MODELS, Tiny, llama_cpp_quantize

THEIRS = Path(__file__).with_name("llama_cpp_types.json")
"""What llama-cpp-python 0.3.36 chooses, by model and recipe, in the form of `told`."""
OURS = ("MXFP4",)
NEEDS_IMPORTANCE = ("Q2_K_S",)
"""llama.cpp refuses it without an importance matrix; we say what it costs instead."""
MIXED = [name for name in RECIPES if name not in OURS]


def planned(model: Tiny, folder: Path, name: str, *, has_importance: bool = False) -> dict[str, str]:
    path = folder / "float.gguf"
    if not path.exists():
        model.write(path)
    with GGUFFile.open(path) as file:
        lines = plan(gguf_weights(file), name, has_importance=has_importance).tensors
    return {line.name: line.target_type.name for line in lines}


def told(types: dict[str, str], recipe: str) -> dict[str, str]:
    """Types by kind of matrix, layer after layer, without what is the base in all of them: "3 Q6_K, 5 Q4_K"."""
    of_kind: dict[str, list[str]] = {}
    for name in sorted(types, key=lambda name: int(name.split(".")[1]) if name.startswith("blk.") else -1):
        of_kind.setdefault(name.split(".", 2)[-1] if name.startswith("blk.") else name, []).append(types[name])
    return {
        kind: ", ".join(f"{len(list(run))} {of}" for of, run in groupby(found))
        for kind, found in sorted(of_kind.items())
        if set(found) != {RECIPES[recipe].base.name}
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_recipe_is_mixed_as_in_the_table(model: Tiny, tmp_path: Path) -> None:
    table = json.loads(THEIRS.read_text())[model.name]
    for recipe in MIXED:
        needs = recipe in NEEDS_IMPORTANCE
        assert told(planned(model, tmp_path, recipe, has_importance=needs), recipe) == table[recipe], recipe


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_table_is_llama_cpps(model: Tiny, tmp_path: Path) -> None:
    table = json.loads(THEIRS.read_text()) if THEIRS.exists() else {}
    assert {recipe: told(theirs(model, tmp_path, recipe), recipe) for recipe in MIXED} == table.get(model.name)


def theirs(model: Tiny, folder: Path, name: str, *, with_importance: bool = False) -> dict[str, str]:
    source, target = folder / "float.gguf", folder / "theirs.gguf"
    if not source.exists():
        model.write(source)
    needs = with_importance or name in NEEDS_IMPORTANCE
    importance = {
        key: [1.0] * (shape[-1] * (shape[0] if len(shape) > 2 else 1)) for key, shape in model.shapes().items()
    }
    llama_cpp_quantize(source, target, RECIPES[name].file_type, imatrix=importance if needs else None)
    with GGUFFile.open(target) as file:
        return {info.name: info.type.name for info in file.tensors.values()}


@pytest.mark.parametrize("recipe", ["Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M"])
def test_with_an_importance_matrix_some_tensors_are_mixed_otherwise(recipe: str, tmp_path: Path) -> None:
    model = MODELS[0]
    ours = planned(model, tmp_path, recipe, has_importance=True)
    assert ours == theirs(model, tmp_path, recipe, with_importance=True)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_0", "IQ4_XS"])
@pytest.mark.parametrize("index", [0, 3, 4])
def test_pure_and_kept_types_are_those_of_llama_cpp(recipe: str, index: int, tmp_path: Path) -> None:
    model, keep = MODELS[index], (("attn_v", BlockType.Q8_0), (r"blk\.[01]\.ffn_down", BlockType.Q6_K))
    source = model.write(tmp_path / "float.gguf")
    for pure, named in ((True, ()), (False, keep), (True, keep)):
        llama_cpp_quantize(source, tmp_path / "theirs.gguf", RECIPES[recipe].file_type, pure=pure, keep=named)
        with GGUFFile.open(source) as file, GGUFFile.open(tmp_path / "theirs.gguf") as found:
            ours = plan(gguf_weights(file), recipe, pure=pure, keep=named).tensors
            assert {line.name: line.target_type for line in ours} == {i.name: i.type for i in found.tensors.values()}


def test_names_of_recipes_are_taken_in_any_case_and_short() -> None:
    assert recipe_of("q4_k_m") is RECIPES["Q4_K_M"]
    assert recipe_of("Q4_K") is RECIPES["Q4_K_M"]
    with pytest.raises(UsageError, match="q9") as refusal:
        recipe_of("q9")
    assert "Q5_K_S" in refusal.value.hint


def test_rows_that_are_no_whole_blocks_fall_back_to_blocks_of_32_and_then_to_halves() -> None:
    assert fitting(BlockType.Q4_K, 512) is BlockType.Q4_K
    assert fitting(BlockType.Q4_K, 288) is BlockType.Q5_0
    assert fitting(BlockType.Q4_K, 80) is BlockType.F16
    assert fitting(BlockType.Q8_0, 80) is BlockType.F16


def test_what_is_kept_is_told_as_an_expression_and_a_type(tmp_path: Path) -> None:
    assert kept(["attn_v=q8_0", "a=b=f16"]) == (("attn_v", BlockType.Q8_0), ("a=b", BlockType.F16))
    for wrong in ("attn_v", "=q8_0", "(=q8_0", "attn_v=q9", "attn_v=iq2_xs"):
        with pytest.raises(UsageError):
            kept([wrong])
    with GGUFFile.open(MODELS[0].write(tmp_path / "float.gguf")) as file, pytest.raises(UsageError, match="attn_w"):
        plan(gguf_weights(file), "Q8_0", keep=kept(["attn_w=q8_0"]))


def test_a_plan_tells_sizes_before_anything_is_written(tmp_path: Path) -> None:
    with GGUFFile.open(MODELS[0].write(tmp_path / "float.gguf")) as file:
        source = gguf_weights(file)
        made = plan(source, "Q8_0", pure=True)
        assert made.source_bytes == sum(info.size_bytes for info in file.tensors.values())
    line = next(line for line in made.tensors if line.name == "blk.3.attn_q.weight")
    assert (line.source_type, line.target_type, line.size_bytes) == (BlockType.F32, BlockType.Q8_0, 2 * 8 * 34)
    assert made.size_bytes == sum(line.size_bytes for line in made.tensors)
    assert 8 < made.bits_per_weight < 32
    assert not made.requantized()


def test_plain_mxfp4_is_mxfp4_but_for_the_ends(tmp_path: Path) -> None:
    found = planned(MODELS[0], tmp_path, "mxfp4")
    assert found["blk.0.attn_q.weight"] == "MXFP4"
    assert found["token_embd.weight"] == found["output.weight"] == "Q8_0"
