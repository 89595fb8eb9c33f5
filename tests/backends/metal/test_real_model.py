"""The real small model: its logits against the reference, at once and token by token."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("mlx.core")

from localllm.backends.metal.backend import MetalBackend  # needs MLX
from localllm.backends.metal.precision import Precision
from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Backend, StepPlan, Want, plain_row, run_step
from localllm.formats.gguf_read import GGUFFile
from localllm.models.mapping import gguf_model

ALL = Want(logits="all")
TOKENS = [1, 29, 1195, 6693, 271, 81, 1141, 1425]


def logits(backend: Backend, tokens: list[int], start: int) -> NDArray[np.float32]:
    found = run_step(backend, StepPlan(start, (plain_row(1, tokens, start, [1], ALL),))).rows[0].logits
    assert found is not None
    return found


def test_logits_are_the_reference_s(small_model_file: Path) -> None:
    config, source = gguf_model(GGUFFile.open(small_model_file))
    judge = ReferenceBackend(config, source, keep_decoded=False)
    judge.allocate(2, 0)
    ours = MetalBackend(config, source, kv_type="f32", precision=Precision(half=False))
    ours.allocate(2, 0)
    expected = logits(judge, TOKENS, 0)
    assert np.abs(logits(ours, TOKENS, 0) - expected).max() < 2e-3
    singles = [logits(ours, [token], position) for position, token in enumerate(TOKENS)]
    assert np.abs(np.concatenate(singles) - expected).max() < 2e-3
