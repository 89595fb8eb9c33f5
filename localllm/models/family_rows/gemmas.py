"""Rows of Gemma, first to fourth: embeddings times the root of their size; from the second on, windows by turns."""

from dataclasses import replace

from localllm.models.family import Family

_GEMMA3 = Family(
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
)
GEMMAS = (
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
    _GEMMA3,
    replace(
        _GEMMA3,
        architecture="gemma-embedding",
        title="EmbeddingGemma (encoder)",
        hf=(),  # gemma3_text that sees both ways
        is_encoder=True,
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
)
