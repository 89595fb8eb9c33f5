"""Random LoRA adapters of tiny models, as peft saves them and computes with them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.oracles.hf import expected_logits, torch_and_transformers

ALL_LINEAR = "all-linear"


def make_adapter(model: Any, folder: Path, seed: int, tokens: list[int], **settings: Any) -> NDArray[np.float32]:
    """Save an adapter to `folder`; the logits (tokens, vocab) of the model with it merged in."""
    torch, _ = torch_and_transformers()
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, **settings})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about what transformers calls old
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_" in name:  # small enough for a tiny model to stay one, large enough to matter
                    parameter.normal_(0.0, 0.5 * parameter.shape[-1] ** -0.5)
        adapted.save_pretrained(folder)
        merged = adapted.merge_and_unload()
    return expected_logits(merged, tokens)
