"""`localllm eval kl --keep`: figures into the receipt of the model that they are about."""

from pathlib import Path
from typing import TYPE_CHECKING

from localllm.cli.library import open_library
from localllm.lab.compare import measured_of
from localllm.runtime.quantize import keep_in_file
from localllm.settings import Settings
from localllm.store.names import looks_like_path

if TYPE_CHECKING:
    from localllm.lab.divergence import Divergence


def keep_divergence(settings: Settings, model: str, found: "Divergence", against: str, text: str) -> None:
    """In the store for a name, in the file for a path. UsageError for a model without a receipt."""
    base = Path(against).name if looks_like_path(against) else against
    measured = measured_of(found, base, text)
    if looks_like_path(model):
        keep_in_file(Path(model), measured)
    else:
        open_library(settings).keep_measured(model, measured)
