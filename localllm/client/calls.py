"""Typed calls to a running daemon: what it runs, answers and requests. Other calls stand in groups of their own."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from localllm.client import transport
from localllm.client.failing import error_from, is_given
from localllm.client.library import LibraryCalls
from localllm.client.looking import LookingCalls
from localllm.client.said import Scored
from localllm.client.shapes import Answered, ChatChunk, Health, LoadedModel, LoadProgress, RequestRow, Timings, Usage
from localllm.client.tokens import TokenCalls
from localllm.client.transport import NOTHING, Transport

if TYPE_CHECKING:
    from localllm.daemon.feed import Frame


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[Scored] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _ChatEvent(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_token_ids: list[int] | None = None
    error: msgspec.Raw = msgspec.Raw()


class _LoadLine(msgspec.Struct, frozen=True):
    status: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    notes: tuple[str, ...] = ()
    error: msgspec.Raw = msgspec.Raw()


class _Models(msgspec.Struct, frozen=True):
    models: list[LoadedModel] = []


class _Requests(msgspec.Struct, frozen=True):
    data: list[RequestRow] = []


class _Cancelled(msgspec.Struct, frozen=True):
    cancelled: bool = True


class _Stopped(msgspec.Struct, frozen=True):
    was_loaded: bool = True


class _Card(msgspec.Struct, frozen=True):
    id: str


class _Cards(msgspec.Struct, frozen=True):
    data: list[_Card] = []


class _Vector(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class _Vectors(msgspec.Struct, frozen=True):
    data: list[_Vector] = []


class Client:
    """Calls to the daemon at `url`. Every call opens one connection; errors come back as those of errors.py."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self._transport = Transport(url, api_key)
        self.library = LibraryCalls(self._transport)
        self.tokens = TokenCalls(self._transport)
        self.looking = LookingCalls(self._transport)

    @property
    def url(self) -> str:
        return self._transport.url

    @property
    def api_key(self) -> str:
        return self._transport.api_key

    def health(self) -> Health:
        return self._transport.call("GET", "/health", None, Health, timeout_s=transport.HEALTH_TIMEOUT_S)

    def model_names(self) -> list[str]:
        """Names that requests may use."""
        return [card.id for card in self._transport.get("/v1/models", _Cards).data]

    def ps(self) -> list[LoadedModel]:
        """The models that are loaded or loading."""
        return self._transport.get("/localllm/v1/ps", _Models).models

    def stop(self, model: str) -> bool:
        """Unloads a model; False when it was not loaded."""
        return self._transport.post("/localllm/v1/stop", {"model": model}, _Stopped).was_loaded

    def shutdown(self) -> None:
        """Asks the daemon to finish its answers and end."""
        self._transport.post("/localllm/v1/shutdown", {}, msgspec.Raw)

    def load(
        self, model: str, keep_alive: str | None = None, wish: Mapping[str, str | int] = NOTHING
    ) -> Iterator[LoadProgress]:
        """Makes a model resident; ends with the line whose status is `ready`. `wish`: backend, device, kv_type,
        threads, quantize; a model that is loaded otherwise is loaded again."""
        body = {"model": model, **wish} | ({"keep_alive": keep_alive} if keep_alive is not None else {})
        with self._transport.answer("POST", "/localllm/v1/load", body) as response:
            status = ""
            for line in self._transport.lines(response):
                found = self._transport.decoded(line, _LoadLine)
                if is_given(found.error):
                    raise error_from(found.error)
                status = found.status
                yield LoadProgress(found.status, found.done_bytes, found.total_bytes, found.notes)
            if status != "ready":
                raise self._transport.broken_off(None)

    def load_lora(self, name: str, path: str, scale: float = 1.0) -> None:
        """Lets requests name an adapter, whose path is on the daemon's machine."""
        self._transport.post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, "scale": scale}, msgspec.Raw
        )

    def chat(self, body: dict[str, Any]) -> Iterator[ChatChunk]:
        """Streams an answer; `body` is a request of `/v1/chat/completions`, to which usage and timings are added.

        Closing the iterator closes the connection, and the daemon frees what the answer held.
        """
        extras = {"stream": True, "stream_options": {"include_usage": True}, "timings": True}
        with self._transport.answer("POST", "/v1/chat/completions", {**body, **extras}) as response:
            for event in self._transport.events(response):
                yield _chat_chunk(self._transport.decoded(event, _ChatEvent))

    def live(self) -> "Iterator[Frame]":
        """The live feed, frame by frame, until the daemon ends or the iterator is closed."""
        from localllm.daemon.feed import Frame  # deferred: few commands watch

        with self._transport.answer("GET", "/live", None) as response:
            for line in self._transport.lines(response):
                if line.startswith(b"data: "):
                    yield self._transport.decoded(line[6:], Frame)

    def requests(self) -> list[RequestRow]:
        """Requests under way, the oldest first; then those that are over, the latest first."""
        return self._transport.get("/v1/requests", _Requests).data

    def cancel(self, request_id: str) -> bool:
        """Ends a request; False when it was over before."""
        path = f"/v1/requests/{quote(request_id, safe='')}/cancel"
        return self._transport.post(path, {}, _Cancelled).cancelled

    def embed(self, body: Mapping[str, Any]) -> list[list[float]]:
        """The vectors of `input`, in its order; `body` as `/v1/embeddings` takes it, with numbers as its encoding."""
        rows = self._transport.post("/v1/embeddings", dict(body), _Vectors).data
        return [row.embedding for row in sorted(rows, key=lambda row: row.index)]

    def send(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] = NOTHING
    ) -> Answered:
        """Any request, and any answer to it as it is. DaemonUnreachable where there is none."""
        return self._transport.send(method, path, body, headers)


def _chat_chunk(event: _ChatEvent) -> ChatChunk:
    if is_given(event.error):
        raise error_from(event.error)
    choice = event.choices[0] if event.choices else _Choice()
    delta = choice.delta
    reasoning = delta.reasoning or delta.reasoning_content or ""
    said = tuple(entry.said() for entry in choice.logprobs.content or ()) if choice.logprobs else ()
    prompt_ids = tuple(event.prompt_token_ids or ())
    return ChatChunk(delta.content or "", reasoning, choice.finish_reason, event.usage, event.timings, said, prompt_ids)
