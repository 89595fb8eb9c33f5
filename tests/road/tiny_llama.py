"""A model folder as transformers writes it: a random Llama with a tokenizer that was trained on a page of text."""

from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{% for message in messages %}<|bos|>{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()
SPECIAL = ["<|bos|>", "<|eos|>", "<|end|>"]


def make_tiny_llama(folder: Path, **settings: Any) -> Path:
    """Two layers, 512 tokens, a context of 256; further settings are those of transformers' LlamaConfig."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained(), bos_token=SPECIAL[0], eos_token=SPECIAL[1]
    )
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **{**sizes, **heads, **settings})
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.update(eos_token_id=[1, 2], do_sample=True, temperature=0.5, top_k=5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained() -> Any:
    """A byte-level BPE tokenizer of 512 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def their_greedy_ids(folder: Path, ids: list[int], count: int) -> list[int]:
    """What transformers continues with in float32, without a stop."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = list(ids)
    with torch.no_grad():
        for _ in range(count):
            given.append(int(model(torch.tensor([given])).logits[0, -1].argmax()))
    return given[len(ids) :]
