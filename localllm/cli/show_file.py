"""What `localllm show` reads from the model's own files: metadata, tensors, the chat template."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.formats.sniff import model_kind
from localllm.store.folder import folder_template

if TYPE_CHECKING:
    from localllm.store.entry import Entry

MAX_ITEMS = 10  # of an array
MAX_CHARACTERS = 80  # of a text


def file_template(entry: "Entry") -> str:
    """The chat template in the model's files; empty when there is none."""
    path = Path(entry.path)
    if model_kind(path) != "gguf":
        return folder_template(path if path.is_dir() else path.parent)
    with GGUFFile.open(path) as file:
        found = file.metadata.get("tokenizer.chat_template", "")
        return found if isinstance(found, str) else ""


def file_rows(entry: "Entry") -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the metadata (of config.json, where the weights are safetensors) and rows of the tensors."""
    path = Path(entry.path)
    if model_kind(path) == "gguf":
        with GGUFFile.open(path) as file:
            return metadata_rows(file), tensor_rows(file)
    with SafetensorsFolder.open(path) as folder:
        config = [[key, value_text(folder.config[key])] for key in sorted(folder.config)]
        return config, [[name, tensor.dtype, str(list(tensor.shape))] for name, tensor in folder.tensors.items()]


def metadata_rows(file: GGUFFile) -> list[list[str]]:
    """Key and value, sorted; long arrays and texts are cut."""
    return [[key, value_text(file.metadata[key])] for key in sorted(file.metadata)]


def value_text(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else f"{value[:MAX_CHARACTERS]}..."
    if not isinstance(value, list):
        return str(value).lower() if isinstance(value, bool) else str(value)
    rest = len(value) - MAX_ITEMS
    items = ", ".join(str(item)[:MAX_CHARACTERS] for item in value[:MAX_ITEMS])
    return f"[{items}, ...+{rest} more]" if rest > 0 else f"[{items}]"


def tensor_rows(file: GGUFFile) -> list[list[str]]:
    """Name, type and shape, in the order of the file."""
    return [[name, tensor.type.name, str(list(tensor.shape))] for name, tensor in file.tensors.items()]
