"""What a config.json leaves out is what transformers takes for it."""

from typing import Any

import pytest

from localllm.models.hf_facts import facts_from_hf
from localllm.models.hf_usual import USUAL
from tests.oracles.hf import torch_and_transformers

LLAVA = {  # all that Llava 1.5 says of its language model
    "model_type": "llava",
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("model_type", USUAL)
def test_the_table_has_the_defaults_of_transformers(model_type: str) -> None:
    torch_and_transformers()
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    config = mapping[model_type]()
    for name, value in USUAL[model_type].items():
        assert value in usual_of(config, name), name


def usual_of(config: Any, name: str) -> list[Any]:
    """The default, of layers of every kind."""
    if name == "rope_theta":
        rope = config.rope_parameters
        return [part["rope_theta"] for part in (rope.get("full_attention", rope), rope.get("sliding_attention", rope))]
    if (config.model_type, name) == ("qwen3_5_moe_text", "intermediate_size"):
        return [0]  # it has none
    value = getattr(config, name)
    if name == "rope_parameters":  # which old and new words name the same
        return [{key: part for key, part in value.items() if key not in ("type", "max_position_embeddings")}]
    return [value[0] if isinstance(value, list) else value]


def test_a_language_model_whose_sizes_are_the_usual_ones_need_not_name_them() -> None:
    facts = facts_from_hf(LLAVA)
    assert (facts.hidden_size, facts.num_layers, facts.num_heads, facts.feed_forward) == (4096, 32, (32,), (11008,))
    assert facts.context_length == 4096


MISTRAL = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-5}


def test_what_is_null_is_not_left_out() -> None:
    told, null = facts_from_hf(MISTRAL), facts_from_hf({**MISTRAL, "num_key_value_heads": None, "sliding_window": None})
    assert (told.num_kv_heads, told.window) == ((8,), 4096)
    assert (null.num_kv_heads, null.window) == (None, 0)


def test_what_has_another_name_is_not_left_out() -> None:
    mixtral = {**MISTRAL, "model_type": "mixtral", "num_experts": 4, "rope_parameters": {"rope_theta": 5e5}}
    facts = facts_from_hf(mixtral)
    assert (facts.num_experts, facts.rope_base) == (4, 5e5)
    assert facts_from_hf({**MISTRAL, "model_type": "mixtral", "rope_parameters": {}}).rope_base == 1e6


def test_qwen_has_a_window_only_where_it_says_that_it_uses_it() -> None:
    qwen = {"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 2}
    assert facts_from_hf(qwen).window == 0
    assert facts_from_hf({**qwen, "use_sliding_window": True}).window == 32


def test_rope_in_older_words_is_not_left_out() -> None:
    assert facts_from_hf({"model_type": "gpt_oss"}).rope_scaling == "yarn"
    linear = facts_from_hf({"model_type": "gpt_oss", "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert (linear.rope_scaling, linear.rope_factor) == ("linear", 2.0)
