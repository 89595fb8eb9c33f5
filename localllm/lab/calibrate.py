"""What the inputs of a model's weights are like while it reads a text: importance matrices, and weights rounded by GPTQ.

Computes on the reference verbs, with all chunks of the text in one step, so that a layer's weights are decoded once and
their products are large. Weights of the ends (embedding, output) are not looked at, as in llama.cpp's llama-imatrix.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localllm.backends.reference import ReferenceBackend, Tap
from localllm.engine.step import NO_SLOT, PageId, Row, SeqId, SlotId, StepPlan, ZeroSlot, run_step
from localllm.errors import LocalLLMError, UsageError
from localllm.formats.blocks import BlockType, decode, row_bytes
from localllm.models.config import ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.encode import encode
from localllm.quantize.gptq import GPTQ_TYPES, gptq_encode
from localllm.quantize.imatrix import ImportanceCollector, ImportanceMatrix
from localllm.runtime.load import load_text
from localllm.runtime.open_model import open_model

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PAGE_SIZE = 16
LEAST_TOKENS = 64
FLOATS_AT_ONCE = 1 << 26
"""Of the widest activation of a step: about four of these arrays live at a time."""
_MATRIX = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)

Progress = Callable[[int, int], None]
"""Called with how many weights have met their inputs, and how many there are."""
Visit = Callable[[str, int, Floats], None]
"""A weight's name, which of its matrices (0 where it has one), and its inputs (n, in)."""


