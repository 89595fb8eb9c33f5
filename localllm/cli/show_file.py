"""What `localllm show` reads from the GGUF file itself: metadata, tensors, the chat template."""

from typing import TYPE_CHECKING

from localllm.errors import UnsupportedModel
from localllm.formats.gguf_read import GGUFFile

if TYPE_CHECKING:
    from localllm.store.entry import Entry

MAX_ITEMS = 10  # of an array
MAX_CHARACTERS = 80  # of a text


def open_gguf(entry: "Entry") -> GGUFFile:
    """The model's file; UnsupportedModel for a model in another format."""
    if not entry.path.lower().endswith(".gguf") and not _is_gguf(entry.path):
        raise UnsupportedModel(f"{entry.name} is not a GGUF file", hint="its folder holds plain JSON: config.json")
    return GGUFFile.open(entry.path)


def file_template(entry: "Entry") -> str:
    """The chat template in the file; empty when there is none."""
    with open_gguf(entry) as file:
        found = file.metadata.get("tokenizer.chat_template", "")
        return found if isinstance(found, str) else ""


def metadata_rows(file: GGUFFile) -> list[list[str]]:
    """Key and value, sorted; long arrays and texts are cut."""
    return [[key, value_text(file, key)] for key in sorted(file.metadata)]


def value_text(file: GGUFFile, key: str) -> str:
    value = file.metadata[key]
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


def _is_gguf(path: str) -> bool:
    # blobs of other stores have no suffix
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
