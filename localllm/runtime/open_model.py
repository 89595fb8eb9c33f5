"""A path to config and weights, whatever the file format; optionally with the weights rounded on their way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.config import HeadSpec, ModelConfig
from localllm.models.heads import Dense, Head, read_head
from localllm.models.hf_facts import check_config
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.names import left_out
from localllm.models.ready.folder import notes_of, ready_folder
from localllm.models.source import WeightSource
from localllm.runtime.folder_facts import folder_pooling
from localllm.runtime.place import Place, place_of
from localllm.runtime.sentence_files import dense_layers, judging_words

FLOATS = frozenset({BlockType.F32, BlockType.F16, BlockType.BF16})


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Weights are views of mapped files, which stay mapped as long as the source lives. `size_bytes` of the files.

    `notes`: a sentence for each way in which weights are not read exactly as they are, and for parts that are not read
    at all. `read_head` reads the layers
    over pooled vectors.
    """

    config: ModelConfig
    source: WeightSource
    size_bytes: int
    notes: tuple[str, ...] = ()
    read_head: Callable[[], Head | None] = lambda: None


def open_model(path: Path, quantize: str = "") -> OpenModel:
    """Config and weights; nothing is read but headers. `quantize`: the block type that float weights are rounded to.

    ModelNotFound, BadModelFile, UnsupportedModel; UsageError when the weights are quantized already.
    """
    place = place_of(path)
    opened = _open_gguf(place, quantize) if place.kind == "gguf" else _open_safetensors(place)
    return _quantized(opened, quantize) if quantize else opened


def _open_gguf(place: Place, quantize: str) -> OpenModel:
    file = GGUFFile.open(place.path)
    if quantize:
        _refuse_quantized(file, place.path)
    config, source = gguf_model(file)
    return OpenModel(config, source, file.size_bytes, left_out(file.tensors), partial(read_head, config, source))


def _refuse_quantized(file: GGUFFile, path: Path) -> None:
    found = sorted({tensor.type.name for tensor in file.tensors.values() if tensor.type not in FLOATS})
    if found:
        raise UsageError(
            f"{path.name} is quantized already ({', '.join(found)}), and rounding twice would only lose more",
            hint="leave --quantize out, or quantize the original weights",
        )


def _open_safetensors(place: Place) -> OpenModel:
    folder = SafetensorsFolder.open(place.path)
    check_config(folder.config)  # before anything is said of its tensors
    seen = ready_folder(folder)
    config, source = hf_model(seen)
    head = partial(head_of_folder, place.folder, folder.config, config, source)
    return OpenModel(config, source, folder.size_bytes, (*notes_of(seen), *left_out(folder.tensors)), head)


def head_of_folder(path: Path, said: Mapping[str, Any], config: ModelConfig, source: WeightSource) -> Head | None:
    """Out of the model's own file, out of those that sentence-transformers wrote beside it, or two of its words."""
    if config.head is not None:
        return read_head(config, source)
    if layers := dense_layers(path):
        _check_chain(layers, config.hidden_size)
        return Head(HeadSpec(folder_pooling(path), judges=False), layers)
    words = judging_words(path, said)
    if words is None:
        return None
    if max(words) >= config.vocab_size or min(words) < 0:
        raise BadModelFile("the tokens by which this model judges are not in its vocabulary")
    return read_head(replace(config, head=HeadSpec("last", words=words)), source)


def _check_chain(layers: Sequence[Dense], hidden_size: int) -> None:
    width = hidden_size
    for layer in layers:
        if layer.weight.shape[1] != width:
            raise BadModelFile(f"a layer after pooling takes {layer.weight.shape[1]} numbers and gets {width}")
        width = layer.weight.shape[0]


def _quantized(opened: OpenModel, quantize: str) -> OpenModel:
    from localllm.quantize.source import QuantizedSource, quantize_target  # deferred: few models need it

    target = quantize_target(quantize)
    return replace(opened, source=QuantizedSource(opened.source, target))
