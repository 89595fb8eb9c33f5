"""Several quantizations of one model measured against it: made one after another, looked at, and deleted again.

One file is there at a time, in a folder of the store that the next run clears, should a kill have left it. What the
model itself says of the text is computed once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localllm.lab.base_answers import KeptAnswers
from localllm.lab.divergence import Divergence, divergence
from localllm.quantize.receipt import Measured, Receipt
from localllm.runtime.quantize import Order, plan_of, quantize_model
from localllm.settings import Settings
from localllm.store.blobs import check_space, model_lock

FOLDER = "compare"
Progress = Callable[[str, int, int], None]
"""A sentence, and how much of how much is done; zeros where nobody knows."""


@dataclass(frozen=True, slots=True)
class Compared:
    """`size_bytes` of the file; `measured` against the model it was made from."""

    type: str
    size_bytes: int
    bits_per_weight: float
    receipt: Receipt
    measured: Divergence


def compared(
    model: Path,
    orders: Sequence[Order],
    text: str,
    settings: Settings,
    progress: Progress,
    *,
    context: int = 512,
    name: str = "",
) -> Iterator[Compared]:
    """One after another, in the order of `orders`. DiskFull before anything is written; errors as those of
    `quantize_model` and `divergence`."""
    plans = [plan_of(model, order) for order in orders]  # what cannot be is said before hours have gone by
    folder = settings.store_dir / FOLDER
    with model_lock(
        settings.store_dir / "locks", f"+{FOLDER}", lambda: progress("waiting for another comparison", 0, 0)
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            check_space(folder, max(plan.size_bytes for plan in plans))
            with tempfile.TemporaryFile(dir=folder) as file:
                kept = KeptAnswers(folder, file)
                for order, plan in zip(orders, plans, strict=True):
                    path = folder / f"{order.label}.gguf"
                    receipt = quantize_model(model, path, order, name=name, progress=_writing(order, progress))
                    tell = _reading(order, progress)
                    found = divergence(
                        str(path), str(model), text, context=context, settings=settings, progress=tell, kept=kept
                    )
                    yield Compared(order.label, path.stat().st_size, plan.bits_per_weight, receipt, found)
                    path.unlink()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _writing(order: Order, progress: Progress) -> Progress:
    def tell(name: str, done_bytes: int, total_bytes: int) -> None:
        progress(f"{order.label}: {'writing' if total_bytes else name}", done_bytes if total_bytes else 0, total_bytes)

    return tell


def _reading(order: Order, progress: Progress) -> Callable[[int, int, float], None]:
    def tell(done: int, total: int, mean: float) -> None:
        so_far = f", divergence {mean:.4f}" if mean == mean else " of the original"  # not a number: the base's turn
        progress(f"{order.label}: chunk {done} of {total}{so_far}", 0, 0)

    return tell


def orders_of(order: Order, types: Sequence[str]) -> list[Order]:
    """The same for each type, without doubles. UsageError for a type that does not exist."""
    found = {
        made.label: made for made in (replace(order, type=each.strip()).checked() for each in types if each.strip())
    }
    return list(found.values())


def measured_of(found: Divergence, against: str, text: str) -> Measured:
    """As receipts have it. `text` is the name of the text."""
    return Measured(
        against=against,
        text=text,
        tokens=found.tokens,
        kl_mean=found.kl_mean,
        kl_median=found.kl_median,
        kl_p99=found.kl_p99,
        kl_max=found.kl_max,
        same_top=found.same_top,
        ppl=found.model.perplexity,
        ppl_ratio=found.ratio,
    )
