"""Which files of a repository make a model: listings as the hub's publishers name them."""

import pytest

from localllm.store.pick import available_tags, pick, pick_any, pick_safetensors, tag_of, types_of

QWEN_BOTH = [
    "qwen2.5-coder-7b-instruct-q4_k_m-00001-of-00002.gguf",
    "qwen2.5-coder-7b-instruct-q4_k_m-00002-of-00002.gguf",
    "qwen2.5-coder-7b-instruct-q4_k_m.gguf",
    "qwen2.5-coder-7b-instruct-q8_0-00001-of-00003.gguf",
    "qwen2.5-coder-7b-instruct-q8_0-00002-of-00003.gguf",
    "qwen2.5-coder-7b-instruct-q8_0-00003-of-00003.gguf",
    "README.md",
]
UNSLOTH_MOE = [
    "Qwen3.6-35B-A3B-UD-Q4_K_M.gguf",
    "Qwen3.6-35B-A3B-UD-Q4_K_XL.gguf",
    "Qwen3.6-35B-A3B-Q8_0.gguf",
    "mmproj-F16.gguf",
]
UNSLOTH_SPLIT = [
    "Q8_0/Llama-3.3-70B-Instruct-Q8_0-00001-of-00002.gguf",
    "Q8_0/Llama-3.3-70B-Instruct-Q8_0-00002-of-00002.gguf",
    "Llama-3.3-70B-Instruct-Q4_K_M.gguf",
    "imatrix_unsloth.gguf",
]
BARTOWSKI = [
    "Qwen_Qwen3.5-4B-Q4_K_M.gguf",
    "Qwen_Qwen3.5-4B-Q4_K_L.gguf",
    "Qwen_Qwen3.5-4B-imatrix.gguf",
    "mmproj-Qwen_Qwen3.5-4B-f16.gguf",
]
LIQUID = ["LFM2-1.2B-Q4_K_M-hip-optimized.gguf", "LFM2-1.2B-Q4_K_M.gguf", "LFM2-1.2B-F16.gguf"]
MISTRAL = ["Ministral-3-8B-Q4_K_M.gguf", "Ministral-3-8B-BF16-mmproj.gguf", "Ministral-3-8B-BF16.gguf"]
GOOGLE = ["gemma-4-E4B_q4_0-it.gguf", "gemma-4-E4B-it-mmproj.gguf"]
DRAFTS = [
    "mtp-Qwen3-Q4_K_M.gguf",
    "eagle3-Qwen3-Q4_K_M.gguf",
    "dflash-Qwen3-Q4_K_M.gguf",
    "dspark-Qwen3-Q4_K_M.gguf",
    "Qwen3-Q8_0.gguf",
]
THEBLOKE = ["mistral-7b.Q4_K_M.gguf", "mistral-7b.Q8_0.gguf"]
OLD_SPLIT = ["falcon.Q8_0.gguf-split-a", "falcon.Q8_0.gguf-split-b", "falcon.Q4_0.gguf"]


@pytest.mark.parametrize(
    ("listing", "tag", "hint", "expected"),
    [
        (QWEN_BOTH, "Q4_K_M", "", QWEN_BOTH[2:3]),
        (QWEN_BOTH, "q8_0", "", QWEN_BOTH[3:6]),
        (UNSLOTH_MOE, "Q4_K_M", "Qwen3.6-35B-A3B-Q4_K_M.gguf", UNSLOTH_MOE[:1]),
        (UNSLOTH_MOE, "Q4_K_XL", "", UNSLOTH_MOE[1:2]),
        (UNSLOTH_MOE, "UD-Q4_K_XL", "", UNSLOTH_MOE[1:2]),
        (UNSLOTH_MOE, "F16", "", None),
        (UNSLOTH_SPLIT, "Q8_0", "", UNSLOTH_SPLIT[:2]),
        (BARTOWSKI, "Q4_K_M", "", BARTOWSKI[:1]),
        (BARTOWSKI, "Q4_K", "", None),
        (LIQUID, "Q4_K_M", "", LIQUID[1:2]),
        (LIQUID[:1], "Q4_K_M", "", None),
        (LIQUID, "FP16", "", LIQUID[2:]),
        (MISTRAL, "BF16", "", MISTRAL[2:]),
        (GOOGLE, "Q4_0", "", GOOGLE[:1]),
        (DRAFTS, "Q4_K_M", "", None),
        (THEBLOKE, "q4_k_m", "", THEBLOKE[:1]),
        (OLD_SPLIT, "Q8_0", "", None),
        (["phi-4-Q4_K.gguf"], "Q4_K_M", "", ["phi-4-Q4_K.gguf"]),
        (["gpt-oss-20b-MXFP4.gguf"], "mxfp4", "gpt-oss-20b-mxfp4.gguf", ["gpt-oss-20b-MXFP4.gguf"]),
        (["bge-m3-FP16.gguf"], "F16", "", ["bge-m3-FP16.gguf"]),
        (["x-Q8_0-00001-of-00002.gguf"], "Q8_0", "", None),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "b-Q8_0.gguf", ["b-Q8_0.gguf"]),
        (["sub/a-Q8_0.gguf"], "sub/a-Q8_0.gguf", "", ["sub/a-Q8_0.gguf"]),
        (["gguf/mxbai-embed-large-v1-f16.gguf"], "F16", "", ["gguf/mxbai-embed-large-v1-f16.gguf"]),
    ],
)
def test_a_tag_finds_the_right_files(listing: list[str], tag: str, hint: str, expected: list[str] | None) -> None:
    picked = pick(listing, [tag], hint)
    assert (list(picked.files) if picked else None) == expected


def test_without_a_tag_q4_k_m_comes_first_then_q8_0_then_anything() -> None:
    found = [pick_any(listing) for listing in (LIQUID, DRAFTS, ["only.gguf"], ["mmproj-F16.gguf"])]
    assert [picked.files[0] if picked else None for picked in found] == [LIQUID[1], DRAFTS[4], "only.gguf", None]


@pytest.mark.parametrize(
    ("file", "tag"),
    [
        ("x-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("a.fp16.gguf", "F16"),
        ("x-IQ4_XS.gguf", "IQ4_XS"),
        ("model.gguf", ""),
        ("q4_k_m/x-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("a-mxfp4.gguf", "MXFP4"),
        ("Qwen3-8B.gguf", ""),
    ],
)
def test_the_tag_is_read_from_a_file_name(file: str, tag: str) -> None:
    assert tag_of(file) == tag


def test_a_tag_names_the_block_types_that_must_be_there() -> None:
    assert types_of("Q4_K_M") == ("Q4_K", "Q6_K")
    assert types_of("UD-Q4_K_XL") == ("Q4_K", "Q6_K")
    assert types_of("fp16") == ("F16",)
    assert types_of("IQ2_XXS") == ("IQ2_XXS",) and types_of("IQ1_M") == ("IQ1_M",)
    assert types_of("IQ2_M") == ("IQ2_S",) and types_of("UD-IQ3_XS") == ("IQ3_S",)
    assert types_of("") == ()
    assert available_tags(BARTOWSKI + LIQUID) == ["F16", "Q4_K_L", "Q4_K_M"]


def test_a_safetensors_folder_is_weights_config_and_tokenizer_and_no_pickle() -> None:
    listing = ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    extra = [
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "README.md",
    ]
    picked = pick_safetensors(listing + extra)
    assert picked is not None
    assert sorted(picked.files) == sorted(listing)
    assert pick_safetensors(extra) is None
