"""`/v1/models` as Anthropic's clients want it: they send their version with everything."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from localllm.store.entry import Entry

VERSION_HEADER = "anthropic-version"


def is_anthropic(request: Request) -> bool:
    return VERSION_HEADER in request.headers


def models_body(entries: Sequence[Entry]) -> dict[str, Any]:
    rows = [model_body(entry) for entry in entries]
    ids = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return {"data": rows, "has_more": False, **ids}


def model_body(entry: Entry) -> dict[str, Any]:
    """`max_tokens`: an answer may fill the context."""
    return {
        "type": "model",
        "id": entry.name,
        "display_name": entry.name,
        "created_at": datetime.fromtimestamp(entry.modified or 0, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": entry.context_length,
        "max_tokens": entry.context_length,
    }
