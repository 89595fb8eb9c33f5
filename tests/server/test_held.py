"""What is over is let go: a daemon remembers its last requests, not the models that answered them."""

import gc
import time
import weakref
from pathlib import Path

from tests.server.world import daemon


def test_a_model_that_is_gone_is_held_by_none_of_the_requests_that_it_answered(tmp_path: Path) -> None:
    with daemon(tmp_path) as world:
        assert world.chat("hello").status_code == 200
        assert world.complete("hello", stream=True).status_code == 200
        (held,) = world.on_loop(lambda: [weakref.ref(each) for each in world.daemon.residency.residents()])
        assert world.client.post("/localllm/v1/stop", json={"model": "toy:1b"}).status_code == 200
        deadline = time.monotonic() + 5.0
        while held() is not None and time.monotonic() < deadline:  # its process is still seen off
            world.on_loop(gc.collect)
        assert held() is None
        assert len(world.client.get("/v1/requests").json()["data"]) == 2
