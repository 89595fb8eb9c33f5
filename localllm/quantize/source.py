"""Float weights rounded to blocks while they are loaded. Knows which matrices may be rounded, and to what.

What becomes of a float weight named *.weight with two or three dimensions, for the target T:

    norms, routers, short convolutions, learned positions    stays as it is: small, and errors in it reach far
    token_embd, output                                       T, but Q8_0 where T has fewer than 8 bits
    rows that are whole blocks of T                          T
    other rows that are whole blocks of Q8_0                 Q8_0 (a row of 576 values and Q4_K, for example)
    all other rows                                           stays as it is

Biases, vectors and weights that are in blocks already always stay as they are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel, UsageError
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode, row_bytes
from localllm.models.source import LOOKED_UP, WeightInfo, WeightSource
from localllm.quantize.encode import encode

Bytes = NDArray[np.uint8]

QUANTIZE_TARGETS: Mapping[str, BlockType] = MappingProxyType(
    {"q8_0": BlockType.Q8_0, "q4_0": BlockType.Q4_0, "q4_k": BlockType.Q4_K}
)

_FLOATS = frozenset({BlockType.F32, BlockType.F16, BlockType.BF16})
_KEPT = (
    "norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "shortconv.conv.weight",
    "ssm_conv1d.weight",
    "position_embd.weight",
    # of Gemma 3n and 4: they are small and read by every layer, but for the table, which stays in its file
    *("altup_proj.weight", "altup_unembd_proj.weight", "altup_router.weight", "laurel_l.weight", "laurel_r.weight"),
    "per_layer_model_proj.weight",
    *LOOKED_UP,
)
_ENDS = frozenset({"token_embd.weight", "output.weight"})
_CHUNK_VALUES = 1 << 20


def quantize_target(text: str) -> BlockType:
    """The block type of a name in any case; UsageError, with the choices, for any other name."""
    target = QUANTIZE_TARGETS.get(text.lower())
    if target is None:
        raise UsageError(
            f"weights cannot be quantized to {text!r} while they are loaded",
            hint="choose one of " + ", ".join(QUANTIZE_TARGETS),
        )
    return target


class QuantizedSource:
    """A WeightSource over another one, its float matrices rounded to `target` each time they are asked for."""

    def __init__(self, source: WeightSource, target: BlockType) -> None:
        self._source = source
        self._target = target

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        """Shape and new type; nothing is read or encoded."""
        info = self._source.info(name)
        return info and replace(info, type=rounded_type(info, self._target))

    def raw(self, name: str) -> Bytes:
        """BadModelFile for weights that are not finite, UnsupportedModel for some too large; both name the weight."""
        raw, before = self._source.raw(name), self._source.info(name)
        if before is None or (after := rounded_type(before, self._target)) is before.type:
            return raw
        columns, size = before.shape[-1], row_bytes(after, before.shape[-1])
        packed = np.empty((math.prod(before.shape[:-1]), size), np.uint8)
        old_rows = raw.reshape(len(packed), -1)
        for rows in _chunks_of_rows(len(packed), columns):
            packed[rows] = _rounded(before, after, old_rows[rows])
        return packed.reshape(-1)

    def release(self, name: str) -> None:
        self._source.release(name)


def rounded_type(info: WeightInfo, target: BlockType) -> BlockType:
    """What a weight becomes, by the table above."""
    is_matrix = info.name.endswith(".weight") and len(info.shape) in (2, 3)
    if not is_matrix or info.type not in _FLOATS or info.name.endswith(_KEPT):
        return info.type
    wanted = BlockType.Q8_0 if info.name in _ENDS and _bits(target) < 8 else target
    candidates = (
        kind for kind in (wanted, BlockType.Q8_0) if not info.shape[-1] % BLOCK_LAYOUTS[kind].values_per_block
    )
    return next(candidates, info.type)


def _bits(kind: BlockType) -> float:
    layout = BLOCK_LAYOUTS[kind]
    return 8 * layout.bytes_per_block / layout.values_per_block


def _chunks_of_rows(num_rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(columns, 1))
    return (slice(start, start + step) for start in range(0, num_rows, step))


def _rounded(info: WeightInfo, kind: BlockType, rows: Bytes) -> Bytes:
    try:
        return encode(kind, decode(info.type, rows, (len(rows), info.shape[-1])))
    except (BadModelFile, UnsupportedModel) as error:
        raise type(error)(f"weight {info.name}: {error.message}", hint=error.hint) from error
