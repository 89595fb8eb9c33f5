"""The families we know: one row each. A row says only what neither the metadata nor the tensors of a file say."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from localllm.errors import UnsupportedModel
from localllm.models.config import Activation, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`architecture` is the GGUF name, `hf` the `model_type`s of Hugging Face that are of this family.

    `pairs_neighbours`: the file orders query and key rows for rope on neighbours; `hf_pairs_neighbours`: checkpoints
    do. `is_encoder`: its tokens see each other in both directions, and it writes none. `parallel`: attention and
    feed-forward take the same input. `turns_windowed`: in models with windows only the windowed layers have rope.
    `log_multiplier_unit`: of yarn's multiplier in the file. `full_every`: of so many layers all but the last have the
    window; 1: all have it; 0: none; `full_first`: all but the first. `window_rope_base`: rope of windowed layers; 0: as
    the others. `scales_windowed` False: rope of windowed layers is not scaled. `rope_pause`: of so many layers the last
    has no rope. `truncates_yarn`: see RopeScaling. `head_width_scale_at`: with so many layers attention is scaled by
    hidden size / heads, not by the head's size. `divides_logits`: the file's logit scale is a divisor.
    `adds_one_to_norms`: safetensors keep norms less one. `fuses_qkv`, `fuses_gate_up`, `fuses_expert_gates`: as GGUF
    files of the family have them. `attention_scale` 0: by the head's size. `norms_values`: see AttentionSpec; layers
    without a matrix for values make them with the keys' one then. `repeats_kv`: GGUF files of the family have keys'
    and values' matrices for layers that read those of others, too. `logit_softcap`: where a file names none.
    `gates_attention`: the matrix of queries has their gates, too. `tiles_delta_heads`: see models/delta_rows.py.
    `has_halves`: a block is a mixer or a feed-forward, not both. `turns` False: no layer has rope.
    """

    architecture: str
    title: str
    hf: tuple[str, ...]
    pairs_neighbours: bool = False
    hf_pairs_neighbours: bool = False
    parallel: Literal["never", "always", "as told", "with one norm"] = "never"
    turns_windowed: bool = False
    log_multiplier_unit: float = 1.0
    activation: Activation = "silu"
    norm: Literal["rms", "layer"] = "rms"
    learned_positions: bool = False
    is_encoder: bool = False
    embeds_times_sqrt: bool = False
    full_every: int = 0
    full_first: bool = False
    window_rope_base: float = 0.0
    scales_windowed: bool = True
    rope_pause: int = 0
    truncates_yarn: bool = True
    head_width_scale_at: int = 0
    divides_logits: bool = False
    scoring: Scoring = "softmax"
    normalizes_experts: bool = True
    adds_one_to_norms: bool = False
    fuses_qkv: bool = False
    fuses_gate_up: bool = False
    fuses_expert_gates: bool = False
    attention_scale: float = 0.0
    norms_values: bool = False
    repeats_kv: bool = False
    logit_softcap: float = 0.0
    gates_attention: bool = False
    tiles_delta_heads: bool = False
    has_halves: bool = False
    turns: bool = True
    renames: tuple[tuple[str, str], ...] = ()
    """Names of tensors in a GGUF file (of a layer: without `blk.N.`), and the canonical names of what they are; they
    hold where the file has all of them."""
    hf_defaults: tuple[tuple[str, Any], ...] = ()
    """What checkpoints of the family leave out of their config.json."""


ENDLESS_CONTEXT = 1 << 20
"""Of models without attention, which say no length: what converters write."""

