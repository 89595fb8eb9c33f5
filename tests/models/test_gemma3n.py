"""Gemma 3n as published: nested configs, tables with fewer rows than there are tokens, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.errors import LocalLLMError
from localllm.models.mapping import hf_model
from tests.models.test_checkpoints import MemoryFolder, checkpoint
from tests.models.test_published_files import arrays_of, assert_same, converted, opened, values

NAME = "gemma 3n"


def test_the_text_part_of_a_published_checkpoint_is_the_model(tmp_path: Path) -> None:
    folder = checkpoint(NAME, tmp_path)
    inner = dict(folder.config)
    rope = inner.pop("rope_parameters")
    inner |= {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
    }
    arrays = {name.replace("model.", "model.language_model.", 1): array for name, array in folder.arrays.items()}
    arrays["model.vision_tower.timm_model.conv_stem.conv.weight"] = np.zeros((4, 4), np.float32)
    arrays["model.embed_audio.embedding.weight"] = np.zeros((4, 4), np.float32)
    assert_same(hf_model(MemoryFolder({"model_type": "gemma3n", "text_config": inner}, arrays)), hf_model(folder))


def test_a_converted_file_says_what_the_checkpoint_says(tmp_path: Path) -> None:
    file, folder = converted(NAME, tmp_path), checkpoint(NAME, tmp_path / "again")
    assert file.metadata["gemma3n.activation_sparsity_scale"][-1] == -math.inf
    # readers want these of every layer, and use them for nothing
    arrays = arrays_of(file)
    np.testing.assert_array_equal(arrays["blk.3.attn_k.weight"], arrays["blk.2.attn_k.weight"])
    ours, theirs = opened(dict(file.metadata), arrays), hf_model(folder)
    assert [layer.spread for layer in ours[0].layers] == pytest.approx([1.2816, 1.2816, 0, None, None], abs=1e-4)
    assert values(ours[1]).keys() == values(theirs[1]).keys()


def test_a_file_that_does_not_name_the_cap_of_logits_has_the_published_one(tmp_path: Path) -> None:
    file = converted(NAME, tmp_path)
    metadata = {name: value for name, value in file.metadata.items() if not name.endswith("final_logit_softcapping")}
    assert opened(dict(file.metadata), arrays_of(file))[0].logit_softcap == 5.0
    assert opened(metadata, arrays_of(file))[0].logit_softcap == 30.0


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"altup_active_idx": 1}, "streams"),
    ({"altup_num_inputs": 1}, "streams"),
    ({"altup_num_inputs": 17}, "streams"),
    ({"altup_num_inputs": 3}, r"altup_proj\.weight has the shape"),
    ({"hidden_size_per_layer_input": 0}, "streams"),
    ({"altup_correct_scale": False}, "altup_correct_scale"),
    ({"activation_sparsity_pattern": [0.5]}, "a share for each of 5 layers"),
    ({"activation_sparsity_pattern": 1.0}, "a share for each of 5 layers"),
    ({"num_kv_shared_layers": 5}, "shared_kv_layers"),
)


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_config_that_asks_for_something_else_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = checkpoint(NAME, tmp_path)
    folder.config = {**folder.config, **changes}
    with pytest.raises(LocalLLMError, match=sentence):
        hf_model(folder)


@pytest.mark.parametrize(
    "tensor",
    [
        *("layers.1.altup.prediction_coefs", "layers.1.laurel.linear_right", "layers.0.altup.router_norm"),
        *("altup_projections.1", "altup_unembed_projections.2", "per_layer_projection_norm"),
    ],
)
def test_a_lost_tensor_is_named(tensor: str, tmp_path: Path) -> None:
    folder = checkpoint(NAME, tmp_path)
    del folder.arrays[f"model.{tensor}.weight"]
    with pytest.raises(LocalLLMError, match=r"altup_|laurel_|per_layer_proj_norm"):
        hf_model(folder)


@pytest.mark.parametrize("said", [[0.0] * 4, "much", [math.nan] * 5, [math.inf] * 5])
def test_odd_borders_in_a_file_are_refused(said: Any, tmp_path: Path) -> None:
    file = converted(NAME, tmp_path)
    with pytest.raises(LocalLLMError, match="activation_sparsity_scale"):
        opened({**file.metadata, "gemma3n.activation_sparsity_scale": said}, arrays_of(file))
