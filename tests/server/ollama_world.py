"""A daemon over a real store in a home of its own, whose models run as toys; and what Ollama's official client sees."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ollama

from localllm.daemon.sources import Sources
from localllm.store.catalog import Catalog
from localllm.store.library import Library
from tests.daemon.toy import WORKER_COMMAND, toy_text
from tests.server.world import World, daemon
from tests.store.worlds import library_of


class Stocked(NamedTuple):
    """A daemon, its store to look into, and a client."""

    world: World
    library: Library
    client: ollama.Client


@contextlib.contextmanager
def stocked(home: Path, catalog: Catalog | None = None, **changes: Any) -> Iterator[Stocked]:
    make = functools.partial(library_of, home, catalog, **changes)
    sources = Sources(
        library=make(),
        open_shelf=make,
        load_text=toy_text,
        worker_command=WORKER_COMMAND,
        backend_problem=lambda backend: "",
    )
    with daemon(home, sources=sources) as world, ollama.Client(host=world.url, trust_env=False) as client:
        yield Stocked(world, make(), client)
