"""A path to config and weights, whatever the file format; optionally with the weights rounded on their way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from localllm.errors import UsageError
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.config import ModelConfig
from localllm.models.hf_facts import check_config
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.ready.folder import notes_of, ready_folder
from localllm.models.source import WeightSource
from localllm.runtime.place import Place, place_of

FLOATS = frozenset({BlockType.F32, BlockType.F16, BlockType.BF16})


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Weights are views of mapped files, which stay mapped as long as the source lives. `size_bytes` of the files.

    `notes`: a sentence for each way in which weights are not read exactly as they are.
    """

    config: ModelConfig
    source: WeightSource
    size_bytes: int
    notes: tuple[str, ...] = ()


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
    return OpenModel(config, source, file.size_bytes)


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
    return OpenModel(config, source, folder.size_bytes, notes_of(seen))


def _quantized(opened: OpenModel, quantize: str) -> OpenModel:
    from localllm.quantize.source import QuantizedSource, quantize_target  # deferred: few models need it

    target = quantize_target(quantize)
    return replace(opened, source=QuantizedSource(opened.source, target))
