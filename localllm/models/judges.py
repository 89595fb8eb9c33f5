"""How files say that a model judges pairs of texts. Cheap to import: catalogs and lists ask it, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

RANK: Final = 4
"""`pooling_type` of GGUF files whose model judges."""
LABELS: Final = ["yes", "no"]
"""Of heads with two outputs in GGUF files."""
_SEQUENCES = "ForSequenceClassification"


def is_judge(config: Mapping[str, Any]) -> bool:
    """By the `architectures` of a config.json."""
    named = config.get("architectures")
    return isinstance(named, list) and any(isinstance(name, str) and name.endswith(_SEQUENCES) for name in named)
