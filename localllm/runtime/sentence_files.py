"""What sentence-transformers writes beside a model: which layers follow on it, how long texts may be, what is put
before them, and which two words a model judges by. Refuses by name what this build does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from localllm.errors import BadModelFile, InvalidRequest, UnsupportedModel
from localllm.formats.json_file import read_json_object
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.config import HeadActivation
from localllm.models.heads import Dense

_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "LogitScore")
_ACTIVATIONS: Mapping[str, HeadActivation] = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "SiLU": "silu",
    "GELU": "gelu",
}
YES, NO = "yes", "no"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts that a model wants before others, by name; `default` is the name of the one for texts without a wish."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    def text_of(self, name: str | None) -> str:
        """What to put before a text: of that name, or the default one. InvalidRequest names those there are."""
        chosen = name or self.default
        if chosen and chosen not in self.by_name:
            known = ", ".join(self.by_name) or "none"
            raise InvalidRequest(
                f"this model has no prompt {chosen!r}"[:200], hint=f"it has {known}"[:500], param="prompt_name"
            )
        return self.by_name[chosen] if chosen else ""


def modules(folder: Path) -> list[tuple[str, Path]]:
    """Kinds of layers in their order, and their folders, as modules.json names them; empty where there is none."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text("utf-8-sig"))
        found = [(str(each["type"]).rpartition(".")[2], str(each.get("path", ""))) for each in listed]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadModelFile(f"{path} is no list of modules", hint="take the whole folder from the hub") from None
    for kind, place in found:
        if kind not in _KNOWN:
            raise UnsupportedModel(f"this build does not know layers of the kind {kind!r} (modules.json)"[:300])
        if not re.fullmatch(r"[A-Za-z0-9_-]*", place):
            raise BadModelFile(f"{path} names {place!r}, which is no folder beside it"[:300])
    return [(kind, folder / place) for kind, place in found]


def dense_layers(folder: Path) -> list[Dense]:
    """Layers that vectors go through after pooling. UnsupportedModel, BadModelFile."""
    return [_dense(place) for kind, place in modules(folder) if kind == "Dense"]


def _dense(place: Path) -> Dense:
    said = read_json_object(place / "config.json") if (place / "config.json").is_file() else {}
    named = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = _ACTIVATIONS.get(str(named).rpartition(".")[2])
    if activation is None:
        raise UnsupportedModel(f"this build does not know the activation {named!r} of {place.name}"[:300])
    if not (place / "model.safetensors").is_file():
        raise BadModelFile(
            f"{place} has no model.safetensors, though vectors go through it", hint="take the whole folder from the hub"
        )
    with SafetensorsFolder.open(place / "model.safetensors") as opened:
        if "linear.weight" not in opened.tensors or len(opened.tensors["linear.weight"].shape) != 2:
            raise BadModelFile(f"{place} lacks the tensor linear.weight")
        weight = np.array(opened.as_float32("linear.weight"))
        bias = np.array(opened.as_float32("linear.bias")) if "linear.bias" in opened.tensors else None
    if bias is not None and bias.shape != weight.shape[:1]:
        raise BadModelFile(f"{place}: linear.bias does not go with linear.weight")
    return Dense(weight, bias, activation)


def longest_text(folder: Path) -> int:
    """Tokens of a text, with those around it, as sentence_bert_config.json says; 0 where it does not."""
    path = folder / "sentence_bert_config.json"
    said = read_json_object(path).get("max_seq_length") if path.is_file() else None
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 2 else 0


def prompts(folder: Path) -> Prompts:
    """Of config_sentence_transformers.json."""
    path = folder / "config_sentence_transformers.json"
    said = read_json_object(path) if path.is_file() else {}
    named, default = said.get("prompts"), said.get("default_prompt_name")
    texts = {name: text for name, text in named.items() if isinstance(text, str)} if isinstance(named, dict) else {}
    return Prompts(texts, default if isinstance(default, str) and default in texts else "")


def judging_words(folder: Path, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Ids of yes and no, of a model that writes one of them to judge a pair of texts. None for all others."""
    place = next((place for kind, place in modules(folder) if kind == "LogitScore"), None)
    if place is not None:
        said = read_json_object(place / "config.json")
        return _ids(said.get("true_token_id"), said.get("false_token_id"), place)
    named = config.get("classifier_from_token")
    if isinstance(named, list) and len(named) == 2:  # as vLLM has it: no, yes
        return _looked_up(folder, str(named[1]), str(named[0]))
    return _looked_up(folder, YES, NO) if _is_qwen3_reranker(folder, config) else None


def _is_qwen3_reranker(folder: Path, config: Mapping[str, Any]) -> bool:
    """Its files are those of a model that writes; only its own page says what it is for, and llama.cpp's converter
    goes by that, too."""
    page = folder / "README.md"
    if config.get("model_type") != "qwen3" or not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as opened:
        return "# Qwen3-Reranker" in opened.read(1 << 16)


def _ids(yes: object, no: object, place: Path) -> tuple[int, int]:
    if not isinstance(yes, int) or not isinstance(no, int) or isinstance(yes, bool) or isinstance(no, bool):
        raise UnsupportedModel(f"{place.name} must name true_token_id and false_token_id, two tokens")
    return yes, no


def _looked_up(folder: Path, yes: str, no: str) -> tuple[int, int]:
    """Without a tokenizer, which a worker does not carry."""
    path = folder / "tokenizer.json"
    model = read_json_object(path).get("model") if path.is_file() else None
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if vocabulary is None and (folder / "vocab.json").is_file():
        vocabulary = read_json_object(folder / "vocab.json")
    first, second = (vocabulary.get(word) if isinstance(vocabulary, Mapping) else None for word in (yes, no))
    if not isinstance(first, int) or not isinstance(second, int):
        raise BadModelFile(f"the vocabulary has no tokens {yes!r} and {no!r}, by which this model judges"[:300])
    return first, second
