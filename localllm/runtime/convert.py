"""A model in safetensors to one GGUF file with everything that belongs to it: tokenizer, chat templates, sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localllm.errors import StoreError, UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.heads import Head
from localllm.models.mapping import hf_model
from localllm.quantize.convert import Progress, convert, tell_nobody
from localllm.quantize.quantize import check_not_source
from localllm.quantize.weights import Weights, folder_weights, gguf_weights
from localllm.runtime.folder_facts import GGUF_SAMPLING_KEYS, folder_sampling, gguf_pooling_type
from localllm.runtime.open_model import head_of_folder
from localllm.runtime.place import Place, place_of
from localllm.tokens.export import gguf_tokenizer
from localllm.tokens.pairs import QWEN3


def output_path(model: Path, target: BlockType | None) -> Path:
    """Where a conversion goes unless told: NAME-TYPE.gguf in the folder one works in."""
    suffix = "" if target is None else f"-{target.name}"
    return Path.cwd() / f"{_name(place_of(model))}{suffix}.gguf"


def convert_model(
    model: Path, output: Path, target: BlockType | None, *, replaces: bool = False, progress: Progress = tell_nobody
) -> None:
    """Write `output`, whole or not at all. `target` None keeps the float types of the checkpoint.

    UsageError for a model that is GGUF already, when `output` is a folder, a file of the model itself, or exists and
    `replaces` is not set;
    UnsupportedModel and BadModelFile for a checkpoint that this build cannot run; StoreError, DiskFull.
    """
    place = place_of(model)
    if place.kind == "gguf":
        raise UsageError(f"{place.path.name} is a GGUF file already", hint="convert takes folders of safetensors")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", hint="name the file to write with -o")
    if output.exists() and not replaces:
        raise UsageError(f"{output} is there already", hint="name another file with -o, or allow it with --force")
    if not output.parent.is_dir():
        raise StoreError(f"the folder {output.parent} does not exist", hint="make it, or name another file with -o")
    with SafetensorsFolder.open(place.path) as folder:
        check_not_source(output, (*folder.paths, *place.folder.glob("*.json")))
        extra, head = _beside_weights(place, folder)
        convert(folder, output, target, extra, progress, head)


@contextmanager
def open_weights(model: Path) -> Iterator[Weights]:
    """The tensors and the metadata of a model, GGUF or safetensors, for quantize.quantize; errors as above."""
    place = place_of(model)
    if place.kind == "gguf":
        with GGUFFile.open(place.path) as file:
            yield gguf_weights(file)
    else:
        with SafetensorsFolder.open(place.path) as folder:
            yield folder_weights(folder, *_beside_weights(place, folder))


def _beside_weights(place: Place, folder: SafetensorsFolder) -> tuple[dict[str, Any], Head | None]:
    """Metadata that the checkpoint's config does not have: name, sampling, pooling, tokenizer and templates; and layers
    over pooled vectors that are not in its own file."""
    config, source = hf_model(folder)
    head = None if config.head else head_of_folder(place.folder, folder.config, config, source)
    extra: dict[str, Any] = {"general.name": _name(place)}
    for name, value in folder_sampling(place.folder).items():
        extra[GGUF_SAMPLING_KEYS[name]] = int(value) if name == "top_k" else float(value)
    if (pooling := gguf_pooling_type(place.folder)) is not None:
        extra[f"{config.architecture}.pooling_type"] = pooling
    extra |= gguf_tokenizer(place.folder, vocab_size=config.vocab_size)
    if head is not None and head.judges:
        extra |= {"tokenizer.chat_templates": ["rerank"], "tokenizer.chat_template.rerank": QWEN3}
    return extra, head


def _name(place: Place) -> str:
    return place.path.resolve().name if place.path.is_dir() else place.path.stem
