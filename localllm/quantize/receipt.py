"""What was done to a model when it was quantized, and what it cost: in the file under our own prefix, and in the store.

The places of errors are in the header before anything is rounded, as arrays of a known length: so a file is written in
one go, and its errors are filled in at the end. Needs no numpy: the store reads receipts for lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

PREFIX = "localllm.quantize."
ERROR, LAYER_ERRORS, TENSOR_ERRORS = f"{PREFIX}error", f"{PREFIX}layer_errors", f"{PREFIX}tensor_errors"
NUM_WORST = 8
MAX_ITEMS = 1 << 16
MAX_TEXT = 4096

_TEXTS = ("recipe", "method", "source", "source_digest", "imatrix", "keep", "version")
_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|h)\.(\d+)\.")


class Worst(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor and its relative error."""

    name: str
    type: str = ""
    error: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Against the model that it was made from, on a text: divergence in nats, `same_top` the share of tokens at which
    both find the same token likeliest, `ppl_ratio` of the perplexities (above 1: worse), over `tokens` tokens."""

    against: str = ""
    text: str = ""
    tokens: int = 0
    kl_mean: float = 0.0
    kl_median: float = 0.0
    kl_p99: float = 0.0
    kl_max: float = 0.0
    same_top: float = 0.0
    ppl: float = 0.0
    ppl_ratio: float = 0.0


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """`recipe` as it was asked for; `method` rtn or gptq; `imatrix` the file or text that told which columns count;
    `keep` the exceptions, REGEX=TYPE. Errors are relative: the root of the summed squares of what was lost, by that of
    the weights. `layers` has one for each layer, 0 where nothing was rounded; `worst` the tensors that lost most."""

    recipe: str
    method: str = "rtn"
    source: str = ""
    source_digest: str = ""
    imatrix: str = ""
    keep: tuple[str, ...] = ()
    pure: bool = False
    version: str = ""
    bits_per_weight: float = 0.0
    error: float = 0.0
    layers: tuple[float, ...] = ()
    worst: tuple[Worst, ...] = ()
    measured: Measured | None = None


class Errors:
    """Squares of what was lost and of what there was, tensor by tensor."""

    def __init__(self, names: Sequence[str]) -> None:
        self._squares: dict[str, tuple[float, float]] = dict.fromkeys(names, (0.0, 0.0))

    def note(self, name: str, lost: float, total: float) -> None:
        self._squares[name] = (lost, total)

    def of_tensors(self) -> list[float]:
        """In the order of the names."""
        return [_root(*each) for each in self._squares.values()]

    def of_layers(self) -> list[float]:
        """One for each layer that the names speak of."""
        layers = [(0.0, 0.0)] * num_layers(self._squares)
        for name, (lost, total) in self._squares.items():
            if (layer := layer_of(name)) is not None:
                layers[layer] = (layers[layer][0] + lost, layers[layer][1] + total)
        return [_root(*each) for each in layers]

    def of_all(self) -> float:
        squares = self._squares.values()
        return _root(math.fsum(lost for lost, _ in squares), math.fsum(total for _, total in squares))


def _root(lost: float, total: float) -> float:
    return math.sqrt(lost / total) if total > 0 else 0.0


def layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found is not None else None


def num_layers(names: Iterable[str]) -> int:
    return max((layer + 1 for name in names if (layer := layer_of(name)) is not None), default=0)


def with_errors(receipt: Receipt, errors: Errors, types: Mapping[str, str]) -> Receipt:
    """`types` by tensor, in the order of the file."""
    found = sorted(zip(errors.of_tensors(), types, strict=True), reverse=True)
    worst = tuple(Worst(name=name, type=types[name], error=error) for error, name in found[:NUM_WORST] if error > 0)
    return msgspec.structs.replace(receipt, error=errors.of_all(), layers=tuple(errors.of_layers()), worst=worst)


def as_metadata(receipt: Receipt) -> dict[str, Any]:
    """Keys for the file; those of the errors are not among them."""
    texts = {f"{PREFIX}{name}": str(getattr(receipt, name)) for name in _TEXTS if name != "keep"}
    texts[f"{PREFIX}keep"] = "\n".join(receipt.keep)
    found: dict[str, Any] = {key: text for key, text in texts.items() if text}
    found[f"{PREFIX}pure"] = receipt.pure
    found[f"{PREFIX}bits_per_weight"] = float(receipt.bits_per_weight)
    return found | _measured_metadata(receipt.measured)


def _measured_metadata(measured: Measured | None) -> dict[str, Any]:
    if measured is None:
        return {}
    said = msgspec.structs.asdict(measured)
    return {f"{PREFIX}measured.{name}": value for name, value in said.items() if value != ""}


def in_metadata(metadata: Mapping[str, Any], types: Mapping[str, str]) -> Receipt | None:
    """The receipt of a file; None where it has none, or nonsense: anybody may write such keys. `types` by tensor, in
    the order of the file."""
    if not isinstance(metadata.get(f"{PREFIX}recipe"), str):
        return None
    texts = {name: _text(metadata.get(PREFIX + name)) for name in _TEXTS}
    errors = _floats(metadata.get(TENSOR_ERRORS))
    by_name = sorted(zip(errors, types, strict=False), reverse=True) if len(errors) == len(types) else []
    return Receipt(
        **{name: text for name, text in texts.items() if name != "keep"},
        keep=tuple(filter(None, texts["keep"].split("\n"))),
        pure=metadata.get(f"{PREFIX}pure") is True,
        bits_per_weight=_float(metadata.get(f"{PREFIX}bits_per_weight")),
        error=_float(metadata.get(ERROR)),
        layers=_floats(metadata.get(LAYER_ERRORS)),
        worst=tuple(Worst(name=name, type=types[name], error=error) for error, name in by_name[:NUM_WORST] if error),
        measured=_measured(metadata),
    )


def _measured(metadata: Mapping[str, Any]) -> Measured | None:
    key = f"{PREFIX}measured."
    if f"{key}kl_mean" not in metadata:
        return None
    read: Mapping[type, Callable[[Any], Any]] = {str: _text, int: lambda value: int(_float(value)), float: _float}
    kinds = {name: type(getattr(Measured(), name)) for name in Measured.__struct_fields__}
    return Measured(**{name: read[kind](metadata.get(key + name)) for name, kind in kinds.items()})


def _text(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _float(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else 0.0


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(map(_float, value[:MAX_ITEMS])) if isinstance(value, list) else ()
