"""Rows of families whose attention and feed-forward may stand side by side, on one input."""

from localllm.models.family import Family

PARALLEL = (
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
)
