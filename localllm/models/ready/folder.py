"""A checkpoint that is quantized already, as a folder of ordinary tensors: others see float types and our blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode
from localllm.models.ready.grids import Floats, Plan, joined_plan
from localllm.models.ready.integers import Awq, Gptq, Ints, Mlx, Packed
from localllm.models.ready.matrices import Info, Matrix, packed_values
from localllm.models.ready.methods import Method, method_of
from localllm.models.ready.small_floats import Fp8, Nf4

_IGNORED = re.compile(r".*\.(input_scale|input_zero_point|activation_scale|output_scale|k_scale|v_scale|q_scale)")
"""Of activations and caches, which we do not round so."""
_EXPERT = re.compile(r"(experts\.)\d+")
_NUMBER = re.compile(r"\d+")


class Folder(Protocol):
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, Info]: ...
    def array(self, name: str) -> NDArray[Any]: ...
    def as_float32(self, name: str) -> Floats: ...
    def release(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ReadyInfo:
    """`dtype` is asked for late: it takes a look at the scales."""

    shape: tuple[int, ...]
    plan: Callable[[], Plan] = field(repr=False)

    @property
    def dtype(self) -> str:
        return self.plan().type.name


class ReadyFolder:
    """What models.hf_source needs of a checkpoint; a matrix is unpacked when it is asked for, and is not kept."""

    def __init__(self, folder: Folder, method: Method) -> None:
        self._folder, self.method = folder, method
        self._matrices = dict(_matrices(folder, method))
        self._plans: dict[str, Plan] = {}
        self._kin: dict[str, list[str]] = {}
        for name in self._matrices:
            self._kin.setdefault(_EXPERT.sub(r"\1#", name), []).append(name)
        used = {tensor for matrix in self._matrices.values() for tensor in matrix.parts.values()}
        rest = (name for name in folder.tensors if name not in used and not _IGNORED.fullmatch(name))
        plain = {name: folder.tensors[name] for name in rest}
        for name in _empty_biases(folder, self._matrices, plain):
            del plain[name]
        ready = {name: ReadyInfo(matrix.shape, partial(self._plan, name)) for name, matrix in self._matrices.items()}
        self.tensors: Mapping[str, Info] = {**plain, **ready}

    @property
    def config(self) -> Mapping[str, Any]:
        return self._folder.config

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each way in which matrices are not read exactly."""
        counts = Counter((plan.type, plan.reason) for plan in map(self._plan, self._matrices) if plan.reason)
        whole = f"{len(self._matrices)} matrices of this {self.method.title} checkpoint"
        return tuple(
            f"{count} of {whole} are read as {kind.name} ({_bits(kind):g} bits a weight), rounded to it: {reason}"
            for (kind, reason), count in counts.items()
        )

    def array(self, name: str) -> NDArray[Any]:
        if name not in self._matrices:
            return self._folder.array(name)
        return packed_values(self._matrices[name], self._plan(name))

    def as_float32(self, name: str) -> Floats:
        if name not in self._matrices:
            return self._folder.as_float32(name)
        kind, matrix = self._plan(name).type, self._matrices[name]
        values = self.array(name)
        is_float = kind in (BlockType.F16, BlockType.F32)
        return values.astype(np.float32) if is_float else decode(kind, values, matrix.shape)

    def release(self, name: str) -> None:
        for tensor in self._matrices[name].parts.values() if name in self._matrices else (name,):
            self._folder.release(tensor)

    def _plan(self, name: str) -> Plan:
        if name not in self._plans:
            kin = self._kin[_EXPERT.sub(r"\1#", name)]
            plan = joined_plan([self._matrices[each].plan() for each in kin])
            self._plans.update(dict.fromkeys(kin, plan))
        return self._plans[name]


def ready_folder(folder: Folder) -> Folder:
    """The folder itself where its weights are plain. UnsupportedModel for methods that are not read, BadModelFile."""
    if isinstance(folder, ReadyFolder):
        return folder
    method = method_of(folder.config)
    if method.kind:
        return ReadyFolder(folder, method)
    untold = next((name for name in folder.tensors if name.endswith(".qweight")), None)
    if untold is not None:
        raise UnsupportedModel(
            f"{untold} is quantized, but config.json does not say how (quantization_config)",
            hint="take a newer version of the repository, or the original weights",
        )
    return folder


def _bits(kind: BlockType) -> float:
    values, size = BLOCK_LAYOUTS[kind]
    return 8 * size / values


def notes_of(folder: Folder) -> tuple[str, ...]:
    """What is to be said of weights that are not read exactly as they are."""
    return folder.notes if isinstance(folder, ReadyFolder) else ()


def _matrices(folder: Folder, method: Method) -> Iterable[tuple[str, Matrix]]:
    """Weights under the names that plain ones have."""
    endings = _endings(method)
    for name in folder.tensors:
        for ending, make in endings:
            if name.endswith(ending) and (stem := name.removesuffix(ending)):
                matrix = _matrix(folder, stem, make, method)
                if matrix is not None:
                    yield (f"{stem}.weight", matrix)


def _endings(method: Method) -> list[tuple[str, Any]]:
    """By which tensor a quantized module is known, and what it is."""
    if method.kind == "gptq":
        return [(".qweight", Gptq)]
    if method.kind == "awq":
        return [(".qweight", Awq)]
    if method.kind == "mlx":
        return [(".scales", Mlx)]
    if method.kind == "bitsandbytes":
        return [(".weight.absmax", Nf4), (".SCB", Ints)]
    return [(".weight_packed", Packed), (".weight_scale_inv", Fp8), (".weight_scale", None)]


def _matrix(folder: Folder, stem: str, make: Any, method: Method) -> Matrix | None:
    if make is None:  # the same name beside integers, floats and packed words
        if f"{stem}.weight_packed" in folder.tensors:
            return None
        weight = folder.tensors.get(f"{stem}.weight")
        make = Ints if weight is not None and weight.dtype == "I8" else Fp8
    endings = list(make.ENDINGS)
    if make is Nf4:
        endings += [each.removeprefix(stem) for each in _states(folder, stem)]
    parts = {ending: stem + ending for ending in endings if stem + ending in folder.tensors}
    matrix: Matrix = make(folder, stem, parts, method)
    return matrix


def _states(folder: Folder, stem: str) -> list[str]:
    names = (f"{stem}{Nf4.STATE}{kind}" for kind in ("nf4", "fp4"))
    return [name for name in names if name in folder.tensors]


def _empty_biases(folder: Folder, matrices: Iterable[str], plain: Mapping[str, Info]) -> list[str]:
    """Biases that quantizers have added to modules that have none: zeros in every layer."""
    by_kind: dict[str, list[str]] = {}
    for weight in matrices:
        name = weight.removesuffix("weight") + "bias"
        if name in plain:
            by_kind.setdefault(_NUMBER.sub("#", name), []).append(name)
    return [name for names in by_kind.values() if not any(folder.array(each).any() for each in names) for name in names]
