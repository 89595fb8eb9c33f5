"""A Hugging Face model folder: which of its files are the model, and what they say about it. Reads headers only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.formats.json_file import read_json_object
from localllm.models.families import is_encoder_config
from localllm.models.hf_families import padding_positions
from localllm.models.judges import is_judge
from localllm.store.entry import Entry, ModelFile
from localllm.store.pick import INDEX_NAME, Picked, is_tokenizer, pick_safetensors
from localllm.tokens.published import chat_templates, configuration

MAX_CONFIG_BYTES = 8 << 20
EMBEDS = ("embedding",)
RANKS = ("rerank",)
"""What a model can that only makes vectors."""


def describe_folder(entry: Entry, folder: Path, picked: Picked) -> Entry:
    """The entry with what config.json and the headers of the weights add. BadModelFile when they are not sound."""
    config = read_config(folder)
    files = entry.files or tuple(
        ModelFile(path=str(folder / name), size_bytes=(folder / name).stat().st_size) for name in picked.files
    )
    num_weights, dtype = _weights_of(Path(entry.path), config)
    text_config = text_part(config)
    return msgspec.structs.replace(
        entry,
        files=files,
        size_bytes=sum(part.size_bytes for part in files),
        architecture=_text(text_config.get("model_type")) or _text(config.get("model_type")),
        parameters=entry.parameters or count_text(num_weights),
        quantization=entry.quantization or dtype,
        context_length=_context_length(text_config) or entry.context_length,
        embedding_length=_int(text_config.get("hidden_size")) or _int(text_config.get("n_embd")),
        capabilities=entry.capabilities or _capabilities(text_config, folder),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; BadModelFile when it is missing, huge or no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadModelFile(
            f"{folder} has no config.json to say what its weights are",
            hint="download the whole repository: config.json and the tokenizer lie beside the weights",
        )
    return read_json_object(path, MAX_CONFIG_BYTES)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of the language model: multimodal models keep it in a table of its own."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def named_shards(index: Path, listing: Mapping[str, Any] | set[str]) -> tuple[str, ...]:
    """The weight files that an index names. BadModelFile for a name that is not in the listing: so no name of an index
    ever becomes a path of its own."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelFile(f"{INDEX_NAME}: weight_map is missing or empty")
    for shard in weight_map.values():
        if not isinstance(shard, str) or "/" in shard or not shard.endswith(".safetensors") or shard not in listing:
            raise BadModelFile(f"{INDEX_NAME}: weight_map names {shard!r}, which is no weight file beside it"[:500])
    return tuple(sorted(set(weight_map.values())))


def check_tokenizer(picked: Picked, where: str) -> None:
    """UnsupportedModel where a repository has no tokenizer that this build reads."""
    if not any(map(is_tokenizer, picked.files)):
        raise UnsupportedModel(
            f"{where} has no tokenizer (tokenizer.json or tokenizer.model)",
            hint="no weights were downloaded; look for another repository of this model",
        )


def folder_template(folder: Path) -> str:
    """The chat template that is used without asking for one by name; empty when there is none."""
    return chat_templates(folder, configuration(folder)).get("default", "")


def _capabilities(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    if is_judge(config):
        return RANKS
    return EMBEDS if is_encoder_config(config) else capabilities_of(folder_template(folder))


def capabilities_of(template: str) -> tuple[str, ...]:
    """What a chat template lets a model do."""
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if "<think>" in template or "enable_thinking" in template:
        found.append("thinking")
    return tuple(found)


def count_text(count: int) -> str:
    """A number of weights as people write it: 135M, 1.24B."""
    if count >= 1e9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def _weights_of(path: Path, config: Mapping[str, Any]) -> tuple[int, str]:
    """How many weights there are, and the type that most of them have; or the method that they are quantized by."""
    from localllm.formats.safetensors import SafetensorsFolder  # deferred: numpy comes with it
    from localllm.models.ready.folder import Folder, ReadyFolder
    from localllm.models.ready.methods import method_of

    with SafetensorsFolder.open(path) as opened:
        seen: Folder = opened
        try:
            method = method_of(config)
            seen = ReadyFolder(opened, method) if method.kind else opened
            title = method.title if method.kind else ""
        except LocalLLMError:  # said when it is to run
            title = ""
        sizes = [math.prod(tensor.shape) for tensor in seen.tensors.values()]
        counts: Counter[str] = Counter()
        for tensor in () if title else seen.tensors.values():
            counts[tensor.dtype] += math.prod(tensor.shape)
    return sum(sizes), title or max(counts, key=lambda name: counts[name], default="")


def _context_length(config: Mapping[str, Any]) -> int:
    size = next((size for name in ("max_position_embeddings", "n_positions") if (size := _int(config.get(name)))), 0)
    return max(0, size - padding_positions(config))


def picked_in(folder: Path, listing: list[str]) -> Picked | None:
    """The model's files in a folder, its weights as the index names them; None where it holds no safetensors."""
    picked = pick_safetensors(listing)
    if picked is None or INDEX_NAME not in picked.files:
        return picked
    return with_weights(picked, named_shards(folder / INDEX_NAME, set(listing)))


def with_weights(picked: Picked, weights: tuple[str, ...]) -> Picked:
    """The same files with these weights instead of those that were guessed from names."""
    return Picked((*(name for name in picked.files if not name.endswith(".safetensors")), *weights), picked.tag)


def _int(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
