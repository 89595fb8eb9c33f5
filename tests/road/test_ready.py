"""Quantized folders on the whole road: script, `show`, conversion to GGUF, rounding while they load."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm import LLM
from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.ready.folder import ready_folder
from localllm.quantize.convert import convert
from localllm.runtime.convert import convert_model
from localllm.runtime.names import find_entry
from tests.oracles.hf import BY_NAME as FAMILIES
from tests.oracles.hf import as_folder, make_model
from tests.oracles.ready import BY_NAME, quantized_folder
from tests.road.tiny_llama import make_tiny_llama, their_greedy_ids

PROMPT = "Redistribution and use in source"
FAST: dict[str, Any] = {"threads": 1, "kv_pages": 32, "kv_type": "f32"}
EXACT = ["gptq", "gptq, asymmetric", "awq", "compressed-tensors", "mlx, 4 bits, groups of 32, bfloat16"]
ROUNDED = ["gptq, by activation order", "fp8 in blocks", "nf4, nested", "mlx, 8 bits, groups of 32, bfloat16"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def dequantized(plain: Path, target: Path, values: dict[str, Any]) -> Path:
    """The same folder with the values of its weights, for transformers."""
    import torch
    from safetensors.torch import save_file

    target.mkdir()
    (target / "config.json").write_bytes((plain / "config.json").read_bytes())
    tensors = {name: torch.from_numpy(value).float().contiguous() for name, value in values.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("name", EXACT + ROUNDED)
def test_a_script_gives_what_transformers_gives_and_says_what_was_rounded(
    plain: Path, tmp_path: Path, name: str
) -> None:
    values = quantized_folder(plain, tmp_path / "ready", BY_NAME[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        llm = LLM(tmp_path / "ready", **FAST, backend="reference")
    with llm:
        ids = llm.text.tokenizer.encode(PROMPT)
        (answer,) = llm.generate(PROMPT, max_tokens=8, temperature=0)
    assert answer.token_ids == their_greedy_ids(dequantized(plain, tmp_path / "plain", values), ids, 8)
    notes = [str(each.message) for each in said if "checkpoint" in str(each.message)]
    assert len(notes) == (name in ROUNDED) and all(BY_NAME[name].title in note for note in notes)


@pytest.mark.parametrize("name", ["gptq", "awq", "nf4, nested", "fp8, one scale", "bitsandbytes int8", EXACT[-1]])
def test_show_names_the_method_and_counts_the_weights(plain: Path, tmp_path: Path, name: str) -> None:
    quantized_folder(plain, tmp_path / "ready", BY_NAME[name])
    entry = find_entry(tmp_path / "ready")
    assert entry.quantization == BY_NAME[name].title
    assert entry.parameters == find_entry(plain).parameters


@pytest.mark.parametrize("name", ["gptq", "awq", "nf4", "fp8 in blocks", "compressed-tensors, int8"])
def test_conversion_writes_the_values_in_the_type_that_is_asked_for(plain: Path, tmp_path: Path, name: str) -> None:
    values = quantized_folder(plain, tmp_path / "ready", BY_NAME[name])["model.layers.1.mlp.down_proj.weight"]
    for target, kind in ((None, BY_NAME[name].kind or "F16"), (BlockType.F32, "F32"), (BlockType.F16, "F16")):
        path = tmp_path / f"{kind}-{target}.gguf"
        convert_model(tmp_path / "ready", path, target)
        with GGUFFile.open(path) as file:
            tensor = file.tensors["blk.1.ffn_down.weight"]
            assert tensor.type.name == kind
            found = decode(tensor.type, file.raw("blk.1.ffn_down.weight"), tensor.shape)
            assert np.abs(found - values).max() <= 2.0**-11 * np.abs(values).max()
            assert file.metadata["general.file_type"] == {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8}[kind]


def test_floats_of_a_quantized_folder_may_be_rounded_further_while_they_load(plain: Path, tmp_path: Path) -> None:
    quantized_folder(plain, tmp_path / "ready", BY_NAME["nf4"])
    with pytest.warns(RuntimeWarning, match="NF4"), LLM(tmp_path / "ready", **FAST, quantize="q8_0") as small:
        (answer,) = small.generate(PROMPT, max_tokens=4, temperature=0)
    assert len(answer.token_ids) == 4


def test_a_folder_that_lacks_a_part_is_refused_in_a_sentence(plain: Path, tmp_path: Path) -> None:
    quantized_folder(plain, tmp_path / "ready", BY_NAME["gptq"])
    said = json.loads((tmp_path / "ready" / "config.json").read_text())
    said["quantization_config"]["quant_method"] = "awq"
    (tmp_path / "ready" / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadModelFile, match=r"must have|do not fit|no matrix|other"):
        LLM(tmp_path / "ready", **FAST)


@pytest.mark.parametrize("family", ["qwen3 moe", "phi4", "deepseek v3", "pythia", "falcon 7b"])
@pytest.mark.parametrize("name", ["gptq", "gptq, asymmetric", "fp8, one scale", "mlx, 4 bits, groups of 32, float16"])
def test_other_families_have_the_same_weights_quantized_or_not(family: str, name: str, tmp_path: Path) -> None:
    """Fused, stacked and cut matrices: as the plain checkpoint with the dequantized values has them."""
    as_folder(make_model(FAMILIES[family]), tmp_path / "plain").close()
    values = quantized_folder(tmp_path / "plain", tmp_path / "ready", BY_NAME[name], also=("dense", "query_key_value"))
    _, theirs = hf_model(SafetensorsFolder.open(dequantized(tmp_path / "plain", tmp_path / "values", values)))
    _, ours = hf_model(ready_folder(SafetensorsFolder.open(tmp_path / "ready")))
    assert set(ours.names()) == set(theirs.names())
    for weight in theirs.names():
        before, after = theirs.info(weight), ours.info(weight)
        assert before is not None and after is not None and before.shape == after.shape
        expected = decode(before.type, theirs.raw(weight), before.shape)
        found = decode(after.type, ours.raw(weight), after.shape)
        assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max(), (weight, after)


def test_a_converted_moe_has_the_blocks_of_the_checkpoint(tmp_path: Path) -> None:
    as_folder(make_model(FAMILIES["qwen3 moe"]), tmp_path / "plain").close()
    quantized_folder(tmp_path / "plain", tmp_path / "ready", BY_NAME["gptq"])
    folder = SafetensorsFolder.open(tmp_path / "ready")
    convert(folder, tmp_path / "model.gguf", None, {})
    _, source = hf_model(folder)
    with GGUFFile.open(tmp_path / "model.gguf") as file:
        _, written = gguf_model(file)
        for name in ("blk.2.ffn_up_exps.weight", "blk.2.attn_v.weight"):
            info = source.info(name)
            assert info is not None and info.type is BlockType.Q4_0
            assert np.array_equal(written.raw(name), source.raw(name))


def test_experts_that_mlx_has_stacked_are_those_in_many_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    as_folder(make_model(FAMILIES["qwen3 moe"]), tmp_path / "plain").close()
    quantized_folder(tmp_path / "plain", tmp_path / "ready", BY_NAME[EXACT[-1]])
    _, many = hf_model(SafetensorsFolder.open(tmp_path / "ready"))
    file = tmp_path / "ready" / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    for layer in range(4):
        for part in (
            f"{side}_proj.{kind}" for side in ("gate", "up", "down") for kind in ("weight", "scales", "biases")
        ):
            prefix = f"model.layers.{layer}.mlp"
            each = [tensors.pop(f"{prefix}.experts.{number}.{part}") for number in range(6)]
            tensors[f"{prefix}.switch_mlp.{part}"] = torch.stack(each)
    (tmp_path / "stacked").mkdir()
    (tmp_path / "stacked" / "config.json").write_bytes((tmp_path / "ready" / "config.json").read_bytes())
    save_file(tensors, tmp_path / "stacked" / "model.safetensors")
    _, stacked = hf_model(SafetensorsFolder.open(tmp_path / "stacked"))
    assert set(stacked.names()) == set(many.names())
    for name in many.names():
        assert stacked.info(name) == many.info(name) and np.array_equal(stacked.raw(name), many.raw(name))
