"""Where a daemon's models come from and how they run: the real store and runtime, or what tests put in their place."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localllm.daemon.heap import give_back_memory, settle
from localllm.daemon.process import WORKER_COMMAND
from localllm.daemon.shelf import OpenShelf, no_shelf
from localllm.daemon.tokenizers import load_tokenizer
from localllm.errors import BadModelFile, InvalidRequest
from localllm.runtime.machine_memory import available_memory_bytes, total_memory_bytes
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide
    from localllm.tokens.tokenizer import Tokenizer

logger = logging.getLogger("localllm.daemon")


def import_text_side() -> None:
    """Import what the first model will need, while nobody waits for it yet."""
    import localllm.runtime.load
    import localllm.tokens.chat
    import localllm.tokens.markup
    import localllm.tokens.stream  # noqa: F401  # the import is all that is wanted

    settle()


def load_text(entry: Entry) -> "TextSide":
    """The tokenizer and template of a model, read in the daemon only. The template's first rendering is done here,
    while the weights load: it starts the process that renders."""
    # deferred: tokenizers and jinja2 come with the first model
    from localllm.runtime.load import load_text as load

    text = load(Path(entry.path), template=entry.jinja_template)
    if entry.template_kind == "go":
        logger.warning("%s has a template in Go's language; the one in the model file is used", entry.name)
    with contextlib.suppress(InvalidRequest):  # a template may refuse this conversation and still be good for others
        text.template.render([{"role": "user", "content": "Hello"}])
    give_back_memory()
    return text


def check_files(entry: Entry) -> None:
    """BadModelFile where a file is not what was downloaded: quick while size, time and inode are as they were, else
    by its sha256, which reads all of it. Files of other programs that we never verified are theirs to keep."""
    from localllm.store.verify import has_changed  # deferred: it comes with the first model

    for file in entry.files:
        if (file.is_ours or file.stamp) and has_changed(file):
            known = f": its sha256 is not {file.sha256}" if file.sha256 else f": it has not {file.size_bytes} bytes"
            raise BadModelFile(f"{file.path} of {entry.name} is damaged or gone{known}", hint=_remedy(entry))


def _remedy(entry: Entry) -> str:
    if entry.origin:
        return f"`localllm pull {entry.parent or entry.name}` fetches it again"
    return f"put the file back, or forget the model with `localllm rm {entry.name}`"


def backend_problem(backend: str) -> str:
    """Why a backend cannot be used here; empty when it may."""
    from localllm.backends.select import problem_of  # deferred: numpy comes with it

    return problem_of(backend)


class LibraryLike(Protocol):
    """The models there are."""

    def find(self, name: str) -> Entry: ...

    def entries(self) -> Iterable[Entry]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where models come from and how they run; tests put fakes here."""

    library: LibraryLike
    open_shelf: OpenShelf = no_shelf
    load_text: "Callable[[Entry], TextSide]" = load_text
    load_tokenizer: "Callable[[Entry], Tokenizer]" = load_tokenizer
    worker_command: Sequence[str] = WORKER_COMMAND
    check_files: Callable[[Entry], None] = check_files
    warm_up: Callable[[], None] = import_text_side
    available_memory_bytes: Callable[[], int] = available_memory_bytes
    total_memory_bytes: Callable[[], int] = total_memory_bytes
    backend_problem: Callable[[str], str] = backend_problem
    clock: Callable[[], float] = time.monotonic
