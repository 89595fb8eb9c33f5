"""Which tensors a config needs and may have, and their shapes: checked before any backend sees a weight.

Refuses by name what is missing, of another shape, or unknown: a tensor that nobody reads would make a wrong model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import (
    AttentionSpec,
    DeltaNetSpec,
    HeadSpec,
    LatentSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.source import WeightSource
from localllm.models.state_space import IN, in_widths
from localllm.models.token_inputs import TABLE

UNREAD = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Read by the mapping, or derived from what it reads."""
UNREAD_IN_LAYERS = ("attn_rot_embd.weight", *UNREAD)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that may be there, in one of these shapes."""

    name: str
    shapes: tuple[Shape, ...]
    is_required: bool = True


def check_tensors(config: ModelConfig, source: WeightSource) -> None:
    """BadModelFile for a missing tensor or a wrong shape, UnsupportedModel for one that the config does not use."""
    all_expected = list(expected_tensors(config, source))
    for expected in all_expected:
        _check(expected, source)
    _check_layers_agree([expected.name for expected in all_expected if not expected.is_required], source)
    known = {expected.name for expected in all_expected}.union(UNREAD)
    for index in range(len(config.layers)):
        known.update(f"blk.{index}.{name}" for name in UNREAD_IN_LAYERS)
    unknown = sorted(set(source.names()) - known)
    if unknown:
        raise UnsupportedModel(f"this build does not know what to do with the tensor {unknown[0]}")


def _check(expected: Expected, source: WeightSource) -> None:
    info = source.info(expected.name)
    if info is None:
        if expected.is_required:
            raise BadModelFile(f"the model file lacks the tensor {expected.name}")
    elif info.shape not in expected.shapes:
        raise BadModelFile(f"{expected.name} has the shape {info.shape}, but must have {expected.shapes[0]}")


def _check_layers_agree(optional: list[str], source: WeightSource) -> None:
    """What may be missing is missing in every layer: a lost bias or norm must not pass for a model without."""
    present: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in optional:
        if not name.startswith("blk."):
            continue
        _, _, kind = name.removeprefix("blk.").partition(".")
        (missing if source.info(name) is None else present)[kind] = name
    for kind in sorted(present.keys() & missing.keys()):
        raise BadModelFile(f"the model file lacks the tensor {missing[kind]}, but has {present[kind]}")


def expected_tensors(config: ModelConfig, source: WeightSource) -> Iterator[Expected]:
    """All tensors of a model. The widths of feed-forwards are those that the file's own matrices agree on."""
    yield Expected("token_embd.weight", ((config.vocab_size, config.hidden_size),))
    yield Expected("output.weight", ((config.vocab_size, config.hidden_size),), False)
    has_first = config.is_encoder and config.norm == "layer"
    yield from _norm("token_embd_norm" if has_first else "output_norm", config.hidden_size, is_required=True)
    if config.is_encoder and not _has_sums(source, "blk.0."):
        yield from _norm("output_norm", config.hidden_size, is_required=True)
    if config.learned_positions or config.is_encoder:
        shapes = ((config.context_length, config.hidden_size),)
        yield Expected("position_embd.weight", shapes, config.learned_positions)
    if config.head is not None:
        yield from _head(config.head, config.hidden_size, source)
    if config.token_inputs:
        all_inputs = config.token_inputs * len(config.layers)
        rows = min(_width(source, TABLE, 0), config.vocab_size)  # tokens beyond are of pictures and sounds
        yield Expected(TABLE, ((rows, all_inputs),))
        yield Expected("per_layer_model_proj.weight", ((all_inputs, config.hidden_size),))
        yield Expected("per_layer_proj_norm.weight", ((config.token_inputs,),))
    if config.streams:
        others = (config.streams - 1, config.hidden_size, config.hidden_size)
        yield Expected("altup_proj.weight", (others,))
        yield Expected("altup_unembd_proj.weight", (others,))
    for index, layer in enumerate(config.layers):
        for expected in _layer(layer, config, source, f"blk.{index}."):
            yield Expected(f"blk.{index}.{expected.name}", expected.shapes, expected.is_required)


