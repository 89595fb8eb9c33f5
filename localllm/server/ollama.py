"""Ollama's native API on our own port: its routes, its words, its forms."""

from collections.abc import Sequence

from localllm.daemon.shelf import OpenShelf
from localllm.server.desk import Desk
from localllm.server.ollama_creating import OllamaCreating
from localllm.server.ollama_embedding import OllamaVectors
from localllm.server.ollama_generating import OllamaAnswers
from localllm.server.ollama_models import OllamaModels
from localllm.server.operations import Operation

GREETING = "localllm is running. For clients that look for the words of another server: Ollama is running\n"
"""What `GET /` says: programs that probe for Ollama search it for its own sentence."""


class Ollama:
    """`/api/...`."""

    def __init__(self, desk: Desk, open_shelf: OpenShelf) -> None:
        self._parts = (
            OllamaAnswers(desk),
            OllamaVectors(desk),
            OllamaModels(desk.residency, open_shelf),
            OllamaCreating(open_shelf),
        )

    def operations(self) -> Sequence[Operation]:
        return [operation for part in self._parts for operation in part.operations()]
