"""The recurrence of Mamba-2 in numpy: transformers' mixer, limits of steps, and prompts cut anywhere."""

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.formulas import activate, convolve, gated_norm
from localllm.backends.state_space import scan, steps_of
from localllm.models.config import StateSpaceSpec

Floats = NDArray[np.float32]
SPEC = StateSpaceSpec(num_heads=6, head_dim=5, num_groups=2, state_dim=7, kernel=4)


def drawn(num_tokens: int) -> tuple[Floats, ...]:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((num_tokens, SPEC.channels)).astype(np.float32)
    step, rate, bias, skip = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((num_tokens, SPEC.num_heads), *((SPEC.num_heads,),) * 3)
    )
    return x, step, -np.exp(rate), bias, skip


def test_a_prompt_in_pieces_is_the_same_bits_as_in_one() -> None:
    x, step, *weights = drawn(13)
    whole, pieces = (np.zeros(SPEC.state_shapes[1], np.float32) for _ in range(2))
    out = scan(x, step, *weights, SPEC, whole)
    parts = [scan(x[a:b], step[a:b], *weights, SPEC, pieces) for a, b in ((0, 1), (1, 6), (6, 13))]
    assert np.array_equal(out, np.concatenate(parts)) and np.array_equal(whole, pieces)


def test_steps_are_positive_and_within_their_limits() -> None:
    raw, none = np.array([[-200.0, -1.0, 0.0, 40.0, 3e4, 1.0]], np.float32), np.zeros(6, np.float32)
    assert np.allclose(steps_of(raw, none, SPEC), [[0, 0.3132617, 0.6931472, 40, 3e4, 1.3132617]])
    limited = StateSpaceSpec(6, 5, 2, 7, 4, step_limits=(0.5, 2.0))
    assert np.allclose(steps_of(raw, none, limited), [[0.5, 0.5, 0.6931472, 2, 2, 1.3132617]])


def test_a_mixer_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    config = transformers.Mamba2Config(
        hidden_size=15, num_heads=6, head_dim=5, state_size=7, n_groups=2, num_hidden_layers=1, chunk_size=4
    )
    torch.manual_seed(3)
    mixer = transformers.models.mamba2.modeling_mamba2.Mamba2Mixer(config, layer_idx=0).float()
    x = torch.randn(1, 11, 15)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.4)
        expected = mixer(x)[0].numpy()
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    cuts = [SPEC.inner, SPEC.inner + SPEC.channels]
    gate, line, step = np.split(x[0].numpy() @ weights["in_proj.weight"].T, cuts, axis=1)
    padded = np.concatenate([np.zeros((SPEC.kernel - 1, SPEC.channels), np.float32), line])
    mixed = activate(convolve(padded, weights["conv1d.weight"][:, 0]) + weights["conv1d.bias"], "silu")
    state = np.zeros(SPEC.state_shapes[1], np.float32)
    seen = scan(mixed, step, -np.exp(weights["A_log"]), weights["dt_bias"], weights["D"], SPEC, state)
    normed = gated_norm(seen, gate, weights["norm.weight"], config.layer_norm_epsilon, SPEC.inner // 2, gate_first=True)
    assert np.abs(normed @ weights["out_proj.weight"].T - expected).max() <= 1e-5 * np.abs(expected).max()
