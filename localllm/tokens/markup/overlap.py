"""How much of a text's end may become a tag."""

from collections.abc import Iterable


def overlap(text: str, tags: Iterable[str]) -> int:
    """How many characters at the end of the text may be the beginning of one of the tags."""
    return max((_overlap(text, tag) for tag in tags), default=0)


def _overlap(text: str, tag: str) -> int:
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
