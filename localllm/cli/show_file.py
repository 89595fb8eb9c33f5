"""What `localllm show` prints of the model's own files: rows of metadata and tensors, the chat template."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.store.inside import facts_of, template_in

if TYPE_CHECKING:
    from localllm.store.entry import Entry

MAX_ITEMS = 10  # of an array
MAX_CHARACTERS = 80  # of a text


def file_template(entry: "Entry") -> str:
    """The chat template in the model's files; empty when there is none."""
    return template_in(Path(entry.path))


def file_rows(entry: "Entry") -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the metadata (of config.json, where the weights are safetensors), sorted, with long arrays and texts cut;
    and rows of the tensors: name, type and shape, in the order of the file."""
    facts = facts_of(Path(entry.path))
    metadata = [[key, value_text(facts.metadata[key])] for key in sorted(facts.metadata)]
    return metadata, [[tensor.name, tensor.type, str(list(tensor.shape))] for tensor in facts.tensors]


def value_text(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else f"{value[:MAX_CHARACTERS]}..."
    if not isinstance(value, list):
        return str(value).lower() if isinstance(value, bool) else str(value)
    rest = len(value) - MAX_ITEMS
    items = ", ".join(str(item)[:MAX_CHARACTERS] for item in value[:MAX_ITEMS])
    return f"[{items}, ...+{rest} more]" if rest > 0 else f"[{items}]"
