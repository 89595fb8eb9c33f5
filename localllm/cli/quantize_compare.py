"""`localllm quantize MODEL --compare TYPES`: a table of what each type costs and saves, and a plot of it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from localllm.cli.convert import leaving_tidily
from localllm.cli.files import check_target, text_of
from localllm.cli.human import aligned, size_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import open_runnable_library
from localllm.cli.output import print_json, print_text
from localllm.cli.progress import Progress
from localllm.cli.quantize import DEFAULT_TEXT, calibrated
from localllm.errors import UsageError
from localllm.lab.calibrate import default_text
from localllm.lab.compare import Compared, compared, orders_of
from localllm.lab.curve import Point, drawn, picture

if TYPE_CHECKING:
    from localllm.runtime.quantize import Order


def compare_types(
    invocation: Invocation,
    model: str,
    types: Sequence[str],
    order: "Order",
    text: Path | None,
    out: Path | None,
    imatrix: Path | None,
    calibrate: str,
    *,
    as_json: bool,
) -> None:
    """Measure, print, draw."""
    settings = invocation.settings()
    entry = open_runnable_library(settings).find(model)
    if out is not None:
        check_target(out)
    if text is None and (calibrate == DEFAULT_TEXT or (order.method == "gptq" and not calibrate)):
        raise UsageError("types would be measured on the text they were calibrated with", hint="name another: --text")
    words = default_text() if text is None else text_of(text)
    with leaving_tidily(), invocation.progress() as progress:
        orders = orders_of(calibrated(entry, order, imatrix, calibrate, progress), types)
        tell = _teller(progress)
        found = list(compared(Path(entry.path), orders, words, settings, tell, name=entry.name))
    points = [Point(each.type, each.size_bytes, each.measured.kl_mean) for each in found]
    if out is not None:
        picture(points, f"{entry.name}: size against divergence", out)
    if as_json:
        print_json({"model": entry.name, "text": str(text or DEFAULT_TEXT), "types": list(map(_fields, found))})
        return
    print_text(_table(found))
    is_plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print_text("\n".join(drawn(points, get_terminal_size().columns, is_plain=is_plain)))
    if out is not None:
        print_text(f"drawn in {out}")


def _teller(progress: Progress) -> Any:
    def tell(sentence: str, done: int, total: int) -> None:
        if total:
            progress.update(sentence, done, total)
        else:
            progress.status(sentence)

    return tell


def _table(found: Sequence[Compared]) -> str:
    header = ["TYPE", "SIZE", "BITS", "KL MEAN", "KL P99", "SAME TOP", "PPL RATIO", "DECODE", "PROMPT"]
    rows = [
        [
            each.type,
            size_text(each.size_bytes),
            f"{each.bits_per_weight:.2f}",
            f"{each.measured.kl_mean:.5f}",
            f"{each.measured.kl_p99:.4f}",
            f"{100 * each.measured.same_top:.1f} %",
            f"{each.measured.ratio:.4f}",
            f"{each.measured.model.speeds.decode:.1f} t/s",
            f"{each.measured.model.speeds.prompt:.0f} t/s",
        ]
        for each in found
    ]
    if not found:
        return ""
    base, tokens = found[0].measured.base, found[0].measured.tokens
    told = f"against {base.model} ({size_text(base.size_bytes)}, perplexity {base.perplexity:.4f}) on {tokens} tokens"
    return f"{aligned([header, *rows])}{told}"


def _fields(each: Compared) -> dict[str, Any]:
    found = each.measured
    return {
        "type": each.type,
        "size_bytes": each.size_bytes,
        "bits_per_weight": round(each.bits_per_weight, 4),
        "kl_mean": found.kl_mean,
        "kl_error": found.kl_error,
        "kl_median": found.kl_median,
        "kl_p99": found.kl_p99,
        "kl_max": found.kl_max,
        "same_top": found.same_top,
        "perplexity": found.model.perplexity,
        "perplexity_ratio": found.ratio,
        "base_perplexity": found.base.perplexity,
        "tokens": found.tokens,
        "decode_tokens_per_s": found.model.speeds.decode,
        "prompt_tokens_per_s": found.model.speeds.prompt,
        "weight_error": each.receipt.error,
    }
