"""What a daemon may ask of the store besides finding models: what there could be, and to bring, make, rename and forget
them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localllm.errors import LocalLLMError, UnsupportedModel
from localllm.settings import Settings
from localllm.store.entry import Entry, SearchHit

if TYPE_CHECKING:
    from localllm.store.catalog import Catalog
    from localllm.store.modelfile import Modelfile
    from localllm.store.plan import CanRun, Say
    from localllm.store.quantized import Quantizing
    from localllm.store.tokenizers import TokenizerShelf
    from localllm.store.uploads import Upload


class Shelf(Protocol):
    """`store.library.Library`, as far as daemons need it. Everything takes long: not for the event loop."""

    settings: Settings
    can_run: "CanRun | None"

    @property
    def catalog(self) -> "Catalog": ...

    @property
    def tokenizers(self) -> "TokenizerShelf": ...

    def entries(self) -> list[Entry]: ...

    def damaged(self) -> Sequence[LocalLLMError]: ...

    def find(self, text: str) -> Entry: ...

    def search(self, query: str, progress: "Say") -> list[SearchHit]: ...

    def pull(self, text: str, progress: "Say") -> Entry: ...

    def create(
        self,
        name: str,
        modelfile: "Modelfile",
        folder: Path | None,
        progress: "Say",
        *,
        files: Mapping[str, str] | None = None,
        way: "Quantizing | None" = None,
    ) -> Entry: ...

    def quantize(self, source: str, name: str, way: "Quantizing", progress: "Say") -> Entry: ...

    def copy(self, source: str, target: str) -> Entry: ...

    def removable(self, text: str) -> str: ...

    def remove(self, text: str) -> None: ...

    def has_upload(self, digest: str) -> bool: ...

    def receive(self, digest: str, size_bytes: int = 0) -> "Upload": ...


OpenShelf = Callable[[], Shelf]


def no_shelf() -> Shelf:
    """For daemons whose models are given."""
    error: LocalLLMError = UnsupportedModel("the models of this daemon cannot be changed", hint="they are given to it")
    error.http_status = 400
    raise error
