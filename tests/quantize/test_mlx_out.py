"""Folders for MLX: what mlx itself reads out of them is what we meant, and our own loader reads the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UsageError
from localllm.formats.blocks import decode
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.mapping import hf_model
from localllm.quantize.mlx_out import MlxType, affine, mlx_plan, mlx_type, packed, write_mlx
from tests.oracles.hf import BY_NAME as FAMILIES
from tests.oracles.hf import as_folder, expected_logits, make_model

mx = pytest.importorskip("mlx.core")
Floats = NDArray[np.float32]
KINDS = [MlxType(4, 32), MlxType(4, 64), MlxType(8, 32), MlxType(8, 64)]


def silent(name: str, done: int, total: int) -> None: ...


def written(source: Path, target: Path, kind: MlxType) -> Path:
    with SafetensorsFolder.open(source) as folder:
        write_mlx(folder, source, target, kind, {"localllm": "1"}, silent)
    return target


def rows(dtype: str) -> Floats:
    """Gaussian rows, and those at which a search for a scale may stumble."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(64, 128)).astype(np.float32)
    values[0], values[1], values[2] = 0, 7.5, -1e-20
    values[3] = np.abs(values[3]) + 100
    values[4] = -np.abs(values[4]) - 100
    values[5, 7] = 3000
    return np.array(mx.array(values).astype(getattr(mx, dtype)).astype(mx.float32))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_float32_becomes_the_bytes_that_mlx_makes_of_it(kind: MlxType) -> None:
    values = rows("float32")
    codes, scales, biases = affine(values, kind, "F32")
    theirs = [np.array(each) for each in mx.quantize(mx.array(values), kind.group, kind.bits)]
    for ours, their in zip((packed(codes, kind.bits), scales, biases), theirs, strict=True):
        assert np.array_equal(ours, their)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_halves_lose_no_more_than_with_mlx(kind: MlxType, dtype: str, name: str) -> None:
    values = rows(dtype)
    codes, scales, biases = affine(values, kind, name)
    half = getattr(mx, dtype)
    ours = [mx.array(packed(codes, kind.bits)), mx.array(scales).astype(half), mx.array(biases).astype(half)]
    theirs = mx.quantize(mx.array(values).astype(half), kind.group, kind.bits)
    errors = []
    for parts in (ours, theirs):
        parts = [parts[0], *(part.astype(mx.float32) for part in parts[1:])]
        errors.append(np.square(np.array(mx.dequantize(*parts, kind.group, kind.bits)) - values).sum())
    assert errors[0] <= errors[1] * 1.0001


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    made = {}
    for name in ("llama", "qwen3 moe"):
        folder, model = tmp_path_factory.mktemp("plain") / "model", make_model(FAMILIES[name])
        as_folder(model, folder).close()
        (folder / "tokenizer.json").write_text("{}")
        made[name] = (model, folder)
    return made


def meant(folder: SafetensorsFolder, name: str, kind: MlxType) -> Floats:
    """What mlx reads."""
    stem = name.removesuffix("weight")
    parts = [mx.array(folder.array(stem + ending)) for ending in ("weight", "scales", "biases")]
    return np.array(mx.dequantize(*parts, kind.group, kind.bits))


@pytest.mark.parametrize("name", ["llama", "qwen3 moe"])
@pytest.mark.parametrize("kind", [MlxType(4, 32), MlxType(8, 32)], ids=str)
def test_mlx_reads_the_checkpoint_within_a_step_of_each_group(
    checkpoints: dict[str, tuple[Any, Path]], name: str, kind: MlxType, tmp_path: Path
) -> None:
    source = checkpoints[name][1]
    target = written(source, tmp_path / "out", kind)
    with SafetensorsFolder.open(source) as before, SafetensorsFolder.open(target) as after:
        plan = mlx_plan(before, kind)
        for row in plan:
            values = np.stack([before.as_float32(part) for part in row.parts])
            if not row.is_quantized:
                assert np.array_equal(after.as_float32(row.name), values.reshape(row.shape))
                continue
            scales = np.abs(after.as_float32(row.name.removesuffix("weight") + "scales"))
            steps = np.repeat(scales, kind.group, axis=-1).reshape(row.shape)
            assert (np.abs(meant(after, row.name, kind) - values.reshape(row.shape)) <= steps * 1.001).all()
        kept = {row.name for row in plan if not row.is_quantized}
        assert all("norm" in each or each.endswith("mlp.gate.weight") or "96" in str(each) for each in kept), kept
        assert sum(row.size_bytes for row in plan) == sum(tensor.size_bytes for tensor in after.tensors.values())
        assert after.config["quantization"] == {"group_size": 32, "bits": kind.bits, "mode": "affine"}
    assert (target / "tokenizer.json").read_text() == "{}"
    assert set(json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]) == set(after.tensors)


