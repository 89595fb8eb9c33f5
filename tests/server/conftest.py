"""Daemons that several files of tests ask; a file that needs another one has a `world` of its own."""

from collections.abc import Iterator

import pytest

from tests.server.parrot import parrots
from tests.server.world import World, daemon


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Over a parrot, which says what it is told to."""
    with daemon(tmp_path_factory.mktemp("home"), sources=parrots()) as world:
        yield world


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Over a model that computes what it says."""
    with daemon(tmp_path_factory.mktemp("toys")) as world:
        yield world
