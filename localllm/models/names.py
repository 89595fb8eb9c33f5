"""Names of tensors in safetensors checkpoints, and what they are here.

One table has the usual names, `family_names` what single families call otherwise. Sources: the modeling files of
transformers (names of modules) and the names that GGUF converters give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from localllm.errors import UnsupportedModel
from localllm.models.family import Family
from localllm.models.family_names.dense import DENSE
from localllm.models.family_names.encoders import ENCODERS
from localllm.models.family_names.experts import EXPERTS
from localllm.models.family_names.gemmas import GEMMAS
from localllm.models.family_names.parallel import PARALLEL
from localllm.models.family_names.recurrent import RECURRENT
from localllm.models.pieces import GATE_UP, Piece, Table, Target, qkv, whole

LAYER: Table = MappingProxyType(
    {
        "input_layernorm": whole("attn_norm"),
        "post_attention_layernorm": whole("ffn_norm"),
        "self_attn.q_proj": whole("attn_q"),
        "self_attn.k_proj": whole("attn_k"),
        "self_attn.v_proj": whole("attn_v"),
        "self_attn.o_proj": whole("attn_output"),
        "self_attn.qkv_proj": qkv(),
        "self_attn.q_norm": whole("attn_q_norm"),
        "self_attn.k_norm": whole("attn_k_norm"),
        "mlp.gate_proj": whole("ffn_gate"),
        "mlp.up_proj": whole("ffn_up"),
        "mlp.down_proj": whole("ffn_down"),
        "mlp.gate_up_proj": GATE_UP,
        "mlp.gate": whole("ffn_gate_inp"),
        "block_sparse_moe.gate": whole("ffn_gate_inp"),
        # experts in one tensor, as newer checkpoints may have them; these names have no `.weight`
        "mlp.experts.gate_up_proj": (
            Target("ffn_gate_exps.weight", "first half"),
            Target("ffn_up_exps.weight", "second half"),
        ),
        "mlp.experts.down_proj": whole("ffn_down_exps.weight"),
        **{  # MLX stacks them
            f"{module}.switch_mlp.{part}_proj": whole(f"ffn_{part}_exps")
            for module in ("mlp", "block_sparse_moe")
            for part in ("gate", "up", "down")
        },
        **{
            f"mlp.{module}.{part}_proj": whole(f"ffn_{part}_shexp")
            for module in ("shared_expert", "shared_experts")
            for part in ("gate", "up", "down")
        },
        "mlp.shared_expert_gate": whole("ffn_gate_inp_shexp"),
        "mlp.gate.e_score_correction_bias": whole("exp_probs_b.bias"),
    }
)
OF_FAMILY: Mapping[str, Table] = MappingProxyType({**DENSE, **PARALLEL, **GEMMAS, **EXPERTS, **ENCODERS, **RECURRENT})
TOP: Mapping[str, str] = MappingProxyType(
    {
        "embed_tokens": "token_embd",
        "embed_tokens_per_layer": "per_layer_token_embd",
        "per_layer_model_projection": "per_layer_model_proj",
        "per_layer_projection_norm": "per_layer_proj_norm",
        "norm": "output_norm",
        "embedding_norm": "output_norm",
        "lm_head": "output",
        "embed_in": "token_embd",
        "embed_out": "output",
        "final_layer_norm": "output_norm",
        "word_embeddings": "token_embd",
        "embeddings": "token_embd",
        "norm_f": "output_norm",
        "final_layernorm": "output_norm",
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        "emb_ln": "token_embd_norm",
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "final_norm": "output_norm",
    }
)
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe|feed_forward|mixer)\.experts\.(\d+)\.(\w+)\.weight")
_STREAM = re.compile(r"altup_(projections|unembed_projections)\.(\d+)\.weight")
_EXPERT_PARTS: Mapping[str, str] = MappingProxyType(
    {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}
)
_HEAD_NORM = re.compile(r"self_attn\.([qk])_layernorm\.norms\.(\d+)\.weight")
_LAYER = re.compile(r"(?:layers?|h)\.(\d+)\.(.+)")
_PREFIXES = (
    *("model.backbone.", "language_model.backbone.", "backbone."),
    *("model.language_model.", "language_model.model.", "language_model.", "model.", "transformer.", "gpt_neox."),
    *("bert.encoder.", "bert.", "roberta.encoder.", "roberta.", "encoder."),
)
_GUESSING = ("mtp.", "mtp_block.", "mtp_emb_norm.", "mtp_hidden_norm.", "mtp_linear_proj.")
"""Parts that guess further tokens ahead; the model works without them."""
_NOT_VECTORS = ("pooler.", "cls.", "lm_head.", "head.", "decoder.", "embeddings.position_ids")
"""Parts of encoders that guess words and judge pairs of texts, and the numbers 0, 1, 2, ...; vectors come without."""
_ENCODER = re.compile(r"^(?:bert|roberta)\.")
_OF_JUDGES: Mapping[str, str] = MappingProxyType(
    {
        "pooler.dense": "cls",
        "classifier.dense": "cls",
        "head.dense": "cls",
        "head.norm": "cls.norm",
        "classifier.out_proj": "cls.output",
        "classifier": "cls.output",
        "score": "cls.output",
    }
)
"""The heads of models that judge pairs of texts; a pooler is one only where nothing else is before the last layer."""
_OLD_KINDS = {"gamma": "weight", "beta": "bias"}
"""What norms called theirs in checkpoints of the first years."""
_NOT_TEXT = (
    *("vision_tower.", "multi_modal_projector.", "visual.", "vision_model.", "audio_tower."),
    *("embed_vision.", "embed_audio.", "vision_embedder.", "audio_embedder."),
)
"""Parts of multimodal checkpoints that take pictures and sounds; the language model works without them."""


def left_out(tensors: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each kind of parts that a checkpoint or a GGUF file has and that nobody reads."""
    names = [tensor.removeprefix("model.") for tensor in tensors]
    found = []
    if any(name.startswith(_NOT_TEXT) for name in names):
        found.append("the parts that see and hear are left out: this model takes text only")
    if any(name.startswith(_GUESSING) or ".nextn." in name for name in names):
        found.append("the parts that guess further tokens ahead are left out")
    return tuple(found)