def tell_nobody(done: int, total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as chunks of a model's tokens; each is read from an empty context."""

    chunks: tuple[tuple[int, ...], ...]
    name: str
    chunk_size: int


def default_text() -> str:
    """The calibration text that comes with the package: prose, dialogue, code, lists, several languages."""
    return resources.files("localllm.quantize").joinpath("calibration.txt").read_text(encoding="utf-8")


def reading_of(model: Path, text: str, name: str, chunk_size: int = 512) -> Reading:
    """The text in the model's tokens; what is left at its end makes a shorter chunk. UsageError for a text too short
    to tell anything."""
    tokenizer = load_text(model).tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    if len(ids) < LEAST_TOKENS:
        raise UsageError(f"{name} has {len(ids)} tokens; a calibration needs {LEAST_TOKENS}", hint="use a longer text")
    chunks = [ids[at : at + chunk_size] for at in range(0, len(ids), chunk_size)]
    if len(chunks[-1]) < min(LEAST_TOKENS, chunk_size):
        chunks.pop()
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        chunks = [[tokenizer.bos_id, *chunk[1:]] for chunk in chunks]
    return Reading(tuple(map(tuple, chunks)), name, chunk_size)


def collect_importance(model: Path, reading: Reading, progress: Progress = tell_nobody) -> ImportanceMatrix:
    """Mean squares of the inputs of every weight of the layers. Typed errors for bad files."""
    opened = open_model(model)
    shapes = _matrices(opened.source)
    collector = ImportanceCollector()
    steps = _steps(reading.chunks, opened.source)
    seen: set[tuple[int, str]] = set()

    def visit(name: str, matrix: int, inputs: Floats) -> None:
        shape = shapes[name].shape
        collector.add(name, inputs, matrix, shape[0] if len(shape) == 3 else 1)
        seen.add((number, name))
        progress(len(seen), len(steps) * len(shapes))

    for number, chunks in enumerate(steps):
        read(opened.config, opened.source, chunks, visit)
    return ImportanceMatrix(
        MappingProxyType(collector.entries()), (reading.name,), len(reading.chunks), reading.chunk_size
    )


def hessians(
    config: ModelConfig, source: WeightSource, reading: Reading, visit: Callable[[str, int, Floats], None]
) -> None:
    """`visit` is called with a weight's name, which of its matrices, and X^T X (in, in) of its inputs, in the order of
    the model: one is held at a time. Weights that share an input share the array."""
    latest: list[Floats] = [np.empty((0, 0), np.float32)] * 2

    def on_inputs(name: str, matrix: int, inputs: Floats) -> None:
        if latest[0] is not inputs:
            latest[:] = [inputs, inputs.T @ inputs]
        visit(name, matrix, latest[1])

    read(config, source, _steps(reading.chunks, source)[0], on_inputs)


def compensated(
    model: Path, reading: Reading, target_of: Callable[[WeightInfo], BlockType | None], progress: Progress = tell_nobody
) -> CompensatedSource:
    """The model's weights rounded by GPTQ, each for inputs that come out of the layers rounded before it.

    `target_of` says what a weight becomes, None to leave it as it is. Types that GPTQ does not know are rounded with
    the importance of their columns instead. A text that is too long for one step is cut. Blocks are kept in a
    temporary file. Embedding and output are rounded plainly, by `encode`.
    """
    opened = open_model(model)
    rounder = _Rounder(opened.source, target_of, progress)
    read(opened.config, opened.source, _steps(reading.chunks, opened.source)[0], rounder.on_inputs, rounder.on_backend)
    return rounder.finished()


class _Rounder:
    """Rounds a weight when its inputs are known, and lets the model go on with what came out."""

    def __init__(
        self, source: WeightSource, target_of: Callable[[WeightInfo], BlockType | None], progress: Progress
    ) -> None:
        self._source, self._target_of, self._progress = source, target_of, progress
        self._infos = _matrices(source)
        self._backend: ReferenceBackend | None = None
        self._inputs: Floats = np.empty((0, 0), np.float32)
        self._hessian: Floats = self._inputs
        self._out = CompensatedSource(source)
        self._experts: dict[str, dict[int, Bytes]] = {}
        self._done: set[str] = set()

    def on_backend(self, backend: ReferenceBackend) -> None:
        self._backend = backend

    def on_inputs(self, name: str, matrix: int, inputs: Floats) -> None:
        info = self._infos[name]
        kind = self._target_of(info)
        self._done.add(name)
        self._progress(len(self._done), len(self._infos))
        if kind is None:
            return
        if self._inputs is not inputs:
            self._inputs, self._hessian = inputs, inputs.T @ inputs
        if len(info.shape) == 3:  # the run goes on with an expert as it was: its blocks lie among those of others
            values = _values(self._source, info)[matrix]
            self._experts.setdefault(name, {})[matrix] = self._rounded(info, kind, values)
            return
        blocks = self._rounded(info, kind, _values(self._source, info))
        self._out.keep(info.name, kind, blocks)
        assert self._backend is not None
        self._backend.weights[name].replace(kind, self._out.raw(name))

    def _rounded(self, info: WeightInfo, kind: BlockType, values: Floats) -> Bytes:
        try:
            if kind in GPTQ_TYPES:
                return gptq_encode(kind, values, self._hessian)
            return encode(kind, values, self._hessian.diagonal())
        except LocalLLMError as error:
            raise type(error)(f"weight {info.name}: {error.message}", hint=error.hint) from error

    def finished(self) -> CompensatedSource:
        """What met no inputs is rounded plainly."""
        for name in self._source.names():
            info = self._source.info(name)
            kind = None if info is None or name in self._out.kept else self._target_of(info)
            if info is None or kind is None or kind is info.type:
                continue
            experts = self._experts.pop(name, {})
            values = _values(self._source, info)
            if experts:
                blocks = np.stack([experts.get(i, encode(kind, values[i])) for i in range(len(values))])
            else:
                blocks = encode(kind, values)
            self._out.keep(name, kind, blocks)
        return self._out


class CompensatedSource:
    """A WeightSource over another one, some of whose weights have new blocks; these lie in a temporary file."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the source
        self.kept: dict[str, tuple[BlockType, int, int]] = {}

    def keep(self, name: str, kind: BlockType, blocks: Bytes) -> None:
        start = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(blocks).data)
        self.kept[name] = kind, start, blocks.nbytes

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        info = self._source.info(name)
        return replace(info, type=self.kept[name][0]) if info is not None and name in self.kept else info

    def raw(self, name: str) -> Bytes:
        if name not in self.kept:
            return self._source.raw(name)
        _, start, size = self.kept[name]
        self._file.flush()
        self._file.seek(start)
        return np.frombuffer(self._file.read(size), np.uint8)

    def release(self, name: str) -> None:
        self._source.release(name)


def read(
    config: ModelConfig,
    source: WeightSource,
    chunks: Sequence[Sequence[int]],
    visit: Visit,
    opened: Callable[[ReferenceBackend], None] = lambda backend: None,
) -> None:
    """The model reads the chunks in one step, and `visit` sees the inputs of each weight before they are multiplied."""
    backend = ReferenceBackend(config, source, PAGE_SIZE, keep_decoded=False, tap=_tap(visit))
    opened(backend)
    try:
        groups = len(backend.layout.groups)
        per_row = [-(-len(chunk) // PAGE_SIZE) for chunk in chunks]
        starts = [0, *np.cumsum(per_row).tolist()]
        slots = [SlotId(i) if backend.layout.has_state else NO_SLOT for i in range(len(chunks))]
        backend.allocate(groups * starts[-1], len(chunks) if backend.layout.has_state else 0)
        rows = []
        for i, chunk in enumerate(chunks):
            pages = tuple(
                tuple(PageId(group * starts[-1] + page) for page in range(starts[i], starts[i + 1]))
                for group in range(groups)
            )
            rows.append(Row(SeqId(i), tuple(chunk), 0, pages, slot=slots[i], atomic=config.is_encoder))
        run_step(backend, StepPlan(0, tuple(rows), tuple(ZeroSlot(slot) for slot in slots if slot != NO_SLOT)))
    finally:
        backend.close()


def _tap(visit: Visit) -> Tap:
    def tap(verb: str, name: str, inputs: Floats) -> None:
        if not len(inputs) or not name.startswith("blk."):
            return
        if verb == "linear":
            visit(name, 0, inputs)
        elif verb == "matrix":
            found = _MATRIX.fullmatch(name)
            assert found is not None
            visit(found[1], int(found[2]), inputs)

    return tap


def _matrices(source: WeightSource) -> Mapping[str, WeightInfo]:
    infos = (source.info(name) for name in source.names())
    return {info.name: info for info in infos if info and info.name.startswith("blk.") and len(info.shape) > 1}


def _values(source: WeightSource, info: WeightInfo) -> Floats:
    return decode(info.type, source.raw(info.name), info.shape)


def _steps(chunks: Sequence[Sequence[int]], source: WeightSource) -> list[list[Sequence[int]]]:
    """As many chunks at a time as there is room for their widest activation."""
    widest = max((max(info.shape[-2:]) for info in _matrices(source).values()), default=1)
    return list(_packed(chunks, max(FLOATS_AT_ONCE // widest, 1)))


def _packed(chunks: Sequence[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    step: list[Sequence[int]] = []
    for chunk in chunks:
        if step and sum(map(len, step)) + len(chunk) > tokens:
            yield step
            step = []
        step.append(chunk)
    yield step


def size_of(source: WeightSource) -> int:
    """Bytes of all weights."""
    infos = filter(None, map(source.info, source.names()))
    return sum(row_bytes(info.type, info.shape[-1]) * math.prod(info.shape[:-1]) for info in infos)
