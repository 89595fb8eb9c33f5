"""Names of tensors in safetensors checkpoints, and what they are here: one table, and what a family says otherwise.

Sources: the modeling files of transformers (names of modules) and the names that GGUF converters give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from localllm.errors import UnsupportedModel
from localllm.models.delta_rows import DeltaCut, GatedCut
from localllm.models.families import Family
from localllm.models.state_space import IN, IN_CUTS, InCut

Cut = Literal[
    "",
    "q",
    "k",
    "v",
    "first half",
    "second half",
    "even",
    "odd",
    # every key head's queries, keys and values together
    "grouped q",
    "grouped k",
    "grouped v",
    # of latent attention: see models/rows.py
    "plain queries",
    "turned queries",
    "latent",
    "turned keys",
    "head keys",
    "head values",
    # of gated attention and gated delta nets: see models/delta_rows.py
    GatedCut,
    DeltaCut,
    "tiled columns",
    # of state spaces: see models/state_space.py
    InCut,
]


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a canonical weight: rows of a tensor of the file. `order`: place among stacked experts.

    `transposed`: the file has (in, out). `scales`: the tensor is MXFP4 nibbles, and these are its exponents.
    """

    tensor: str
    cut: Cut = ""
    transposed: bool = False
    order: int = 0
    scales: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a module of the checkpoint holds: `name` lacks the layer's prefix, and `.weight` or `.bias`."""

    name: str
    cut: Cut = ""
    transposed: bool = False


Table = Mapping[str, tuple[Target, ...]]


def whole(name: str, transposed: bool = False) -> tuple[Target, ...]:
    return (Target(name, "", transposed),)


def qkv(transposed: bool = False) -> tuple[Target, ...]:
    return tuple(Target(f"attn_{part}", part, transposed) for part in ("q", "k", "v"))


