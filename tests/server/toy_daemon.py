"""A real daemon process over toy models: what `python -m localllm.server` is, with other sources."""

import sys

from localllm.daemon.sources import Sources
from localllm.server.serving import main
from localllm.settings import Settings
from tests.daemon.toy import WORKER_COMMAND, ToyLibrary, toy_entry, toy_text

COMMAND = (sys.executable, __file__)


def toy_sources(settings: Settings) -> Sources:
    kinds = ("toy:slow", "toy:sick", "toy:heavy", "toy:endless", "toy:mortal")
    library = ToyLibrary(toy_entry("toy:1b"), *(toy_entry(kind, kind) for kind in kinds))
    return Sources(library=library, load_text=toy_text, worker_command=WORKER_COMMAND)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], toy_sources))
