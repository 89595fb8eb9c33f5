"""`localllm quantize`: a model in fewer bits, as a file or under a name of its own. Starts no daemon."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from localllm.cli.convert import leaving_tidily
from localllm.cli.files import text_of
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model, open_runnable_library
from localllm.cli.output import print_json, print_text
from localllm.cli.progress import Progress
from localllm.cli.quantize_plan import made_text, named_output, plan_fields, plan_text
from localllm.errors import UsageError

if TYPE_CHECKING:
    from localllm.runtime.quantize import Order
    from localllm.store.entry import Entry, PullEvent
    from localllm.store.library import Library

STOPPED = 130
DEFAULT_TEXT = "default"


def quantize(
    ctx: typer.Context,
    model: Model,
    kind: Annotated[
        str,
        typer.Argument(metavar="[TYPE]", help="q4_k_m, q8_0, iq4_xs, mlx-4bit, ... in any case.", show_default=False),
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="A new name, or a file to write.", show_default="MODEL-TYPE")
    ] = "",
    pure: Annotated[
        bool, typer.Option("--pure", help="All matrices get the type itself, none gets more bits.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Weights with such names get another type; can be said repeatedly."),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An importance matrix: how much each column counts.")
    ] = None,
    calibrate: Annotated[
        str, typer.Option(metavar="TEXT", help="A text to calibrate with; `default` for one that comes along.")
    ] = "",
    method: Annotated[str, typer.Option(help="rtn rounds to nearest; gptq makes good what rounding loses.")] = "rtn",
    group: Annotated[int, typer.Option(help="Of MLX: values that share a scale, 32 or 64.")] = 64,
    compare: Annotated[
        str, typer.Option(metavar="TYPES", help="Measure these types, with commas between them, and keep none.")
    ] = "",
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="The text that --compare measures on.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Where --compare draws size against divergence.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Round a second time what is in blocks already.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model in fewer bits, and say what that costs."""
    from localllm.quantize.mlx_out import mlx_type  # loads numpy
    from localllm.runtime.quantize import Order

    invocation = Invocation.of(ctx)
    order = Order(kind, pure, tuple(keep or ()), _method(method), allow_requantize)
    if compare:
        types = [each.strip() for each in compare.split(",") if each.strip()]
        if not types:
            raise UsageError("--compare names no type", hint="for example --compare q4_0,q4_k_m")
        from localllm.cli.quantize_compare import compare_types  # loads the engine

        compare_types(invocation, model, types, order, text, picture, imatrix, calibrate, as_json=as_json)
        return
    if not kind:
        raise UsageError("no type is named", hint="for example: localllm quantize MODEL q4_k_m")
    if (mlx := mlx_type(kind, group)) is not None:
        from localllm.cli.quantize_mlx import quantize_for_mlx  # one type of many

        if order != Order(kind, allow_requantize=allow_requantize) or imatrix or calibrate:
            raise UsageError(f"{kind} has neither recipes nor calibration", hint="leave these options out")
        quantize_for_mlx(invocation, model, mlx, output, is_dry=dry_run, as_json=as_json)
        return
    _quantize(invocation, model, order.checked(), output, imatrix, calibrate, force, dry_run, as_json)


def _method(text: str) -> Literal["rtn", "gptq"]:
    if text.lower() == "gptq":
        return "gptq"
    if text.lower() != "rtn":
        raise UsageError(f"there is no method {text!r}", hint="choose rtn or gptq")
    return "rtn"


def _quantize(
    invocation: Invocation,
    model: str,
    order: "Order",
    output: str,
    imatrix: Path | None,
    calibrate: str,
    is_forced: bool,
    is_dry: bool,
    as_json: bool,
) -> None:
    library = open_runnable_library(invocation.settings())
    entry = library.find(model)
    target = named_output(library, entry, output, order.label, is_forced=is_forced)
    with leaving_tidily(), invocation.progress() as progress:
        # with GPTQ an importance matrix has nothing to say, and the text is read when everything else is known
        order = calibrated(entry, order, imatrix, calibrate, progress, is_dry=is_dry)
        plan = plan_fields(entry, order)
        if is_dry:
            progress.clear()
            print_json(plan) if as_json else print_text(plan_text(plan))
            return
        for line in plan_text(plan).splitlines():
            progress.say(line)
        try:
            made = _write(library, model, entry, target, order, is_forced, progress)
        except KeyboardInterrupt:
            progress.say("stopped; the same command goes on from here")
            raise typer.Exit(STOPPED) from None
    if as_json:
        print_json({**plan, **made})
    else:
        print_text(made_text(made))