ROWS = (
    # Mistral and Mixtral files say "llama", too; a window, where one is named, is on every layer
    Family(
        architecture="llama",
        title="Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2, Mistral, Mixtral",
        hf=("llama", "mistral", "mixtral"),
        pairs_neighbours=True,
        full_every=1,
        hf_defaults=(("rms_norm_eps", 1e-6), ("max_position_embeddings", 2048)),
    ),
    Family(architecture="smollm3", title="SmolLM3", hf=("smollm3",), pairs_neighbours=True, rope_pause=4),
    Family(architecture="mistral3", title="Ministral 3", hf=("ministral3",), pairs_neighbours=True),
    Family(architecture="qwen2", title="Qwen 2, 2.5", hf=("qwen2",)),
    Family(architecture="qwen3", title="Qwen 3", hf=("qwen3",)),
    Family(architecture="qwen3moe", title="Qwen 3 MoE", hf=("qwen3_moe",)),
    Family(
        architecture="qwen2moe",
        title="Qwen 1.5, 2 MoE",
        hf=("qwen2_moe",),
        normalizes_experts=False,
    ),
    Family(
        architecture="gemma",
        title="Gemma 1",
        hf=("gemma",),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        adds_one_to_norms=True,
        hf_defaults=(("tie_word_embeddings", True),),
    ),
    Family(
        architecture="gemma2",
        title="Gemma 2",
        hf=("gemma2",),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=2,
        head_width_scale_at=46,  # Gemma 2 27B
        adds_one_to_norms=True,
        hf_defaults=(("tie_word_embeddings", True),),
    ),
    Family(
        architecture="gemma3",
        title="Gemma 3",
        hf=("gemma3_text",),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=6,
        window_rope_base=10000.0,
        scales_windowed=False,
        head_width_scale_at=62,  # Gemma 3 27B
        adds_one_to_norms=True,
        # the multimodal checkpoints name only what differs from these
        hf_defaults=(
            ("tie_word_embeddings", True),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("query_pre_attn_scalar", 256),
            ("rms_norm_eps", 1e-6),
            ("max_position_embeddings", 131072),
            ("rope_theta", 1000000.0),
        ),
    ),
    Family(
        architecture="gemma-embedding",
        title="EmbeddingGemma (encoder)",
        hf=(),  # gemma3_text that sees both ways
        is_encoder=True,
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=6,
        window_rope_base=10000.0,
        scales_windowed=False,
        head_width_scale_at=62,  # Gemma 3 27B
        adds_one_to_norms=True,
        # the multimodal checkpoints name only what differs from these
        hf_defaults=(
            ("tie_word_embeddings", True),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("query_pre_attn_scalar", 256),
            ("rms_norm_eps", 1e-6),
            ("max_position_embeddings", 131072),
            ("rope_theta", 1000000.0),
        ),
    ),
    Family(
        architecture="gemma3n",
        title="Gemma 3n: E2B, E4B",
        hf=("gemma3n_text",),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=5,
        window_rope_base=10000.0,
        scales_windowed=False,
        attention_scale=1.0,
        norms_values=True,
        repeats_kv=True,
        logit_softcap=30.0,
        hf_defaults=(
            ("tie_word_embeddings", True),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 2),
            ("head_dim", 256),
            ("rms_norm_eps", 1e-6),
            ("max_position_embeddings", 32768),
            ("rope_theta", 1000000.0),
            ("sliding_window", 512),
            ("num_kv_shared_layers", 15),
            ("hidden_size_per_layer_input", 256),
            ("altup_num_inputs", 4),
            ("final_logit_softcapping", 30.0),
        ),
    ),
    Family(
        architecture="gemma4",
        title="Gemma 4: E2B, E4B, 12B, 26B-A4B, 31B",
        hf=("gemma4_text", "gemma4_unified_text"),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=6,
        scales_windowed=False,
        attention_scale=1.0,
        norms_values=True,
        fuses_expert_gates=True,
        hf_defaults=(
            ("tie_word_embeddings", True),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("rms_norm_eps", 1e-6),
            ("max_position_embeddings", 131072),
            ("sliding_window", 512),
            (
                "rope_parameters",
                {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "full_attention": {
                        "rope_type": "proportional",
                        "partial_rotary_factor": 0.25,
                        "rope_theta": 1000000.0,
                    },
                },
            ),
        ),
    ),
    Family(
        architecture="phi3",
        title="Phi-3, Phi-4",
        hf=("phi3",),
        full_every=1,
        fuses_qkv=True,
        fuses_gate_up=True,
        hf_defaults=(("rms_norm_eps", 1e-5),),
    ),
    Family(architecture="olmo2", title="OLMo 2, OLMo 3", hf=("olmo2", "olmo3"), full_every=4, scales_windowed=False),
    Family(
        architecture="granite",
        title="Granite 3, 4 (dense)",
        hf=("granite", "granitemoehybrid"),
        pairs_neighbours=True,
        divides_logits=True,
    ),
    Family(
        architecture="granitemoe",
        title="Granite 3 MoE",
        hf=("granitemoe", "granitemoeshared"),
        pairs_neighbours=True,
        divides_logits=True,
        scoring="softmax_chosen",
    ),
    Family(
        architecture="starcoder2",
        title="StarCoder2",
        hf=("starcoder2",),
        activation="gelu_tanh",
        norm="layer",
        full_every=1,
        hf_defaults=(("norm_epsilon", 1e-5), ("tie_word_embeddings", True)),
    ),
    Family(
        architecture="command-r",
        title="Command R, Aya",
        hf=("cohere",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        parallel="always",
        norm="layer",
        hf_defaults=(("tie_word_embeddings", True), ("rope_theta", 500000.0), ("logit_scale", 0.0625)),
    ),
    Family(
        architecture="cohere2",
        title="Command R7B, Command A",
        hf=("cohere2",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        parallel="always",
        turns_windowed=True,
        full_every=4,
        norm="layer",
        hf_defaults=(("tie_word_embeddings", True), ("logit_scale", 0.0625)),
    ),
    Family(
        architecture="chatglm",
        title="GLM-4 9B (2024)",
        hf=("glm",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        fuses_qkv=True,
        fuses_gate_up=True,
        hf_defaults=(("partial_rotary_factor", 0.5),),
    ),
    Family(
        architecture="glm4",
        title="GLM-4 (0414), GLM-Z1",
        hf=("glm4",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        fuses_gate_up=True,
        hf_defaults=(("partial_rotary_factor", 0.5),),
    ),
    Family(
        architecture="glm4moe",
        title="GLM-4.5, 4.6, 4.7",
        hf=("glm4_moe",),
        scoring="sigmoid",
        renames=(("post_attention_norm.weight", "ffn_norm.weight"),),
        hf_defaults=(("partial_rotary_factor", 0.5), ("n_group", 1), ("topk_group", 1)),
    ),
    Family(
        architecture="ernie4_5",
        title="ERNIE 4.5",
        hf=("ernie4_5",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        hf_defaults=(("tie_word_embeddings", True), ("rope_theta", 500000.0), ("head_dim", 128)),
    ),
    Family(
        architecture="ernie4_5-moe",
        title="ERNIE 4.5 MoE",
        hf=("ernie4_5_moe",),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        hf_defaults=(
            ("tie_word_embeddings", True),
            ("rope_theta", 500000.0),
            ("moe_layer_start_index", 1),
            ("moe_layer_interval", 1),
            ("moe_num_shared_experts", 2),
        ),
    ),
    Family(
        architecture="exaone4",
        title="EXAONE 4",
        hf=("exaone4",),
        full_every=4,
        turns_windowed=True,
    ),
    Family(
        architecture="stablelm",
        title="StableLM 2, 3B",
        hf=("stablelm",),
        parallel="with one norm",
        norm="layer",
        hf_defaults=(("partial_rotary_factor", 0.25), ("layer_norm_eps", 1e-5)),
    ),
    Family(
        architecture="gptneox",
        title="GPT-NeoX, Pythia",
        hf=("gpt_neox",),
        parallel="as told",
        activation="gelu",
        norm="layer",
        fuses_qkv=True,
        hf_defaults=(("rotary_pct", 0.25), ("layer_norm_eps", 1e-5), ("use_parallel_residual", True)),
    ),
    # with two norms the file names the feed-forward's as others name the attention's
    Family(
        architecture="falcon",
        title="Falcon 7B, 40B, 180B, 2 11B",
        hf=("falcon",),
        parallel="always",
        activation="gelu",
        norm="layer",
        fuses_qkv=True,
        renames=(
            ("attn_norm_2.weight", "attn_norm.weight"),
            ("attn_norm_2.bias", "attn_norm.bias"),
            ("attn_norm.weight", "ffn_norm.weight"),
            ("attn_norm.bias", "ffn_norm.bias"),
        ),
        hf_defaults=(("tie_word_embeddings", True), ("max_position_embeddings", 2048), ("layer_norm_epsilon", 1e-5)),
    ),
    Family(
        architecture="deepseek2",
        title="DeepSeek V2, V3, R1, GLM-4.7-Flash",
        hf=("deepseek_v2", "deepseek_v3", "glm4_moe_lite"),
        pairs_neighbours=True,
        hf_pairs_neighbours=True,
        normalizes_experts=False,
        log_multiplier_unit=0.1,
        hf_defaults=(("rms_norm_eps", 1e-6),),
    ),
    Family(
        architecture="gpt-oss",
        title="gpt-oss",
        hf=("gpt_oss",),
        activation="swiglu_oai",
        full_every=2,
        truncates_yarn=False,
        scoring="softmax_chosen",
        renames=(("post_attention_norm.weight", "ffn_norm.weight"),),
    ),
    Family(
        architecture="gpt2",
        title="GPT-2",
        hf=("gpt2",),
        activation="gelu_tanh",
        norm="layer",
        learned_positions=True,
        fuses_qkv=True,
        hf_defaults=(("n_positions", 1024), ("layer_norm_epsilon", 1e-5), ("tie_word_embeddings", True)),
    ),
    Family(
        architecture="bert",
        title="BERT, RoBERTa, XLM-R: MiniLM, BGE, E5, GTE (encoders)",
        hf=("bert", "roberta", "xlm-roberta", "camembert"),
        is_encoder=True,
        activation="gelu",
        norm="layer",
        learned_positions=True,
        hf_defaults=(("layer_norm_eps", 1e-12), ("max_position_embeddings", 512), ("tie_word_embeddings", True)),
    ),
    Family(
        architecture="nomic-bert",
        title="Nomic-BERT (encoder)",
        hf=("nomic_bert",),
        is_encoder=True,
        norm="layer",
        fuses_qkv=True,
        hf_defaults=(("layer_norm_eps", 1e-12), ("rope_theta", 1000.0), ("tie_word_embeddings", True)),
    ),
    Family(
        architecture="modern-bert",
        title="ModernBERT (encoder)",
        hf=("modernbert",),
        is_encoder=True,
        activation="gelu",
        norm="layer",
        full_every=3,
        full_first=True,
        window_rope_base=10000.0,
        fuses_qkv=True,
        fuses_gate_up=True,
        hf_defaults=(("norm_eps", 1e-5), ("local_attention", 128), ("tie_word_embeddings", True)),
    ),
    # LFM2 names its last norm after the embedding
    Family(
        architecture="lfm2",
        title="LFM2",
        hf=("lfm2",),
        renames=(("token_embd_norm.weight", "output_norm.weight"),),
        hf_defaults=(("tie_word_embeddings", True),),
    ),
    Family(
        architecture="lfm2moe",
        title="LFM2 MoE",
        hf=("lfm2_moe",),
        scoring="sigmoid",
        renames=(("token_embd_norm.weight", "output_norm.weight"),),
        hf_defaults=(("tie_word_embeddings", True),),
    ),
    # every fourth layer attends, the others are gated delta nets
    Family(
        architecture="qwen3next",
        title="Qwen3-Next",
        hf=("qwen3_next",),
        adds_one_to_norms=True,
        gates_attention=True,
        renames=(("post_attention_norm.weight", "ffn_norm.weight"),),
        hf_defaults=(("partial_rotary_factor", 0.25),),
    ),
    Family(
        architecture="qwen35",
        title="Qwen 3.5, 3.6 (text)",
        hf=("qwen3_5_text", "qwen3_5"),
        adds_one_to_norms=True,
        gates_attention=True,
        tiles_delta_heads=True,
        renames=(("post_attention_norm.weight", "ffn_norm.weight"),),
        hf_defaults=(("partial_rotary_factor", 0.25),),
    ),
    Family(
        architecture="qwen35moe",
        title="Qwen 3.5, 3.6 MoE (text)",
        hf=("qwen3_5_moe_text", "qwen3_5_moe"),
        adds_one_to_norms=True,
        gates_attention=True,
        tiles_delta_heads=True,
        renames=(("post_attention_norm.weight", "ffn_norm.weight"),),
        hf_defaults=(("partial_rotary_factor", 0.25),),
    ),
    # with Mamba-2; of the types that other rows have, too, these are the ones with state
    Family(
        architecture="granitehybrid",
        title="Granite 4 -h, Bamba",
        hf=("granitemoehybrid", "bamba"),
        pairs_neighbours=True,
        divides_logits=True,
        scoring="softmax_chosen",
        hf_defaults=(("rms_norm_eps", 1e-6),),
    ),
    Family(
        architecture="falcon-h1",
        title="Falcon-H1",
        hf=("falcon_h1",),
        renames=(("ffn_norm", "ffn_norm.weight"),),
        hf_defaults=(("rms_norm_eps", 1e-5),),
    ),
    Family(
        architecture="nemotron_h",
        title="Nemotron-H, Nemotron Nano 2",
        hf=("nemotron_h",),
        activation="relu2",
        has_halves=True,
        turns=False,
        hf_defaults=(("layer_norm_epsilon", 1e-5),),
    ),
    Family(
        architecture="nemotron_h_moe",
        title="Nemotron 3 Nano, Super",
        hf=("nemotron_h",),
        activation="relu2",
        has_halves=True,
        turns=False,
        scoring="sigmoid",
        hf_defaults=(("layer_norm_epsilon", 1e-5),),
    ),
    Family(
        architecture="mamba2",
        title="Mamba-2",
        hf=("mamba2",),
        has_halves=True,
        turns=False,
        hf_defaults=(
            *(("num_attention_heads", 0), ("num_key_value_heads", 0), ("max_position_embeddings", ENDLESS_CONTEXT)),
            *(("layer_norm_epsilon", 1e-5), ("expand", 2), ("conv_kernel", 4), ("n_groups", 8)),
        ),
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.architecture: row for row in ROWS})


def family_of(architecture: str) -> Family:
    """The row of a GGUF architecture; UnsupportedModel names it and those we know."""
    family = FAMILIES.get(architecture)
    if is_helper(architecture):
        raise helper_refused(architecture)
    if family is None:
        raise UnsupportedModel(
            f"this build cannot run the architecture {architecture!r}", hint="it runs " + ", ".join(sorted(FAMILIES))
        )
    return family


def is_helper(name: str) -> bool:
    """Whether an architecture, or a `model_type`, is of files that only guess tokens ahead of another model."""
    return name in ("gemma4-assistant", "gemma4_assistant", "gemma4_unified_assistant")


def helper_refused(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"this file only guesses tokens ahead of a Gemma 4 model ({name}), and is no model by itself",
        hint="take the model that it belongs to: it runs without",
    )


def family_of_type(model_type: str) -> Family | None:
    """The first row of a `model_type` of Hugging Face."""
    return next((family for family in ROWS if model_type in family.hf), None)


def is_encoder_architecture(architecture: str) -> bool:
    """Whether models of a GGUF architecture only make vectors."""
    family = FAMILIES.get(architecture)
    return family is not None and family.is_encoder


def is_encoder_config(config: Mapping[str, Any]) -> bool:
    """The same of a config.json: decoders may be trained to see both ways."""
    model_type = config.get("model_type", "")
    return isinstance(model_type, str) and (is_encoder_type(model_type) or sees_both_ways(config))


def sees_both_ways(config: Mapping[str, Any]) -> bool:
    """EmbeddingGemma, by its config.json."""
    return config.get("model_type") == "gemma3_text" and config.get("use_bidirectional_attention") is True


def is_encoder_type(model_type: str) -> bool:
    """The same of a `model_type` of Hugging Face."""
    family = family_of_type(model_type)
    return family is not None and family.is_encoder
