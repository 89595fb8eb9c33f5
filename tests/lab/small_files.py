"""A random model with a tokenizer in a file, and the same weights rounded."""

from pathlib import Path

import numpy as np

from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.encode import encode
from tests.scripts.loading import script

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


def random_model(path: Path, seed: int = 0, vocab: int = 300) -> Path:
    """Two layers of 256 values, F16."""
    synthesize = script("synthesize")
    shape = synthesize.Shape(2, 256, 4, 2, 64, 512, vocab, True, 10_000.0, 512)
    tensors = synthesize.tensors(shape, "F16", synthesize.Weights(seed))
    write_gguf(path, synthesize.metadata("random", shape, "F16"), tensors)
    return path


def rounded(model: Path, path: Path, kind: BlockType) -> Path:
    with GGUFFile.open(model) as file:
        tensors = []
        for name, tensor in file.tensors.items():
            values = decode(tensor.type, file.raw(name), tensor.shape)
            of = kind if name.startswith("blk.") and values.ndim > 1 else tensor.type
            tensors.append((name, tensor.shape, of, np.ascontiguousarray(encode(of, values)).reshape(-1)))
        write_gguf(path, file.metadata.typed(), tensors)
    return path
