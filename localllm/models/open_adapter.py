"""A path to an adapter of a model, whatever the file format."""

from __future__ import annotations

from pathlib import Path

from localllm.errors import BadModelFile, ModelNotFound, UnsupportedModel
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.sniff import sniff
from localllm.models.adapter_gguf import gguf_adapter_facts, is_gguf_adapter, read_gguf_adapter
from localllm.models.adapter_peft import CONFIG_NAME, peft_facts, read_peft
from localllm.models.adapters import SCALED, Adapter, AdapterFacts, InfoOf, check_parts, feed_forward_widths
from localllm.models.config import ModelConfig


def open_adapter(path: Path, config: ModelConfig, info_of: InfoOf) -> Adapter:
    """The adapter at a path, for the model of this config and of weights of these shapes.

    ModelNotFound, BadModelFile (broken, or for another base), UnsupportedModel (no plain LoRA).
    """
    path = adapter_place(path)
    if config.architecture in SCALED:
        raise UnsupportedModel(f"this build applies no adapters to {config.architecture}, whose weights it scales")
    if sniff(path) == "gguf":
        widths = feed_forward_widths(info_of, len(config.layers))
        return check_parts(path.name, read_gguf_adapter(path, config, widths), info_of)
    return check_parts(path.name, read_peft(path, config), info_of)


def adapter_facts(path: Path) -> AdapterFacts:
    """What an adapter says of itself, without its model."""
    path = adapter_place(path)
    return gguf_adapter_facts(path) if sniff(path) == "gguf" else peft_facts(path)


def adapter_place(path: Path) -> Path:
    """The GGUF file, or the folder or file of a PEFT adapter. BadModelFile says what is there instead."""
    kind = sniff(path)
    if kind == "gguf":
        return path
    if kind == "safetensors" and (path.parent / CONFIG_NAME).is_file():
        return path
    if kind == "folder":
        if (path / CONFIG_NAME).is_file():
            return path
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
    raise BadModelFile(
        f"{path} is no adapter: neither a GGUF file, nor a folder with {CONFIG_NAME} and adapter_model.safetensors",
        hint="check the path",
    )


def is_adapter(path: Path) -> bool:
    """Whether a path holds an adapter, and no model. False where nothing can be read."""
    try:
        place = adapter_place(path)
        if sniff(place) != "gguf":
            return True
        with GGUFFile.open(place) as file:
            return is_gguf_adapter(file.metadata)
    except (ModelNotFound, BadModelFile):
        return False
