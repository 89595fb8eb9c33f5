"""What programs send to a model server, written down in `agents/`: sent as it is, only the model is another one."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.world import World

FOLDER = Path(__file__).parent / "agents"
Recorded = dict[str, Any]
"""`name`, `path`, `headers`; `method` where it is not POST, `body` where there is one."""


def recorded(client: str) -> list[Any]:
    """The requests of one program, as parameters of a test."""
    requests = json.loads((FOLDER / f"{client}.json").read_text())["requests"]
    return [pytest.param(request, id=f"{client}: {request['name']}") for request in requests]


def send(world: World, request: Recorded, model: str = "parrot:1b") -> httpx.Response:
    if "body" not in request:
        return world.client.request(request.get("method", "POST"), request["path"], headers=request["headers"])
    named = {"name": model} if "name" in request["body"] else {"model": model}
    return world.client.post(request["path"], json=request["body"] | named, headers=request["headers"])
