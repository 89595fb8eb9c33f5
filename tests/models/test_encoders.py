"""Encoders out of files: names of the first years, positions behind padding, what is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import decode
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.heads import head_from_config
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.source import WeightSource
from tests.oracles.encoders import ENCODERS, make_encoder
from tests.oracles.hf import MemoryFile, as_folder

BERT, ROBERTA = (next(family for family in ENCODERS if family.name == name) for name in ("bert", "roberta"))
METADATA = {
    "general.architecture": "bert",
    "bert.embedding_length": 64,
    "bert.block_count": 1,
    "bert.context_length": 16,
    "bert.feed_forward_length": 96,
    "bert.attention.head_count": 4,
    "bert.attention.layer_norm_epsilon": 1e-12,
    "bert.attention.causal": False,
    "bert.pooling_type": 1,
    "bert.vocab_size": 80,
}


def values(source: WeightSource, name: str) -> np.ndarray:
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


@pytest.fixture(scope="module")
def bert() -> Any:
    return make_encoder(BERT)


def written_again(folder: Path, rename: Callable[[str], str]) -> SafetensorsFolder:
    with SafetensorsFolder.open(folder) as opened:
        tensors = {rename(name): np.array(opened.array(name)) for name in opened.tensors}
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsFolder.open(folder)


def arrays_of_a_file() -> dict[str, np.ndarray]:
    """As converters write them: types of tokens are a tensor of their own."""
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (80, 64), "position_embd.weight": (16, 64), "token_types.weight": (2, 64),
        "token_embd_norm.weight": (64,), "token_embd_norm.bias": (64,),
        **{f"blk.0.attn_{part}.weight": (64, 64) for part in ("q", "k", "v", "output")},
        **{f"blk.0.attn_{part}.bias": (64,) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_up.bias": (96,),
        "blk.0.ffn_down.weight": (64, 96), "blk.0.ffn_down.bias": (64,),
        **{f"blk.0.{name}_output_norm.{kind}": (64,) for name in ("attn", "layer") for kind in ("weight", "bias")},
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_gguf_file_s_types_of_tokens_are_in_its_positions() -> None:
    arrays = arrays_of_a_file()
    config, source = gguf_model(MemoryFile(METADATA, arrays))
    assert config.is_encoder and not any(layer.mixer.causal for layer in config.layers)  # type: ignore[union-attr]
    expected = arrays["position_embd.weight"] + arrays["token_types.weight"][0]
    assert np.array_equal(values(source, "position_embd.weight"), expected)
    assert "token_types.weight" not in set(source.names())


def test_a_gguf_file_whose_types_have_another_width_is_refused() -> None:
    arrays = arrays_of_a_file()
    arrays["token_types.weight"] = arrays["token_types.weight"][:, :60].copy()
    with pytest.raises(BadModelFile, match="token_types"):
        gguf_model(MemoryFile(METADATA, arrays))


def test_an_encoder_s_file_that_says_it_is_causal_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"attention\.causal = true"):
        gguf_model(MemoryFile(METADATA | {"bert.attention.causal": True}, arrays_of_a_file()))


def test_a_ranking_head_is_refused_by_the_name_of_its_tensor() -> None:
    arrays = arrays_of_a_file() | {"cls.weight": np.zeros((64, 64), np.float32)}
    with pytest.raises(UnsupportedModel, match=r"cls\.weight"):
        gguf_model(MemoryFile(METADATA, arrays))


def test_a_file_that_says_that_it_judges_and_has_no_head_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"pooling_type 4\), but has no head"):
        gguf_model(MemoryFile(METADATA | {"bert.pooling_type": 4}, arrays_of_a_file()))


def test_classes_are_no_order_of_documents() -> None:
    head = {"cls.output.weight": np.zeros((3, 64), np.float32), "cls.output.bias": np.zeros(3, np.float32)}
    labels = {"bert.pooling_type": 4, "bert.classifier.output_labels": ["no", "maybe", "yes"]}
    with pytest.raises(UnsupportedModel, match="3 classes"):
        gguf_model(MemoryFile(METADATA | labels, arrays_of_a_file() | head))
    with pytest.raises(UnsupportedModel, match="2 classes"):
        head_from_config({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}})
    assert head_from_config({"architectures": ["BertModel"]}) is None


def test_labels_that_are_no_list_are_the_files_fault() -> None:
    arrays = arrays_of_a_file() | {"cls.output.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(BadModelFile, match=r"bert\.classifier\.output_labels must be a list, not 5"):
        gguf_model(MemoryFile(METADATA | {"bert.classifier.output_labels": 5}, arrays))


def test_types_of_tokens_stay_for_models_that_judge_pairs() -> None:
    arrays = arrays_of_a_file() | {"cls.output.weight": np.ones((1, 64), np.float32)}
    config, source = gguf_model(MemoryFile(METADATA, arrays))
    types = arrays["token_types.weight"]
    assert config.head is not None and config.head.judges
    assert np.array_equal(values(source, "token_types.weight"), np.stack([0 * types[0], types[1] - types[0]]))


def test_a_checkpoint_that_judges_texts_is_refused_by_the_name_of_its_head(bert: Any, tmp_path: Path) -> None:
    as_folder(bert, tmp_path).close()

    def renamed(name: str) -> str:
        return name.replace("pooler.dense", "classifier")

    with pytest.raises(UnsupportedModel, match=r"judges texts \(classifier"):
        hf_model(written_again(tmp_path, renamed))


def test_norms_of_the_first_years_are_read(bert: Any, tmp_path: Path) -> None:
    _, plain = hf_model(as_folder(bert, tmp_path))
    expected = values(plain, "blk.1.attn_output_norm.bias").copy()

    def older(name: str) -> str:
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    _, source = hf_model(written_again(tmp_path, older))
    assert np.array_equal(values(source, "blk.1.attn_output_norm.bias"), expected)


def test_positions_before_the_first_token_are_left_out(tmp_path: Path) -> None:
    model = make_encoder(ROBERTA)
    config, source = hf_model(as_folder(model, tmp_path))
    assert config.context_length == 62
    kept = model.embeddings.position_embeddings.weight.detach().numpy()[2:]
    types = model.embeddings.token_type_embeddings.weight.detach().numpy()[0]
    assert np.array_equal(values(source, "position_embd.weight"), kept + types)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"position_embedding_type": "relative_key"}, "positions 'relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
    ],
)
def test_what_this_build_does_not_know_of_encoders_is_refused_by_name(
    bert: Any, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    folder = as_folder(bert, tmp_path)
    folder.config = {**folder.config, **settings}
    with pytest.raises(UnsupportedModel, match=says):
        hf_model(folder)
