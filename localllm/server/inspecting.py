"""What a model's own files say, cut to what a person can read. Opens them, so it is not for the event loop."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from localllm.daemon.shelf_shapes import InspectedModel, MetadataItem, TensorItem
from localllm.store.entry import Entry

MAX_VALUE_CHARS = 400
MAX_ITEMS = 8
MAX_KEYS = 2000
MAX_TENSORS = 20_000
MAX_TEXT_CHARS = 200_000
TEMPLATE_KEY = "tokenizer.chat_template"


def inspected(entry: Entry) -> InspectedModel:
    """BadModelFile and ModelNotFound where there is nothing sound to look into."""
    from localllm.store.inside import facts_of, template_in  # deferred: numpy comes with them

    path = Path(entry.path)
    facts = facts_of(path)
    tensors = [
        TensorItem(name=each.name, shape=each.shape, type=each.type, size_bytes=each.size_bytes)
        for each in facts.tensors[:MAX_TENSORS]
    ]
    items = [(key, value) for key, value in facts.metadata.items() if key != TEMPLATE_KEY]
    return InspectedModel(
        name=entry.name,
        format=facts.format,
        quantization=entry.quantization,
        metadata=tuple(_item(key, value) for key, value in items[:MAX_KEYS]),
        tensors=tuple(tensors),
        types=_types(tensors),
        template=(entry.template or template_in(path))[:MAX_TEXT_CHARS],
        license=entry.license[:MAX_TEXT_CHARS],
        system=entry.system[:MAX_TEXT_CHARS],
    )


def _types(tensors: Iterable[TensorItem]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for tensor in tensors:
        counted[tensor.type] += tensor.size_bytes
    return dict(counted.most_common())


def _item(key: str, value: Any) -> MetadataItem:
    text, left_out = _shortened(value)
    return MetadataItem(key=str(key)[:MAX_VALUE_CHARS], value=text, left_out=left_out)


def _shortened(value: Any) -> tuple[str, int]:
    """As text, and how many characters or items that leaves out."""
    if isinstance(value, list | tuple):
        shown = ", ".join(_text(item)[:40] for item in value[:MAX_ITEMS])
        return shown, max(0, len(value) - MAX_ITEMS)
    text = _text(value)
    return text[:MAX_VALUE_CHARS], max(0, len(text) - MAX_VALUE_CHARS)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
