"""Files to a model: one ModelConfig and its weights, from GGUF or from a safetensors checkpoint.

Refuses by name: architectures without a row, missing keys, numbers that make no model, tensors that do not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import DECODABLE, BlockType, decode
from localllm.models.assemble import config_from_facts
from localllm.models.config import ModelConfig
from localllm.models.facts import facts_from_gguf
from localllm.models.families import FAMILIES, family_of, helper_refused, is_helper
from localllm.models.heads import head_from_config, head_from_gguf
from localllm.models.hf_facts import check_config, facts_from_hf, guessing_layers_from, hf_rope_factors, text_config
from localllm.models.hf_families import padding_positions
from localllm.models.hf_source import HFSource, TensorFolder
from localllm.models.layer_scales import with_layer_scales
from localllm.models.names import only_guesses, pieces_of
from localllm.models.pieces import Piece
from localllm.models.quirks import BlockFile, GGUFSource
from localllm.models.ready.folder import ready_folder
from localllm.models.rope_facts import NO_FACTORS, RopeFactors
from localllm.models.scaled import ScaledSource, multipliers_of
from localllm.models.shapes import check_tensors
from localllm.models.shared_kv import unread
from localllm.models.source import WeightSource
from localllm.models.tied import tie
from localllm.models.token_types import with_types_in_positions

MAX_VOCAB = 1 << 24


def runnable(architecture: str, types: Iterable[BlockType | str]) -> str | None:
    """Why this build cannot run such a file, in a sentence; None when it can. `types` are those of its tensors, or
    their names."""
    if is_helper(architecture):
        return helper_refused(architecture).message
    if architecture not in FAMILIES:
        return f"this build cannot run the architecture {architecture!r}; it runs {', '.join(sorted(FAMILIES))}"
    known = {block_type.name for block_type in DECODABLE}
    unknown = sorted({item if isinstance(item, str) else item.name for item in types} - known)
    return f"this build cannot read weights of the type {', '.join(unknown)}" if unknown else None


def gguf_model(file: BlockFile) -> tuple[ModelConfig, WeightSource]:
    """Config and weights of an open file; UnsupportedModel or BadModelFile when it is not for us."""
    if file.metadata.get("general.type") == "adapter":
        raise UnsupportedModel("this file is an adapter, not a model", hint="run its base with `--lora PATH`")
    reason = runnable(file.architecture, {tensor.type for tensor in file.tensors.values()})
    if reason is not None:
        raise UnsupportedModel(reason, hint="choose another model or quantization")
    if only_guesses(file.tensors):
        raise UnsupportedModel(
            "this file has only the layers that guess further tokens ahead (MTP), not the model that they are for",
            hint="choose the file of the model itself",
        )
    embedding = file.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding is not None and embedding.shape else None
    config = config_from_gguf(file.metadata, file.tensors, rope_factors(file), vocab_size)
    config = replace(config, head=head_from_gguf(file.metadata, file.tensors, is_encoder=config.is_encoder))
    source = _source(file, config)
    check_tensors(config, source)
    return with_layer_scales(config, source), source


def _source(file: BlockFile, config: ModelConfig) -> WeightSource:
    facts = facts_from_gguf(file.metadata, file.architecture)
    family = family_of(file.architecture)
    source = GGUFSource(file, config, family, facts.feed_forward, facts.num_guessing_layers)
    return with_types_in_positions(source, config.context_length, keeps=config.head is not None and config.head.judges)


def rope_factors(file: BlockFile) -> RopeFactors:
    def read(name: str) -> tuple[float, ...]:
        tensor = file.tensors.get(name)
        return () if tensor is None else tuple(decode(tensor.type, file.raw(name), tensor.shape).reshape(-1).tolist())

    names = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
    return RopeFactors(*map(read, names))


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensor_names: Collection[str],
    factors: RopeFactors = NO_FACTORS,
    vocab_size: int | None = None,
) -> ModelConfig:
    """What the metadata describe. UnsupportedModel for an unknown architecture, BadModelFile for a missing key.

    `factors` come from tensors (see `rope_factors`); a file that has such tensors needs them for right positions.
    `vocab_size` is the number of rows of the embedding, which is right where the metadata count other tokens.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadModelFile("the model file lacks general.architecture")
    family = family_of(architecture)
    facts = facts_from_gguf(metadata, architecture)
    facts = replace(facts, rope_log_multiplier=facts.rope_log_multiplier / family.log_multiplier_unit)
    size = _checked_vocab_size(facts.vocab_size if vocab_size is None else vocab_size, metadata)
    return config_from_facts(facts, family, tensor_names, factors, size)


def _checked_vocab_size(size: int | None, metadata: Mapping[str, Any]) -> int:
    if size is None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        size = len(tokens) if isinstance(tokens, (list, tuple)) else 0
    if not 0 < size <= MAX_VOCAB:
        raise BadModelFile(f"the model file says neither vocab_size nor the tokens, or absurd ones ({size})")
    return size


def hf_model(folder: TensorFolder) -> tuple[ModelConfig, WeightSource]:
    """Config and weights of an open safetensors checkpoint; UnsupportedModel or BadModelFile when it is not for us."""
    if not folder.config:
        raise BadModelFile("config.json is missing or says nothing", hint="take the whole folder from the hub")
    family = check_config(folder.config)
    folder = ready_folder(folder)
    facts = facts_from_hf(folder.config)
    head = head_from_config(folder.config)
    skips_from = guessing_layers_from(facts, folder.config)
    pieces = pieces_of(folder.tensors, family, skips_from, judges=head is not None)
    if facts.is_tied:
        tie(folder, pieces)
    multipliers = multipliers_of(text_config(folder.config))
    if multipliers is not None and multipliers.unties:
        pieces.setdefault("output.weight", pieces["token_embd.weight"])
    config = config_from_facts(facts, family, pieces, hf_rope_factors(facts), hf_vocab_size(folder, pieces))
    config = replace(config, head=head)
    for name in unread(pieces, config):
        del pieces[name]
    pairs = family.hf_pairs_neighbours and text_config(folder.config).get("rope_interleave") is not False
    weights: WeightSource = HFSource(folder, pieces, config, family.adds_one_to_norms, pairs)
    if multipliers is not None:
        weights = ScaledSource(weights, partial(multipliers.factor_of, config))
    source = with_types_in_positions(
        weights, config.context_length, padding_positions(folder.config), keeps=head is not None
    )
    needs_output = facts.is_tied is False and not config.is_encoder and head is None
    if needs_output and "output.weight" not in pieces:
        raise BadModelFile("the model lacks the tensor lm_head.weight, but config.json says that it is not tied")
    check_tensors(config, source)
    return with_layer_scales(config, source), source


def hf_vocab_size(folder: TensorFolder, pieces: Mapping[str, list[Piece]]) -> int:
    """Rows of the embedding: multimodal checkpoints may leave the number out of config.json, or count other tokens."""
    embedding = pieces.get("token_embd.weight")
    shape = folder.tensors[embedding[0].tensor].shape if embedding else ()
    if len(shape) != 2 or not 0 < shape[0] <= MAX_VOCAB:
        raise BadModelFile("the model has no embedding of tokens (embed_tokens.weight)")
    return shape[0]
