"""What Claude Code and Codex send, written down in `agents/`, passes as it is: only the model is another one."""

import pytest

from tests.server.golden_streams import events_of
from tests.server.recorded import Recorded, recorded, send
from tests.server.world import World


@pytest.mark.parametrize("request_", recorded("claude_code"))
def test_requests_of_claude_code_pass(world: World, request_: Recorded) -> None:
    answer = send(world, request_)
    assert answer.status_code == 200, answer.text
    if "count_tokens" in request_["path"]:
        assert answer.json()["input_tokens"] > 0
    elif request_["body"].get("stream"):
        events = [event["type"] for event in events_of(answer.text)]
        assert events[0] == "message_start" and events[-1] == "message_stop"
    else:
        assert answer.json()["type"] == "message"


@pytest.mark.parametrize("request_", recorded("codex"))
def test_requests_of_codex_pass(world: World, request_: Recorded) -> None:
    answer = send(world, request_)
    assert answer.status_code == 200, answer.text
    events = [event["type"] for event in events_of(answer.text)]
    assert events[0] == "response.created" and events[-1] in ("response.completed", "response.incomplete")
    assert "tools[4]" in answer.headers["x-localllm-ignored"], "the search that does not run here is named"


def test_what_changes_with_every_request_does_not_spoil_the_cache(world: World) -> None:
    request = recorded("claude_code")[0].values[0]
    body = request["body"] | {"model": "parrot:1b", "stream": False}
    for count in range(2):
        system = [{"type": "text", "text": f"x-anthropic-billing-header: cch={count};"}, *body["system"][1:]]
        answer = world.client.post(request["path"], json=body | {"system": system}, headers=request["headers"])
    assert answer.json()["usage"]["cache_read_input_tokens"] > 100
    assert "system[0]" in answer.headers["x-localllm-ignored"]
