"""Rows of families with experts that attend in every layer."""

from localllm.models.family import Family

EXPERTS = (
    Family(
        architecture="qwen2moe",
        title="Qwen 1.5, 2 MoE",
        hf=("qwen2_moe",),
        normalizes_experts=False,
    ),
    Family(architecture="qwen3moe", title="Qwen 3 MoE", hf=("qwen3_moe",)),
    Family(
        architecture="granitemoe",
        title="Granite 3 MoE",
        hf=("granitemoe", "granitemoeshared"),
        pairs_neighbours=True,
        divides_logits=True,
        scoring="softmax_chosen",
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
)
