"""What a model says besides weights and tokenizer, mostly in a Hugging Face folder's JSON files: sampling, context,
pooling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.json_file import read_json_object
from localllm.models.families import is_encoder_architecture, is_encoder_config
from localllm.models.hf_families import padding_positions
from localllm.models.judges import RANK, is_judge
from localllm.runtime.sentence_files import modules
from localllm.wire import SAMPLING_BOUNDS, Pooling

GGUF_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Fields of `wire.SamplingParams` that models bring defaults for, and where GGUF files keep them."""
_GGUF_POOLING: Mapping[int, Pooling] = {1: "mean", 2: "first", 3: "last"}
_POOLING_NAMES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_token": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")


def folder_sampling(folder: Path) -> dict[str, float]:
    """The defaults of generation_config.json under the names of `wire.SamplingParams`; BadModelFile for one that is out
    of bounds.

    Empty where it says `do_sample: false`: transformers then decodes greedily and ignores them, and so a file that
    says so carries them by accident.
    """
    path = folder / "generation_config.json"
    said = read_json_object(path) if path.is_file() else {}
    if said.get("do_sample") is False:
        return {}
    if said.get("top_k") == -1:
        said["top_k"] = 0  # both mean all tokens
    hint = "correct the file or remove it"
    return {
        name: _in_bounds(f"{path}: {name}", name, said[name], hint)
        for name in GGUF_SAMPLING_KEYS
        if _is_number(said.get(name))
    }


def gguf_sampling(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The same of what newer GGUF files carry."""
    return {name: _in_bounds(key, name, metadata[key]) for name, key in GGUF_SAMPLING_KEYS.items() if key in metadata}


def _in_bounds(said_as: str, name: str, value: Any, hint: str = "") -> float:
    low, high = next(bounds for field, *bounds in SAMPLING_BOUNDS if field == name)
    is_right = isinstance(value, int) or name != "top_k"
    if not _is_number(value) or not is_right or not low <= value <= high:  # also false for NaN
        kind = "a whole number" if name == "top_k" else "a number"
        raise BadModelFile(f"{said_as} must be {kind} between {low} and {high}, not {value!r:.60}", hint=hint)
    return float(value) if name != "top_k" else int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def context_length_of(config: Mapping[str, Any]) -> int:
    """In tokens; 0 where a config.json does not say."""
    nested = config.get("text_config")
    for table in (nested if isinstance(nested, Mapping) else {}, config):
        for name in _CONTEXT_NAMES:
            if type(table.get(name)) is int:
                return int(table[name]) - padding_positions(table)
    return 0


def gguf_pooling(metadata: Mapping[str, Any], architecture: str) -> Pooling:
    """What a GGUF file says of making one vector of a text; else the last token's, or of an encoder the mean."""
    said, is_encoder = metadata.get(f"{architecture}.pooling_type"), is_encoder_architecture(architecture)
    if said == 0 and is_encoder:
        raise UnsupportedModel(
            "the model file says that its vectors are not pooled (pooling_type 0): it has one for each token",
            hint="choose a model of embeddings",
        )
    usual: Pooling = "mean" if is_encoder else "last"
    return _GGUF_POOLING.get(said, usual) if isinstance(said, int) else usual


def folder_pooling(folder: Path) -> Pooling:
    """What sentence-transformers' 1_Pooling/config.json says; else the last token's vector, or of an encoder, whose
    tokens have all seen the whole text, the mean."""
    return _said_pooling(folder) or ("mean" if _is_encoder(folder) else "last")


def gguf_pooling_type(folder: Path) -> int | None:
    """The same, where it is said or the model is an encoder, as GGUF files number it; of judges of pairs theirs."""
    if is_judge(_config(folder)):
        return RANK
    said = folder_pooling(folder) if _is_encoder(folder) else _said_pooling(folder)
    return next((number for number, kind in _GGUF_POOLING.items() if kind == said), None)


def _said_pooling(folder: Path) -> Pooling | None:
    """UnsupportedModel where a vector is made in another way, or goes on through more layers."""
    if any(folder.glob("[0-9]_Dense/config.json")) and not modules(folder):
        raise UnsupportedModel(
            f"{folder.name} has layers after pooling (Dense), and no modules.json that says whether they are used",
            hint="take the whole folder from the hub",
        )
    path = folder / "1_Pooling" / "config.json"
    said = read_json_object(path) if path.is_file() else {}
    modes = [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(mode := said.get("pooling_mode"), str):  # as newer versions write it
        modes.append({"lasttoken": "pooling_mode_lasttoken"}.get(mode, f"pooling_mode_{mode}_token"))
    if not modes:
        return None
    known = [_POOLING_NAMES[name] for name in modes if name in _POOLING_NAMES]
    if len(modes) != len(known) or len(known) != 1:
        raise UnsupportedModel(f"this build does not know pooling by {' and '.join(modes)}")
    return known[0]


def _is_encoder(folder: Path) -> bool:
    return is_encoder_config(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json_object(path) if path.is_file() else {}
