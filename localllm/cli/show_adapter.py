"""What `localllm show` prints of an adapter: the model it is for, its rank, what it changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.models.open_adapter import adapter_facts, is_adapter

if TYPE_CHECKING:
    from localllm.models.adapters import AdapterFacts


def adapter_at(text: str) -> AdapterFacts | None:
    """Of a path that holds an adapter and no model; None for anything else. UnsupportedModel or BadModelFile for an
    adapter that could not be applied."""
    path = Path(os.path.expanduser(text))
    return adapter_facts(path) if path.exists() and is_adapter(path) else None


def adapter_rows(facts: AdapterFacts) -> list[list[str]]:
    ranks = ", ".join(map(str, facts.ranks))
    rows = [
        ["kind", {"peft": "LoRA (PEFT)", "gguf": "LoRA (GGUF)"}[facts.kind]],
        ["base", facts.base],
        ["architecture", facts.architecture],
        ["rank", ranks],
        ["alpha", f"{facts.alpha:g}"],
        ["targets", ", ".join(facts.targets)],
        ["matrices", str(facts.num_matrices)],
        ["size", f"{facts.size_bytes / 2**20:.1f} MiB"],
    ]
    return [row for row in rows if row[1]]


def adapter_fields(facts: AdapterFacts) -> dict[str, Any]:
    """The stable JSON form."""
    return {
        "path": str(facts.path),
        "kind": facts.kind,
        "base": facts.base,
        "architecture": facts.architecture,
        "ranks": list(facts.ranks),
        "alpha": facts.alpha,
        "targets": list(facts.targets),
        "matrices": facts.num_matrices,
        "size_bytes": facts.size_bytes,
    }
