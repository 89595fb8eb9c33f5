"""Tiny random models that judge pairs of texts, as transformers builds them, and the logits that it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracles import encoders, hf
from tests.oracles.encoders import ENCODERS, MODERN
from tests.oracles.hf import BY_NAME, Family, torch_and_transformers

ONE = {"num_labels": 1}
ENCODED = {family.name: family for family in ENCODERS}
JUDGES = (
    replace(ENCODED["bert"], settings=ONE),
    replace(ENCODED["xlm-roberta"], settings={**ONE, "pad_token_id": 1, "type_vocab_size": 1}),
    replace(ENCODED["modernbert"], settings={**MODERN, **ONE, "classifier_pooling": "mean"}),
    Family("modernbert by its first token", "ModernBertConfig", "modern-bert", {**MODERN, **ONE}),
    replace(BY_NAME["qwen3"], settings={**BY_NAME["qwen3"].settings, **ONE, "pad_token_id": 2}),
)


def make_judge(family: Family) -> Any:
    """The transformers model, float32, with weights large enough that every part matters."""
    torch, transformers = torch_and_transformers()
    common = hf.COMMON if family.architecture == "qwen3" else encoders.COMMON
    config = getattr(transformers, family.config)(**{**common, **family.settings}, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = transformers.AutoModelForSequenceClassification.from_config(config).to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "norm" in name.lower() and name.endswith("weight")
                spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.normal_(1.0 if is_norm else 0.0, 0.5 if "embed" in name else spread)
    return model


def expected_logit(model: Any, ids: list[int], second_from: int) -> float:
    torch, _ = torch_and_transformers()
    types = {}
    if model.config.model_type == "bert":
        types["token_type_ids"] = torch.tensor([[int(index >= second_from) for index in range(len(ids))]])
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([ids]), **types).logits[0].numpy()
    assert logits.shape == (1,)
    return float(logits[0])
