"""What the inputs of a model's weights are like while it reads a text: importance matrices, Hessians, and GPTQ by them.

Computes on the reference verbs, with all chunks of the text in one step, so that a layer's weights are decoded once and
their products are large. Weights of the ends (embedding, output) are not looked at, as in llama.cpp's llama-imatrix.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localllm.backends.reference import ReferenceBackend
from localllm.backends.reference_ops import Tap
from localllm.engine.step import NO_SLOT, PageId, Row, SeqId, SlotId, StepPlan, ZeroSlot, run_step
from localllm.errors import LocalLLMError, UsageError
from localllm.formats.blocks import BlockType, decode
from localllm.models.config import ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.encode import encode
from localllm.quantize.gptq import GPTQ_TYPES, gptq_encode, inverse_factor
from localllm.quantize.imatrix import ImportanceCollector, ImportanceMatrix
from localllm.quantize.recode import recode
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
"""A weight's name, which of its matrices (0 where it has one), and its inputs (n, in), or what is made of them."""


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
    return importance(opened.config, opened.source, reading, progress)


def importance(
    config: ModelConfig, source: WeightSource, reading: Reading, progress: Progress = tell_nobody
) -> ImportanceMatrix:
    """As `collect_importance`, of weights that are open."""
    shapes = {name: info.shape for name, info in _matrices(source).items()}
    collector = ImportanceCollector()
    steps = _steps(reading.chunks, source)
    seen: set[tuple[int, str]] = set()
    for step, chunks in enumerate(steps):

        def visit(name: str, matrix: int, inputs: Floats, step: int = step) -> None:
            collector.add(name, inputs, matrix, shapes[name][0] if len(shapes[name]) == 3 else 1)
            seen.add((step, name))
            progress(len(seen), len(steps) * len(shapes))

        read(config, source, chunks, visit)
    entries = MappingProxyType(collector.entries())
    return ImportanceMatrix(entries, (reading.name,), len(reading.chunks), reading.chunk_size)


def hessians(
    config: ModelConfig,
    source: WeightSource,
    reading: Reading,
    visit: Visit,
    opened: Callable[[ReferenceBackend], None] = lambda backend: None,
) -> None:
    """`visit` is called with a weight's name, which of its matrices, and X^T X (in, in) of its inputs X, in the order
    of the model and before it is multiplied; one is held at a time. A text that is too long for one step is cut."""
    held: list[Floats] = []

    def on_inputs(name: str, matrix: int, inputs: Floats) -> None:
        if not held or held[0] is not inputs:  # several weights have one input
            held[:] = [inputs, inputs.T @ inputs]
        visit(name, matrix, held[1])

    read(config, source, _steps(reading.chunks, source)[0], on_inputs, opened)


TargetOf = Callable[[WeightInfo], BlockType | None]


def compensated(
    model: Path, reading: Reading, target_of: TargetOf, progress: Progress = tell_nobody
) -> CompensatedSource:
    """The model's weights rounded by GPTQ, each for inputs that come out of the weights rounded before it.

    `target_of` says what a weight becomes, None to leave it as it is. Types that GPTQ does not know are rounded with
    the importance of their columns instead; what meets no inputs (embedding, output, experts that no token chose) is
    rounded plainly. Blocks are kept in a temporary file.
    """
    opened = open_model(model)
    return compensate(opened.config, opened.source, reading, target_of, progress)


def compensate(
    config: ModelConfig,
    source: WeightSource,
    reading: Reading,
    target_of: TargetOf,
    progress: Progress = tell_nobody,
) -> CompensatedSource:
    """As `compensated`, of weights that are open."""
    rounder = _Rounder(source, target_of, progress)
    hessians(config, source, reading, rounder.on_hessian, rounder.on_backend)
    return rounder.finished()


class _Rounder:
    """Rounds a weight when its inputs are known, and lets the model go on with what came out."""

    def __init__(self, source: WeightSource, target_of: TargetOf, progress: Progress) -> None:
        self._source, self._target_of, self._progress = source, target_of, progress
        self._infos = _matrices(source)
        self._backend: ReferenceBackend | None = None
        self._out = CompensatedSource(source)
        self._experts: dict[str, dict[int, Bytes]] = {}
        self._done: set[str] = set()
        self._hessian: Floats = np.empty((0, 0), np.float32)
        self._factor: Floats = self._hessian

    def on_backend(self, backend: ReferenceBackend) -> None:
        self._backend = backend

    def on_hessian(self, name: str, matrix: int, hessian: Floats) -> None:
        info = self._infos[name]
        kind = self._target_of(info)
        self._done.add(name)
        self._progress(len(self._done), len(self._infos))
        if kind is None:
            return
        values = _values(self._source, info)
        if len(info.shape) == 3:  # the run goes on with an expert as it was: its blocks lie among those of others
            self._experts.setdefault(name, {})[matrix] = self._rounded(info, kind, values[matrix], hessian)
            return
        self._out.keep(name, kind, self._rounded(info, kind, values, hessian))
        assert self._backend is not None
        self._backend.weights[name].replace(kind, self._out.raw(name))

    def finished(self) -> CompensatedSource:
        for name in self._source.names():
            info = self._source.info(name)
            kind = None if info is None or name in self._out.kept else self._target_of(info)
            if info is None or kind is None or kind is info.type:
                continue
            with _named(name):
                blocks = recode(info.type, kind, self._source.raw(name), info.shape)
            for expert, of_expert in self._experts.pop(name, {}).items():
                blocks.reshape(info.shape[0], -1)[expert] = of_expert.reshape(-1)
            self._out.keep(name, kind, blocks)
        return self._out

    def _rounded(self, info: WeightInfo, kind: BlockType, values: Floats, hessian: Floats) -> Bytes:
        with _named(info.name):
            if kind not in GPTQ_TYPES:
                return encode(kind, values, hessian.diagonal())
            if self._hessian is not hessian:
                self._hessian, self._factor = hessian, inverse_factor(hessian)
            return gptq_encode(kind, values, hessian, factor=self._factor)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say which weight they are about."""
    try:
        yield
    except LocalLLMError as error:
        raise type(error)(f"weight {name}: {error.message}", hint=error.hint) from error


class CompensatedSource:
    """A WeightSource over another one, some of whose weights have new blocks; these lie in a temporary file."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # it lives as long as the source
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
