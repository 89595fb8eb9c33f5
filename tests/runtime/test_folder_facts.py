"""How a folder says that vectors are made."""

import json
from pathlib import Path
from typing import Any

import pytest

from localllm.errors import UnsupportedModel
from localllm.runtime.folder_facts import context_length_of, folder_pooling, gguf_pooling, gguf_pooling_type


def folder_of(path: Path, model_type: str, pooling: dict[str, Any] | None) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


@pytest.mark.parametrize(
    ("model_type", "pooling", "kind", "number"),
    [
        ("bert", {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean", 1),
        ("bert", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first", 2),
        ("bert", {"pooling_mode": "cls"}, "first", 2),
        ("bert", {"pooling_mode": "mean"}, "mean", 1),
        ("bert", None, "mean", 1),
        ("qwen3", {"pooling_mode_lasttoken": True}, "last", 3),
        ("qwen3", {"pooling_mode": "lasttoken"}, "last", 3),
        ("qwen3", None, "last", None),
    ],
)
def test_pooling_is_what_sentence_transformers_says(
    tmp_path: Path, model_type: str, pooling: dict[str, Any] | None, kind: str, number: int | None
) -> None:
    folder = folder_of(tmp_path, model_type, pooling)
    assert folder_pooling(folder) == kind
    assert gguf_pooling_type(folder) == number


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_max_tokens": True}, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}],
)
def test_other_ways_of_pooling_are_refused_by_name(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="pooling by pooling_mode_"):
        folder_pooling(folder_of(tmp_path, "bert", pooling))


def test_layers_after_pooling_are_refused(tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="Dense"):
        folder_pooling(folder_of(tmp_path, "bert", {"pooling_mode_mean_tokens": True}))


def test_vectors_of_single_tokens_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="pooling_type 0"):
        gguf_pooling({"bert.pooling_type": 0}, "bert")
    assert gguf_pooling({"llama.pooling_type": 0}, "llama") == "last"


def test_a_gguf_file_of_an_encoder_pools_by_the_mean_unless_told() -> None:
    assert gguf_pooling({}, "bert") == "mean" and gguf_pooling({}, "llama") == "last"
    assert gguf_pooling({"bert.pooling_type": 2}, "bert") == "first"


def test_positions_before_the_first_token_are_no_context() -> None:
    assert context_length_of({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
