"""What `localllm quantize` prints before and after: the plan with its sizes, and what came of it."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.cli.human import aligned, duration_text, size_text
from localllm.errors import StoreError, UsageError

if TYPE_CHECKING:
    from localllm.runtime.quantize import Order
    from localllm.store.entry import Entry
    from localllm.store.library import Library

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def named_output(library: "Library", entry: "Entry", output: str, label: str, *, is_forced: bool) -> Path | str:
    """A file to write, or a new name. Without one: beside a name a name, of a path a file where one works.

    UsageError, StoreError for a place where nothing can be written.
    """
    from localllm.quantize.quantize import check_not_source  # loads numpy
    from localllm.store.names import looks_like_path, parse_ref, quantized_name

    if not output and not looks_like_path(entry.name):
        output = quantized_name(entry.name, label)
    if output and not looks_like_path(output):
        return _new_name(library, output, parse_ref(output).kind, is_forced)
    path = Path(output).expanduser() if output else Path.cwd() / f"{_stem(Path(entry.path))}-{label}.gguf"
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name the file to write with -o")
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"{path.name} would be no GGUF file by its name", hint="end it with .gguf")
    check_not_source(path, (Path(entry.path), *(Path(file.path) for file in entry.files)))
    if path.exists() and not is_forced:
        raise UsageError(f"{path} is there already", hint="name another file with -o, or allow it with --force")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist", hint="make it, or name another file with -o")
    return path


def _new_name(library: "Library", output: str, kind: str, is_forced: bool) -> str:
    if kind != "name":
        raise UsageError(
            f"{output!r} cannot be a new name: use letters, digits, '.', '-' and '_'", hint="e.g. mine:q4_k_m"
        )
    if not is_forced and any(entry.name == _full(output) for entry in library.entries()):
        raise UsageError(f"{output} is here already", hint="choose another name with -o, or allow it with --force")
    return output


def _full(name: str) -> str:
    from localllm.store.names import parse_ref

    return parse_ref(name).display


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else re.sub(r"-00001-of-\d{5}$", "", path.stem)


def plan_fields(entry: "Entry", order: "Order") -> dict[str, Any]:
    """The plan as JSON has it: groups of tensors that are alike, and the whole."""
    from localllm.runtime.quantize import plan_of, seconds_of  # loads numpy

    plan = plan_of(Path(entry.path), order)
    sizes, counts = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for line in plan.tensors:
        group = _LAYER.sub("*", line.name), line.source_type.name, line.target_type.name
        sizes[group] += line.size_bytes
        counts[group] += 1
    groups = [
        {"tensors": name, "count": counts[group], "from": before, "to": after, "size_bytes": sizes[group]}
        for group in counts
        for name, before, after in (group,)
    ]
    return {
        "model": entry.name,
        "type": plan.recipe.name,
        "method": order.method,
        "imatrix": order.imatrix or None,
        "groups": groups,
        "source_bytes": plan.source_bytes,
        "size_bytes": plan.size_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "requantized": len(plan.requantized()),
        "about_s": round(seconds_of(plan), 1),
    }


def plan_text(plan: dict[str, Any]) -> str:
    """A row for each group that is rounded; what stays as it is, in one."""
    rounded = [group for group in plan["groups"] if group["from"] != group["to"]]
    kept = [group for group in plan["groups"] if group["from"] == group["to"]]
    rows = [["TENSORS", "NUMBER", "FROM", "TO", "SIZE"]]
    rows += [
        [group["tensors"], str(group["count"]), group["from"], group["to"], size_text(group["size_bytes"])]
        for group in rounded
    ]
    if kept:
        count, size = (sum(group[key] for group in kept) for key in ("count", "size_bytes"))
        rows.append(["others", str(count), "", "as they are", size_text(size)])
    total = (
        f"{size_text(plan['source_bytes'])} become {size_text(plan['size_bytes'])} "
        f"({plan['bits_per_weight']:.2f} bits per weight); {_about(plan['about_s'])}"
    )
    return f"{aligned(rows)}{total}"


def _about(seconds: float) -> str:
    words = duration_text(seconds).lower().removeprefix("about ")
    return words if words.startswith("less") else f"about {words}"


def made_text(made: dict[str, Any]) -> str:
    """Where the result is, and what was lost."""
    receipt = made["receipt"]
    what = f"{made['name']}" if made["name"] else made["path"]
    lines = [f"{what} ({size_text(made['file_bytes'])})"]
    if receipt["error"]:
        layers = receipt["layers"]
        worst = max(range(len(layers)), key=layers.__getitem__) if layers else 0
        lines.append(
            f"the weights lost {100 * receipt['error']:.2f} %; most in layer {worst} "
            f"({100 * layers[worst]:.2f} %) and in {receipt['worst'][0]['name']} "
            f"({100 * receipt['worst'][0]['error']:.2f} %)"
        )
    return "\n".join(lines)
