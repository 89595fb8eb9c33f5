"""What the daemon answers, as data. Fields that it does not send keep their defaults."""

import msgspec

from localllm.client.said import SaidToken


class Health(msgspec.Struct, frozen=True):
    """What `GET /health` says of the daemon."""

    status: str = ""
    version: str = ""


class LoadStage(msgspec.Struct, frozen=True):
    """How far a model has loaded."""

    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def fraction(self) -> float:
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `ps`. `expires_at` is in seconds since the epoch, None for never; `progress` is set while loading,
    `error` when it failed."""

    name: str
    digest: str = ""
    size_bytes: int = 0
    processor: str = ""
    backend: str = ""
    device: str = ""
    kv_type: str = ""
    quantize: str = ""
    context_length: int = 0
    expires_at: str | float | None = None
    state: str = ""
    progress: LoadStage | None = None
    pages_used: int = 0
    pages_cached: int = 0
    pages_total: int = 0
    page_size: int = 0
    vocab_size: int = 0
    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    error: str = ""


class LoadProgress(msgspec.Struct, frozen=True):
    """One line while a model loads; the last one has status `ready`."""

    status: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    notes: tuple[str, ...] = ()
    """What a person should know of the backend that was chosen; with the last line."""


class Timings(msgspec.Struct, frozen=True):
    """Where the time of one answer went. Counts are tokens; `cache_n` prompt tokens were found in the prefix cache."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    load_ms: float = 0.0
    queue_ms: float = 0.0
    total_ms: float = 0.0


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatChunk(msgspec.Struct, frozen=True):
    """A piece of a streamed answer. The last ones carry why it ended, how long it was and where the time went.

    `tokens` come where the request asks for `logprobs` (with `top_logprobs` and `return_token_ids`: with all that is
    known of them), `prompt_ids` with the first piece where it asks for `return_token_ids`."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    tokens: tuple[SaidToken, ...] = ()
    prompt_ids: tuple[int, ...] = ()


class Answered(msgspec.Struct, frozen=True):
    """What the daemon said to a request, whatever its status. Names of `headers` are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request as `ps --requests` lists it. `verdict` says where its time went; `created` is in seconds since the
    epoch."""

    id: str
    route: str = ""
    model: str = ""
    caller: str = ""
    state: str = ""
    created: float = 0.0
    age_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    verdict: str = ""
