"""Looking inside: what a request would cost, what a page holds, where the time of a request went."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from localllm.client.shapes import RequestRow
from localllm.client.transport import Transport


class PromptParts(msgspec.Struct, frozen=True):
    """Tokens of the parts of a prompt; `continued` are those that the answer begins with."""

    system: int = 0
    history: int = 0
    draft: int = 0
    continued: int = 0


class PreviewSampling(msgspec.Struct, frozen=True):
    """The sampling in force."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What sending a chat request would mean now. `state` is ready, loading or not loaded; `compute_s` estimates how
    long what is not cached takes. None: not known."""

    model: str = ""
    state: str = ""
    parts: PromptParts = PromptParts()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    compute_tokens: int = 0
    compute_s: float | None = None
    context_length: int | None = None
    left_tokens: int | None = None
    max_tokens: int | None = None
    page_size: int = 16
    sampling: PreviewSampling = PreviewSampling()


class PageToken(msgspec.Struct, frozen=True):
    """`raw` are its bytes, which need not be text."""

    id: int
    text: str = ""
    byte_values: tuple[int, ...] = msgspec.field(name="bytes", default=())

    @property
    def raw(self) -> bytes:
        return bytes(self.byte_values)


class Holder(msgspec.Struct, frozen=True):
    """A request that holds a page, as its tokens `start` up to `end`; `id` None: somebody else's."""

    id: str | None = None
    serial: int = 0
    start: int = 0
    end: int = 0


class ChainLink(msgspec.Struct, frozen=True):
    """A page on the way to the root, the start of its hash, how many hold it, and the requests that may be seen."""

    page: int | None = None
    hash: str = ""
    holders: int = 0
    requests: tuple[str, ...] = ()


class PageDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One page at this moment: `state` is free, cached, held or shared; `tokens` None: not ours to read."""

    model: str = ""
    page: int = 0
    state: str = ""
    references: int = 0
    start: int = 0
    end: int = 0
    holders: tuple[Holder, ...] = ()
    tokens: tuple[PageToken, ...] | None = None
    chain: tuple[ChainLink, ...] = ()
    chain_length: int = 0


class Span(msgspec.Struct, frozen=True):
    """A part of a request's time: load, queued, prefill (one chunk), preempted or decode. Seconds since its arrival."""

    kind: str
    start_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class BatchPoint(msgspec.Struct, frozen=True):
    """So many sequences ran from `at_s` on."""

    at_s: float = 0.0
    size: int = 0


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """Another request in the batch; it read its prompt until `read_s`. `id` None: somebody else's."""

    id: str | None = None
    serial: int = 0
    source: str = ""
    start_s: float = 0.0
    read_s: float = 0.0
    end_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Stall(msgspec.Struct, frozen=True):
    """No token came for so many seconds up to `at_s`."""

    at_s: float = 0.0
    seconds: float = 0.0


class Waterfall(msgspec.Struct, frozen=True):
    """A request to draw, the verdict on it, and one thing to try."""

    spans: tuple[Span, ...] = ()
    batch: tuple[BatchPoint, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    stalls: tuple[Stall, ...] = ()
    cached_tokens: int = 0
    why: str = ""
    advice: str = ""


class RequestPhases(msgspec.Struct, frozen=True):
    """Seconds of each phase; 0 for those that it has not reached."""

    load_s: float = 0.0
    queue_s: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0


class HappenedEvent(msgspec.Struct, frozen=True):
    """Something happened to a request, `time` in seconds since the epoch. Who sent it is said with each."""

    name: str = ""
    at: float = 0.0
    time: float = 0.0
    data: Mapping[str, Any] = {}
    serial: int = 0
    source: str = ""
    priority: int = 0


class RequestDetails(RequestRow, frozen=True, kw_only=True):
    """A request with what happened to it and where its time went."""

    events: tuple[HappenedEvent, ...] = ()
    phases: RequestPhases = RequestPhases()
    waterfall: Waterfall = Waterfall()


class LookingCalls:
    """Nothing of this changes anything, loads a model or takes a page."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def preview(self, body: Mapping[str, Any], draft: str = "") -> Preview:
        """What a request of `/v1/chat/completions` would cost with `draft` as its last message."""
        asked = {name: value for name, value in body.items() if name not in _OF_SENDING}
        return self._transport.post("/localllm/v1/preview", asked | ({"draft": draft} if draft else {}), Preview)

    def page(self, model: str, page: int) -> PageDetails:
        """What a page of a loaded model holds. LocalLLMError with the code `model_not_loaded` where it is not."""
        return self._transport.get(f"/localllm/v1/pages/{page}", PageDetails, **({"model": model} if model else {}))

    def request(self, request_id: str) -> RequestDetails:
        """A request under way, or one that is over and still known."""
        return self._transport.get(f"/v1/requests/{quote(request_id, safe='')}", RequestDetails)


_OF_SENDING = frozenset(("stream", "stream_options", "timings", "timings_per_token", "return_progress"))
