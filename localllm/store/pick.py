"""Which files of a repository make up a model: by quantization tag, shards and all. Pure: listings in, names out.

Follows llama.cpp's matching (common/download.cpp) where it can, and is stricter where that picks the wrong file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPLIT = re.compile(r"^(?P<prefix>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf$", re.IGNORECASE)
_NOT_A_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_TAG = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q[1-8]_(?:K_(?:XXL|XL|[SML])|K|XXS|XS|NL|[SM01])|TQ[12]_0|MXFP4|NVFP4|BF16|FP?16|FP?32))(?=[-._/]|$)",
    re.IGNORECASE,
)
_ALIASES = {"Q4_K_M": ("Q4_K",), "Q5_K_M": ("Q5_K",), "F16": ("FP16",), "FP16": ("F16",), "F32": ("FP32",)}
DEFAULT_TAGS = ("Q4_K_M", "Q8_0", "MXFP4", "Q4_0", "F16", "BF16")
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

# the block types a tag stands for; a tag that is missing here is its own type
_TYPES_OF_TAG = {
    "Q2_K": ("Q2_K", "Q3_K"),
    "Q3_K": ("Q3_K",),
    "Q4_K": ("Q4_K", "Q6_K"),
    "Q5_K": ("Q5_K", "Q6_K"),
    "Q6_K": ("Q6_K",),
    "IQ2_S": ("IQ2_XS",),
    "IQ2_M": ("IQ2_S",),
    "IQ3_XS": ("IQ3_S",),
    "IQ3_M": ("IQ3_S",),
}


@dataclass(frozen=True, slots=True)
class Picked:
    """The files of one model, first shard first, and the tag they were found under."""

    files: tuple[str, ...]
    tag: str


def tag_of(file: str) -> str:
    """The quantization tag in a file name, upper case and without `UD-`; "" when there is none. The last one counts."""
    found = _TAG.findall(_stem(file))
    return re.sub(r"^FP(?=16|32)", "F", found[-1].upper().removeprefix("UD-")) if found else ""


def types_of(tag: str) -> tuple[str, ...]:
    """Names of the block types that a file with this tag certainly holds, e.g. `Q4_K_M` to `("Q4_K", "Q6_K")`."""
    tag = tag.upper().removeprefix("UD-")
    for prefix, types in _TYPES_OF_TAG.items():
        if tag.startswith(prefix):
            return types
    return (tag.replace("FP16", "F16").replace("FP32", "F32"),) if tag else ()


def is_model_file(file: str) -> bool:
    name = file.rsplit("/", 1)[-1].lower()
    return name.endswith(".gguf") and not any(word in name for word in _NOT_A_MODEL)


def candidates(listing: Iterable[str]) -> list[tuple[str, ...]]:
    """Every model in a listing as its tuple of files; incomplete split sets are left out."""
    singles: list[tuple[str, ...]] = []
    splits: dict[tuple[str, int], dict[int, str]] = {}
    for file in sorted(filter(is_model_file, listing)):
        if match := _SPLIT.match(file):
            parts = splits.setdefault((match["prefix"], int(match["count"])), {})
            parts[int(match["part"])] = file
        else:
            singles.append((file,))
    whole = [parts for (_, count), parts in splits.items() if sorted(parts) == list(range(1, count + 1))]
    return singles + [tuple(parts[index] for index in sorted(parts)) for parts in whole]


def available_tags(listing: Iterable[str]) -> list[str]:
    return sorted({tag for files in candidates(listing) if (tag := tag_of(files[0]))})


def pick(listing: Sequence[str], tags: Sequence[str], hint: str = "") -> Picked | None:
    """The model for the first of `tags` that the listing has; None when it has none of them.

    A tag may also be a file name. Among several matches the fewest files win, then the hint, then the shortest name.
    """
    models = candidates(listing)
    for tag in tags:
        found = _by_file(models, tag) if tag.lower().endswith(".gguf") else _by_tag(models, tag, hint)
        if found:
            return Picked(found, tag_of(found[0]) or tag.upper())
    return None


def pick_any(listing: Sequence[str], hint: str = "") -> Picked | None:
    """The default order of tags, then the hint, then whatever model comes first."""
    if found := pick(listing, DEFAULT_TAGS, hint):
        return found
    models = candidates(listing)
    first = next((files for files in models if files[0].lower() == hint.lower()), models[0] if models else None)
    return Picked(first, tag_of(first[0])) if first else None


def _by_file(models: Sequence[tuple[str, ...]], file: str) -> tuple[str, ...] | None:
    wanted = file.lower()
    return next((files for files in models if wanted in (files[0].lower(), files[0].lower().rsplit("/", 1)[-1])), None)


def _by_tag(models: Sequence[tuple[str, ...]], tag: str, hint: str) -> tuple[str, ...] | None:
    for spelling in (tag, *_ALIASES.get(tag.upper(), ())):
        for matches in (_ends_with, _contains):
            found = [files for files in models if matches(_stem(files[0]), spelling)]
            if found:
                return min(
                    found, key=lambda files: (len(files), files[0].lower() != hint.lower(), len(files[0]), files)
                )
    return None


def _stem(file: str) -> str:
    """Without `.gguf` and without the part number: what ends with the tag in most repositories."""
    match = _SPLIT.match(file)
    return match["prefix"] if match else file.removesuffix(".gguf").removesuffix(".GGUF")


def _ends_with(stem: str, tag: str) -> bool:
    return re.search(rf"(?:^|[-._/]){re.escape(tag)}$", stem, re.IGNORECASE) is not None


def _contains(stem: str, tag: str) -> bool:
    # `gemma-4-E4B_q4_0-it` means Q4_0, but `LFM2-Q4_K_M-hip-optimized` is another layout
    match = re.search(rf"(?:^|[-._/]){re.escape(tag)}(?P<rest>[-.].*)$", stem, re.IGNORECASE)
    return match is not None and "/" not in match["rest"] and "optimized" not in match["rest"].lower()


INDEX_NAME = "model.safetensors.index.json"
TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
_TOKENIZER = re.compile(r"tokenizer\.(json|model)|vocab\.json|tiktoken\.model|[^/]+\.tiktoken")
_WANTED_NAMES = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer_config.json", "vocab.txt", "merges.txt", INDEX_NAME,
        "special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja",
        "preprocessor_config.json", "modules.json", "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
)  # fmt: skip
_MODULE = re.compile(r"[0-9]_(?:(?:Pooling|Dense|LogitScore)/config\.json|Dense/model\.safetensors)")
"""Of sentence-transformers: what follows on a model."""
_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors$")


def pick_safetensors(listing: Sequence[str]) -> Picked | None:
    """The files of a Hugging Face model folder: weights in the root, config, tokenizer, templates. None without them.

    Other layouts of the same weights (`original/`, `consolidated*`) are left out, and so is what lies beside the main
    ones. Where there is an index, it has the last word on the weights.
    """
    weights = _main_weights(sorted(file for file in listing if _is_weight(file)), INDEX_NAME in listing)
    if not weights or "config.json" not in listing:
        return None
    return Picked((*sorted(filter(_is_wanted, listing)), *weights), "")


def _main_weights(weights: list[str], has_index: bool) -> list[str]:
    """Of shards only whole sets: what a stopped download left is no model."""
    if not has_index and "model.safetensors" in weights:
        return ["model.safetensors"]
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for match in filter(None, map(_SHARD.match, weights)):
        parts = sets.setdefault((match["prefix"], int(match["count"])), {})
        parts[int(match["part"])] = match.string
    whole = [parts for (_, count), parts in sets.items() if sorted(parts) == list(range(1, count + 1))]
    if sets:
        return sorted(file for parts in whole for file in parts.values())
    return weights


def _is_wanted(file: str) -> bool:
    folder, _, name = file.rpartition("/")
    is_template = folder in TEMPLATE_FOLDERS and name.endswith(".jinja")
    return file in _WANTED_NAMES or is_tokenizer(file) or is_template or _MODULE.fullmatch(file) is not None


def is_tokenizer(file: str) -> bool:
    """Whether a file holds a vocabulary that can be read here."""
    return _TOKENIZER.fullmatch(file) is not None


def _is_weight(file: str) -> bool:
    return file.endswith(".safetensors") and "/" not in file and not file.startswith(("consolidated", "adapter_"))


def is_only_unsafe(listing: Sequence[str]) -> bool:
    """Whether the repository holds weights only as pickles or the like, which we never open."""
    return any(file.lower().endswith(UNSAFE_SUFFIXES) for file in listing)