GROUPED_QKV = (
    Target("attn_q", "grouped q"),
    Target("attn_k", "grouped k"),
    Target("attn_v", "grouped v"),
)
GATE_UP = (Target("ffn_gate", "first half"), Target("ffn_up", "second half"))

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
_NORMS_AFTER: Table = {
    "post_attention_layernorm": whole("post_attention_norm"),
    "post_feedforward_layernorm": whole("post_ffw_norm"),
}
_GEMMA: Table = {**_NORMS_AFTER, "pre_feedforward_layernorm": whole("ffn_norm")}
_TOKEN_INPUTS: Table = {
    **_GEMMA,
    "per_layer_input_gate": whole("inp_gate"),
    "per_layer_projection": whole("proj"),
    "post_per_layer_input_norm": whole("post_norm"),
}
_GEMMA3N: Table = {
    **_TOKEN_INPUTS,
    "altup.correct_output_scale": whole("altup_correct_scale.weight"),
    "altup.correction_coefs": whole("altup_correct_coef"),
    "altup.prediction_coefs": whole("altup_predict_coef"),
    "altup.modality_router": whole("altup_router"),
    "altup.router_norm": whole("altup_router_norm"),
    "laurel.linear_left": whole("laurel_l"),
    "laurel.linear_right": whole("laurel_r"),
    "laurel.post_laurel_norm": whole("laurel_post_norm"),
}
_GEMMA4: Table = {
    **_TOKEN_INPUTS,
    "layer_scalar": whole("layer_output_scale.weight"),
    "pre_feedforward_layernorm_2": whole("pre_ffw_norm_2"),
    "post_feedforward_layernorm_1": whole("post_ffw_norm_1"),
    "post_feedforward_layernorm_2": whole("post_ffw_norm_2"),
    "router.proj": whole("ffn_gate_inp"),
    "router.scale": whole("ffn_gate_inp.scale"),
    "router.per_expert_scale": whole("ffn_down_exps.scale"),
    "experts.gate_up_proj": (
        Target("ffn_gate_exps.weight", "first half"),
        Target("ffn_up_exps.weight", "second half"),
    ),
    "experts.down_proj": whole("ffn_down_exps.weight"),
}
_SHARED_MLP: Table = {"shared_mlp.input_linear": GATE_UP, "shared_mlp.output_linear": whole("ffn_down")}
_GRANITE_EXPERTS: Table = {
    "block_sparse_moe.input_linear": (Target("ffn_gate_exps", "first half"), Target("ffn_up_exps", "second half")),
    "block_sparse_moe.output_linear": whole("ffn_down_exps"),
    "block_sparse_moe.router.layer": whole("ffn_gate_inp"),
    "shared_mlp.input_linear": (Target("ffn_gate_shexp", "first half"), Target("ffn_up_shexp", "second half")),
    "shared_mlp.output_linear": whole("ffn_down_shexp"),
}
_STARCODER2: Table = {"mlp.c_fc": whole("ffn_up"), "mlp.c_proj": whole("ffn_down")}
_GLM4: Table = {
    "post_self_attn_layernorm": whole("post_attention_norm"),
    "post_mlp_layernorm": whole("post_ffw_norm"),
}
_ERNIE_EXPERTS: Table = {
    "mlp.moe_statics.e_score_correction_bias": whole("exp_probs_b.bias"),
    "mlp.gate.moe_statics.e_score_correction_bias": whole("exp_probs_b.bias"),
}
_GPT_NEOX: Table = {
    "attention.query_key_value": GROUPED_QKV,
    "attention.dense": whole("attn_output"),
    "mlp.dense_h_to_4h": whole("ffn_up"),
    "mlp.dense_4h_to_h": whole("ffn_down"),
    "attention.bias": (),  # the causal mask
    "attention.masked_bias": (),
}
_FALCON: Table = {
    "ln_attn": whole("attn_norm"),
    "ln_mlp": whole("ffn_norm"),
    "self_attention.query_key_value": GROUPED_QKV,
    "self_attention.dense": whole("attn_output"),
    "mlp.dense_h_to_4h": whole("ffn_up"),
    "mlp.dense_4h_to_h": whole("ffn_down"),
}
_QUERIES = (Target("attn_q_plain", "plain queries"), Target("attn_q_turned", "turned queries"))
_LATENT: Table = {
    "self_attn.q_proj": _QUERIES,
    "self_attn.q_a_proj": whole("attn_q_a"),
    "self_attn.q_a_layernorm": whole("attn_q_a_norm"),
    "self_attn.q_b_proj": _QUERIES,
    "self_attn.kv_a_proj_with_mqa": (Target("attn_kv_a", "latent"), Target("attn_k_turned", "turned keys")),
    "self_attn.kv_a_layernorm": whole("attn_kv_a_norm"),
    "self_attn.kv_b_proj": (Target("attn_k_b", "head keys"), Target("attn_v_b", "head values")),
}
_GPT_OSS: Table = {
    "self_attn.sinks": whole("attn_sinks.weight"),
    "mlp.router": whole("ffn_gate_inp"),
    "mlp.experts.gate_up_proj": (
        Target("ffn_gate_exps.weight", "even", transposed=True),
        Target("ffn_up_exps.weight", "odd", transposed=True),
    ),
    "mlp.experts.gate_up_proj_blocks": (Target("ffn_gate_exps.weight", "even"), Target("ffn_up_exps.weight", "odd")),
    "mlp.experts.gate_up_proj_bias": (Target("ffn_gate_exps.bias", "even"), Target("ffn_up_exps.bias", "odd")),
    "mlp.experts.down_proj": whole("ffn_down_exps.weight", transposed=True),
    "mlp.experts.down_proj_blocks": whole("ffn_down_exps.weight"),
    "mlp.experts.down_proj_bias": whole("ffn_down_exps.bias"),
    "mlp.experts.gate_up_proj_scales": (),  # read with their blocks
    "mlp.experts.down_proj_scales": (),
}
# the linear layers of GPT-2 are one-dimensional convolutions: (in, out)
_GPT2: Table = {
    "ln_1": whole("attn_norm"),
    "ln_2": whole("ffn_norm"),
    "attn.c_attn": qkv(transposed=True),
    "attn.c_proj": whole("attn_output", transposed=True),
    "mlp.c_fc": whole("ffn_up", transposed=True),
    "mlp.c_proj": whole("ffn_down", transposed=True),
    "attn.bias": (),  # the causal mask, kept as a buffer by old checkpoints
    "attn.masked_bias": (),
}
# norms of the sums: an encoder of the first kind has no other
_BERT: Table = {
    "attention.self.query": whole("attn_q"),
    "attention.self.key": whole("attn_k"),
    "attention.self.value": whole("attn_v"),
    "attention.output.dense": whole("attn_output"),
    "attention.output.LayerNorm": whole("attn_output_norm"),
    "intermediate.dense": whole("ffn_up"),
    "output.dense": whole("ffn_down"),
    "output.LayerNorm": whole("layer_output_norm"),
}
_NOMIC_BERT: Table = {
    "attn.Wqkv": qkv(),
    "attn.out_proj": whole("attn_output"),
    "norm1": whole("attn_output_norm"),
    "mlp.fc11": whole("ffn_up"),
    "mlp.fc12": whole("ffn_gate"),
    "mlp.fc2": whole("ffn_down"),
    "norm2": whole("layer_output_norm"),
}
_MODERN_BERT: Table = {
    "attn_norm": whole("attn_norm"),
    "attn.Wqkv": qkv(),
    "attn.Wo": whole("attn_output"),
    "mlp_norm": whole("ffn_norm"),
    "mlp.Wi": GATE_UP,
    "mlp.Wo": whole("ffn_down"),
}
_LFM2: Table = {
    "operator_norm": whole("attn_norm"),
    "ffn_norm": whole("ffn_norm"),
    "conv.in_proj": whole("shortconv.in_proj"),
    "conv.conv": whole("shortconv.conv"),
    "conv.out_proj": whole("shortconv.out_proj"),
    "self_attn.out_proj": whole("attn_output"),
    "self_attn.q_layernorm": whole("attn_q_norm"),
    "self_attn.k_layernorm": whole("attn_k_norm"),
    "feed_forward.w1": whole("ffn_gate"),
    "feed_forward.w2": whole("ffn_down"),
    "feed_forward.w3": whole("ffn_up"),
    "feed_forward.gate": whole("ffn_gate_inp"),
    "feed_forward.expert_bias": whole("exp_probs_b.bias"),
}
_GATED_QUERIES = (Target("attn_q", "queries"), Target("attn_gate", "gates"))
_QWEN3_NEXT: Table = {
    "self_attn.q_proj": _GATED_QUERIES,
    "linear_attn.in_proj_qkvz": (Target("attn_qkv", "joined qkv"), Target("attn_gate", "joined gates")),
    "linear_attn.in_proj_ba": (Target("ssm_beta", "joined betas"), Target("ssm_alpha", "joined decays")),
    "linear_attn.conv1d": whole("ssm_conv1d"),
    "linear_attn.A_log": whole("ssm_a"),
    "linear_attn.dt_bias": whole("ssm_dt.bias"),
    "linear_attn.norm": whole("ssm_norm"),
    "linear_attn.out_proj": whole("ssm_out"),
}
_QWEN35: Table = {
    "self_attn.q_proj": _GATED_QUERIES,
    "linear_attn.in_proj_qkv": (Target("attn_qkv", "tiled qkv"),),
    "linear_attn.in_proj_z": (Target("attn_gate", "tiled values"),),
    "linear_attn.in_proj_b": (Target("ssm_beta", "tiled heads"),),
    "linear_attn.in_proj_a": (Target("ssm_alpha", "tiled heads"),),
    "linear_attn.conv1d": (Target("ssm_conv1d", "tiled qkv"),),
    "linear_attn.A_log": (Target("ssm_a", "tiled heads"),),
    "linear_attn.dt_bias": (Target("ssm_dt.bias", "tiled heads"),),
    "linear_attn.norm": whole("ssm_norm"),
    "linear_attn.out_proj": (Target("ssm_out", "tiled columns"),),
}