def _layer(layer: LayerSpec, config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[Expected]:
    hidden = config.hidden_size
    if layer.mixer is None or not layer.feeds:
        yield from _half(layer, config, source, prefix)
        return
    has_sums = _has_sums(source, prefix)
    for name in ("attn_output_norm", "layer_output_norm"):
        yield from _norm(name, hidden, is_required=has_sums)
    for before, after in (("attn_norm", "post_attention_norm"), ("ffn_norm", "post_ffw_norm")):
        may_lack = source.info(f"{prefix}{after}.weight") is not None or (config.parallel and before == "ffn_norm")
        lacks = source.info(f"{prefix}{before}.weight") is None
        if not (lacks and config.is_encoder and (prefix, before) == ("blk.0.", "attn_norm")):  # the embedding's will do
            yield from _norm(before, hidden, is_required=not (may_lack or has_sums))
        yield from _norm(after, hidden)
    yield from _mixer(layer, hidden)
    stands_beside = source.info(f"{prefix}pre_ffw_norm_2.weight") is not None
    if layer.moe is None or stands_beside:
        yield from _feed_forward(hidden, source, prefix)
    if layer.moe is not None:
        yield from _experts(layer.moe, config, source, prefix)
        for name in ("post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
            yield Expected(f"{name}.weight", ((hidden,),), stands_beside)
        yield Expected("ffn_gate_inp.scale", ((hidden,),), stands_beside)
        yield Expected("ffn_down_exps.scale", ((layer.moe.num_experts,),), False)
    if config.token_inputs:
        yield Expected("inp_gate.weight", ((config.token_inputs, hidden),))
        yield Expected("proj.weight", ((hidden, config.token_inputs),))
        yield Expected("post_norm.weight", ((hidden,),))
    yield Expected("layer_output_scale.weight", ((1,),), False)
    if config.streams:
        yield from _streamed(config.streams, hidden, source, prefix)


def _half(layer: LayerSpec, config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[Expected]:
    """A block that is a mixer or a feed-forward alone."""
    yield from _norm("attn_norm", config.hidden_size, is_required=True)
    if layer.mixer is not None:
        yield from _mixer(layer, config.hidden_size)
    elif layer.moe is not None:
        yield from _experts(layer.moe, config, source, prefix)
    else:
        yield from _feed_forward(config.hidden_size, source, prefix)


def _mixer(layer: LayerSpec, hidden: int) -> Iterator[Expected]:
    if isinstance(layer.mixer, ShortConvSpec):
        yield from _short_conv(layer.mixer, hidden)
    elif isinstance(layer.mixer, DeltaNetSpec):
        yield from _delta_net(layer.mixer, hidden)
    elif isinstance(layer.mixer, AttentionSpec):
        latent = layer.mixer.latent
        yield from _attention(layer.mixer, hidden) if latent is None else _latent(layer.mixer, latent, hidden)
    if isinstance(layer.recurrent, StateSpaceSpec):
        yield from _state_space(layer.recurrent, hidden)


def _feed_forward(hidden: int, source: WeightSource, prefix: str) -> Iterator[Expected]:
    width = _width(source, f"{prefix}ffn_up.weight", 0)
    yield from _linear("ffn_up", width, hidden)  # first, as it tells the width: where it lacks, it is named
    yield from _linear("ffn_gate", width, hidden, is_required=False)
    yield from _linear("ffn_down", hidden, width)


def _state_space(spec: StateSpaceSpec, hidden: int) -> Iterator[Expected]:
    for name, width in zip(IN, in_widths(spec), strict=True):
        yield from _linear(name, width, hidden)
    yield Expected("ssm_conv1d.weight", ((spec.channels, spec.kernel),))
    yield Expected("ssm_conv1d.bias", ((spec.channels,),), False)
    for name in ("ssm_a", "ssm_d", "ssm_dt.bias"):
        yield Expected(name, ((spec.num_heads,),))
    yield Expected("ssm_norm.weight", ((spec.inner,),), False)
    yield from _linear("ssm_out", hidden, spec.inner)


def _head(spec: HeadSpec, hidden: int, source: WeightSource) -> Iterator[Expected]:
    if not spec.judges:
        width = _width(source, "dense_2.weight", 0)
        yield from _linear("dense_2", width, hidden)
        yield from _linear("dense_3", _width(source, "dense_3.weight", 0), width)
    elif spec.words is None:
        yield from _linear("cls", hidden, hidden, is_required=False)
        yield from _norm("cls.norm", hidden)
        num_outputs = _width(source, "cls.output.weight", 0)
        yield from _linear("cls.output", 2 if num_outputs == 2 else 1, hidden)
    yield Expected("token_types.weight", ((2, hidden),), False)


def _streamed(count: int, hidden: int, source: WeightSource, prefix: str) -> Iterator[Expected]:
    """What a layer of several streams has besides."""
    rank = _width(source, f"{prefix}laurel_l.weight", 0)
    for name, shape in (
        ("altup_router", (count, hidden)),
        ("altup_predict_coef", (count * count, count)),
        ("altup_correct_coef", (count, count)),
        ("altup_router_norm", (hidden,)),
        ("altup_correct_scale", (hidden,)),
        ("laurel_l", (rank, hidden)),
        ("laurel_r", (hidden, rank)),
        ("laurel_post_norm", (hidden,)),
    ):
        yield Expected(f"{name}.weight", (shape,))


def _has_sums(source: WeightSource, prefix: str) -> bool:
    """Whether a layer's norms are of its sums, with none before."""
    return source.info(f"{prefix}attn_output_norm.weight") is not None


def _attention(spec: AttentionSpec, hidden: int) -> Iterator[Expected]:
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield from _linear("attn_q", queries, hidden)
    yield from _linear("attn_output", hidden, spec.num_heads * spec.value_dim)
    if spec.gated:
        yield from _linear("attn_gate", spec.num_heads * spec.value_dim, hidden)
    yield Expected("attn_q_norm.weight", ((spec.head_dim,), (queries,)), False)
    yield Expected("attn_sinks.weight", ((spec.num_heads,),), False)
    if spec.kv_from is not None:
        return
    yield from _linear("attn_k", keys, hidden)
    yield Expected("attn_k_norm.weight", ((spec.head_dim,), (keys,)), False)
    if not spec.values_are_keys:
        yield from _linear("attn_v", spec.num_kv_heads * spec.value_dim, hidden)


def _latent(spec: AttentionSpec, latent: LatentSpec, hidden: int) -> Iterator[Expected]:
    heads, turned = spec.num_heads, 0 if spec.rope is None else spec.rope.dims
    if latent.query_rank:
        yield from _linear("attn_q_a", latent.query_rank, hidden)
        yield Expected("attn_q_a_norm.weight", ((latent.query_rank,),))
    width = latent.query_rank or hidden
    yield Expected("attn_q_plain.weight", ((heads * latent.plain_dims, width),))
    yield Expected("attn_q_turned.weight", ((heads * turned, width),))
    yield from _linear("attn_kv_a", latent.kv_rank, hidden)
    yield from _linear("attn_k_turned", turned, hidden)
    yield Expected("attn_kv_a_norm.weight", ((latent.kv_rank,),))
    yield Expected("attn_k_b.weight", ((heads, latent.kv_rank, latent.plain_dims),))
    yield Expected("attn_v_b.weight", ((heads, latent.value_dim, latent.kv_rank),))
    yield from _linear("attn_output", hidden, heads * latent.value_dim)


def _short_conv(spec: ShortConvSpec, hidden: int) -> Iterator[Expected]:
    yield Expected("shortconv.in_proj.weight", ((3 * spec.channels, hidden),))
    yield Expected("shortconv.conv.weight", ((spec.channels, spec.kernel),))
    yield Expected("shortconv.out_proj.weight", ((hidden, spec.channels),))


def _delta_net(spec: DeltaNetSpec, hidden: int) -> Iterator[Expected]:
    heads, values = spec.num_value_heads, spec.num_value_heads * spec.value_dim
    yield Expected("attn_qkv.weight", ((spec.channels, hidden),))
    yield Expected("attn_gate.weight", ((values, hidden),))
    yield Expected("ssm_beta.weight", ((heads, hidden),))
    yield Expected("ssm_alpha.weight", ((heads, hidden),))
    yield Expected("ssm_conv1d.weight", ((spec.channels, spec.kernel),))
    yield Expected("ssm_a", ((heads,),))
    yield Expected("ssm_dt.bias", ((heads,),))
    yield Expected("ssm_norm.weight", ((spec.value_dim,),))
    yield Expected("ssm_out.weight", ((hidden, values),))


def _experts(spec: MoeSpec, config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[Expected]:
    """Those of a squared activation have no gate, and may work on fewer values than the others."""
    hidden, has_gate = config.hidden_size, config.activation != "relu2"
    inner = hidden if has_gate else _width(source, f"{prefix}ffn_latent_down.weight", 0) or hidden
    if inner != hidden:
        yield from _linear("ffn_latent_down", inner, hidden)
        yield from _linear("ffn_latent_up", hidden, inner)
    width = _width(source, f"{prefix}ffn_up_exps.weight", 1)
    yield from _linear("ffn_gate_inp", spec.num_experts, hidden)
    yield Expected("exp_probs_b.bias", ((spec.num_experts,),), False)
    for name, out, wide in (
        ("ffn_up_exps", width, inner),
        ("ffn_gate_exps", width, inner),
        ("ffn_down_exps", inner, width),
    ):
        if has_gate or name != "ffn_gate_exps":
            yield Expected(f"{name}.weight", ((spec.num_experts, out, wide),))
            yield Expected(f"{name}.bias", ((spec.num_experts, out),), False)
    shared = _width(source, f"{prefix}ffn_up_shexp.weight", 0)
    yield from _linear("ffn_gate_shexp", shared, hidden, is_required=shared > 0 and has_gate)
    yield from _linear("ffn_up_shexp", shared, hidden, is_required=shared > 0)
    yield from _linear("ffn_down_shexp", hidden, shared, is_required=shared > 0)
    yield Expected("ffn_gate_inp_shexp.weight", ((1, hidden),), False)


def _linear(name: str, out: int, width: int, is_required: bool = True) -> Iterator[Expected]:
    yield Expected(f"{name}.weight", ((out, width),), is_required)
    yield Expected(f"{name}.bias", ((out,),), False)


def _norm(name: str, width: int, is_required: bool = False) -> Iterator[Expected]:
    yield Expected(f"{name}.weight", ((width,),), is_required)
    yield Expected(f"{name}.bias", ((width,),), False)


def _width(source: WeightSource, name: str, axis: int) -> int:
    """The size of one axis of a tensor; 0 where there is none."""
    info = source.info(name)
    return info.shape[axis] if info is not None and len(info.shape) > axis else 0
