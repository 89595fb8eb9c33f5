"""`localllm quantize MODEL mlx-4bit`: a folder of safetensors as MLX has them."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm import __version__
from localllm.cli.convert import leaving_tidily
from localllm.cli.human import aligned, size_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import open_runnable_library
from localllm.cli.output import print_json, print_text
from localllm.errors import StoreError, UsageError

if TYPE_CHECKING:
    from localllm.quantize.mlx_out import MlxRow, MlxType

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def quantize_for_mlx(
    invocation: Invocation, model: str, kind: "MlxType", output: str, *, is_dry: bool, as_json: bool
) -> None:
    """Write the folder, and say where it is."""
    from localllm.formats.safetensors import SafetensorsFolder
    from localllm.quantize.mlx_out import mlx_plan, write_mlx  # loads numpy
    from localllm.runtime.place import place_of

    entry = open_runnable_library(invocation.settings()).find(model)
    place = place_of(Path(entry.path))
    if place.kind == "gguf":
        raise UsageError(
            f"{entry.name} is a GGUF file, and MLX folders are made of safetensors", hint="name the original checkpoint"
        )
    target = _target(output, place.path, kind)
    with SafetensorsFolder.open(place.path) as folder, leaving_tidily(), invocation.progress() as progress:
        plan = _fields(entry.name, mlx_plan(folder, kind), kind)
        if is_dry:
            print_json(plan) if as_json else print_text(_text(plan))
            return
        for line in _text(plan).splitlines():
            progress.say(line)

        def on_tensor(name: str, done_bytes: int, total_bytes: int) -> None:
            progress.update(f"writing {target.name}", done_bytes, total_bytes)

        receipt = {
            "localllm.quantize.recipe": plan["type"],
            "localllm.quantize.source": Path(entry.name).name if entry.source == "path" else entry.name,
            "localllm.quantize.source_digest": entry.digest,
            "localllm.quantize.version": __version__,
        }
        write_mlx(folder, place.folder, target, kind, receipt, on_tensor)
    if as_json:
        print_json({**plan, "path": str(target)})
    else:
        print_text(f"{target} ({size_text(plan['size_bytes'])})")


def _target(output: str, source: Path, kind: "MlxType") -> Path:
    path = Path(output).expanduser() if output else Path.cwd() / f"{source.resolve().stem}-mlx-{kind.bits}bit"
    if path.suffix in (".gguf", ".safetensors"):
        raise UsageError(f"{path.name} names a file, and MLX has folders", hint="name a folder with -o")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} is there already", hint="name another folder with -o")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist", hint="make it, or name another one with -o")
    return path


def _fields(model: str, rows: "list[MlxRow]", kind: "MlxType") -> dict[str, Any]:
    import math

    sizes, counts = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    name = f"mlx-{kind.bits}bit"
    for row in rows:
        group = (
            _NUMBER.sub("*", row.name),
            row.dtype,
            f"{name}, groups of {kind.group}" if row.is_quantized else row.dtype,
        )
        sizes[group] += row.size_bytes
        counts[group] += 1
    total = sum(row.size_bytes for row in rows)
    return {
        "model": model,
        "type": name,
        "group_size": kind.group,
        "groups": [
            {"tensors": tensors, "count": counts[group], "from": before, "to": after, "size_bytes": sizes[group]}
            for group in counts
            for tensors, before, after in (group,)
        ],
        "size_bytes": total,
        "bits_per_weight": round(8 * total / max(1, sum(math.prod(row.shape) for row in rows)), 4),
    }


def _text(plan: dict[str, Any]) -> str:
    rows = [["TENSORS", "NUMBER", "FROM", "TO", "SIZE"]]
    rows += [
        [group["tensors"], str(group["count"]), group["from"], group["to"], size_text(group["size_bytes"])]
        for group in plan["groups"]
    ]
    return f"{aligned(rows)}{size_text(plan['size_bytes'])} ({plan['bits_per_weight']:.2f} bits per weight)"