@pytest.mark.parametrize("name", ["llama", "qwen3 moe"])
def test_our_own_loader_reads_what_mlx_reads(
    checkpoints: dict[str, tuple[Any, Path]], name: str, tmp_path: Path
) -> None:
    kind = MlxType(4, 32)
    target = written(checkpoints[name][1], tmp_path / "out", kind)
    with SafetensorsFolder.open(target) as folder:
        _, source = hf_model(folder)
        for weight, tensor in (("ffn_down", "mlp.down_proj"), ("attn_output", "self_attn.o_proj")):
            info = source.info(f"blk.1.{weight}.weight")
            if info is None:  # a layer of experts
                info, tensor = source.info(f"blk.1.{weight}_exps.weight"), "mlp.switch_mlp.down_proj"
            assert info is not None and info.type.name == "Q4_1"
            found = decode(info.type, source.raw(info.name), info.shape)
            theirs = meant(folder, f"model.layers.1.{tensor}.weight", kind)
            assert np.abs(found - theirs).max() <= 2.0**-10 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["llama", "qwen3 moe"])
def test_mlx_lm_loads_the_folder_and_computes_what_transformers_does(
    checkpoints: dict[str, tuple[Any, Path]], name: str, tmp_path: Path
) -> None:
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    model, source = checkpoints[name]
    target = written(source, tmp_path / "out", MlxType(8, 32))
    # checkpoints of transformers 5 lack what mlx-lm asks of this family
    theirs, _ = utils.load_model(target, model_config={"num_experts": 6, "head_dim": 16, "rope_theta": 10000.0})
    tokens = [3, 14, 15, 9, 26, 5]
    logits = np.array(theirs(mx.array([tokens]))[0].astype(mx.float32))
    expected = expected_logits(model, tokens)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", ["lfm2", "qwen3 next"])
def test_convolutions_of_hybrids_stay_floats(name: str, tmp_path: Path) -> None:
    if name not in FAMILIES:
        pytest.skip(f"the oracles have no {name}")
    with as_folder(make_model(FAMILIES[name]), tmp_path / "plain") as folder:
        rows = mlx_plan(folder, MlxType(4, 32))
    assert any("conv" in row.name and len(row.shape) == 3 and not row.is_quantized for row in rows)
    assert any(row.is_quantized for row in rows)


def test_names_of_mlx_types_are_read_in_any_case() -> None:
    assert mlx_type("MLX-4bit") == MlxType(4, 64) and mlx_type("mlx-8bit", 32) == MlxType(8, 32)
    assert mlx_type("q4_0") is None
    with pytest.raises(UsageError, match="32 or 64"):
        mlx_type("mlx-4bit", 48)


@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_and_leaves_nothing_behind(
    checkpoints: dict[str, tuple[Any, Path]], tensor: str, value: float, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    (tmp_path / "bad").mkdir()
    source = checkpoints["llama"][1]
    values = {name: array.copy() for name, array in load_file(source / "model.safetensors").items()}
    values[tensor].reshape(-1)[5] = value
    save_file(values, tmp_path / "bad" / "model.safetensors")
    (tmp_path / "bad" / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(BadModelFile, match=tensor):
        written(tmp_path / "bad", tmp_path / "out", MlxType(4, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_checkpoint_is_not_rounded_twice_and_a_killed_run_is_cleared_away(
    checkpoints: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_text("half")
    target = written(checkpoints["llama"][1], tmp_path / "out", MlxType(4, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="MLX 4-bit"):
        written(target, tmp_path / "again", MlxType(8, 32))
