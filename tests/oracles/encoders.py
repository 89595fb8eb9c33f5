"""Tiny random encoders as transformers builds them, and the vectors that it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracles.hf import Family, torch_and_transformers

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

MODERN = {"num_hidden_layers": 4, "local_attention": 16, "cls_token_id": 0, "sep_token_id": 1}
MODERN |= {"bos_token_id": 0, "eos_token_id": 1}
PATTERN = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
# transformers halves a window and adds one, each time it opens a config; of 2 it makes 2
GEMMA = {"num_hidden_layers": 7, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32}
GEMMA |= {"sliding_window": 2, "use_bidirectional_attention": True, "tie_word_embeddings": True}

ENCODERS = (
    Family("bert", "BertConfig", "bert"),
    Family("bert with relu and a wide epsilon", "BertConfig", "bert", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    Family("roberta", "RobertaConfig", "bert", {"pad_token_id": 1}),
    Family("nomic-bert", "NomicBertConfig", "nomic-bert"),
    Family("modernbert", "ModernBertConfig", "modern-bert", MODERN),
    Family("modernbert with few windows", "ModernBertConfig", "modern-bert", {**MODERN, "layer_types": PATTERN}),
    Family("embedding gemma", "Gemma3TextConfig", "gemma-embedding", GEMMA),
    Family("xlm-roberta", "XLMRobertaConfig", "bert", {"pad_token_id": 1}),
)


def make_encoder(family: Family) -> Any:
    """The transformers model, float32, with weights large enough that every part matters."""
    torch, transformers = torch_and_transformers()
    config = getattr(transformers, family.config)(**{**COMMON, **family.settings}, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.AutoModel.from_config(config).to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "norm" in name.lower() and name.endswith("weight")
                spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.normal_(1.0 if is_norm else 0.0, 0.5 if "embeddings" in name else spread)
    return model


def expected_states(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """(tokens, hidden), computed at once."""
    torch, _ = torch_and_transformers()
    with torch.no_grad():
        states: NDArray[np.float32] = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return states