def state_space(module: str) -> Table:
    """A Mamba-2 mixer."""
    return {
        f"{module}.in_proj": tuple(Target(name, cut) for name, cut in zip(IN, IN_CUTS, strict=True)),
        f"{module}.conv1d": whole("ssm_conv1d"),
        f"{module}.dt_bias": whole("ssm_dt.bias"),
        f"{module}.A_log": whole("ssm_a"),
        f"{module}.D": whole("ssm_d"),
        f"{module}.norm": whole("ssm_norm"),
        f"{module}.out_proj": whole("ssm_out"),
    }


_BESIDE_MAMBA: Table = {
    **state_space("mamba"),
    "pre_ff_layernorm": whole("ffn_norm"),
    **{f"feed_forward.{part}_proj": whole(f"ffn_{part}") for part in ("gate", "up", "down")},
}
# a block is one mixer of four kinds, all under one name
_NEMOTRON_H: Table = {
    **state_space("mixer"),
    "norm": whole("attn_norm"),
    **{f"mixer.{part}_proj": whole(f"attn_{part}") for part in ("q", "k", "v")},
    "mixer.o_proj": whole("attn_output"),
    **{f"mixer.{part}_proj": whole(f"ffn_{part}") for part in ("up", "down")},
    **{f"mixer.experts.{part}_proj": whole(f"ffn_{part}_exps.weight") for part in ("up", "down")},
    **{f"mixer.switch_mlp.{old}": whole(f"ffn_{part}_exps") for old, part in (("fc1", "up"), ("fc2", "down"))},
    **{f"mixer.shared_experts.{part}_proj": whole(f"ffn_{part}_shexp") for part in ("up", "down")},
    "mixer.fc1_latent_proj": whole("ffn_latent_down"),
    "mixer.fc2_latent_proj": whole("ffn_latent_up"),
    "mixer.gate": whole("ffn_gate_inp"),
    "mixer.gate.e_score_correction_bias": whole("exp_probs_b.bias"),
}
_GRANITE_HYBRID: Table = {**_BESIDE_MAMBA, **_GRANITE_EXPERTS}
OF_FAMILY: Mapping[str, Table] = MappingProxyType(
    {
        "gemma2": _GEMMA,
        "gemma3": _GEMMA,
        "gemma-embedding": _GEMMA,
        "gemma3n": _GEMMA3N,
        "gemma4": _GEMMA4,
        "olmo2": _NORMS_AFTER,
        "granite": _SHARED_MLP,
        "granitemoe": _GRANITE_EXPERTS,
        "granitehybrid": _GRANITE_HYBRID,
        "nemotron_h": _NEMOTRON_H,
        "nemotron_h_moe": _NEMOTRON_H,
        "falcon-h1": _BESIDE_MAMBA,
        "mamba2": _NEMOTRON_H,
        "starcoder2": _STARCODER2,
        "glm4": _GLM4,
        "exaone4": _NORMS_AFTER,
        "ernie4_5-moe": _ERNIE_EXPERTS,
        "gptneox": _GPT_NEOX,
        "falcon": _FALCON,
        "deepseek2": _LATENT,
        "gpt-oss": _GPT_OSS,
        "gpt2": _GPT2,
        "bert": _BERT,
        "nomic-bert": _NOMIC_BERT,
        "modern-bert": _MODERN_BERT,
        "lfm2": _LFM2,
        "lfm2moe": _LFM2,
        "qwen3next": _QWEN3_NEXT,
        "qwen35": _QWEN35,
        "qwen35moe": _QWEN35,
    }
)
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
