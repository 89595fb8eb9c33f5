"""What GGUF files say about themselves, remembered until they change: a daemon asks for every request, and reading a
large vocabulary takes as long as a short answer."""

from __future__ import annotations

import os

from localllm.store.blobs import stamp_of
from localllm.store.entry import Entry


class Descriptions:
    """`details.describe` with a memory."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Entry, tuple[str, ...], Entry]] = {}

    def of(self, entry: Entry) -> Entry:
        """The entry with what its file adds; raises as `describe`."""
        from localllm.store.details import describe  # deferred: it brings numpy, which `list` must not load

        asked, stamps, known = self._known.get(entry.path, (None, (), entry))
        if asked == entry and stamps == _stamps(known):
            return known
        before = _stamp(entry.path)
        described = describe(entry)
        if described.path == entry.path and _is_gguf(entry.path) and before == _stamp(entry.path):
            self._known[entry.path] = (entry, _stamps(described), described)
        return described


def _is_gguf(path: str) -> bool:
    """What safetensors say is in files beside them, too."""
    from localllm.formats.sniff import sniff  # deferred, as above

    return sniff(path) == "gguf"


def _stamps(entry: Entry) -> tuple[str, ...]:
    return tuple([_stamp(file.path) for file in entry.files])


def _stamp(path: str) -> str:
    """Empty where nothing is."""
    return stamp_of(path) if os.path.exists(path) else ""
