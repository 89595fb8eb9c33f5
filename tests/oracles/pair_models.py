"""Whole folders of rerankers as transformers saves them, tiny and random: weights, tokenizer, and what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.oracles.hf import BY_NAME, COMMON, Family, torch_and_transformers
from tests.oracles.judges import JUDGES, make_judge

QUERY = "what do the cats sit on"
DOCUMENTS = ["the cat sat on the mat", "and then 2024", "naïve café [SEP] <|im_end|>", "hello world " * 8]
TEXT = [*DOCUMENTS, QUERY, "the other cats' mats weren't there; yes or no, user system assistant Query Document"] * 3
BERT_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLM_MARKS = ["<s>", "<pad>", "</s>", "<unk>"]
QWEN_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def with_room(family: Family) -> Family:
    """Texts of these tests are longer than those of numbers."""
    return replace(family, settings={**family.settings, "max_position_embeddings": 200})


def bert_folder(folder: Path) -> Path:
    """WordPiece, types of tokens, a pooler: as ms-marco-MiniLM."""
    core = Core(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=80, special_tokens=BERT_MARKS))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return _saved(folder, make_judge(with_room(JUDGES[0])), core, names)


def xlm_folder(folder: Path) -> Path:
    """Unigram, two marks between texts, positions behind the padding: as bge-reranker-v2-m3."""
    core = Core(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=XLM_MARKS, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"}
    return _saved(folder, make_judge(with_room(JUDGES[1])), core, names)


def roberta_folder(folder: Path) -> Path:
    """Byte-level BPE, two marks between texts."""
    core = Core(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=XLM_MARKS, initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>"}
    family = with_room(replace(JUDGES[1], config="RobertaConfig"))
    family = replace(family, settings={**family.settings, "vocab_size": core.get_vocab_size()})
    return _saved(folder, make_judge(family), core, names)


def qwen3_folder(folder: Path) -> Path:
    """A decoder that says yes or no: as Qwen3-Reranker with the files of sentence-transformers."""
    torch, transformers = torch_and_transformers()
    core = Core(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=QWEN_MARKS, initial_alphabet=alphabet)
    )
    settings = {**COMMON, **BY_NAME["qwen3"].settings, "vocab_size": core.get_vocab_size(), "initializer_range": 0.1}
    config = transformers.Qwen3Config(**{**settings, "tie_word_embeddings": True, "max_position_embeddings": 512})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.Qwen3ForCausalLM(config).to(torch.float32).eval()
    _saved(folder, model, core, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"},
                {
                    "idx": 1,
                    "name": "1",
                    "path": "1_LogitScore",
                    "type": "sentence_transformers.cross_encoder.LogitScore",
                },
            ]
        )
    )
    (folder / "1_LogitScore").mkdir()
    words = {"true_token_id": core.encode("e").ids[0], "false_token_id": core.encode("s").ids[0]}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(words))
    return folder


def _saved(folder: Path, model: Any, core: Core, names: dict[str, str]) -> Path:
    _, transformers = torch_and_transformers()
    assert core.get_vocab_size() <= model.config.vocab_size
    model.save_pretrained(folder)
    kind = transformers.BertTokenizerFast if model.config.model_type == "bert" else transformers.PreTrainedTokenizerFast
    kind(tokenizer_object=core, **names).save_pretrained(folder)
    return folder


def expected_logits(folder: Path) -> NDArray[np.float32]:
    """What transformers says of the query and each document, as its tokenizer pairs them. Texts are split so that none
    becomes a control token."""
    torch, transformers = torch_and_transformers()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    core = Core.from_file(str(folder / "tokenizer.json"))
    core.encode_special_tokens = True
    logits = []
    for document in DOCUMENTS:
        pair = core.encode(QUERY, document)
        types = {"token_type_ids": torch.tensor([pair.type_ids])} if model.config.model_type == "bert" else {}
        with torch.no_grad():
            logits.append(float(model(torch.tensor([pair.ids]), **types).logits[0, 0]))
    return np.array(logits, np.float32)


def expected_of_words(folder: Path) -> NDArray[np.float32]:
    """As the example of Qwen3-Reranker's authors computes it, with the two tokens that the folder names."""
    torch, transformers = torch_and_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    core = Core.from_file(str(folder / "tokenizer.json"))
    words = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    instruct = "Given a web search query, retrieve relevant passages that answer the query"
    logits = []
    for document in DOCUMENTS:
        core.encode_special_tokens = False
        head, tail = core.encode(before).ids, core.encode(after).ids
        core.encode_special_tokens = True
        middle = core.encode(f"<Instruct>: {instruct}\n<Query>: {QUERY}\n<Document>: {document}").ids
        with torch.no_grad():
            last = model(torch.tensor([[*head, *middle, *tail]])).logits[0, -1]
        logits.append(float(last[words["true_token_id"]] - last[words["false_token_id"]]))
    return np.array(logits, np.float32)


def gemma_folder(folder: Path) -> Path:
    """A decoder's layers that see both ways, two layers after the mean: as EmbeddingGemma."""
    torch, transformers = torch_and_transformers()
    core = Core(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=XLM_MARKS, initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    settings = {**COMMON, "vocab_size": core.get_vocab_size(), "num_hidden_layers": 7, "head_dim": 32}
    settings |= {"query_pre_attn_scalar": 32, "sliding_window": 16, "use_bidirectional_attention": True}
    config = transformers.Gemma3TextConfig(**settings, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(13)
        model = transformers.Gemma3TextModel(config).to(torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.normal_(0.0, 0.5 if "embed" in name else spread)
        dense = [torch.randn(96, 64) / 8, torch.randn(64, 96) / 8]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    _saved(folder, model, core, names)
    said = json.loads((folder / "config.json").read_text())
    # transformers halves the window when it opens a config, and saves the half
    (folder / "config.json").write_text(json.dumps({**said, "sliding_window": 16}))
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize")
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    from safetensors.torch import save_file

    for index, weight in enumerate(dense, 2):
        place = folder / f"{index}_Dense"
        place.mkdir()
        sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
        activation = {"activation_function": "torch.nn.modules.linear.Identity"}
        (place / "config.json").write_text(json.dumps(sizes | activation))
        save_file({"linear.weight": weight.contiguous()}, place / "model.safetensors")
    (folder / "4_Normalize").mkdir()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    prompts = {"prompts": {"query": "task: search | query: ", "document": "title: none | text: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts | {"default_prompt_name": None}))
    return folder


def expected_vectors(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """The mean, both layers, length 1, as sentence-transformers would."""
    torch, transformers = torch_and_transformers()
    from safetensors.torch import load_file

    model = transformers.Gemma3TextModel.from_pretrained(folder, attn_implementation="eager").eval()
    assert model.config.sliding_window == 9 and model.config.use_bidirectional_attention
    core = Core.from_file(str(folder / "tokenizer.json"))
    vectors = []
    for text in texts:
        with torch.no_grad():
            x = model(torch.tensor([core.encode(text).ids])).last_hidden_state[0].mean(0)
            for index in (2, 3):
                x = load_file(folder / f"{index}_Dense" / "model.safetensors")["linear.weight"] @ x
        vectors.append((x / x.norm()).numpy())
    return np.stack(vectors)
