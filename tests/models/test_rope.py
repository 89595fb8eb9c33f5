"""Rotary tables: every scaling gives the frequencies and the attention factor that transformers computes."""

from typing import Any

import numpy as np
import pytest

from localllm.models.config import RopeScaling, RopeSpec
from localllm.models.rope import rope_frequencies, rope_tables

LONG = tuple(1.0 + 0.37 * i for i in range(32))
SHORT = tuple(1.0 + 0.01 * i for i in range(32))
CASES: dict[str, tuple[dict[str, Any], RopeScaling | None]] = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0)),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        RopeScaling("llama3", 8.0, 8192),
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
        RopeScaling("yarn", 4.0, 4096),
    ),
    "yarn with its own betas and factor": (
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
        },
        RopeScaling("yarn", 32.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25),
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "short_factor": list(SHORT),
            "long_factor": list(LONG),
        },
        RopeScaling("longrope", 16.0, 4096, short_factors=SHORT, long_factors=LONG),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_frequencies_are_those_of_transformers(name: str, base: float) -> None:
    pytest.importorskip("torch", reason="the oracle is transformers on torch")
    pytest.importorskip("transformers", reason="the oracle is transformers")
    parameters, scaling = CASES[name]
    expected, factor = transformers_frequencies({**parameters, "rope_theta": base})
    ours, our_factor = rope_frequencies(RopeSpec(64, base, scaling), 65536)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    assert our_factor == pytest.approx(factor, rel=1e-6)


def transformers_frequencies(parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=65536, rope_parameters=parameters
    )
    frequencies: Any
    if parameters["rope_type"] == "default":
        rotary = LlamaRotaryEmbedding(config)
        frequencies, factor = rotary.inv_freq, rotary.attention_scaling
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=65536)
    return frequencies.numpy(), float(factor)


def test_longrope_takes_the_short_factors_where_no_sequence_exceeds_the_original_context() -> None:
    scaling = RopeScaling("longrope", 16.0, 4096, short_factors=SHORT, long_factors=LONG)
    plain, _ = rope_frequencies(RopeSpec(64, 10000.0), 4096)
    short, _ = rope_frequencies(RopeSpec(64, 10000.0, scaling), 4096)
    long, _ = rope_frequencies(RopeSpec(64, 10000.0, scaling), 4097)
    np.testing.assert_allclose(short, plain / SHORT)
    np.testing.assert_allclose(long, plain / LONG)


def test_factors_divide_each_frequency() -> None:
    plain, _ = rope_frequencies(RopeSpec(64, 10000.0), 4096)
    divided, factor = rope_frequencies(RopeSpec(64, 10000.0, RopeScaling("factors", short_factors=LONG)), 4096)
    np.testing.assert_allclose(divided, plain / LONG)
    assert factor == 1.0


def test_tables_are_exact_far_into_the_context() -> None:
    cos, sin = rope_tables(RopeSpec(64, 10000.0), np.array([0, 1, 131071], np.int32), 131072)
    assert cos.dtype == sin.dtype == np.float32 and cos.shape == (3, 32)
    assert (cos[0] == 1).all() and (sin[0] == 0).all()
    # the fastest pair turns one radian per position
    assert cos[2, 0] == np.float32(np.cos(131071.0)) and sin[2, 0] == np.float32(np.sin(131071.0))


def test_the_attention_factor_is_in_the_tables() -> None:
    scaling = RopeScaling("yarn", 4.0, 4096, attention_factor=1.5)
    cos, sin = rope_tables(RopeSpec(64, 10000.0, scaling), np.arange(9), 16384)
    np.testing.assert_allclose(cos**2 + sin**2, 2.25, rtol=1e-6)
