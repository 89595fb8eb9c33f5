"""`localllm show`: what a model is. Needs the store's record only; `--verbose` opens the file as well."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from localllm.cli.human import aligned
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model, entry_fields, open_library
from localllm.cli.output import print_json, print_text
from localllm.errors import UsageError
from localllm.store.names import looks_like_path

if TYPE_CHECKING:
    from localllm.quantize.receipt import Measured, Receipt
    from localllm.store.entry import Entry

PARTS = ("license", "modelfile", "parameters", "system", "template")
EXCERPT_LINES = 2


def show(
    ctx: typer.Context,
    model: Model,
    license_: Annotated[bool, typer.Option("--license", help="Print the licence only.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print a Modelfile that makes this model.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Print the parameters only.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Print the system message only.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print metadata and tensors, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model is: size, template, parameters, licence."""
    flags = (license_, modelfile, parameters, system, template)
    wanted = [part for part, is_wanted in zip(PARTS, flags, strict=True) if is_wanted]
    if len(wanted) > 1:
        names = ", ".join(f"'--{part}'" for part in PARTS[:-1])
        raise UsageError(f"only one of {names}, or '--{PARTS[-1]}' can be specified", hint="ask for one at a time")
    if looks_like_path(model) and show_adapter(model, as_json=as_json):
        return
    entry = open_library(Invocation.of(ctx).settings()).find(model)
    if as_json:
        print_json(show_fields(entry))
    else:
        print_text(part_text(entry, wanted[0]) if wanted else info_text(entry, is_verbose=verbose))


def show_adapter(text: str, *, as_json: bool) -> bool:
    """Print what a path is that holds an adapter; False where it holds none."""
    from localllm.cli.show_adapter import adapter_at, adapter_fields, adapter_rows  # opens files

    facts = adapter_at(text)
    if facts is None:
        return False
    if as_json:
        print_json(adapter_fields(facts))
    else:
        print_text(section("Adapter", adapter_rows(facts)))
    return True


def part_text(entry: "Entry", part: str) -> str:
    """One part, as `show --PART` and the `/show PART` of a conversation print it."""
    if part == "modelfile":
        from localllm.store.modelfile import render_modelfile  # one command of many needs it

        return render_modelfile(entry)
    if part == "parameters":
        return aligned(parameter_rows(entry.params))
    if part == "template":
        from localllm.cli.show_file import file_template  # opens the model's file

        return entry.template or file_template(entry)
    return entry.license if part == "license" else entry.system


def info_text(entry: "Entry", *, is_verbose: bool = False) -> str:
    """The sections of `show`, each with a title and an empty line behind it."""
    parts = [
        section("Model", model_rows(entry)),
        section("Capabilities", [[capability] for capability in entry.capabilities]),
        section("Adapter", [["path", path] for path in entry.adapters]),
        section("Projector", [["path", entry.projector]] if entry.projector else []),
        section("Quantized here", receipt_rows(entry.receipt, is_verbose=is_verbose)),
        section("Parameters", parameter_rows(entry.params)),
        *(_file_sections(entry) if is_verbose else ()),
        section("System", excerpt(entry.system)),
        section("License", excerpt(entry.license)),
    ]
    return "".join(parts)


def section(title: str, rows: list[list[str]]) -> str:
    return f"  {title}\n{aligned(rows, indent='    ')}\n" if rows else ""


def model_rows(entry: "Entry") -> list[list[str]]:
    rows = (
        ("architecture", entry.architecture),
        ("parameters", entry.parameters),
        ("context length", str(entry.context_length or "")),
        ("embedding length", str(entry.embedding_length or "")),
        ("quantization", entry.quantization),
    )
    return [[name, value] for name, value in rows if value]


def receipt_rows(receipt: "Receipt | None", *, is_verbose: bool = False) -> list[list[str]]:
    """What was done when the model was quantized, and what it cost; errors of all layers where it is verbose."""
    if receipt is None:
        return []
    told = ", pure" if receipt.pure else ""
    rows = [
        ["recipe", f"{receipt.recipe}{told} ({receipt.bits_per_weight:.2f} bits per weight)"],
        ["method", {"rtn": "rounded to nearest", "gptq": "GPTQ"}.get(receipt.method, receipt.method)],
        ["from", receipt.source],
        ["imatrix", receipt.imatrix],
        ["kept", ", ".join(receipt.keep)],
        ["weight error", _share(receipt.error)],
        *_layer_rows(receipt.layers, is_verbose),
        *(
            [("worst tensor", "")[index > 0], f"{each.name} ({each.type}) {_share(each.error)}"]
            for index, each in enumerate(receipt.worst[: None if is_verbose else 1])
        ),
        *measured_rows(receipt.measured),
        ["localllm", receipt.version],
    ]
    return [row for row in rows if row[1]]


def _layer_rows(layers: Sequence[float], is_verbose: bool) -> list[list[str]]:
    if is_verbose:
        return [[f"  layer {number}", _share(error)] for number, error in enumerate(layers)]
    if not any(layers):
        return []
    worst = max(range(len(layers)), key=layers.__getitem__)
    return [["worst layer", f"{worst} of {len(layers)}: {_share(layers[worst])}"]]


def measured_rows(measured: "Measured | None") -> list[list[str]]:
    """What was measured against the model that this one was made from."""
    if measured is None:
        return []
    return [
        ["divergence", f"{measured.kl_mean:.4f} nats on average, {measured.kl_p99:.3f} at the 99th percentile"],
        ["same top token", _share(measured.same_top)],
        ["perplexity", f"{measured.ppl:.4f}, {measured.ppl_ratio:.4f} times the original's"],
        ["measured on", f"{measured.text} ({measured.tokens} tokens)" if measured.tokens else measured.text],
    ]


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if value else ""


def parameter_rows(params: Mapping[str, Any]) -> list[list[str]]:
    """Name and value; a list gives one row per item, texts stand in quotes."""
    return [[name, parameter_text(item)] for name, value in params.items() for item in _items(value)]


def parameter_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def excerpt(text: str) -> list[list[str]]:
    """The first lines that are not empty, and `...` when there are more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] for line in lines[:EXCERPT_LINES]] + [["..."]] * (len(lines) > EXCERPT_LINES)


def show_fields(entry: "Entry") -> dict[str, Any]:
    """The stable JSON form: the fields of `list --json`, and the long ones."""
    return {
        **entry_fields(entry),
        "files": [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in entry.files],
        "params": dict(entry.params),
        "template": entry.template,
        "system": entry.system,
        "license": entry.license,
        "messages": [dict(message) for message in entry.messages],
        "receipt": None if entry.receipt is None else msgspec.to_builtins(entry.receipt),
    }


def _file_sections(entry: "Entry") -> list[str]:
    from localllm.cli.show_file import file_rows  # opens the model's files
    from localllm.models.names import left_out

    metadata, tensors = file_rows(entry)
    unread = [[sentence] for sentence in left_out(name for name, *_ in tensors)]
    return [section("Metadata", metadata), section("Tensors", tensors), section("Not used", unread)]


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]
