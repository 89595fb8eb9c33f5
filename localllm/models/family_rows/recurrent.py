"""Rows of families whose layers keep a state: short convolutions, gated delta nets, Mamba-2."""

from localllm.models.family import Family

ENDLESS_CONTEXT = 1 << 20
"""Of models without attention, which say no length: what converters write."""

RECURRENT = (
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