def calibrated(
    entry: "Entry", order: "Order", imatrix: Path | None, calibrate: str, progress: Progress, *, is_dry: bool = False
) -> "Order":
    """The order with what is known of the inputs. UsageError for two sources of that, and for files that are none."""
    if imatrix is not None and calibrate:
        raise UsageError("--imatrix and --calibrate say the same", hint="leave one of them out")
    if order.method == "gptq" and imatrix is not None:
        raise UsageError("GPTQ needs the inputs themselves, not their importances", hint="use --calibrate TEXT")
    if imatrix is not None:
        from localllm.quantize.imatrix import read_imatrix  # few commands need it

        if not imatrix.exists():
            raise UsageError(f"there is no file {imatrix}", hint="make one: localllm imatrix MODEL -o FILE")
        matrix = read_imatrix(imatrix)
        return replace(order, importance=matrix, imatrix=", ".join(matrix.datasets) or imatrix.name)
    if not calibrate and order.method == "rtn":
        return order
    return _calibrated_by_text(entry, order, calibrate or DEFAULT_TEXT, progress, is_dry)


def _calibrated_by_text(entry: "Entry", order: "Order", named: str, progress: Progress, is_dry: bool) -> "Order":
    import hashlib

    from localllm.lab.calibrate import collect_importance, default_text, reading_of  # loads the reference backend
    from localllm.lab.rounding import gptq_rounding

    is_default = named == DEFAULT_TEXT
    words, name = (default_text(), "localllm's own text") if is_default else (text_of(Path(named)), Path(named).name)
    digest = hashlib.sha256(words.encode()).hexdigest()
    order = replace(order, imatrix=name, text_digest=digest)
    if is_dry:
        return order
    progress.status("reading the calibration text")
    reading = reading_of(Path(entry.path), words, name)
    if order.method == "gptq":
        return replace(order, rounding=gptq_rounding(reading))

    def tell(done: int, total: int) -> None:
        progress.status(f"calibrating: {100 * done // max(total, 1)} %")

    return replace(order, importance=collect_importance(Path(entry.path), reading, tell))


def _write(
    library: "Library",
    model: str,
    entry: "Entry",
    target: Path | str,
    order: "Order",
    is_forced: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Into a file, or the store under a name; what there is then to say."""
    import msgspec

    from localllm.runtime.quantize import quantize_model, way_of  # loads numpy and tokenizers

    if isinstance(target, str):
        made = library.quantize(model, target, way_of(order), lambda event: on_event(progress, event))
        receipt, size, path = made.receipt, made.size_bytes, made.path
    else:
        tell = file_teller(progress, target)
        receipt = quantize_model(
            Path(entry.path), target, order, name=entry.name, digest=entry.digest, replaces=is_forced, progress=tell
        )
        size, path = target.stat().st_size, str(target)
    name = target if isinstance(target, str) else None
    return {"name": name, "path": path, "file_bytes": size, "receipt": msgspec.to_builtins(receipt)}


def on_event(progress: Progress, event: "PullEvent") -> None:
    """Shows what the store says while it quantizes."""
    if event.kind == "status" and event.resumed_bytes:
        progress.say(event.message)
    else:
        progress.on_pull(event)


def file_teller(progress: Progress, target: Path) -> Callable[[str, int, int], None]:
    resumed = 0

    def tell(name: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal resumed
        if total_bytes:
            progress.update(f"writing {target.name}", done_bytes, total_bytes, min(resumed, done_bytes))
        elif done_bytes:
            resumed = done_bytes
            progress.say(name)
        else:
            progress.status(name)

    return tell
