"""The near end of the HTTP wire: typed calls to a running daemon. Loads in milliseconds: no HTTP library."""

from localllm.client.calls import Client
from localllm.client.failing import error_from
from localllm.client.shapes import (
    Answered,
    ChatChunk,
    Health,
    LoadedModel,
    LoadProgress,
    LoadStage,
    RequestRow,
    Timings,
    Usage,
)
from localllm.client.transport import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S

__all__ = [
    "ANSWER_TIMEOUT_S",
    "CONNECT_TIMEOUT_S",
    "Answered",
    "ChatChunk",
    "Client",
    "Health",
    "LoadProgress",
    "LoadStage",
    "LoadedModel",
    "RequestRow",
    "Timings",
    "Usage",
    "error_from",
]
