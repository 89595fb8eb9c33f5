"""A split GGUF file answers as the whole one does: whichever part is named, whether or not the first has tensors."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm import LLM
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_metadata import ValueType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.formats.safetensors import SafetensorsFolder
from localllm.quantize.convert import convert
from localllm.tokens.export import gguf_tokenizer
from tests.road.tiny_llama import make_tiny_llama

PROMPT = "Redistribution and use in source"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    with SafetensorsFolder.open(folder) as tensors:
        convert(tensors, folder / "whole.gguf", BlockType.F16, gguf_tokenizer(folder))
    return folder / "whole.gguf"


def split(whole: Path, folder: Path, counts: list[int]) -> list[Path]:
    """As llama.cpp's tool splits: all metadata in the first part, the numbers in each; `counts` of tensors a part."""
    paths = [folder / f"m-{index + 1:05d}-of-{len(counts):05d}.gguf" for index in range(len(counts))]
    with GGUFFile.open(whole) as file:
        names = iter(file.tensors)
        assert sum(counts) == len(file.tensors)
        for index, (path, count) in enumerate(zip(paths, counts, strict=True)):
            numbers = {
                "split.no": (ValueType.UINT16, index),
                "split.count": (ValueType.UINT16, len(counts)),
                "split.tensors.count": (ValueType.INT32, len(file.tensors)),
            }
            tensors = [file.tensors[name] for name in islice(names, count)]
            write_gguf(
                path,
                {**(file.metadata.typed() if index == 0 else {}), **numbers},
                [(tensor.name, tensor.shape, tensor.type, file.raw(tensor.name)) for tensor in tensors],
            )
    return paths


def answer(path: Path) -> tuple[list[int], NDArray[np.float32]]:
    with LLM(path, threads=1, kv_pages=32, backend="cpu") as llm:
        return llm.generate(PROMPT, max_tokens=12, temperature=0)[0].token_ids, llm.logits(PROMPT)


@pytest.mark.parametrize("counts", [[7, 7, 7], [0, 20, 1]], ids=["even", "no tensors in the first"])
def test_every_part_answers_as_the_whole_file(whole: Path, counts: list[int], tmp_path: Path) -> None:
    ids, logits = answer(whole)
    for part in split(whole, tmp_path, counts):
        found_ids, found = answer(part)
        assert found_ids == ids
        np.testing.assert_array_equal(found, logits)
