"""The models screen over a real daemon and store: a pull from a hub on loopback, load, look inside, unload, remove."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.client import Client
from localllm.store.catalog import Source
from localllm.tui.models.screen import ModelsScreen
from tests.server.ollama_world import Stocked, stocked
from tests.store.conftest import _own_caches, hub  # noqa: F401  # fixtures
from tests.store.worlds import FakeHub, catalog_of, tiny_gguf
from tests.tui.fakes import app_with
from tests.tui.pictures import screen_text
from tests.tui.test_models import World

HUB = Source(kind="hub", repo="org/tiny-GGUF", files={"F32": "tiny-F32.gguf"})


@pytest.fixture
def place(tmp_path: Path, hub: FakeHub) -> Iterator[Stocked]:  # noqa: F811
    content = tiny_gguf(tmp_path / "m.gguf", kilobytes=2000).read_bytes()
    hub.repos["org/tiny-GGUF"] = {"tiny-F32.gguf": content}
    catalog = catalog_of(HUB, parameters="1.5B", size_bytes=len(content), default_quant="F32", context_length=4096)
    with stocked(tmp_path / "home", catalog, hub_endpoint=hub.endpoint) as found:
        yield found
        found.world.on_loop(found.world.daemon.live.end)  # the application's reader is still there


async def test_a_model_from_the_catalog_to_an_answering_model_and_away_again(tmp_path: Path, place: Stocked) -> None:
    app = app_with(Client(place.world.url), tmp_path, first="models")
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        world = World(app, pilot, Client(place.world.url))
        await world.until(lambda: "Catalog  1" in world.text and "No model is here yet" in world.text)
        await world.until(lambda: "● fits" in world.text and "It fits with about" in world.text)
        await world.press("p")
        await world.until(lambda: "Installed  1" in world.text and "Catalog" not in world.text)
        await world.until(lambda: world.screen.detail.model is not None and "tiny-F32.gguf" in world.text)
        await world.press("enter")
        await world.until(lambda: "Running  1" in world.text and "▌ tiny:1m" in world.text)
        assert place.world.ps()[0]["name"] == "tiny:1m"
        await world.press("m")
        await world.until(lambda: "general.architecture" in world.text and "llama.context_length" in world.text)
        await world.press("escape")
        await world.until(lambda: isinstance(app.screen, ModelsScreen))
        await world.press("u")
        await world.until(lambda: "Installed  1" in world.text)
        await world.press("d", "enter")
        await world.until(lambda: "No model is here yet" in screen_text(app))
        assert place.library.entries() == []


async def test_a_pull_that_breaks_off_goes_on_with_a_key(tmp_path: Path, place: Stocked, hub: FakeHub) -> None:  # noqa: F811
    hub.cut_after = [1_000_000] + [0] * 40
    app = app_with(Client(place.world.url), tmp_path, first="models")
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        world = World(app, pilot, Client(place.world.url))
        await world.until(lambda: "Catalog  1" in world.text)
        await world.press("p")
        await world.until(lambda: "▪ failed: the download of tiny-F32.gguf broke off" in world.text)
        hub.cut_after = []
        await world.press("p")
        await world.until(lambda: "enter try again" in world.text and "Pull again to go on." in world.text)
        await world.press("enter")
        await world.until(lambda: "Installed  1" in world.text)
        assert hub.ranges_of("tiny-F32.gguf")[-1] == "bytes=1000000-"
