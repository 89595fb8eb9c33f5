"""Rows of encoders of BERT's kin: tokens see both ways, and what comes out are vectors."""

from localllm.models.family import Family

ENCODERS = (
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
)
