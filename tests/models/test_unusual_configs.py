"""What a config.json may say and published ones seldom do: numbers are those of transformers, or it is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Want
from localllm.errors import UnsupportedModel
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.hf_facts import facts_from_hf
from localllm.models.mapping import hf_model
from tests.contract.walk import Walk
from tests.oracles.hf import BY_NAME, YARN, expected_logits, make_model, torch_and_transformers

TOKENS = np.random.default_rng(4).integers(3, 80, 30).tolist()
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
MEASURED = {"rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
FREQUENCIES = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.0 + 0.7 * i for i in range(8)]}
UNTOLD = {name: value for name, value in YARN.items() if name != "truncate"}


def saved(name: str, folder: Path, **settings: Any) -> Any:
    """A family's tiny model with other settings, as transformers saves it."""
    family = BY_NAME[name]
    model = make_model(replace(family, settings={**family.settings, **settings}))
    model.save_pretrained(folder)
    return model


def difference(model: Any, folder: Path) -> float:
    """Largest difference over largest logit."""
    with SafetensorsFolder.open(folder) as checkpoint:
        config, source = hf_model(checkpoint)
        backend = ReferenceBackend(replace(config, context_length=64), source, page_size=4)
        (result,) = Walk(backend).step((1, TOKENS, Want(logits="all")))
    assert result.logits is not None
    expected = expected_logits(model, TOKENS)
    return float(np.abs(result.logits - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ministral 3", {"sliding_window": 9}),
        ("gemma2", {"hidden_activation": "silu"}),
        ("gemma3", {"hidden_activation": "relu"}),
        ("gemma3", {"attn_logit_softcapping": 0.5}),
        ("gemma", {"hidden_act": "gelu"}),
        ("gpt-oss", {"hidden_act": "gelu"}),
        ("gpt-oss", {"rope_parameters": UNTOLD}),
        ("exaone 4", {"sliding_window": 9}),
        ("gemma 4", {"num_hidden_layers": 11}),
        ("bamba", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25}}),
        ("llama", {"rope_parameters": PROPORTIONAL}),
    ],
)
def test_unusual_settings_give_the_logits_of_transformers(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = saved(name, tmp_path, **settings)
    assert difference(model, tmp_path) < 2e-4


@pytest.mark.parametrize(
    "said",
    [
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {**YARN, "rope_theta": 555.0}},
        {"rope_parameters": {"type": "linear", "rope_theta": 555.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **FREQUENCIES}, "max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}},
        {"rope_parameters": YARN, "original_max_position_embeddings": 16},
    ],
)
def test_rope_that_is_said_twice_or_in_old_words_is_read_as_in_transformers(
    said: dict[str, Any], tmp_path: Path
) -> None:
    _, transformers = torch_and_transformers()
    saved("llama", tmp_path, rope_parameters={**PLAIN, "rope_theta": 777.0})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **said}))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert difference(model, tmp_path) < 2e-4


NESTED = {"sliding_attention": PLAIN, "full_attention": PLAIN}


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen3", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("qwen3 next", {"hidden_act": "gelu"}, "hidden_act"),
        ("falcon h1", {"hidden_act": "gelu"}, "hidden_act"),
        ("granite 4 h", {"hidden_act": "relu"}, "hidden_act"),
        ("ernie 4.5 moe", {"moe_norm_min": 0.5}, "moe_norm_min"),
        ("olmo3", {"layer_types": ["attention"] * 4}, "'attention'"),
        ("deepseek v3", {"rope_parameters": {**MEASURED, "rope_type": "linear"}}, "mscale_all_dim"),
        ("deepseek v2", {"rope_parameters": {**MEASURED, "rope_type": "dynamic"}}, "mscale_all_dim"),
        ("gemma3", {"rope_parameters": {**NESTED, "sliding_attention": YARN}}, "sliding_attention"),
        ("olmo3", {"rope_parameters": {**NESTED, "sliding_attention": YARN}}, "sliding_attention"),
    ],
)
def test_what_no_row_knows_is_refused(name: str, said: dict[str, Any], says: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=says):
        facts_from_hf({**config, **said})


@pytest.mark.parametrize("num_layers", [5, 12])
def test_gates_of_gemma_3n_are_cut_as_usual_where_nothing_is_said(num_layers: int) -> None:
    _, transformers = torch_and_transformers()
    said = transformers.Gemma3nTextConfig(num_hidden_layers=num_layers, num_kv_shared_layers=0).to_dict()
    untold = {**said, "activation_sparsity_pattern": None}
    assert facts_from_hf(untold).spreads == facts_from_hf(said).spreads


def test_how_rope_pairs_values_is_read_inside_of_a_model_that_also_sees(tmp_path: Path) -> None:
    model = saved("deepseek v3", tmp_path, rope_interleave=False)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "kimi_vl", "text_config": json.loads(config.read_text())}))
    assert difference(model, tmp_path) < 2e-4