def only_guesses(tensors: Iterable[str]) -> bool:
    """Whether a GGUF file has nothing but layers that guess further tokens ahead of another model."""
    names = list(tensors)
    return any(".nextn." in name for name in names) and not any(name.startswith("blk.0.") for name in names)


def pieces_of(
    tensors: Iterable[str], family: Family, skips_from: int | None = None, *, judges: bool = False
) -> dict[str, list[Piece]]:
    """Canonical names with the tensors they are made of. UnsupportedModel names a tensor that nobody knows.

    `skips_from`: layers from this number on only guess further tokens, and are left out. `judges`: it has a head.
    """
    tensors = list(tensors)
    heads = _heads(tensors) if judges else {}
    table = {**LAYER, **OF_FAMILY.get(family.architecture, {})}
    found: dict[str, list[Piece]] = {}
    if family.is_encoder:
        tensors = [tensor for tensor in tensors if not _ENCODER.sub("", tensor).startswith(_NOT_VECTORS)]
    found.update({name: [Piece(tensor)] for tensor, name in heads.items()})
    for tensor in sorted(set(tensors) - heads.keys()):
        for canonical, piece in _read(tensor, table, skips_from):
            found.setdefault(canonical, []).append(piece)
    for pieces in found.values():
        pieces.sort(key=lambda piece: piece.order)
    return found if any(".ffn_up_exps." in name for name in found) else _without_experts(found)


def pieces_of_module(module: str, family: Family, has_experts: bool) -> dict[str, Piece]:
    """The weights that one linear layer of a checkpoint makes; empty for one that the family does not have."""
    table = {**LAYER, **OF_FAMILY.get(family.architecture, {})}
    try:
        found = {name: [piece] for name, piece in _read(f"{module}.weight", table, None)}
    except UnsupportedModel:
        return {}
    return {name: pieces[0] for name, pieces in (found if has_experts else _without_experts(found)).items()}


def _without_experts(found: dict[str, list[Piece]]) -> dict[str, list[Piece]]:
    """Shared experts without others are a feed-forward like any."""
    return {name.replace("_shexp.", "."): pieces for name, pieces in found.items()}


def _heads(tensors: list[str]) -> dict[str, str]:
    """Tensors of the head, and their canonical names."""
    found: dict[str, str] = {}
    for tensor in tensors:
        module, _, kind = _ENCODER.sub("", tensor).rpartition(".")
        if module in _OF_JUDGES and not (module == "pooler.dense" and "classifier.dense.weight" in tensors):
            found[tensor] = f"{_OF_JUDGES[module]}.{kind}"
    return found


def _read(tensor: str, table: Table, skips_from: int | None) -> list[tuple[str, Piece]]:
    if tensor.removeprefix("model.").startswith((*_NOT_TEXT, *_GUESSING)) or tensor.endswith("rotary_emb.inv_freq"):
        return []
    rest = tensor
    for prefix in _PREFIXES:
        if tensor.startswith(prefix):
            rest = tensor.removeprefix(prefix)
            break
    layer, stream = _LAYER.fullmatch(rest), _STREAM.fullmatch(rest)
    if stream is not None:
        name = "altup_proj" if stream[1] == "projections" else "altup_unembd_proj"
        return [(f"{name}.weight", Piece(tensor, order=int(stream[2])))]
    if layer is None:
        module, kind = _parts(rest)
        if module not in TOP or kind not in ("weight", "bias"):
            raise _unknown(tensor)
        return [(f"{TOP[module]}.{kind}", Piece(tensor))]
    if skips_from is not None and int(layer[1]) >= skips_from:
        return []
    return [(f"blk.{int(layer[1])}.{name}", piece) for name, piece in _in_layer(tensor, layer[2], table)]


def _in_layer(tensor: str, rest: str, table: Table) -> list[tuple[str, Piece]]:
    expert = _EXPERT.fullmatch(rest)
    if expert is not None and expert[2] in _EXPERT_PARTS:
        return [(f"ffn_{_EXPERT_PARTS[expert[2]]}_exps.weight", Piece(tensor, order=int(expert[1])))]
    head = _HEAD_NORM.fullmatch(rest)
    if head is not None:
        return [(f"attn_{head[1]}_norm.weight", Piece(tensor, order=int(head[2])))]
    module, kind = _parts(rest)
    if rest in table:
        scales = tensor.removesuffix("_blocks") + "_scales" if tensor.endswith("_blocks") else ""
        return [(item.name, Piece(tensor, item.cut, item.transposed, scales=scales)) for item in table[rest]]
    if module not in table or kind not in ("weight", "bias"):
        raise _unknown(tensor)
    return [(f"{item.name}.{kind}", Piece(tensor, item.cut, item.transposed)) for item in table[module]]


def _parts(name: str) -> tuple[str, str]:
    module, _, kind = name.rpartition(".")
    return module, _OLD_KINDS.get(kind, kind)


def _unknown(tensor: str) -> UnsupportedModel:
    if tensor.startswith("classifier."):
        return UnsupportedModel(
            f"this model judges texts ({tensor}), and config.json does not say that it judges pairs of them",
            hint="rerankers are ...ForSequenceClassification with one label",
        )
    return UnsupportedModel(f"this build does not know what to do with the tensor {tensor}")
